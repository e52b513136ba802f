"""Implicit score matching: the exact trace of the Jacobian, one backward pass for each dimension."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from scoregen.errors import UserError
from scoregen.networks.layers import twice_differentiable
from scoregen.objectives.score_matching import Score, ScoreMatchingLoss, half_norm
from scoregen.ranges import PositiveInt
from scoregen.rng import BatchRng


def divergence(s: Tensor, x: Tensor) -> Tensor:
    """tr ds/dx [B] for s = s(x) [B, *shape] with a graph back to x, each row of its own x."""
    columns = s.flatten(1).unbind(1)
    total = torch.zeros_like(columns[0])
    for i, column in enumerate(columns):
        if column.requires_grad:
            (row,) = torch.autograd.grad(column.sum(), x, create_graph=True)
            total = total + row.flatten(1)[:, i]
    return total


def implicit(score: Score, x: Tensor) -> Tensor:
    """||s(x)||^2 / 2 + tr J(x), [B], at x [B, *shape]."""
    x = x.detach().requires_grad_()
    with twice_differentiable():
        s = score(x)
    return half_norm(s) + divergence(s, x)


def implicit_nonnegative(score: Score, x: Tensor) -> Tensor:
    """sum_i 2 x_i s_i + x_i^2 d_i s_i + x_i^2 s_i^2 / 2, [B], at positive x [B, *shape].

    The weight x^2 takes away the boundary term at 0, where the density need not vanish. With g = 1 + x s, the
    score of log x, it is ||g||^2 / 2 + div g - d / 2: `implicit` on log x.

    Source: Hyvarinen, Some Extensions of Score Matching, 2007.
    """
    x = x.detach().requires_grad_()
    with twice_differentiable():
        g = 1 + x * score(x)
    # x_i d_i g_i = x_i s_i + x_i^2 d_i s_i, so that the trace is taken of one function.
    weighted = divergence(x.detach() * g, x)
    return half_norm(g) + weighted - x[0].numel() / 2


@dataclass(frozen=True)
class ImplicitLoss(ScoreMatchingLoss):
    """m = ||s(x)||^2 / 2 + tr J(x), exactly: no noise but that of the data, d backward passes a step.

    Args:
        max_dimension: largest d that is not refused.

    Raises UserError for samples of more dimensions.
    Source: Hyvarinen, Estimation of Non-Normalized Statistical Models by Score Matching, 2005.
    """

    max_dimension: PositiveInt = 64
    differentiates: ClassVar[bool] = True

    def matching(self, score: Score, x: Tensor, sigma: Tensor, rng: BatchRng) -> Tensor:
        """m [B] at x [B, *shape]."""
        self._check(x)
        return implicit(score, x)

    def _check(self, x: Tensor) -> None:
        if x[0].numel() > self.max_dimension:
            raise UserError(
                f"the exact trace takes a backward pass for each of {x[0].numel():,} dimensions a step, and "
                f"objective.max_dimension={self.max_dimension}. Choose objective=ssm_vr, which estimates the "
                "same trace in one, or lcss, which needs none"
            )


@dataclass(frozen=True)
class NonNegativeLoss(ImplicitLoss):
    """m of `implicit_nonnegative` at x = e^u, for data sets u that hold logarithms of positive quantities.

    The noise multiplies x; the denoiser sees u, and samples are of u: the score of x is (g - 1) / x with
    g = (D(u) - u) / sigma^2. This is `ImplicitLoss` but for the constant d / 2, in the published form. In
    float32 it is for sigma up to about 20, where e^u still is a number.

    Source: Hyvarinen, Some Extensions of Score Matching, 2007.
    """

    def matching(self, score: Score, x: Tensor, sigma: Tensor, rng: BatchRng) -> Tensor:
        """m [B] at u = x [B, *shape]."""
        self._check(x)
        return implicit_nonnegative(lambda x: (score(x.log()) - 1) / x, x.exp())
