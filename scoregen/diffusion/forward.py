"""Forward processes: how clean data become the noisy points at which a score is learned.

Denoising needs the process's transition kernel and so is tied to added Gaussian noise. The other score
matching objectives need noisy points only: whatever can be simulated will do.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from scoregen.denoisers.base import expand
from scoregen.diffusion.noise import SigmaDistribution
from scoregen.ranges import PositiveInt
from scoregen.rng import BatchRng


class ForwardProcess(Protocol):
    """A law of noisy points x given clean data x0, at noise levels of its own choice."""

    def __call__(self, x0: Tensor, rng: BatchRng) -> tuple[Tensor, Tensor]:
        """Noisy points x [B, *shape] of x0, and the standard deviation sigma [B] of the noise they met."""
        ...


@dataclass(frozen=True)
class AddedNoise:
    """x = x0 + sigma n, n ~ N(0, I): the process of the house. VP is the same one, rescaled by alpha(t).

    Args:
        sigma: the distribution of the noise level; draws are stratified over the global batch.
    """

    sigma: SigmaDistribution

    def __call__(self, x0: Tensor, rng: BatchRng) -> tuple[Tensor, Tensor]:
        """x [B, *shape] and sigma [B]."""
        sigma = self.sigma.quantile(rng.stratified()).to(x0)
        return x0 + expand(sigma, x0) * rng.randn_like(x0), sigma


@dataclass(frozen=True)
class SimulatedSDE:
    """x = x_t of dx = f(x) dt + dw at t = sigma^2, by `steps` steps of Euler and Maruyama from x0.

    No kernel is needed, f may be as nonlinear as it likes, and the score learned is that of x_t. To generate,
    run its own probability flow dx/dt = f - s / 2 backwards: the samplers of the house know f = 0 alone.

    Args:
        sigma: the distribution of the root of the time; draws are stratified over the global batch.
        drift: f, [B, *shape] -> [B, *shape].
        steps: of the simulation; its bias falls as 1 / steps.
    """

    sigma: SigmaDistribution
    drift: Callable[[Tensor], Tensor]
    steps: PositiveInt = 100

    @torch.no_grad()
    def __call__(self, x0: Tensor, rng: BatchRng) -> tuple[Tensor, Tensor]:
        """x [B, *shape] and sigma [B]."""
        sigma = self.sigma.quantile(rng.stratified()).to(x0)
        x, dt = x0, expand(sigma, x0).square() / self.steps
        for _ in range(self.steps):
            x = x + self.drift(x) * dt + dt.sqrt() * rng.randn_like(x)
        return x, sigma
