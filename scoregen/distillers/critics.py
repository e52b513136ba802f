"""Critics: heads on a denoiser's features that tell noisy real samples from generated ones, and their losses.

The logit of an optimal critic is log p / q at each noise level, p the noisy data and q the noisy generator.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scoregen.denoisers.base import Cond, Denoise
from scoregen.denoisers.network import NetworkDenoiser
from scoregen.diffusion.noise import SigmaDistribution
from scoregen.distillers.generator import GeneratorLoss, Noised, perturb
from scoregen.errors import UserError
from scoregen.objectives.base import Loss
from scoregen.objectives.denoising import Weight
from scoregen.ranges import NonNegative, Positive
from scoregen.rng import BatchRng

CriticLogits = Callable[[Tensor, Tensor, Cond], Tensor]  # (x, sigma, cond) -> [B, heads]
SMALLEST = 4  # resolution at which a head stops halving


class CriticHeads(nn.Module):
    """One logit from the features at each tap.

    Images: convolutions 4 x 4 of stride 2, each with a group norm and SiLU, down to 4 x 4 pixels, then one
    over all that is left, SiLU, and 1 x 1 to the logit. Vectors: linear, SiLU, linear.

    Args:
        trunk: the denoiser whose features are judged.
        taps: where; None takes all, which for a U-Net is the last block of the encoder at each resolution.

    Raises UserError for a trunk that is no network or has no taps, and for taps that do not exist.
    Source: the heads of FastGen for DDPM++ (Xu et al., One-step Diffusion Models with f-Divergence
    Distribution Matching, 2025, arXiv 2502.15681).
    """

    def __init__(self, trunk: object, *, taps: Sequence[str] | None = None) -> None:
        super().__init__()
        known = find_taps(trunk)
        self.taps = tuple(known if taps is None else taps)
        if unknown := [tap for tap in self.taps if tap not in known]:
            raise UserError(
                f"taps={unknown}: this network has no such features; allowed: {', '.join(known)}; null: all"
            )
        if not self.taps:
            raise UserError(f"taps=[]: a critic needs at least one of {', '.join(known)}")
        self.heads = nn.ModuleList(_head(known[tap]) for tap in self.taps)

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """Logits [B, heads] from the features at all taps."""
        logits = [head(features[tap]) for tap, head in zip(self.taps, self.heads, strict=True)]
        return torch.cat([logit.flatten(1) for logit in logits], 1)


def find_taps(trunk: object) -> dict[str, tuple[int, ...]]:
    """The taps of a denoiser's network with the shapes of their features; UserError where there are none."""
    network = trunk.network if isinstance(trunk, NetworkDenoiser) else None
    taps: dict[str, tuple[int, ...]] = getattr(network, "taps", {})
    if not taps:
        kind = type(trunk if network is None else network).__name__
        raise UserError(
            f"{kind} has no features that a critic could look at; choose a network that has, for example "
            "ddpmpp, or mlp for flat samples, or let the critic look at the fake score's features"
        )
    return taps


