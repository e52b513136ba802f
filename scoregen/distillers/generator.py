"""What every loss of a one-step generator shares: noising its samples, weights, and the score difference.

Everything is in x0 units. With the teacher's D_t, the fake score's D_f and delta = D_t - D_f at
x = x0 + sigma n, the scores obey s_f - s_t = -delta / sigma^2 and D_f - x0 = sigma^2 (s_f - s_cond), where
s_cond = -n / sigma: dividing by powers of sigma, which small sigma would blow up, is left to the weight.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from scoregen.denoisers.base import Cond, Denoise, expand
from scoregen.diffusion.noise import SigmaDistribution
from scoregen.objectives.base import Loss
from scoregen.ranges import Positive
from scoregen.rng import BatchRng


class Noised(NamedTuple):
    """Samples and their noisy versions."""

    x0: Tensor  # [B, *shape]; carries the generator's graph in the generator's step
    x: Tensor  # x0 + sigma n
    sigma: Tensor  # [B]


def perturb(x0: Tensor, distribution: SigmaDistribution, rng: BatchRng) -> Noised:
    """Add noise n ~ N(0, I) at levels drawn from the distribution, stratified over the global batch."""
    sigma = distribution.quantile(rng.stratified()).to(x0)
    return Noised(x0, x0 + expand(sigma, x0) * rng.randn_like(x0), sigma)


def mean_over_elements(x: Tensor) -> Tensor:
    """[B] from [B, *shape]."""
    return x.flatten(1).mean(1)


class GeneratorWeight(Protocol):
    """w, a weight of each sample; it is never differentiated."""

    def __call__(self, noised: Noised, target: Tensor) -> Tensor:
        """w [B] at noisy samples, given the teacher's D_t [B, *shape] there."""
        ...


@dataclass(frozen=True)
class UnitWeight:
    """w = 1."""

    def __call__(self, noised: Noised, target: Tensor) -> Tensor:
        """w [B]."""
        return torch.ones_like(noised.sigma)


@dataclass(frozen=True)
class SigmaPowerWeight:
    """w = sigma^power.

    -2 makes the losses of the KL family, and -4 those of the Fisher family, the exact divergence at each
    noise level. That is for analysis: at sigma = 0.002 the weights are 2.5e5 and 6e10.
    """

    power: float

    def __call__(self, noised: Noised, target: Tensor) -> Tensor:
        """w [B]."""
        return noised.sigma**self.power


@dataclass(frozen=True)
class SampleWeight:
    """w = 1 / m, m = max(floor, mean over elements |x0 - D_t|): DMD's and SiD's weight.

    m is a statistic of the sample and biases the gradient where a sample has few elements: with one, the
    gradient of a scale can have the wrong sign, from 16 on it is right to a few per cent. For points in the
    plane choose a weight of sigma alone.
    """

    floor: Positive = 1e-5

    def __call__(self, noised: Noised, target: Tensor) -> Tensor:
        """w [B]."""
        m = mean_over_elements((noised.x0 - target).detach().abs())
        return m.clamp(min=self.floor).reciprocal()


@dataclass(frozen=True)
class GeneratorLoss(ABC):
    """The mean over elements of w times a function of (x0, D_t, D_f), at noise levels drawn from `sigma`.

    The gradient that counts is the one of x0 = g(z); parameters of teacher and fake score are frozen by the
    caller. The root mean square of delta is logged as `difference`, the weight as `weight`.
    """

    sigma: SigmaDistribution
    weight: GeneratorWeight = UnitWeight()

    through_inputs: ClassVar[bool]  # whether the gradient passes through the inputs of both denoisers

    def __call__(self, teacher: Denoise, fake: Denoise, x0: Tensor, cond: Cond, rng: BatchRng) -> Loss:
        """The loss at generated samples x0 [B, *shape] of the classes cond [B]."""
        return self.at(teacher, fake, perturb(x0, self.sigma, rng), cond)

    def at(self, teacher: Denoise, fake: Denoise, noised: Noised, cond: Cond) -> Loss:
        """The loss at given noisy samples."""
        with torch.set_grad_enabled(self.through_inputs and torch.is_grad_enabled()):
            target = teacher(noised.x, noised.sigma, cond)
            online = fake(noised.x, noised.sigma, cond)
        weight = self.weight(noised, target).detach()
        difference = mean_over_elements((target - online).detach().square()).sqrt()
        value = weight * self.value(noised.x0, target, online)
        return Loss(value, noised.sigma, {"difference": difference, "weight": weight})

    @abstractmethod
    def value(self, x0: Tensor, target: Tensor, online: Tensor) -> Tensor:
        """The unweighted loss [B] from x0, D_t and D_f, [B, *shape] each."""
