"""Heun's method with the boosting of discriminator guidance."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf, sqrt
from typing import ClassVar

import torch
from torch import Tensor

from scoregen.denoisers.base import Cond, Denoiser
from scoregen.ranges import NonNegative, PositiveInt
from scoregen.rng import Rng
from scoregen.samplers.base import Sampler, Step, draw_like, round_sigmas
from scoregen.samplers.edm import GAMMA_MAX, HeunSampler


@dataclass(frozen=True)
class BoostedHeunSampler(Sampler):
    """Heun's method that works harder on samples which a discriminator takes for generated, L < 0.

    In every 5th step these, and only these, are churned first: sigma_hat = (1 + gamma) sigma, gamma =
    min(s_churn / N, sqrt(2) - 1), by the L of the evaluation before (+infinity at the start). In every 2nd
    step their guidance is multiplied by 2, by the L of the evaluation itself. The counts begin with the first
    step. A denoiser without discriminator guidance is sampled by Heun's method.

    Args:
        s_churn: of suspects, in every `churn_every`th step.
        s_noise: standard deviation of its noise.
        churn_every: steps from one churn to the next.
        boost: the factor of suspects' guidance in every `boost_every`th step.
        boost_every: steps from one boost to the next.

    Source: Kim et al., Refining Generative Process with Discriminator Guidance in Score-based Diffusion
    Models, 2023, arXiv 2211.17091, and its code. Which L the code remembers where both evaluations of a step
    have one is not known to us; here it is the latest.
    """

    s_churn: NonNegative = 4.0
    s_noise: NonNegative = 1.0
    churn_every: PositiveInt = 5
    boost: NonNegative = 2.0
    boost_every: PositiveInt = 2

    order: ClassVar[float | None] = None
    reference: ClassVar[str] = "Kim et al. 2023, arXiv 2211.17091"

    def nfe(self, steps: int | None = None) -> int:
        """2 N - 1."""
        return HeunSampler().nfe(self.steps if steps is None else steps)

    def integrate(
        self,
        denoiser: Denoiser,
        x: Tensor,
        sigmas: Sequence[float],
        cond: Cond = None,
        rng: Rng | None = None,
    ) -> Iterator[Step]:
        """Step from the state x [B, *shape] at sigmas[0] through the decreasing levels.

        A guidance that can be boosted has a method `boosted(factor, notice)`: itself with that factor where
        L < 0, which tells `notice` the L [B] of every evaluation.
        """
        boosted: Callable[..., Denoiser] | None = getattr(denoiser, "boosted", None)
        ratio, heun = torch.full((len(x),), inf, device=x.device), HeunSampler()
        for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
            parts = [(torch.arange(len(x), device=x.device), x, sigma)]
            if boosted is not None and i % self.churn_every == 0:
                parts = self._churned(denoiser, x, sigma, ratio < 0, rng)
            factor = self.boost if i % self.boost_every == 0 else 1.0
            x, denoised = torch.empty_like(x), torch.empty_like(x)
            for rows, start, sigma_hat in parts:
                noticed: list[Tensor] = []
                guided = denoiser if boosted is None else boosted(factor, noticed.append)
                classes = None if cond is None else cond[rows]
                (step,) = heun.integrate(guided, start, (sigma_hat, sigma_next), classes)
                x[rows], denoised[rows] = step.x, step.denoised
                ratio[rows] = noticed[-1].to(ratio) if noticed else ratio[rows]
            yield Step(i, sigma_next, x, denoised)

    def _churned(
        self, denoiser: Denoiser, x: Tensor, sigma: float, suspect: Tensor, rng: Rng | None
    ) -> list[tuple[Tensor, Tensor, float]]:
        """Suspects and the others: their rows, states and noise levels.

        Every sample draws, suspect or not, so that none depends on what the others of its batch are.
        """
        gamma = min(self.s_churn / self.steps, GAMMA_MAX)
        (sigma_hat,) = round_sigmas(denoiser, [(1 + gamma) * sigma])
        noise = self.s_noise * sqrt(max(0.0, sigma_hat**2 - sigma**2))
        noisy = torch.add(x, draw_like(x, rng), alpha=noise)
        parts = [(suspect, noisy, sigma_hat), (~suspect, x, sigma)]
        chosen = [(rows.nonzero().flatten(), state, level) for rows, state, level in parts]
        return [(rows, state[rows], level) for rows, state, level in chosen if len(rows)]
