"""What score matching without a denoising target shares: noisy points, a score, a weight.

Every objective of the family estimates Hyvarinen's M(s) = E[||s(x)||^2 / 2 + tr J(x)], J the Jacobian of s,
which is E[||s(x) - grad log p(x)||^2] / 2 up to a constant. They differ in the price and noise of the trace.

Source: Hyvarinen, Estimation of Non-Normalized Statistical Models by Score Matching, 2005.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from scoregen.denoisers.base import Cond, Denoise, expand, score
from scoregen.diffusion.forward import ForwardProcess
from scoregen.objectives.base import Loss
from scoregen.objectives.denoising import Weight
from scoregen.rng import BatchRng

Score = Callable[[Tensor], Tensor]  # x [B, *shape] -> s(x) [B, *shape]
Direction = Literal["gaussian", "rademacher", "sphere"]


@dataclass(frozen=True)
class ScoreMatchingLoss(ABC):
    """lambda(sigma) (sigma^2 + 2 sigma^4 m / d), m an estimate of M(s), s = (D - x) / sigma^2.

    This is Stein's unbiased risk estimate: for added noise and an unbiased m its mean at each noise level is
    that of `DenoisingLoss` with the same lambda. So their weights, their curves and the held-out denoising
    loss may be compared. In terms of the score, lambda = 1 / sigma^2 weighs m by 2 sigma^2.

    Args:
        process: where the noisy points come from.
        weight: lambda, of the squared error of the denoiser.

    Source: Stein, Estimation of the Mean of a Multivariate Normal Distribution, 1981, for the risk estimate.
    """

    process: ForwardProcess
    weight: Weight
    differentiates: ClassVar[bool] = False  # whether derivatives of the score are taken
    subtracts: ClassVar[bool] = False  # whether scores at points nearby are

    def __call__(self, denoiser: Denoise, x0: Tensor, cond: Cond, rng: BatchRng) -> Loss:
        """The loss at clean data x0 [B, *shape] with class ids cond [B]."""
        x, sigma = self.process(x0, rng)
        evaluate = replayed(lambda x: score(denoiser, x, sigma, cond))
        matching = self.matching(evaluate, x, sigma, rng)
        dimension = x0[0].numel()
        risk = sigma.square() + 2 / dimension * sigma**4 * matching
        return Loss(self.weight(sigma) * risk, sigma)

    @abstractmethod
    def matching(self, score: Score, x: Tensor, sigma: Tensor, rng: BatchRng) -> Tensor:
        """The estimate m [B] at noisy points x [B, *shape] of level sigma [B]."""


def replayed(function: Score) -> Score:
    """The function, with the same dropout masks in every call: a difference must be one of one function."""
    states: list[Tensor] = []

    def call(x: Tensor) -> Tensor:
        source = torch if x.device.type == "cpu" else torch.get_device_module(x.device)
        if states:
            source.set_rng_state(states[0])
        else:
            states.append(source.get_rng_state())
        return function(x)

    return call


def draw_direction(kind: Direction, x: Tensor, rng: BatchRng) -> Tensor:
    """Random v like x [B, ...] with E[v v^T] = I: Gaussian, of signs, or of length sqrt(d)."""
    v = rng.randn_like(x)
    if kind == "rademacher":
        return torch.where(v < 0, -1.0, 1.0).to(v)
    if kind == "sphere":
        length = v.flatten(1).norm(dim=1) / v[0].numel() ** 0.5
        return v / expand(length, v)
    return v


def dot(a: Tensor, b: Tensor) -> Tensor:
    """The inner product of each sample, [B]."""
    return (a * b).flatten(1).sum(1)


def half_norm(a: Tensor) -> Tensor:
    """||a||^2 / 2 of each sample, [B]."""
    return dot(a, a) / 2
