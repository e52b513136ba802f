"""Second-order solvers that look at the middle of each step and remember nothing; a step to 0 is Euler's."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import log, sqrt
from typing import ClassVar

import torch
from torch import Tensor

from scoregen.denoisers.base import Cond, Denoiser, denoiser_for_step
from scoregen.rng import Rng
from scoregen.samplers.base import Sampler, Step, level_tensor, round_sigmas


@dataclass(frozen=True)
class MidpointSampler(Sampler):
    """An Euler step to sigma_m = sqrt(sigma sigma'), then the whole step by what is found there."""

    def nfe(self, steps: int | None = None) -> int:
        """2 N - 1."""
        return 2 * (self.steps if steps is None else steps) - 1

    @abstractmethod
    def finish(
        self, x: Tensor, denoised: Tensor, middle: Tensor, denoised_middle: Tensor, sigmas: tuple[float, ...]
    ) -> Tensor:
        """x' from x and D at sigma, `middle` and its D at sigma_m; sigmas = (sigma, sigma_m, sigma')."""

    def integrate(
        self,
        denoiser: Denoiser,
        x: Tensor,
        sigmas: Sequence[float],
        cond: Cond = None,
        rng: Rng | None = None,
    ) -> Iterator[Step]:
        """Step from the state x [B, *shape] at sigmas[0] through the decreasing levels."""
        halfway = _middle_levels(denoiser, sigmas)
        levels, levels_middle = level_tensor(sigmas, x), level_tensor(halfway, x)
        for i, (sigma, sigma_m, sigma_next) in enumerate(zip(sigmas, halfway, sigmas[1:], strict=False)):
            denoise = denoiser_for_step(denoiser, sigma)
            denoised = denoise(x, levels[i], cond).to(x.dtype)
            if sigma_next > 0:
                middle = torch.lerp(denoised, x, sigma_m / sigma)
                denoised_middle = denoise(middle, levels_middle[i], cond).to(x.dtype)
                x = self.finish(x, denoised, middle, denoised_middle, (sigma, sigma_m, sigma_next))
                denoised = denoised_middle
            else:
                x = torch.lerp(denoised, x, sigma_next / sigma)
            yield Step(i, sigma_next, x, denoised)


@dataclass(frozen=True)
class DPMpp2SSampler(MidpointSampler):
    """DPM-Solver++(2S): x' = (sigma'/sigma) x + (1 - sigma'/sigma) ((1 - 1/(2r)) D + D_m / (2r)).

    r = ln(sigma / sigma_m) / ln(sigma / sigma') is 1/2 unless levels are rounded.

    Source: Lu et al., DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models, 2022,
    arXiv 2211.01095.
    """

    order: ClassVar[float | None] = 2.0
    reference: ClassVar[str] = "Lu et al. 2022, arXiv 2211.01095"

    def finish(
        self, x: Tensor, denoised: Tensor, middle: Tensor, denoised_middle: Tensor, sigmas: tuple[float, ...]
    ) -> Tensor:
        """The formula above."""
        sigma, sigma_m, sigma_next = sigmas
        inverse = 0.5 * log(sigma / sigma_next) / log(sigma / sigma_m) if sigma_m < sigma else 0.5
        return torch.lerp(torch.lerp(denoised, denoised_middle, inverse), x, sigma_next / sigma)


@dataclass(frozen=True)
class DPM2Sampler(MidpointSampler):
    """DPM-Solver-2: x' = x + (sigma' - sigma) (x_m - D_m) / sigma_m.

    Source: Lu et al., DPM-Solver: A Fast ODE Solver for Diffusion Probabilistic Model Sampling in Around 10
    Steps, 2022, arXiv 2206.00927.
    """

    order: ClassVar[float | None] = 2.0
    reference: ClassVar[str] = "Lu et al. 2022, arXiv 2206.00927"

    def finish(
        self, x: Tensor, denoised: Tensor, middle: Tensor, denoised_middle: Tensor, sigmas: tuple[float, ...]
    ) -> Tensor:
        """The formula above."""
        sigma, sigma_m, sigma_next = sigmas
        return torch.add(x, middle.sub_(denoised_middle), alpha=(sigma_next - sigma) / sigma_m)


def _middle_levels(denoiser: Denoiser, sigmas: Sequence[float]) -> list[float]:
    """sigma_m of each step, one that the denoiser knows and below sigma where there is one; 0 before 0."""
    rounded = round_sigmas(denoiser, [sqrt(a * b) for a, b in pairwise(sigmas)])
    steps = zip(sigmas, rounded, sigmas[1:], strict=False)
    return [middle if b <= middle < a else b for a, middle, b in steps]
