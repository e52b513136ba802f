"""Distances d(y) of two scores, by their difference y: what score implicit matching minimises."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from scoregen.distillers.generator import mean_over_elements
from scoregen.errors import UserError


class Distance(ABC):
    """A differentiable d(y) >= 0 of each sample with d(0) = 0. One of your own needs `__call__` only."""

    @abstractmethod
    def __call__(self, y: Tensor) -> Tensor:
        """d [B] at y [B, *shape]."""

    def gradient(self, y: Tensor) -> Tensor:
        """d'(y) [B, *shape], itself differentiable in y; by automatic differentiation."""
        gradient: Tensor = torch.func.grad(lambda y: self(y).sum())(y)
        return gradient


@dataclass(frozen=True)
class SquaredDistance(Distance):
    """d(y) = mean over elements y^2."""

    def __call__(self, y: Tensor) -> Tensor:
        """d [B]."""
        return mean_over_elements(y.square())

    def gradient(self, y: Tensor) -> Tensor:
        """2 y / n for n elements."""
        return y * (2 / y[0].numel())


@dataclass(frozen=True)
class PseudoHuberDistance(Distance):
    """d(y) = sqrt(mean y^2 + c^2) - c, the mean over all elements of a sample.

    The gradient of a sample is bounded and does not vanish with y: near the optimum a student wanders with
    an amplitude that follows the learning rate, so average its weights or let the rate decay. c is per
    element; the one of the paper is not known, the default is the constant 0.00054 of improved consistency
    training (there per sqrt(n), inferred to fit here).

    Raises UserError for c <= 0: teacher and fake score agree where the fake score is a copy of the teacher,
    as it is at first, and the gradient there would be 0 / 0.
    """

    c: float = 0.00054

    def __post_init__(self) -> None:
        if not self.c > 0:
            raise UserError(
                f"PseudoHuberDistance: c={self.c:g} must be more than 0; the fake score starts as a copy of "
                "the teacher, and the gradient at no difference would be 0 / 0 = NaN; for example c=0.00054"
            )

    def __call__(self, y: Tensor) -> Tensor:
        """d [B]."""
        return self._norm(y).squeeze(1) - self.c

    def gradient(self, y: Tensor) -> Tensor:
        """y / (n sqrt(mean y^2 + c^2)), n elements; the normaliser stays attached, as the theorem wants."""
        flat = y.flatten(1)
        return (flat / (flat.shape[1] * self._norm(y))).view_as(y)

    def _norm(self, y: Tensor) -> Tensor:
        return (y.flatten(1).square().mean(1, keepdim=True) + self.c**2).sqrt()
