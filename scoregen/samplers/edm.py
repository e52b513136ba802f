"""The samplers of EDM: Euler and Heun steps along dx/dsigma = (x - D(x; sigma)) / sigma, with churn.

Both are written as interpolations, which is the same in exact arithmetic and touches memory least:
an Euler step from sigma to sigma' is x' = lerp(D, x, sigma' / sigma).

Source: Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models, 2022,
arXiv 2206.00364.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf, sqrt
from typing import ClassVar

import torch
from torch import Tensor

from scoregen.denoisers.base import Cond, Denoiser, denoiser_for_step
from scoregen.ranges import NonNegative
from scoregen.rng import Rng
from scoregen.samplers.base import Sampler, Step, level_tensor, round_sigmas

GAMMA_MAX = sqrt(2) - 1  # a step adds at most as much new variance as there is noise


@dataclass(frozen=True)
class EulerSampler(Sampler):
    """First order: x' = x + (sigma' - sigma) (x - D(x; sigma)) / sigma; also known as DDIM."""

    order: ClassVar[float | None] = 1.0
    reference: ClassVar[str] = "Karras et al. 2022, arXiv 2206.00364"

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
            denoise = denoiser_for_step(denoiser, sigma)
            denoised = denoise(x, levels[i], cond).to(x.dtype)
            x = torch.lerp(denoised, x, sigma_next / sigma)
            yield Step(i, sigma_next, x, denoised)


@dataclass(frozen=True)
class HeunSampler(Sampler):
    """Second order, algorithm 2 of the paper: churn, an Euler step, and a correction by the slope at its end.

    gamma = min(s_churn / N, sqrt(2) - 1) where s_min <= sigma <= s_max, else 0;  sigma_hat = (1 + gamma)
    sigma, x_hat = x + sqrt(sigma_hat^2 - sigma^2) s_noise z,  d(x, sigma) = (x - D(x; sigma)) / sigma,
    x' = x_hat + (sigma' - sigma_hat) (d(x_hat, sigma_hat) + d(x_euler, sigma')) / 2; a step to 0 is Euler's.

    N is `steps` even where `integrate` gets a part of the grid. Noise z is drawn only where gamma > 0, as in
    EDM2; EDM's own code draws at every step, so its images with churn over a part of the grid differ seed by
    seed.

    Args:
        s_churn: the amount of new noise, shared among all steps; 0 solves the ODE.
        s_min, s_max: the noise levels that are churned.
        s_noise: standard deviation of z, slightly above 1 against the loss of detail.
    """

    s_churn: NonNegative = 0.0
    s_min: NonNegative = 0.0
    s_max: NonNegative = inf
    s_noise: NonNegative = 1.0

    order: ClassVar[float | None] = 2.0
    reference: ClassVar[str] = "Karras et al. 2022, arXiv 2206.00364, algorithm 2"

    @property
    def deterministic(self) -> bool:
        """Whether nothing is churned."""
        return self.s_churn == 0

    def nfe(self, steps: int | None = None) -> int:
        """2 N - 1."""
        return 2 * (self.steps if steps is None else steps) - 1

    def integrate(
        self,
        denoiser: Denoiser,
        x: Tensor,
        sigmas: Sequence[float],
        cond: Cond = None,
        rng: Rng | None = None,
    ) -> Iterator[Step]:
        """Step from the state x [B, *shape] at sigmas[0] through the decreasing levels."""
        churned = self._churned(denoiser, sigmas[:-1])
        levels, levels_hat = level_tensor(sigmas, x), level_tensor(churned, x)
        for i, (sigma, sigma_hat, sigma_next) in enumerate(zip(sigmas, churned, sigmas[1:], strict=False)):
            denoise = denoiser_for_step(denoiser, sigma)
            x_hat = self._add_noise(x, sigma, sigma_hat, rng)
            denoised = denoise(x_hat, levels_hat[i], cond).to(x.dtype)
            x = torch.lerp(denoised, x_hat, sigma_next / sigma_hat)
            if sigma_next > 0:
                denoised = denoise(x, levels[i + 1], cond).to(x.dtype)
                steep = torch.lerp(x, denoised, (sigma_hat - sigma_next) / sigma_next)  # by the end's slope
                x = steep.lerp_(x_hat, 0.5)
            yield Step(i, sigma_next, x, denoised)

    def _churned(self, denoiser: Denoiser, sigmas: Sequence[float]) -> list[float]:
        """sigma_hat for each sigma."""
        gamma = min(self.s_churn / self.steps, GAMMA_MAX)
        inside = [self.s_min <= sigma <= self.s_max for sigma in sigmas]
        raised = [(1 + gamma * churn) * sigma for sigma, churn in zip(sigmas, inside, strict=True)]
        return round_sigmas(denoiser, raised)

    def _add_noise(self, x: Tensor, sigma: float, sigma_hat: float, rng: Rng | None) -> Tensor:
        if sigma_hat <= sigma:
            return x
        if rng is None:
            raise ValueError("churn draws noise: give the sampler an rng, or s_churn=0")
        return torch.add(x, rng.randn_like(x), alpha=self.s_noise * sqrt(sigma_hat**2 - sigma**2))
