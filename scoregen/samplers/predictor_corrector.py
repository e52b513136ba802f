"""Predictor-corrector sampling of the reverse variance-exploding SDE."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import sqrt
from typing import ClassVar

import torch
from torch import Tensor

from scoregen.denoisers.base import Cond, Denoise, Denoiser, denoiser_for_step, expand
from scoregen.ranges import NonNegativeInt, Positive
from scoregen.rng import Rng
from scoregen.samplers.base import Sampler, Step, draw_like, level_tensor


@dataclass(frozen=True)
class PredictorCorrectorSampler(Sampler):
    """At each level Langevin steps, then a step of the reverse diffusion to the next.

    corrector: x <- x + delta s + sqrt(2 delta) z, delta = 2 (snr ||z|| / ||s||)^2
    predictor: x' = x + (sigma^2 - sigma'^2) s + sqrt(sigma^2 - sigma'^2) z, s = (D(x; sigma) - x) / sigma^2

    The norms are each sample's own; published code averages them over the batch, which makes a sample depend
    on its neighbours. The step to 0 adds no noise, so that it returns D.

    Args:
        snr: r, the corrector's signal-to-noise ratio.
        corrector_steps: Langevin steps at each level; 0 leaves the predictor alone.

    Source: Song et al., Score-Based Generative Modeling through Stochastic Differential Equations, 2020,
    arXiv 2011.13456, algorithms 2 and 4; snr = 0.16 is that of its CIFAR-10 models.
    """

    snr: Positive = 0.16
    corrector_steps: NonNegativeInt = 1

    order: ClassVar[float | None] = None
    reference: ClassVar[str] = "Song et al. 2020, arXiv 2011.13456"

    def nfe(self, steps: int | None = None) -> int:
        """N (1 + corrector steps)."""
        return (self.steps if steps is None else steps) * (1 + self.corrector_steps)

    def integrate(
        self,
        denoiser: Denoiser,
        x: Tensor,
        sigmas: Sequence[float],
        cond: Cond = None,
        rng: Rng | None = None,
    ) -> Iterator[Step]:
        """Step from the state x [B, *shape] at sigmas[0] through the decreasing levels."""
        levels = level_tensor(sigmas, x)
        for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
            denoise = denoiser_for_step(denoiser, sigma)
            for _ in range(self.corrector_steps):
                x = self._correct(denoise, x, levels[i], cond, rng)
            denoised = denoise(x, levels[i], cond).to(x.dtype)
            x = torch.lerp(denoised, x, (sigma_next / sigma) ** 2)
            if sigma_next > 0:
                x = x.add_(draw_like(x, rng), alpha=sqrt(sigma**2 - sigma_next**2))
            yield Step(i, sigma_next, x, denoised)

    def _correct(self, denoise: Denoise, x: Tensor, sigma: Tensor, cond: Cond, rng: Rng | None) -> Tensor:
        z, s = draw_like(x, rng), (denoise(x, sigma, cond).to(x.dtype) - x).div_(sigma**2)
        ratio = z.flatten(1).norm(dim=1) / s.flatten(1).norm(dim=1)
        delta = expand(2 * (self.snr * ratio).square(), x)
        return torch.addcmul(x, delta, s).addcmul_((2 * delta).sqrt(), z)
