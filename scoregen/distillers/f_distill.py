"""f-distill: the score difference of each sample, weighted by its density ratio; reverse KL is DMD2."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from scoregen.denoisers.base import Cond, Denoise
from scoregen.diffusion.grids import KarrasGrid
from scoregen.diffusion.noise import SigmaDistribution
from scoregen.distillers.critics import CriticLogits, adversarial_term
from scoregen.distillers.divergences import DivergenceName, find_divergence
from scoregen.distillers.generator import GeneratorWeight, SampleWeight, perturb
from scoregen.distillers.score_divergence import DiffInstructLoss
from scoregen.objectives.base import Loss
from scoregen.ranges import Fraction, NonNegative, Positive, PositiveInt
from scoregen.rng import BatchRng

EPS = 1e-6  # in both normalisations, as published


@dataclass(frozen=True)
class RatioEstimate:
    """r = exp(mean over heads of the critic's logits), the logit and the ratio clamped; never differentiated.

    Args:
        limit: of the absolute logit. low, high: of the ratio.
    """

    limit: Positive = 10.0
    low: Positive = 0.1
    high: Positive = 20.0

    def __call__(self, logits: Tensor) -> Tensor:
        """r [B] from logits [B, heads]."""
        log_ratio = logits.detach().mean(1).clamp(-self.limit, self.limit)
        return log_ratio.exp().clamp(self.low, self.high)


class RatioBins(nn.Module):
    """Divides ratios by their running mean b in the bin of their noise level, so that each level has mean 1.

    b <- keep b + (1 - keep) (mean of the batch), in bins that the batch hits.

    Args:
        bins: their number over [0.002, 80].
        spacing: `linear` in sigma, as published, where the first bin takes 64 % of the draws of f-distill's
            levels; or `karras`, along the grid that these levels are drawn from, an equal share to each.
        keep: 0 takes the current batch's mean alone.

    Source: Xu et al., 2025, arXiv 2502.15681, and its implementation in FastGen; `karras` is ours.
    """

    mean: Tensor
    edges: Tensor

    def __init__(
        self,
        *,
        bins: PositiveInt = 10,
        spacing: Literal["linear", "karras"] = "karras",
        keep: Fraction = 0.0,
    ) -> None:
        super().__init__()
        self.keep, grid = keep, KarrasGrid()
        at = torch.arange(1, bins, dtype=torch.float64) / bins
        linear = grid.sigma_min + at * (grid.sigma_max - grid.sigma_min)
        edges = linear if spacing == "linear" else grid.curve(1 - at)
        self.register_buffer("edges", edges.float(), persistent=False)
        self.register_buffer("mean", torch.ones(bins))

    @torch.no_grad()
    def update(self, ratio: Tensor, sigma: Tensor) -> None:
        """Take up the ratios [N] of a whole batch at the levels sigma [N]."""
        member = nn.functional.one_hot(self._index(sigma), len(self.mean)).to(ratio)
        count = member.sum(0)
        batch = (member * ratio[:, None]).sum(0) / count.clamp(min=1)
        moved = self.keep * self.mean + (1 - self.keep) * batch.to(self.mean)
        self.mean.copy_(torch.where(count > 0, moved, self.mean))

    def forward(self, ratio: Tensor, sigma: Tensor) -> Tensor:
        """r / (b + 1e-6), [B]."""
        return ratio / (self.mean[self._index(sigma)] + EPS)

    def _index(self, sigma: Tensor) -> Tensor:
        return torch.bucketize(sigma.to(self.edges), self.edges)


class Ratios(NamedTuple):
    """Density ratios and their noise levels, [N] each."""

    ratio: Tensor
    sigma: Tensor


@dataclass(frozen=True)
class FDistillLoss:
    """h(r) (-sg[w delta] x0) + gan_weight softplus(-logit), r = p / q of the critic at the same noisy sample.

    r is divided by the mean of its noise level's bin and h by its mean over the global batch, so that h
    changes which samples count and not how much all do. With `reverse_kl`, h = 1: DMD2.

    Args:
        sigma: the distribution of the noise level.
        divergence: whose h.
        weight: w.
        gan_weight: of the second term, both terms being means over elements; 0 leaves the critic to h alone.
        estimate: how a ratio comes from logits.
        bins: the first normalisation; None has none.
        normalise: the second.

    Sources: Xu et al., One-step Diffusion Models with f-Divergence Distribution Matching, 2025, arXiv
    2502.15681, and FastGen, its implementation; Yin et al., Improved Distribution Matching Distillation for
    Fast Image Synthesis, 2024, arXiv 2405.14867.
    """

    sigma: SigmaDistribution
    divergence: DivergenceName = "forward_kl"
    weight: GeneratorWeight = SampleWeight()  # noqa: RUF009 - frozen
    gan_weight: NonNegative = 1e-3
    estimate: RatioEstimate = RatioEstimate()
    bins: RatioBins | None = None
    normalise: bool = True

    def __call__(
        self,
        teacher: Denoise,
        fake: Denoise,
        critic: CriticLogits,
        x0: Tensor,
        cond: Cond,
        rng: BatchRng,
        whole: Ratios | None = None,
    ) -> Loss:
        """The loss at generated samples x0 [B, *shape] of the classes cond [B].

        `whole` are the ratios of the global batch, of which these may be some rows; None takes these.
        """
        noised = perturb(x0, self.sigma, rng)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.gan_weight > 0):
            logits = critic(noised.x, noised.sigma, cond)
        score = DiffInstructLoss(self.sigma, self.weight).at(teacher, fake, noised, cond)
        ratios = Ratios(self.estimate(logits), noised.sigma)
        h = self.tilt(ratios, ratios if whole is None else whole)
        term = adversarial_term(logits)
        value = h * score.value + self.gan_weight * term
        logs = {**score.logs, "ratio": ratios.ratio, "tilt": h, "adversarial": term}
        return Loss(value, noised.sigma, logs)

    def measure(self, critic: CriticLogits, x0: Tensor, cond: Cond, rng: BatchRng) -> Ratios:
        """The ratios that `__call__` finds with the same arguments: what `whole` is gathered from."""
        noised = perturb(x0, self.sigma, rng)
        return Ratios(self.estimate(critic(noised.x, noised.sigma, cond)), noised.sigma)

    def tilt(self, rows: Ratios, whole: Ratios) -> Tensor:
        """h [B] of some rows, normalised over the whole batch."""
        h = find_divergence(self.divergence).h
        value = h(self._level(rows))
        return value / (h(self._level(whole)).mean() + EPS) if self.normalise else value

    def _level(self, ratios: Ratios) -> Tensor:
        normalised: Tensor = ratios.ratio if self.bins is None else self.bins(*ratios)
        return normalised
