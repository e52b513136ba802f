"""Samplers of the multiplicative model: the reverse of geometric Brownian motion, step by step."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import log, sqrt
from typing import ClassVar, Literal

import torch
from torch import Tensor

from scoregen.denoisers.base import Cond, Denoiser, denoiser_for_step
from scoregen.denoisers.moments import Gaussian, pooled
from scoregen.ranges import Fraction, Positive, PositiveInt
from scoregen.rng import Rng
from scoregen.samplers.base import Sampler, Step, draw_like, level_tensor
from scoregen.samplers.teleport import check_moments, load_on

FAR = 1e4  # a noise level beside which data do not show
LOG_FLOOR = log(1e-6)  # of values that a step has made negative


@dataclass(frozen=True)
class MultiplicativeSampler(Sampler):
    """y <- y exp(delta (h + 1) + sqrt(delta) z), delta = sigma^2 - sigma'^2: signs are kept.

    This is Dale-Langevin sampling, the exponentiated-gradient form, of the process y without drift of its
    logarithm. The state is u = ln y, where it is the Euler step of the reverse SDE with the score
    h + 1 = (D - u) / sigma^2; so it takes any denoiser. The last step returns D.

    The start is drawn from the prior that the training data give: Gaussian in u with their mean, and their
    covariance plus sigma_0^2; without moments it is N(0, sigma_0^2).

    Args:
        prior: `covariance` takes the whole covariance of the data, `channel` one mean and variance for each
            channel, as the published code does (a log-normal prior).
        moments: mean and covariance of the training data, or their file, as for teleportation.
        damping: the noise of step k is multiplied by damping^k; 1 is exact, published runs use 0.995 to 1.
        repeats: steps at each level.
        step_scale: of delta; published runs use 0.11 to 1.5 with 1 to 6 repeats.

    Raises UserError for moments of other samples.
    Source: Shetty, Prasath and Seelamantula, Dale meets Langevin: A Multiplicative Denoising Diffusion Model,
    2025, arXiv 2510.02730 (its code). The whole covariance is ours.
    """

    prior: Literal["covariance", "channel"] = "covariance"
    moments: Gaussian | str | None = field(default=None, repr=False)
    damping: Fraction = 1.0
    repeats: PositiveInt = 1
    step_scale: Positive = 1.0

    order: ClassVar[float | None] = None
    reference: ClassVar[str] = "Shetty et al. 2025, arXiv 2510.02730"

    def nfe(self, steps: int | None = None) -> int:
        """L (N - 1) + 1 for L repeats."""
        steps = self.steps if steps is None else steps
        return self.repeats * (steps - 1) + 1

    def begin(
        self, denoiser: Denoiser, noise: Tensor, sigmas: Sequence[float], cond: Cond, rng: Rng | None
    ) -> Tensor:
        """Noise given the prior's mean and covariance: [B, *shape]."""
        if self.moments is None:
            return super().begin(denoiser, noise, sigmas, cond, rng)
        gaussian = load_on(self.moments, noise.device) if isinstance(self.moments, str) else self.moments
        check_moments(gaussian, denoiser)
        gaussian = pooled(gaussian) if self.prior == "channel" else gaussian
        return gaussian.flow(noise * FAR, noise.new_tensor(FAR), noise.new_tensor(sigmas[0]), cond)

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
            delta = self.step_scale * (sigma**2 - sigma_next**2)
            for _ in range(self.repeats if sigma_next > 0 else 1):
                denoised = denoise(x, levels[i], cond).to(x.dtype)
                if sigma_next == 0:
                    x = denoised
                else:
                    noise = draw_like(x, rng) * (sqrt(delta) * self.damping**i)
                    x = self.move(x, delta, (denoised - x) / sigma**2, noise)
            yield Step(i, sigma_next, x, denoised)

    def move(self, x: Tensor, delta: float, score: Tensor, noise: Tensor) -> Tensor:
        """The logarithms x after a step with the score h + 1 and noise = sqrt(delta) z."""
        return x + delta * score + noise


@dataclass(frozen=True)
class UnconstrainedMultiplicativeSampler(MultiplicativeSampler):
    """y <- y (1 + delta (h + 3/2) + sqrt(delta) z): signs are not kept.

    Unconstrained multiplicative sampling, the Euler step of the reverse SDE in y itself. A value that has
    become negative goes on as 1e-6 (inferred). With short steps both samplers are one.
    """

    def move(self, x: Tensor, delta: float, score: Tensor, noise: Tensor) -> Tensor:
        """The logarithms x after a step with the score h + 1 and noise = sqrt(delta) z."""
        factor = 1 + delta * (score + 0.5) + noise
        return (x + factor.clamp(min=torch.finfo(x.dtype).tiny).log()).clamp(min=LOG_FLOOR)
