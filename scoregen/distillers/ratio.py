"""The teacher-free family: a generator that follows a critic's log density ratio, without any score."""

from dataclasses import dataclass

from torch import Tensor

from scoregen.denoisers.base import Cond
from scoregen.diffusion.noise import SigmaDistribution
from scoregen.distillers.critics import CriticLogits
from scoregen.distillers.divergences import DivergenceName, find_divergence
from scoregen.distillers.generator import perturb
from scoregen.objectives.base import Loss
from scoregen.objectives.denoising import Weight
from scoregen.ranges import Positive
from scoregen.rng import BatchRng


@dataclass(frozen=True)
class ClassRatioLoss:
    """w(sigma) phi(l(x0 + sigma n; sigma)), l = log p / q the mean of the logits of a critic held fixed.

    The value is no divergence, but with the optimal critic its gradient is the one of E_q f(p / q) of the
    noisy densities. softened_reverse_kl is the non-saturating loss of GANs, jensen_shannon the saturating
    one, which is slow from a bad start. Logits are clamped, beyond which there is no gradient.

    Args:
        sigma: the distribution of the noise level.
        divergence: whose phi.
        weight: w; None is 1.
        limit: of the absolute logit.

    Source: Zhang et al., Towards Training One-Step Diffusion Models Without Distillation, 2025, arXiv
    2502.08005; of the paper only the abstract was read, so that estimator and phi are derived.
    """

    sigma: SigmaDistribution
    divergence: DivergenceName = "reverse_kl"
    weight: Weight | None = None
    limit: Positive = 10.0

    def __call__(self, critic: CriticLogits, x0: Tensor, cond: Cond, rng: BatchRng) -> Loss:
        """The loss at generated samples x0 [B, *shape] of the classes cond [B]."""
        noised = perturb(x0, self.sigma, rng)
        log_ratio = critic(noised.x, noised.sigma, cond).mean(1).clamp(-self.limit, self.limit)
        value = find_divergence(self.divergence).phi(log_ratio)
        if self.weight is not None:
            value = self.weight(noised.sigma) * value
        return Loss(value, noised.sigma, {"log_ratio": log_ratio})
