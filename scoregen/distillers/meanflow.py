"""MeanFlow: a denoiser that is told where to go learns the average velocity of the flow on the way there."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from scoregen.denoisers.base import Cond, Denoise, expand
from scoregen.diffusion.noise import LogNormalSigma, SigmaDistribution
from scoregen.objectives.base import Loss
from scoregen.ranges import Fraction, NonNegative, Positive
from scoregen.rng import BatchRng

AverageVelocity = Callable[[Tensor, Tensor, Tensor, Cond], Tensor]  # u(x, r, t, cond), [B, *shape]


def flow_time(sigma: Tensor) -> Tensor:
    """t = sigma / (1 + sigma), at which x_t = (1 - t) x0 + t n is (1 - t) (x0 + sigma n)."""
    return sigma / (1 + sigma)


def velocity(denoiser: Denoise, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
    """v(x, t) = E[n - x0 | x_t = x] = (x - D(x / (1 - t); t / (1 - t))) / t, [B, *shape]."""
    return (x - denoiser(x / expand(1 - t, x), t / (1 - t), cond)) / expand(t, x)


@dataclass(frozen=True)
class MeanFlowLoss:
    """|u - sg u*|^2 / sg(|u - u*|^2 + 1e-3)^p, u* = v - (t - r) (v d_x u + d_t u), norms over all elements.

    x_t = (1 - t) x0 + t n and v = n - x0, or the teacher's v(x_t, t). The optimum is the average velocity
    u(x_t, r, t) = (x_t - x_r) / (t - r) along the probability flow, and v where r = t; one step from t to 0
    is x_t - t u(x_t, 0, t). The total derivative takes one forward-mode product.

    Args:
        later, earlier: distributions of sigma = t / (1 - t) at both ends; the larger one is t.
        equal: probability of r = t.
        power: p.
        sigma_max: caps both.

    Source: Geng et al., Mean Flows for One-step Generative Modeling, 2025, arXiv 2505.13447, with FastGen's
    values for CIFAR-10; the form with a teacher is derived.
    """

    later: SigmaDistribution = LogNormalSigma(-0.6, 1.6)  # noqa: RUF009 - frozen
    earlier: SigmaDistribution = LogNormalSigma(-4.0, 1.6)  # noqa: RUF009 - frozen
    equal: Fraction = 0.25
    power: NonNegative = 0.75
    sigma_max: Positive = 80.0

    def __call__(
        self, average: AverageVelocity, x0: Tensor, cond: Cond, rng: BatchRng, teacher: Denoise | None = None
    ) -> Loss:
        """The loss at clean data x0 [B, *shape] of the classes cond [B]."""
        r, t = self._times(x0, rng)
        noise = rng.randn_like(x0)
        x = x0 + expand(t, x0) * (noise - x0)
        with torch.no_grad():
            v = noise - x0 if teacher is None else velocity(teacher, x, t, cond)
        u, derivative = total_derivative(average, x, r, t, v, cond)
        target = v - expand(t - r, x) * derivative.detach()
        error = (u - target).flatten(1).square().sum(1)
        return Loss(error / (error.detach() + 1e-3) ** self.power, t / (1 - t), {"error": error.detach()})

    def _times(self, x0: Tensor, rng: BatchRng) -> tuple[Tensor, Tensor]:
        """r <= t [B]."""
        ends = [
            d.quantile(rng.stratified()).to(x0).clamp(max=self.sigma_max) for d in (self.later, self.earlier)
        ]
        r, t = flow_time(torch.minimum(*ends)), flow_time(torch.maximum(*ends))
        return torch.where(rng.rand() < self.equal, t, r), t


def total_derivative(
    average: AverageVelocity, x: Tensor, r: Tensor, t: Tensor, v: Tensor, cond: Cond
) -> tuple[Tensor, Tensor]:
    """u and v d_x u + d_t u, [B, *shape] each, in one forward-mode pass."""

    def function(x: Tensor, t: Tensor) -> Tensor:
        return average(x, r, t, cond)

    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels of attention have no forward mode
        u, derivative, *_ = torch.func.jvp(function, (x, t), (v, torch.ones_like(t)))
    return u, derivative
