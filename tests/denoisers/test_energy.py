"""Laws of energy networks: a conservative score, with the density that it is the gradient of."""

from math import pi, sqrt

import pytest
import torch
from torch import Tensor

from scoregen.denoisers.base import score
from scoregen.denoisers.energy import log_density
from scoregen.denoisers.network import NetworkDenoiser
from scoregen.diffusion.precond import EDMPrecond, Precond, VEPrecond, VPPrecond
from scoregen.errors import UserError
from scoregen.networks import MLP, EnergyDDPMpp, EnergyMLP
from scoregen.networks.base import Network
from scoregen.objectives.sliced import finite_difference_energy
from scoregen.rng import BatchRng, generator

SIGMA = torch.logspace(-1, 0.7, 6, dtype=torch.float64)


def perturbed(network: Network, precond: Precond) -> NetworkDenoiser:
    network = network.double().eval()
    with torch.no_grad():
        for i, p in enumerate(network.parameters()):
            p.add_(torch.randn(p.shape, generator=generator("energy", i), dtype=p.dtype), alpha=0.2)
    return NetworkDenoiser(network, precond, shape=network.shape, num_classes=network.num_classes)


def mlp(precond: Precond | None = None, **options: int) -> NetworkDenoiser:
    network = EnergyMLP(resolution=2, channels=2, width=16, depth=2, **options)
    return perturbed(network, EDMPrecond() if precond is None else precond)


def unet() -> NetworkDenoiser:
    options = {"model_channels": 8, "channel_mult": (1, 2), "num_blocks": 1, "attention_resolutions": (4,)}
    return perturbed(EnergyDDPMpp(resolution=8, channels=1, **options), EDMPrecond())


def points(denoiser: NetworkDenoiser, count: int = len(SIGMA)) -> Tensor:
    return torch.randn(count, *denoiser.shape, generator=generator("x"), dtype=torch.float64)


@pytest.mark.parametrize("denoiser", [mlp(), mlp(VPPrecond()), mlp(VEPrecond()), unet()])
def test_the_score_is_the_gradient_of_the_log_density(denoiser: NetworkDenoiser) -> None:
    x = points(denoiser).requires_grad_()
    (slope,) = torch.autograd.grad(log_density(denoiser, x, SIGMA).sum(), x)
    torch.testing.assert_close(slope, score(denoiser, x, SIGMA).detach(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("denoiser", [mlp(), unet()])
def test_its_jacobian_is_symmetric_where_that_of_a_plain_network_is_not(denoiser: NetworkDenoiser) -> None:
    def asymmetry(denoiser: NetworkDenoiser) -> float:
        sigma = SIGMA[:1]
        x = points(denoiser, 1)
        jacobian = torch.autograd.functional.jacobian(lambda x: denoiser(x, sigma), x)
        square = jacobian.reshape(x.numel(), x.numel())
        return float((square - square.T).norm() / square.norm())

    assert asymmetry(denoiser) < 1e-12
    plain = perturbed(MLP(resolution=2, channels=2, width=16, depth=2), EDMPrecond())
    assert asymmetry(plain) > 1e-3


def test_it_denoises_alike_with_and_without_a_graph() -> None:
    denoiser, cond = mlp(num_classes=3), torch.arange(6) % 3
    x = points(denoiser)
    traced = denoiser(x, SIGMA, cond)
    with torch.no_grad():
        plain = denoiser(x, SIGMA, cond)
    assert traced.requires_grad
    assert not plain.requires_grad
    torch.testing.assert_close(plain, traced.detach(), rtol=1e-12, atol=1e-14)


def test_gradients_of_a_loss_of_the_score_match_finite_differences() -> None:
    denoiser = mlp()
    x, weight = points(denoiser), denoiser.network.input.weight

    def loss(w: Tensor) -> Tensor:
        (score_at,) = [torch.func.functional_call(denoiser, {"network.input.weight": w}, (x, SIGMA))]
        return score_at.square().sum()

    assert torch.autograd.gradcheck(loss, (weight.detach().clone().requires_grad_(),), rtol=1e-5)


def test_finite_differences_of_the_density_agree_with_the_score() -> None:
    """To second order in the step, without any derivative: (v.s)^2 / 2 + v^T J v, scaled to d."""
    denoiser, sigma = mlp(), torch.tensor(0.7, dtype=torch.float64)
    x = points(denoiser, 50)
    v = BatchRng("v", size=50).randn(2, dtype=torch.float64)

    def matching(score_at: Tensor, jacobian: Tensor) -> Tensor:
        along = (score_at * v).sum(1)
        return along.square() / 2 + torch.einsum("bi,bij,bj->b", v, jacobian, v)

    one = lambda x: score(denoiser, x[None], sigma)[0]  # noqa: E731
    jacobians = torch.stack([torch.autograd.functional.jacobian(one, row) for row in x])
    exact = matching(score(denoiser, x, sigma), jacobians) * 2 / v.square().sum(1)
    errors = []
    for step in (0.02, 0.01):
        ours = finite_difference_energy(lambda x: log_density(denoiser, x, sigma), x, step * v)
        errors.append(float((ours - exact).abs().mean()))
    assert errors[1] < 1e-3
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.05)


def test_the_log_density_of_other_networks_is_refused() -> None:
    plain = perturbed(MLP(resolution=2, channels=2), EDMPrecond())
    with pytest.raises(UserError, match=r"needs an energy network, such as network=energy_mlp, got MLP"):
        log_density(plain, torch.zeros(1, 2), torch.tensor(1.0))


def test_its_density_integrates_to_that_of_gaussian_data_when_untrained() -> None:
    """A new network predicts F = 0: the density of N(0, sigma_data^2) with noise."""
    denoiser = NetworkDenoiser(EnergyMLP(resolution=1, channels=1), EDMPrecond(), shape=(1,))
    x = torch.linspace(-8, 8, 2001)[:, None]
    mass = float(log_density(denoiser, x, torch.tensor(1.0)).exp().sum()) * 16 / 2000
    assert mass == pytest.approx(sqrt(2 * pi * 1.25), rel=1e-3)
