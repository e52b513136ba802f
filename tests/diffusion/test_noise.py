from collections.abc import Callable

import pytest
import torch

from scoregen.diffusion.noise import (
    IDDPMSigma,
    KarrasSigma,
    LevelsSigma,
    LogNormalSigma,
    LogUniformSigma,
    VPSigma,
)
from scoregen.diffusion.schedules import iddpm_sigmas, vp_time
from scoregen.errors import UserError

U = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000


def test_log_normal_quantiles_invert_the_normal_distribution() -> None:
    z = (LogNormalSigma(-0.4, 1.5).quantile(U).log() + 0.4) / 1.5
    torch.testing.assert_close(torch.special.ndtr(z), U)


def test_log_uniform_quantiles_are_uniform_in_log_sigma() -> None:
    log_sigma = LogUniformSigma(0.02, 100.0).quantile(U).log()
    fraction = (log_sigma - torch.tensor(0.02, dtype=torch.float64).log()) / torch.tensor(
        5000.0, dtype=torch.float64
    ).log()
    torch.testing.assert_close(fraction, U, rtol=1e-7, atol=1e-7)


def test_vp_quantiles_are_uniform_in_time() -> None:
    torch.testing.assert_close(vp_time(VPSigma().quantile(U)), 1e-5 + U * (1 - 1e-5))


def test_iddpm_quantiles_hit_every_level_above_zero_equally_often() -> None:
    sigma, count = IDDPMSigma().quantile(U).unique(return_counts=True)
    assert torch.equal(sigma, iddpm_sigmas()[:-1].flip(0))
    assert (count == 10).all()


@pytest.mark.parametrize(
    ("index", "sigma"), [(2, 0.0021), (20, 0.0032), (500, 2.53), (980, 72.05), (998, 79.56)]
)
def test_karras_quantiles_are_the_published_table_of_a_thousand_levels(index: int, sigma: float) -> None:
    u = torch.tensor(index / 999, dtype=torch.float64)
    assert float(KarrasSigma().quantile(u)) == pytest.approx(sigma, rel=0.02)


def test_karras_quantiles_of_an_interval_are_those_of_the_whole_rescaled() -> None:
    part = KarrasSigma(low=0.0, high=0.8).quantile(U)
    assert torch.equal(part, KarrasSigma().quantile(0.8 * U))
    assert float(part.median()) == pytest.approx(0.965, abs=1e-3)
    assert float(part.max()) == pytest.approx(24.4, abs=0.1)
    whole = KarrasSigma(low=2 / 999, high=998 / 999).quantile(U)
    assert float((whole < 8).double().mean()) == pytest.approx(0.64, abs=0.01)
    assert float((whole < 1).double().mean()) == pytest.approx(0.40, abs=0.01)


def test_levels_are_hit_equally_often() -> None:
    sigma, count = LevelsSigma((0.1, 0.2, 0.5, 2.0)).quantile(U).unique(return_counts=True)
    assert sigma.tolist() == [0.1, 0.2, 0.5, 2.0]
    assert (count == 2500).all()


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: KarrasSigma(low=0.5, high=0.5), "low=0.5 must be below high=0.5"),
        (lambda: LevelsSigma((0.2, 0.1)), "must be positive and increase"),
        (lambda: LevelsSigma(()), "must be positive and increase"),
    ],
)
def test_empty_intervals_and_disordered_levels_are_refused(build: Callable, said: str) -> None:
    with pytest.raises(UserError, match=said):
        build()


@pytest.mark.parametrize(
    ("s", "floor", "zero"), [(0.25, 0.58744, 0.72545), (0.5, 1.0, 1.0), (1.0, 1.62832, 2.09819)]
)
def test_edm_loss_floor_and_loss_of_a_zero_network_average_to_the_known_values(
    s: float, floor: float, zero: float
) -> None:
    sigma_2, sd_2 = LogNormalSigma().quantile(U) ** 2, 0.25
    weight = (sigma_2 + sd_2) / (sigma_2 * sd_2)
    assert float((weight * s**2 * sigma_2 / (s**2 + sigma_2)).mean()) == pytest.approx(floor, abs=1e-5)
    assert float(((sd_2 + sigma_2 * s**2 / sd_2) / (sigma_2 + sd_2)).mean()) == pytest.approx(zero, abs=1e-5)


def test_an_empty_range_is_refused() -> None:
    with pytest.raises(UserError, match="sigma_min=3 must be below sigma_max=1"):
        LogUniformSigma(3.0, 1.0)
