"""Laws of WaveGrad's noise: published schedules, amplitudes between their levels, sampling grids."""

import pytest
import torch
from torch import Tensor

from scoregen.diffusion.grids import SigmaGrid
from scoregen.diffusion.wavegrad import (
    BetaGrid,
    FibonacciBetaGrid,
    HierarchicalSigma,
    LinearBetaGrid,
    WaveGradPrecond,
    beta_sigmas,
    linear_betas,
)
from scoregen.errors import UserError


def amplitude(sigma: Tensor) -> Tensor:
    return (1 + sigma.double().square()).rsqrt()


def test_the_training_schedule_has_its_amplitudes() -> None:
    l = amplitude(beta_sigmas(linear_betas(1e-6, 0.01, 1000)))  # noqa: E741
    assert l[[0, 1, 500, 1000]].tolist() == pytest.approx([1.0, 0.9999995, 0.534937, 0.0813796], abs=5e-7)


@pytest.mark.parametrize(
    ("grid", "steps", "last"),
    [
        (LinearBetaGrid(), 1000, 0.0813796),
        (FibonacciBetaGrid(), 25, 0.847647),
        (BetaGrid(), 6, 0.963591),
    ],
)
def test_short_schedules_end_at_their_amplitude(grid: SigmaGrid, steps: int, last: float) -> None:
    sigmas = grid(steps)
    assert float(amplitude(sigmas[0])) == pytest.approx(last, abs=1e-6)
    assert float(amplitude(sigmas[-2])) == pytest.approx(0.9999995, abs=1e-8)
    assert bool((sigmas.diff() < 0).all())


def test_the_25_steps_are_fibonacci_numbers() -> None:
    betas = FibonacciBetaGrid().schedule(25)
    assert float(betas[-1]) == pytest.approx(0.121393, abs=1e-9)
    torch.testing.assert_close(betas[2:], betas[1:-1] + betas[:-2])


def test_fewer_steps_pick_levels_of_the_linear_schedule_evenly() -> None:
    every, some = LinearBetaGrid()(1000), LinearBetaGrid()(4)
    assert torch.equal(some, every[[0, 333, 666, 999, 1000]])
    assert torch.equal(LinearBetaGrid().within(0.0, 1.0)(1000)[:300], torch.ones(300).double())


def test_schedules_refuse_steps_that_they_do_not_have() -> None:
    for grid, steps in ((BetaGrid(), 7), (FibonacciBetaGrid(), 31), (LinearBetaGrid(levels=50), 51)):
        with pytest.raises(UserError, match=f"steps={steps}"):
            grid(steps)


def test_drawn_amplitudes_lie_between_the_levels_of_their_segment() -> None:
    """And are uniform there, so their mean is that of the trapezoids under l_s."""
    levels = amplitude(beta_sigmas(linear_betas(1e-6, 0.01, 1000)))
    u = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    drawn = amplitude(HierarchicalSigma().quantile(u))
    segment = (u * 1000).long()
    assert bool(((levels[segment + 1] <= drawn) & (drawn <= levels[segment])).all())
    assert float(drawn.mean()) == pytest.approx(float((levels[1:] + levels[:-1]).mean()) / 2, abs=1e-9)
    mean = drawn.reshape(1000, 100).mean(1)
    torch.testing.assert_close(mean, (levels[1:] + levels[:-1]) / 2, rtol=0, atol=1e-9)


def test_the_smallest_noise_keeps_its_digits() -> None:
    """In the first segment 1 - l = f 5e-7: sigma = 1e-3 sqrt(f)."""
    f = torch.tensor([1e-4, 0.01, 0.25, 1.0], dtype=torch.float64)
    torch.testing.assert_close(HierarchicalSigma().quantile(f / 1000), 1e-3 * f.sqrt(), rtol=1e-5, atol=0)


def test_the_network_sees_y_and_predicts_its_noise() -> None:
    """y = l x = l y0 + sqrt(1 - l^2) n, and D = x - sigma n where it predicts n exactly."""
    y0, n, l = 0.3, -1.7, torch.tensor([0.2, 0.6, 0.99], dtype=torch.float64)  # noqa: E741
    sigma = (1 - l**2).sqrt() / l
    c = WaveGradPrecond()(sigma)
    x = y0 + sigma * n
    torch.testing.assert_close(c.input * x, l * y0 + (1 - l**2).sqrt() * n)
    torch.testing.assert_close(c.noise, l)
    torch.testing.assert_close(c.skip * x + c.out * n, torch.full_like(x, y0))
    assert WaveGradPrecond().sigma_max == pytest.approx((1 - 0.0813796**2) ** 0.5 / 0.0813796, rel=1e-5)
