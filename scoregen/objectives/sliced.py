"""Sliced score matching: the trace of the Jacobian along a random direction, or its finite difference."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from scoregen.denoisers.base import expand
from scoregen.networks.layers import twice_differentiable
from scoregen.objectives.score_matching import (
    Direction,
    Score,
    ScoreMatchingLoss,
    dot,
    draw_direction,
    half_norm,
)
from scoregen.ranges import Positive
from scoregen.rng import BatchRng


def _along(score: Score, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """s(x) [B, *shape] and v^T J v [B]; the graph is kept through both."""
    x = x.detach().requires_grad_()
    with twice_differentiable():
        s = score(x)
    (pulled,) = torch.autograd.grad(dot(s, v).sum(), x, create_graph=True)  # J^T v
    return s, dot(pulled, v)


def sliced(score: Score, x: Tensor, v: Tensor) -> Tensor:
    """(v . s(x))^2 / 2 + v^T J(x) v, [B], at x with directions v [B, *shape]; unbiased where E[v v^T] = I."""
    s, curvature = _along(score, x, v)
    return dot(v, s).square() / 2 + curvature


def sliced_vr(score: Score, x: Tensor, v: Tensor) -> Tensor:
    """||s(x)||^2 / 2 + v^T J(x) v, [B], at x with directions v [B, *shape]; unbiased where E[v v^T] = I."""
    s, curvature = _along(score, x, v)
    return half_norm(s) + curvature


def finite_difference(score: Score, x: Tensor, v: Tensor) -> Tensor:
    """||s(x + v) + s(x - v)||^2 / 8 + d v . (s(x + v) - s(x - v)) / (2 ||v||^2), [B], steps v [B, *shape].

    Its bias is of order ||v||^2, and none where log p is quadratic.
    """
    ahead, behind = score(x + v), score(x - v)
    curvature = dot(v, ahead - behind) / (2 * dot(v, v)) * v[0].numel()
    return half_norm(ahead + behind) / 4 + curvature


def finite_difference_energy(log_density: Callable[[Tensor], Tensor], x: Tensor, v: Tensor) -> Tensor:
    """(l(x+v) + l(x-v) - 2 l(x) + (l(x+v) - l(x-v))^2 / 8) d / ||v||^2, [B], l [B] unnormalised.

    For energies: the score is not needed at all, nor any derivative in x.
    """
    here, ahead, behind = log_density(x), log_density(x + v), log_density(x - v)
    curve = ahead + behind - 2 * here + (ahead - behind).square() / 8
    return curve / dot(v, v) * v[0].numel()


@dataclass(frozen=True)
class SlicedLoss(ScoreMatchingLoss):
    """m = (v . s)^2 / 2 + v^T J v, by a double backward.

    Source: Song et al., Sliced Score Matching: A Scalable Approach to Density and Score Estimation, 2019,
    arXiv 1905.07088. Their code has directions of length 1, which is this divided by d.
    """

    direction: Direction = "gaussian"
    differentiates: ClassVar[bool] = True

    def matching(self, score: Score, x: Tensor, sigma: Tensor, rng: BatchRng) -> Tensor:
        """m [B] at x [B, *shape]."""
        return sliced(score, x, draw_direction(self.direction, x, rng))


@dataclass(frozen=True)
class SlicedVRLoss(ScoreMatchingLoss):
    """m = ||s||^2 / 2 + v^T J v, by a double backward: sliced score matching with the norm in closed form.

    Signs have the least noise: none from the diagonal of J. Source: as `SlicedLoss`, section on reduced
    variance.
    """

    direction: Direction = "rademacher"
    differentiates: ClassVar[bool] = True

    def matching(self, score: Score, x: Tensor, sigma: Tensor, rng: BatchRng) -> Tensor:
        """m [B] at x [B, *shape]."""
        return sliced_vr(score, x, draw_direction(self.direction, x, rng))


@dataclass(frozen=True)
class FiniteDifferenceLoss(ScoreMatchingLoss):
    """m of `finite_difference` with v of length width sigma sqrt(d): two forwards, no double backward.

    Args:
        width: the step's root mean square over the elements, in units of sigma.

    Source: Pang et al., Efficient Learning of Generative Models via Finite-Difference Score Matching, 2020,
    arXiv 2007.03317. Their step is one number for all noise levels and the whole image.
    """

    subtracts: ClassVar[bool] = True
    width: Positive = 0.1

    def matching(self, score: Score, x: Tensor, sigma: Tensor, rng: BatchRng) -> Tensor:
        """m [B] at x [B, *shape] of level sigma [B]."""
        v = expand(self.width * sigma, x) * draw_direction("sphere", x, rng)
        return finite_difference(score, x, v)
