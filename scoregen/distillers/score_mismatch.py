"""Score mismatching: a generator against a score network that is taught to ignore it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from scoregen.denoisers.base import Cond, Denoise, expand
from scoregen.diffusion.noise import LevelsSigma, SigmaDistribution
from scoregen.distillers.generator import Noised, mean_over_elements, perturb
from scoregen.objectives.base import Loss
from scoregen.ranges import PositiveInt
from scoregen.rng import BatchRng


def mismatch_levels(*, levels: PositiveInt = 10) -> LevelsSigma:
    """sigma_t = sqrt(1 - prod_{i <= t} (1 - beta_i)), beta linear from 1e-4 to 0.02, t = 1 ... levels."""
    beta = torch.linspace(1e-4, 0.02, levels, dtype=torch.float64)
    return LevelsSigma(tuple((1 - (1 - beta).cumprod(0)).sqrt().tolist()))


def predict_noise(denoiser: Denoise, noised: Noised, cond: Cond) -> Tensor:
    """S(x; sigma) = (x - D(x; sigma)) / sigma, [B, *shape]: a denoiser as the noise prediction it is."""
    return (noised.x - denoiser(noised.x, noised.sigma, cond)) / expand(noised.sigma, noised.x)


@dataclass(frozen=True)
class MismatchLoss:
    """|S(x + sigma n) - n|^2 of real x, and |S(y + sigma n) - n'|^2 of generated y, n' drawn afresh.

    That mismatch drives S to 0 on generated samples; its optimum is S = -sigma p / (p + q) grad log p.

    Source: Ye and Liu, Score Mismatching for Generative Modeling, 2023, arXiv 2309.11043 (the number is
    remembered), and its two implementations.
    """

    sigma: SigmaDistribution

    def __call__(
        self, mismatch: Denoise, real: Tensor, real_cond: Cond, fake: Tensor, cond: Cond, rng: BatchRng
    ) -> Loss:
        """The loss of S at real and generated samples [B, *shape] of the classes given."""
        x, y = perturb(real, self.sigma, rng), perturb(fake, self.sigma, rng)
        other = rng.randn_like(fake)
        matched = predict_noise(mismatch, x, real_cond) - (x.x - x.x0) / expand(x.sigma, real)
        mismatched = predict_noise(mismatch, y, cond) - other
        value = mean_over_elements(matched.square()) + mean_over_elements(mismatched.square())
        return Loss(value, x.sigma, {"mismatched": mean_over_elements(mismatched.detach().square())})


@dataclass(frozen=True)
class ScoreMismatchLoss:
    """|S(x0 + sigma n) - n|^2, averaged over two draws of the noise: the generator's loss, S held fixed.

    Equal distributions are no fixed point: the gradient in the scale a of N(mu, a^2) at a = s is
    sigma^2 s / (2 (s^2 + sigma^2)^2) > 0, and the generator comes to rest at 0.725, 0.712 and 0.586 of the
    spread of Gaussian data for sigma = 0.01, 0.1 and 0.31.

    Source: as `MismatchLoss`; the fixed points are derived.
    """

    sigma: SigmaDistribution

    def __call__(self, mismatch: Denoise, x0: Tensor, cond: Cond, rng: BatchRng) -> Loss:
        """The loss at generated samples x0 [B, *shape] of the classes cond [B]."""
        noised = perturb(x0, self.sigma, rng)
        sigma = expand(noised.sigma, x0)
        first = (noised.x - x0) / sigma
        second = rng.randn_like(x0)
        value = self._error(mismatch, noised, first, cond)
        value = value + self._error(mismatch, Noised(x0, x0 + sigma * second, noised.sigma), second, cond)
        return Loss(value / 2, noised.sigma)

    def _error(self, mismatch: Denoise, noised: Noised, noise: Tensor, cond: Cond) -> Tensor:
        return mean_over_elements((predict_noise(mismatch, noised, cond) - noise).square())
