"""The log density that the denoiser of an energy network knows, up to a constant."""

from torch import Tensor

from scoregen.denoisers.base import Cond, as_sigma, expand
from scoregen.denoisers.network import NetworkDenoiser
from scoregen.errors import UserError
from scoregen.networks.energy import EnergyNetwork


def log_density(denoiser: NetworkDenoiser, x: Tensor, sigma: Tensor, cond: Cond = None) -> Tensor:
    """log p(x; sigma) up to a constant of each sigma, [B], of a denoiser with an energy network.

    -((1 - c_skip) ||x||^2 / 2 + c_out / c_in E(c_in x; c_noise, cond)) / sigma^2, whose gradient is the score
    (D - x) / sigma^2. Differences of it are log ratios of densities.

    Raises UserError for other networks.
    """
    network = denoiser.network
    if not isinstance(network, EnergyNetwork):
        raise UserError(
            f"log_density needs an energy network, such as network=energy_mlp, got {type(network).__name__}"
        )
    sigma = as_sigma(sigma, x).expand(len(x))
    c = denoiser.precond(sigma)
    energy = network.energy(expand(c.input, x) * x, c.noise, cond)
    quadratic = (1 - c.skip) * x.flatten(1).square().sum(1) / 2
    return -(quadratic + c.out / c.input * energy) / sigma.square()
