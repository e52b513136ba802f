"""Losses that compare the score of a one-step generator, learned along, with the teacher's."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from scoregen.distillers.distances import Distance, PseudoHuberDistance
from scoregen.distillers.generator import GeneratorLoss, mean_over_elements
from scoregen.ranges import NonNegative


@dataclass(frozen=True)
class DiffInstructLoss(GeneratorLoss):
    """-sg[w delta] x0: the gradient of the reverse KL divergence, summed over noise levels.

    With `SampleWeight` it is the score term of DMD. No gradient passes through the denoisers.

    Sources: Luo et al., Diff-Instruct: A Universal Approach for Transferring Knowledge From Pre-trained
    Diffusion Models, 2023, arXiv 2305.18455; Yin et al., One-step Diffusion with Distribution Matching
    Distillation, 2023, arXiv 2311.18828.
    """

    through_inputs: ClassVar[bool] = False

    def value(self, x0: Tensor, target: Tensor, online: Tensor) -> Tensor:
        """-delta x0, [B]."""
        return -mean_over_elements((target - online) * x0)


@dataclass(frozen=True)
class SiDLoss(GeneratorLoss):
    """w delta ((D_t - x0) - alpha delta): score identity distillation.

    alpha = 1/2 is half the gradient of the Fisher divergence; alpha > 1 turns the gradient around far from
    the optimum (the mean's where V_q / V_p > 1 + 1 / (2 alpha - 2), the scale's beyond alpha / (alpha - 1)):
    harmless from a trained start, harmful from a random one. The published FIDs on CIFAR-10 are with 1.2.

    Source: Zhou et al., Score Identity Distillation: Exponentially Fast Distillation of Pretrained Diffusion
    Models for One-Step Generation, 2024, arXiv 2404.04057.
    """

    alpha: float = 1.0

    through_inputs: ClassVar[bool] = True

    def value(self, x0: Tensor, target: Tensor, online: Tensor) -> Tensor:
        """delta ((D_t - x0) - alpha delta), [B]."""
        delta = target - online
        return mean_over_elements(delta * ((target - x0) - self.alpha * delta))


@dataclass(frozen=True)
class SIMLoss(GeneratorLoss):
    """w (-d'(y) (D_f - x0) + total d(y)), y = D_f - D_t: score implicit matching.

    With total = 0 its gradient is the one of E_pi d(y) through the generator's score alone, the samples' law
    pi held fixed; total = 1 adds the way through the samples. Everything is differentiated through x, d'(y)
    with its normaliser too: detaching x inside the denoisers makes it Diff-Instruct.

    Args:
        distance: d; `PseudoHuberDistance` is the paper's, `SquaredDistance` makes it twice SiD of alpha = 1.
        total: the weight of the second term.

    Source: Luo et al., One-Step Diffusion Distillation through Score Implicit Matching, 2024, arXiv
    2410.16794. Weights and constants of the paper are not public; ours are inferred from its relatives.
    """

    distance: Distance = PseudoHuberDistance()  # noqa: RUF009 - frozen
    total: NonNegative = 0.0

    through_inputs: ClassVar[bool] = True

    def value(self, x0: Tensor, target: Tensor, online: Tensor) -> Tensor:
        """-d'(y) (D_f - x0) + total d(y), [B]."""
        y = online - target
        value = -(self.distance.gradient(y) * (online - x0)).flatten(1).sum(1)
        return value + self.total * self.distance(y) if self.total else value
