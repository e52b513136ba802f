"""Learned uncertainty: a weight per noise level that is trained along and discarded at inference."""

from math import pi

import torch
from torch import Tensor, nn

from scoregen.denoisers.base import Cond, Denoise
from scoregen.objectives.base import Loss, Objective
from scoregen.ranges import PositiveInt
from scoregen.rng import BatchRng, generator


class UncertaintyLoss(nn.Module):
    """Weighs an objective's loss to about 1 at every noise level by a jointly trained log variance u(sigma).

    value = loss / exp(u(sigma)) + u(sigma),  u(sigma) = (w / ||w||) . f(ln(sigma) / 4),
    f_k(c) = sqrt(2) cos(2 pi (a_k c + b_k)),  a_k ~ N(0, 1), b_k ~ U(0, 1) fixed.

    The optimum is u* = ln E[loss | sigma], where the value is 1 + u*. The loss before weighting is logged as
    `unweighted`.

    Args:
        base: the objective to weigh.
        features: the number of random Fourier features f_k.

    Source: Karras et al., Analyzing and Improving the Training Dynamics of Diffusion Models, 2024,
    arXiv 2312.02696.
    """

    frequency: Tensor
    phase: Tensor

    def __init__(self, base: Objective, *, features: PositiveInt = 128) -> None:
        super().__init__()
        self.base = base
        rng = generator("uncertainty")  # the features are constants of the method, the same for every seed
        self.register_buffer("frequency", torch.randn(features, generator=rng))
        self.register_buffer("phase", torch.rand(features, generator=rng))
        self.weight = nn.Parameter(torch.randn(features, generator=rng))

    def log_variance(self, sigma: Tensor) -> Tensor:
        """u(sigma), [B]."""
        angle = (sigma.log() / 4)[:, None] * self.frequency + self.phase
        features = 2**0.5 * (2 * pi * angle).cos()
        direction: Tensor = self.weight / torch.linalg.vector_norm(self.weight)
        return features @ direction

    def forward(self, denoiser: Denoise, x0: Tensor, cond: Cond, rng: BatchRng) -> Loss:
        """The weighted loss at clean data x0 [B, *shape] with class ids cond [B]."""
        loss = self.base(denoiser, x0, cond, rng)
        log_variance = self.log_variance(loss.sigma)
        value = loss.value * (-log_variance).exp() + log_variance
        return Loss(value, loss.sigma, {**loss.logs, "unweighted": loss.value})
