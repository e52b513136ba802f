"""A generator whose divergences from its data are known: g(z) = a z + b against N(mu, s^2), in one dimension.

Expectations over z and the noise are sums over a fine grid, which for smooth integrands is exact to rounding;
the noise reaches the losses through the rng that they take.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import pi

import torch
from torch import Tensor

from scoregen.denoisers.base import Cond
from scoregen.denoisers.gaussian import GaussianDenoiser
from scoregen.diffusion.noise import LevelsSigma
from scoregen.objectives.base import Loss
from scoregen.rng import BatchRng


class GridRng(BatchRng):
    """Hands out given noise [N, 1] instead of drawing it."""

    def __init__(self, *noise: Tensor) -> None:
        super().__init__("grid", size=len(noise[0]))
        self.noise = list(noise)

    def randn_like(self, x: Tensor) -> Tensor:
        return self.noise.pop(0) if len(self.noise) > 1 else self.noise[0]


def normal_grid(dimensions: int, step: float, reach: float = 8.0) -> tuple[Tensor, Tensor]:
    """Nodes [N, dimensions] and weights [N] of the standard normal distribution."""
    axis = torch.arange(-reach, reach + step / 2, step, dtype=torch.float64)
    nodes = torch.cartesian_prod(*[axis] * dimensions).view(-1, dimensions)
    return nodes, (-nodes.square().sum(1) / 2).exp() * (step / (2 * pi) ** 0.5) ** dimensions


NODES, NODE_WEIGHTS = normal_grid(2, 0.08)


@dataclass(frozen=True)
class Toy:
    """The reference case, with its closed forms at one noise level sigma; `level` is that distribution."""

    mu: float = 0.7
    s: float = 0.5
    a: float = 0.9
    b: float = -0.2
    sigma: float = 0.6

    @property
    def v_p(self) -> float:
        return self.s**2 + self.sigma**2

    @property
    def v_q(self) -> float:
        return self.a**2 + self.sigma**2

    @property
    def c(self) -> float:
        return 1 / self.v_p - 1 / self.v_q

    @property
    def gap(self) -> float:
        return self.b - self.mu

    @property
    def level(self) -> LevelsSigma:
        return LevelsSigma((self.sigma,))

    @property
    def teacher(self) -> GaussianDenoiser:
        return gaussian(self.mu, self.s)

    @property
    def fake(self) -> GaussianDenoiser:
        return gaussian(self.b, self.a)

    def log_ratio(self, x: Tensor, sigma: Tensor, cond: Cond = None) -> Tensor:
        """log p(x) / q(x) of the noisy densities, with the generator's parameters held fixed; [B, 1]."""
        return log_normal(x, self.mu, self.v_p) - log_normal(x, self.b, self.v_q)

    def gradient(self, loss: Callable[[Tensor, BatchRng], Loss], *further_noise: Tensor) -> list[float]:
        """d/da and d/db of the expectation of loss(x0, rng), x0 = a z + b."""
        a = torch.tensor(self.a, dtype=torch.float64, requires_grad=True)
        b = torch.tensor(self.b, dtype=torch.float64, requires_grad=True)
        value = loss(a * NODES[:, :1] + b, GridRng(NODES[:, 1:], *further_noise)).value
        gradient = torch.autograd.grad((NODE_WEIGHTS * value).sum(), (a, b))
        return [float(g) for g in gradient]


def gaussian(mean: float, std: float) -> GaussianDenoiser:
    """The denoiser of N(mean, std^2)."""
    return GaussianDenoiser(
        torch.tensor([mean], dtype=torch.float64), torch.tensor([std**2], dtype=torch.float64)
    )


def log_normal(x: Tensor, mean: float | Tensor, variance: float | Tensor) -> Tensor:
    """log N(x; mean, variance) elementwise."""
    variance = torch.as_tensor(variance, dtype=x.dtype)
    return -((x - mean) ** 2) / (2 * variance) - (2 * pi * variance).log() / 2


def slopes(value: Callable[[Tensor, Tensor], Tensor], a: float, b: float) -> list[float]:
    """d/da and d/db of a function of both, by automatic differentiation."""
    at = [torch.tensor(t, dtype=torch.float64, requires_grad=True) for t in (a, b)]
    return [float(g) for g in torch.autograd.grad(value(*at), at)]
