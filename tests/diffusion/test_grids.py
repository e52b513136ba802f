import pytest
import torch

from scoregen.diffusion.grids import (
    ExpConstGrid,
    IDDPMGrid,
    KarrasGrid,
    LogSNRGrid,
    SigmaGrid,
    VEGrid,
    VPGrid,
)
from scoregen.errors import UserError

GRIDS = [KarrasGrid(), LogSNRGrid(), VEGrid(), VPGrid(), IDDPMGrid(), ExpConstGrid()]
GOLDEN_KARRAS = (
    "80 57.585985 40.785574 28.374585 19.352453 12.910082 8.400935 5.315195 3.256822 1.923340 1.088171 "
    ".585348 .296442 .139516 .059947 .022935 .007528 .002"
)


@pytest.mark.parametrize(
    ("grid", "golden", "rounding"),
    [
        (KarrasGrid(), GOLDEN_KARRAS, 1e-6),
        (VPGrid(), "152.166970 17.0491226 3.42224476 .957526482 .0104859928", 0.0),
        (VEGrid(), "100 11.892071 1.414214 .168179 .02", 1e-6),
        (IDDPMGrid(), "80.2037018 2.37206319 .999844579 .423155298 .00642541277", 0.0),
    ],
)
def test_grids_have_the_golden_values(grid: SigmaGrid, golden: str, rounding: float) -> None:
    values = [float(value) for value in golden.split()]
    assert grid(len(values)).tolist() == pytest.approx([*values, 0.0], rel=1e-8, abs=rounding)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("steps", [1, 2, 18, 256])
def test_grids_decrease_from_sigma_max_to_sigma_min_and_end_at_zero(grid: SigmaGrid, steps: int) -> None:
    sigmas = grid(steps)
    assert sigmas.dtype == torch.float64
    assert len(sigmas) == steps + 1
    assert sigmas[-1] == 0
    assert (sigmas.diff() < 0).all()
    ends = (80.2037018, 0.00642541277) if isinstance(grid, IDDPMGrid) else (grid.sigma_max, grid.sigma_min)
    assert float(sigmas[0]) == pytest.approx(ends[0])
    assert steps == 1 or float(sigmas[-2]) == pytest.approx(ends[1])


@pytest.mark.parametrize("grid", [grid for grid in GRIDS if not isinstance(grid, IDDPMGrid)])
def test_a_clamped_grid_spans_the_range_of_the_denoiser(grid: SigmaGrid) -> None:
    sigmas = grid.within(0.05, 50.0)(9)
    assert [float(sigmas[0]), float(sigmas[-2])] == pytest.approx([50.0, 0.05])
    assert grid.within(0.0, 1e9) == grid


def test_the_tail_of_a_karras_grid_is_a_karras_grid() -> None:
    sigmas = KarrasGrid()(18)
    tail = KarrasGrid(sigma_max=float(sigmas[5]))(13)
    torch.testing.assert_close(tail, sigmas[5:], rtol=1e-13, atol=0)


def test_log_snr_grid_has_equal_steps_of_log_sigma() -> None:
    steps = LogSNRGrid(0.01, 10.0)(31)[:-1].log().diff()
    torch.testing.assert_close(steps, steps[:1].expand(30), rtol=1e-12, atol=0)


@pytest.mark.parametrize("steps", [3, 20, 200])
def test_exponential_steps_are_constant_until_t_is_1_and_then_in_proportion_to_it(steps: int) -> None:
    t = ExpConstGrid()(steps)[:-1].square().log1p()
    c = -t.diff() / t[1:].clamp(max=1)
    torch.testing.assert_close(c, c[:1].expand_as(c), rtol=1e-8, atol=0)


def test_impossible_grids_are_refused() -> None:
    with pytest.raises(UserError, match="at least 1 step, got steps=0"):
        KarrasGrid()(0)
    with pytest.raises(UserError, match="sigma_min=2 must be below sigma_max=1"):
        KarrasGrid().within(2.0, 1.0)
    with pytest.raises(UserError, match="only 992 levels"):
        IDDPMGrid()(993)
