"""Solvers of dy/dt = f(t, y) that step every row of a batch by itself, so that no row depends on another."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from scoregen.errors import UserError
from scoregen.ranges import Positive, PositiveInt

Field = Callable[
    [Tensor, Tensor, Tensor], Tensor
]  # (t [b], y [b, m], rows [b]) -> dy/dt [b, m] of these rows

# Nodes and weights of the stages; the last is taken at the step's result and is the next step's first.
_NODES = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
_FIRST = 0.02  # of the interval, tried first
_SMALLEST = 1e-5  # of the interval: below it the field is rougher than the tolerance
_SAFETY, _SHRINK, _GROW = 0.9, 0.2, 5.0


class Solution(NamedTuple):
    """Where every row ended."""

    y: Tensor  # [B, m]
    evaluations: Tensor  # of the field, int64 [B]


class OdeSolver(Protocol):
    """Carries y [B, m] from t = start to t = end."""

    def __call__(self, field: Field, y: Tensor, start: float, end: float) -> Solution:
        """The rows at the end."""
        ...


@dataclass(frozen=True)
class DormandPrince:
    """Order 5, every row with steps of its own whose estimated error is below the tolerance.

    A step is taken where the root mean square over the row of e_i / (tolerance (1 + |y_i|)) is at most 1, e
    being the difference to the embedded solution of order 4.

    Raises:
        UserError: the field is rougher than the tolerance, or not finite.

    Source: Dormand and Prince, A family of embedded Runge-Kutta formulae, 1980.
    """

    tolerance: Positive = 1e-5

    def __call__(self, field: Field, y: Tensor, start: float, end: float) -> Solution:
        """The rows y [B, m] at the end."""
        out, count = y.clone(), torch.ones(len(y), dtype=torch.long, device=y.device)
        rows = torch.arange(len(y), device=y.device)
        t, h = y.new_full((len(y),), start), y.new_full((len(y),), _FIRST * (end - start))
        slope = field(t, y, rows)
        while len(rows):
            last = (end - t).abs() <= h.abs()
            h = torch.where(last, end - t, h)
            y_next, slope_next, error = self._step(field, t, y, h, slope, rows)
            count[rows] += len(_NODES)
            good = error <= 1
            self._check(~good & (h.abs() < _SMALLEST * abs(end - start)))
            t = torch.where(good, t + h, t)
            y = torch.where(good[:, None], y_next, y)
            slope = torch.where(good[:, None], slope_next, slope)
            h = h * (_SAFETY * error.clamp(min=1e-10) ** -0.2).clamp(_SHRINK, _GROW)
            out[rows[good & last]] = y[good & last]
            going = ~(good & last)
            t, y, h, slope, rows = t[going], y[going], h[going], slope[going], rows[going]
        return Solution(out, count)

    def _step(
        self, field: Field, t: Tensor, y: Tensor, h: Tensor, slope: Tensor, rows: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The next state, the slope there, and the error [b] in units of the tolerance (NaN is inf)."""
        slopes, state = [slope], y
        for node, weights in zip(_NODES, _STAGES, strict=True):
            state = y + h[:, None] * _weighted(weights, slopes)
            slopes.append(field(t + node * h, state, rows))
        difference = h[:, None] * _weighted(_ERROR, slopes)
        allowed = self.tolerance * (1 + torch.maximum(y.abs(), state.abs()))
        error = (difference / allowed).square().mean(1).sqrt().nan_to_num(nan=float("inf"))
        return state, slopes[-1], error

    def _check(self, stuck: Tensor) -> None:
        if stuck.any():
            raise UserError(
                f"tolerance={self.tolerance:g} cannot be reached: the denoiser is rougher than that, or not "
                "finite; take a larger tolerance, or a fixed number of steps"
            )


@dataclass(frozen=True)
class RungeKutta4:
    """The classical method of order 4 in equal steps; 4 evaluations each."""

    steps: PositiveInt = 32

    def __call__(self, field: Field, y: Tensor, start: float, end: float) -> Solution:
        """The rows y [B, m] at the end."""
        rows, h = torch.arange(len(y), device=y.device), (end - start) / self.steps
        for i in range(self.steps):
            t = y.new_full((len(y),), start + i * h)
            first = field(t, y, rows)
            second = field(t + h / 2, y + h / 2 * first, rows)
            third = field(t + h / 2, y + h / 2 * second, rows)
            fourth = field(t + h, y + h * third, rows)
            y = y + h / 6 * (first + 2 * second + 2 * third + fourth)
        return Solution(y, torch.full_like(rows, 4 * self.steps))


def _weighted(weights: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    total = weights[0] * slopes[0]
    for weight, slope in zip(weights[1:], slopes[1:], strict=True):
        if weight:
            total = total + weight * slope
    return total
