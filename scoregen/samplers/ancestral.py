"""Ancestral sampling and DDIM: Euler steps to below the next noise level, then fresh noise up to it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import sqrt
from typing import ClassVar

import torch
from torch import Tensor

from scoregen.denoisers.base import Cond, Denoiser, denoiser_for_step
from scoregen.ranges import NonNegative
from scoregen.rng import Rng
from scoregen.samplers.base import Sampler, Step, draw_like, level_tensor


@dataclass(frozen=True)
class EulerAncestralSampler(Sampler):
    """x' = lerp(D, x, sigma_down / sigma) + sigma_up z, sigma_down^2 = sigma'^2 - sigma_up^2.

    sigma_up = min(sigma', eta sigma' sqrt(sigma^2 - sigma'^2) / sigma). With eta = 1 it draws from the
    posterior q(x' | x, x0 = D) of DDPM; with eta = 0 it is Euler's method. No noise is added at 0.

    Args:
        eta: the share of the posterior's noise.

    Source: Song, Meng and Ermon, Denoising Diffusion Implicit Models, 2020, arXiv 2010.02502, equation 16,
    which in x / sqrt(1 + sigma^2) is this; the name euler_ancestral is k-diffusion's.
    """

    eta: NonNegative = 1.0

    order: ClassVar[float | None] = None
    reference: ClassVar[str] = "Ho et al. 2020, arXiv 2006.11239"

    @property
    def deterministic(self) -> bool:
        """Whether eta = 0."""
        return self.eta == 0

    def nfe(self, steps: int | None = None) -> int:
        """N."""
        return self.steps if steps is None else steps

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
            denoised = denoiser_for_step(denoiser, sigma)(x, levels[i], cond).to(x.dtype)
            up = min(sigma_next, self.eta * sigma_next * sqrt(sigma**2 - sigma_next**2) / sigma)
            x = torch.lerp(denoised, x, sqrt(sigma_next**2 - up**2) / sigma)
            if up > 0:
                x = x.add_(draw_like(x, rng), alpha=up)
            yield Step(i, sigma_next, x, denoised)


@dataclass(frozen=True)
class DDIMSampler(EulerAncestralSampler):
    """DDIM: `EulerAncestralSampler` that is deterministic unless eta > 0."""

    eta: NonNegative = 0.0

    order: ClassVar[float | None] = 1.0
    reference: ClassVar[str] = "Song et al. 2020, arXiv 2010.02502"