def _head(shape: tuple[int, ...]) -> nn.Module:
    width = shape[0]
    if len(shape) == 1:
        return nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1))
    layers: list[nn.Module] = []
    resolution = shape[-1]
    while resolution > SMALLEST:
        groups = max(1, min(32, width // 4))
        norm = nn.GroupNorm(groups if width % groups == 0 else 1, width)
        layers += [nn.Conv2d(width, width, 4, stride=2, padding=1), norm, nn.SiLU()]
        resolution //= 2
    layers += [nn.Conv2d(width, width, resolution), nn.SiLU(), nn.Conv2d(width, 1, 1)]
    return nn.Sequential(*layers)


@dataclass(frozen=True)
class Critic:
    """The heads on the trunk's features, as one function; both learn or not as their roles say."""

    trunk: NetworkDenoiser
    heads: CriticHeads

    def __call__(self, x: Tensor, sigma: Tensor, cond: Cond = None) -> Tensor:
        """Logits [B, heads] of noisy samples x [B, *shape]."""
        logits: Tensor = self.heads(self.trunk.features(x, sigma, cond))
        return logits


def adversarial_term(logits: Tensor) -> Tensor:
    """softplus(-logit), mean over heads, [B] from [B, heads]: what a generator lowers to pass for real."""
    return F.softplus(-logits).mean(1)


@dataclass(frozen=True)
class CriticLoss:
    """lambda(sigma) (softplus(-logit(real)) + softplus(logit(generated))) + r1 |logit(x) - logit(x + s n)|^2.

    The last term is the approximate R1 penalty at noisy real samples x, n ~ N(0, I). The share of right
    answers is logged as `accuracy`: 0.5 says that the critic finds no difference.

    Args:
        sigma: the distribution of the noise level; both kinds have the same.
        weight: lambda, None is 1.
        shared: real and generated samples share noise level and noise, as in SiDA; else each draws its own.
        r1: weight of the penalty; FastGen recommends 100 to 1000 with its r1_scale.
        r1_scale: s.

    Sources: Xu et al., One-step Diffusion Models with f-Divergence Distribution Matching, 2025, arXiv
    2502.15681, and FastGen, its implementation.
    """

    sigma: SigmaDistribution
    weight: Weight | None = None
    shared: bool = False
    r1: NonNegative = 0.0
    r1_scale: Positive = 0.1

    def __call__(
        self, critic: CriticLogits, real: Tensor, real_cond: Cond, fake: Tensor, cond: Cond, rng: BatchRng
    ) -> Loss:
        """The loss at real and generated samples [B, *shape] of the classes given."""
        x = perturb(real, self.sigma, rng)
        y = self._match(x, fake) if self.shared else perturb(fake, self.sigma, rng)
        real_logits, fake_logits = critic(x.x, x.sigma, real_cond), critic(y.x, y.sigma, cond)
        value = self._weight(x.sigma) * F.softplus(-real_logits).mean(1)
        value = value + self._weight(y.sigma) * F.softplus(fake_logits).mean(1)
        if self.r1:
            moved = critic(x.x + self.r1_scale * rng.randn_like(real), x.sigma, real_cond)
            value = value + self.r1 * (real_logits - moved).square().mean(1)
        right = ((real_logits > 0).float() + (fake_logits < 0).float()).mean(1) / 2
        return Loss(value, x.sigma, {"accuracy": right})

    def _match(self, x: Noised, fake: Tensor) -> Noised:
        """Generated samples with the noise of the real ones."""
        return Noised(fake, fake + (x.x - x.x0), x.sigma)

    def _weight(self, sigma: Tensor) -> Tensor:
        return torch.ones_like(sigma) if self.weight is None else self.weight(sigma)


@dataclass(frozen=True)
class AdversarialLoss:
    """base + gan_weight w softplus(-logit), logits clamped, w the base's weight: SiDA's term for SiD and SIM.

    Each sample's term is divided by its own m where the base's weight is 1 / m. SiDA averages the terms of
    each process before it divides, so that its results depend on the number of processes; ours do not.

    Args:
        base: the score-divergence loss.
        gan_weight: of the second term, both terms being means over elements; SiDA's 0.01 is of another
            convention.
        limit: of the absolute logit.

    Source: Zhou et al., Adversarial Score Identity Distillation: Rapidly Surpassing the Teacher in One Step,
    2024, arXiv 2410.14919 (the number is remembered).
    """

    base: GeneratorLoss
    gan_weight: NonNegative = 0.01
    limit: Positive = 10.0

    def __call__(
        self, teacher: Denoise, fake: Denoise, critic: CriticLogits, x0: Tensor, cond: Cond, rng: BatchRng
    ) -> Loss:
        """The loss at generated samples x0 [B, *shape] of the classes cond [B]; the terms share the noise."""
        noised = perturb(x0, self.base.sigma, rng)
        loss = self.base.at(teacher, fake, noised, cond)
        logits = critic(noised.x, noised.sigma, cond).clamp(-self.limit, self.limit)
        term = adversarial_term(logits)
        value = loss.value + self.gan_weight * loss.logs["weight"] * term
        return Loss(value, loss.sigma, {**loss.logs, "adversarial": term})
