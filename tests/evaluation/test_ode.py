"""Laws of the solvers that likelihoods are integrated with."""

from math import exp, log2

import pytest
import torch
from torch import Tensor

from scoregen.errors import UserError
from scoregen.evaluation import ode
from scoregen.evaluation.ode import DormandPrince, RungeKutta4

SPEEDS = torch.tensor([0.5, 1.0, 8.0], dtype=torch.float64)


def swing(t: Tensor, y: Tensor, rows: Tensor) -> Tensor:
    """dy/dt = w (-y_2, y_1) cos t, with w by row; its solution turns by the angle w (sin t)."""
    return (SPEEDS[rows] * t.cos())[:, None] * torch.stack([-y[:, 1], y[:, 0]], 1)


def turned(t: float) -> Tensor:
    angle = SPEEDS * torch.tensor(t, dtype=torch.float64).sin()
    return torch.stack([angle.cos(), angle.sin()], 1)


START = torch.tensor([[1.0, 0.0]] * 3, dtype=torch.float64)


def test_each_stage_of_the_embedded_pair_is_taken_where_its_weights_sum_to() -> None:
    for node, weights in zip(ode._NODES, ode._STAGES, strict=True):
        assert sum(weights) == pytest.approx(node, abs=1e-14)
    assert sum(ode._ERROR) == pytest.approx(0, abs=1e-15)


def test_the_fixed_steps_are_of_order_four() -> None:
    errors = [float((RungeKutta4(n)(swing, START, 0.0, 2.0).y - turned(2.0)).norm()) for n in (40, 80)]
    assert log2(errors[0] / errors[1]) == pytest.approx(4, abs=0.15)


@pytest.mark.parametrize("tolerance", [1e-3, 1e-5, 1e-8])
@pytest.mark.parametrize("end", [2.0, -2.0])
def test_the_adaptive_error_is_about_the_tolerance(tolerance: float, end: float) -> None:
    solution = DormandPrince(tolerance)(swing, START, 0.0, end)
    assert tolerance / 1e4 < float((solution.y - turned(end)).abs().max()) < 30 * tolerance


def test_rows_step_by_themselves() -> None:
    together = DormandPrince(1e-5)(swing, START, 0.0, 2.0)
    assert together.evaluations[2] > together.evaluations[0]
    for i in range(3):
        alone = DormandPrince(1e-5)(lambda t, y, rows, i=i: swing(t, y, rows + i), START[i : i + 1], 0.0, 2.0)
        torch.testing.assert_close(alone.y[0], together.y[i], rtol=0, atol=1e-13)
        assert alone.evaluations[0] == together.evaluations[i]


@pytest.mark.parametrize("solver", [DormandPrince(1e-4), RungeKutta4(7)])
def test_evaluations_are_counted_by_row(solver: ode.OdeSolver) -> None:
    seen = torch.zeros(3, dtype=torch.long)

    def counted(t: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        seen[rows] += 1
        return swing(t, y, rows)

    assert torch.equal(solver(counted, START, 0.0, 2.0).evaluations, seen)


def test_one_large_step_is_the_taylor_series_to_order_five() -> None:
    """y' = y over one step h: the result is exp(h) up to h^6 / 720."""
    h, one = 0.02, torch.ones(1, 1, dtype=torch.float64)
    end = DormandPrince(1.0)(lambda t, y, rows: y, one, 0.0, h * 0.99999).y
    assert float(end) == pytest.approx(exp(h * 0.99999), abs=1e-13)


@pytest.mark.parametrize("value", [float("nan"), 1.0])
def test_a_field_rougher_than_the_tolerance_is_refused(value: float) -> None:
    g = torch.Generator().manual_seed(0)

    def rough(t: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        return value * torch.randn(y.shape, generator=g, dtype=y.dtype)

    with pytest.raises(UserError, match="take a larger tolerance"):
        DormandPrince(1e-12)(rough, START, 0.0, 1.0)
