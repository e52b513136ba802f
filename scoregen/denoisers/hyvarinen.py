"""The denoiser that a network of the score of positive values makes."""

from torch import Tensor

from scoregen.denoisers.base import expand
from scoregen.denoisers.network import NetworkDenoiser
from scoregen.diffusion.precond import Coefficients


class HyvarinenDenoiser(NetworkDenoiser):
    """Denoise logarithms u with the Hyvarinen score h = y * grad_y log p(y; sigma) of the values y = e^u.

    D(u; sigma) = u + sigma^2 (1 + h),  h = y F(c_in y; c_noise) / sigma,

    for 1 + h is the score of u. Everything multiplicative is in what the network sees and in the product with
    y; training and sampling are those of every denoiser.

    Source: Shetty, Prasath and Seelamantula, Dale meets Langevin, 2025, arXiv 2510.02730 (its code).
    """

    def network_input(self, x: Tensor, c: Coefficients) -> Tensor:
        """c_in e^x."""
        return expand(c.input, x) * x.exp()

    def combine(self, x: Tensor, f: Tensor, c: Coefficients) -> Tensor:
        """x + sigma (sigma + e^x f)."""
        sigma = expand(c.out, x)
        return x + sigma * (sigma + x.exp() * f)
