"""Laws of WaveGrad's sampler: the published step, and what it makes of Gaussian data."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from scoregen.denoisers.base import Cond
from scoregen.denoisers.gaussian import GaussianDenoiser
from scoregen.diffusion.grids import SigmaGrid
from scoregen.diffusion.wavegrad import BetaGrid, FibonacciBetaGrid, LinearBetaGrid
from scoregen.rng import generator
from scoregen.samplers import SAMPLERS
from scoregen.samplers.wavegrad import WaveGradSampler

V = 0.04


class Replay:
    """Noises that a test knows, one after the other."""

    def __init__(self, noises: Tensor) -> None:
        self.noises = list(noises)

    def randn_like(self, x: Tensor) -> Tensor:
        return self.noises.pop(0)


def denoiser(mean: float = 0.0) -> GaussianDenoiser:
    return GaussianDenoiser(torch.full((1,), mean).double(), torch.tensor(V).double())


def variance(grid: SigmaGrid, steps: int) -> float:
    """Of the samples: the map is linear in independent noises, so the sum of its squared slopes."""
    sampler = WaveGradSampler(steps=steps, grid=grid, state_dtype="float64")
    zero = torch.zeros(steps, steps, 1).double()
    impulses = torch.eye(steps, dtype=torch.float64)[..., None]  # the first one is the initial noise
    final = sampler(denoiser(), impulses[0], rng=Replay(impulses[1:] if steps > 1 else zero))
    return float(final.square().sum())


@pytest.mark.parametrize(
    ("grid", "steps", "expected"),
    [
        (LinearBetaGrid(), 1000, 0.03901),
        (LinearBetaGrid(), 200, 0.03581),
        (LinearBetaGrid(), 25, 0.02218),
        (FibonacciBetaGrid(), 25, 0.03990),
        (BetaGrid(), 6, 0.13307),
    ],
)
def test_samples_of_a_gaussian_have_their_variance(grid: SigmaGrid, steps: int, expected: float) -> None:
    """With the exact noise of N(0, 0.04), from N(0, 1): too little with few steps, 0.04 in the limit.

    The short schedules start at a noise level where N(0, 1) is too wide, which the 6 steps cannot mend.
    """
    assert variance(grid, steps) == pytest.approx(expected, abs=1e-5)


def test_a_step_is_the_published_one() -> None:
    """y' = (y - beta / sqrt(1 - l^2) e) / sqrt(1 - beta) + sqrt((1 - l'^2) / (1 - l^2) beta) z."""
    betas = BetaGrid().schedule(6)
    model, g = denoiser(0.3), generator("wavegrad")
    noise, *noises = torch.randn(6, 5, 1, generator=g, dtype=torch.float64)
    sampler = WaveGradSampler(steps=6, grid=BetaGrid(), state_dtype="float64")
    drawn = sampler(model, noise, rng=Replay(torch.stack(noises)))
    abar = torch.cat([torch.ones(1).double(), (1 - betas).cumprod(0)])
    y = noise
    for n in range(6, 0, -1):
        sigma = ((1 - abar[n]) / abar[n]).sqrt()
        x = y / abar[n].sqrt()
        e = (x - model(x, sigma)) / sigma
        y = (y - betas[n - 1] / (1 - abar[n]).sqrt() * e) / (1 - betas[n - 1]).sqrt()
        if n > 1:
            y = y + ((1 - abar[n - 1]) / (1 - abar[n]) * betas[n - 1]).sqrt() * noises.pop(0)
    torch.testing.assert_close(drawn, y, rtol=1e-9, atol=1e-9)


# dpm_v3 first measures its coefficients over noise, of no condition.
@pytest.mark.parametrize("name", sorted(SAMPLERS.keys() - {"dpm_v3"}))
def test_conditions_of_any_form_reach_the_denoiser_untouched(name: str) -> None:
    """Nothing between data set and network reads what a model is told."""
    told, seen = torch.randn(3, 5, 7), []

    class Listener(GaussianDenoiser):
        def __call__(self, x: Tensor, sigma: Tensor, cond: Cond = None) -> Tensor:
            seen.append(cond)
            return super().__call__(x, sigma)

    listener = Listener(torch.zeros(2), torch.tensor(0.25))
    rng = Replay(torch.randn(200, 3, 2))
    replace(SAMPLERS[name](), steps=1 if name == "one_step" else 3)(listener, torch.randn(3, 2), told, rng)
    assert seen
    rows = [row for cond in seen for row in cond]  # a sampler may ask for some samples only
    assert all(any(torch.equal(row, one) for one in told) for row in rows)
