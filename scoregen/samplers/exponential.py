"""The exponential integrator of the reverse Ornstein-Uhlenbeck process."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import sqrt
from typing import ClassVar

import torch
from torch import Tensor

from scoregen.denoisers.base import Cond, Denoiser, denoiser_for_step
from scoregen.diffusion.grids import ExpConstGrid, SigmaGrid
from scoregen.rng import Rng
from scoregen.samplers.base import Sampler, Step, draw_like, level_tensor


@dataclass(frozen=True)
class ExponentialSampler(Sampler):
    """y' = e^{g/2} y + 2 (e^{g/2} - 1) s(y) + sqrt(e^g - 1) z for y = x / sqrt(1 + sigma^2), s its score.

    The forward process is dY = -Y/2 dt + dB, so e^t = 1 + sigma^2 and e^g = (1 + sigma^2) / (1 + sigma'^2):
    x' = x + 2 (1 + sigma^2) (1 - e^{-g/2}) (D - x) / sigma^2 + sqrt(sigma^2 - sigma'^2) z.
    The paper stops early, at the grid's sigma_min; here one evaluation more, the step to 0, returns D.

    Source: Chen, Lee and Lu, Improved Analysis of Score-Based Generative Modeling: User-Friendly Bounds under
    Minimal Smoothness Assumptions, 2022, arXiv 2211.01916 (its abstract; the formulas are derived).
    """

    grid: SigmaGrid = ExpConstGrid()  # noqa: RUF009 - frozen

    order: ClassVar[float | None] = None
    reference: ClassVar[str] = "Chen et al. 2022, arXiv 2211.01916"

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
            if sigma_next > 0:
                shrink = 1 - sqrt((1 + sigma_next**2) / (1 + sigma**2))
                x = torch.lerp(x, denoised, 2 * (1 + sigma**-2) * shrink)
                x = x.add_(draw_like(x, rng), alpha=sqrt(sigma**2 - sigma_next**2))
            else:
                x = denoised
            yield Step(i, sigma_next, x, denoised)
