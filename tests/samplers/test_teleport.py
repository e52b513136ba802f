import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from scoregen import config
from scoregen.denoisers.base import Cond
from scoregen.denoisers.gaussian import ClassGaussianDenoiser, GaussianDenoiser
from scoregen.denoisers.guidance import count_evaluations
from scoregen.denoisers.mixture import GaussianMixtureDenoiser
from scoregen.denoisers.moments import save_gaussian
from scoregen.diffusion.grids import KarrasGrid
from scoregen.errors import UserError
from scoregen.rng import BatchRng, generator
from scoregen.samplers.edm import EulerSampler, HeunSampler
from scoregen.samplers.fit import fit_sampler
from scoregen.samplers.teleport import TeleportSampler, warn_of_low_skip

PROTOCOLS = pytest.mark.parametrize("protocol", ["drop", "regrid"])


def normal(*shape: int, key: str = "noise") -> Tensor:
    return torch.randn(*shape, generator=generator(key), dtype=torch.float64)


def level(sigma: float) -> Tensor:
    return torch.tensor(sigma, dtype=torch.float64)


@pytest.fixture
def gaussian() -> GaussianDenoiser:
    return GaussianDenoiser(level(0.3).expand(2), torch.tensor([0.25, 1.5], dtype=torch.float64))


class Counter(GaussianDenoiser):
    """Counts its calls, and keeps the highest noise level asked for."""

    calls, highest = 0, 0.0

    def forward(self, x: Tensor, sigma: Tensor, cond: Cond = None) -> Tensor:
        self.calls, self.highest = self.calls + 1, max(self.highest, float(sigma))
        return super().forward(x, sigma, cond)


@pytest.fixture
def counted(gaussian: GaussianDenoiser) -> Counter:
    return Counter(gaussian.mean, gaussian.variances)


@pytest.fixture
def skewed() -> tuple[GaussianMixtureDenoiser, GaussianDenoiser]:
    """Data with third cumulants, and the Gaussian of their moments."""
    weights = torch.tensor([0.7, 0.3], dtype=torch.float64)
    means = torch.tensor([[-0.9, 0.4], [2.1, -0.2]], dtype=torch.float64)
    mean = weights @ means
    centred = means - mean
    covariance = centred.T * weights @ centred + 0.04 * torch.eye(2)
    data = GaussianMixtureDenoiser(means, level(0.04), weights=weights)
    return data, GaussianDenoiser.from_covariance(mean, covariance)


@pytest.mark.parametrize(("steps", "k"), [(18, 1), (18, 5), (18, 16), (40, 12)])
def test_the_tail_of_a_karras_grid_is_the_grid_of_the_steps_left(steps: int, k: int) -> None:
    whole = KarrasGrid()(steps)
    again = KarrasGrid(sigma_max=float(whole[k]))(steps - k)
    torch.testing.assert_close(whole[k:], again, rtol=1e-13, atol=0)


def test_on_gaussian_data_the_error_never_grows_with_the_jump(gaussian: GaussianDenoiser) -> None:
    noise = normal(64, 2)
    plain, grid = HeunSampler(steps=18, state_dtype="float64"), KarrasGrid()(18).tolist()
    exact = gaussian.flow(80 * noise, level(80.0), level(0.0))
    teleports = [
        TeleportSampler(18, state_dtype="float64", moments=gaussian, sigma_skip=sigma, inner=plain)
        for sigma in grid[:17]
    ]
    errors = [float((sampler(gaussian, noise) - exact).square().mean().sqrt()) for sampler in teleports]
    without = float((plain(gaussian, noise) - exact).square().mean().sqrt())
    assert errors[0] == pytest.approx(without, rel=1e-9)
    assert max(errors) <= without * (1 + 1e-9)
    assert errors[10] < without / 2


def test_the_error_of_a_jump_falls_with_the_square_of_the_noise_level(skewed) -> None:
    data, gaussian = skewed
    noise, skips = normal(256, 2), [5.0, 10.0, 20.0, 40.0]
    errors = []
    exact_steps = HeunSampler(steps=600, grid=KarrasGrid(sigma_min=1.0), state_dtype="float64")
    for sigma in skips:
        levels = KarrasGrid(sigma_min=sigma)(400).tolist()[:-1]
        *_, last = exact_steps.integrate(data, 80 * noise, levels)
        jumped = gaussian.flow(80 * noise, level(80.0), level(sigma))
        errors.append((jumped - last.x).square().mean().sqrt())
    slopes = torch.stack(errors).log2().diff()
    assert slopes.tolist() == pytest.approx([-2.0] * 3, abs=0.2)


@PROTOCOLS
def test_teleport_is_a_jump_and_then_the_inner_sampler(protocol: str, gaussian, skewed) -> None:
    data, _ = skewed
    noise = normal(8, 2)
    sampler = TeleportSampler(
        18, state_dtype="float64", moments=gaussian, sigma_skip=20.0, protocol=protocol, inner=EulerSampler()
    )
    expected = KarrasGrid()(18)[4:] if protocol == "drop" else KarrasGrid(sigma_max=20.0)(18)
    assert sampler.sigmas(data) == pytest.approx(expected.tolist(), rel=1e-12)
    x = gaussian.flow(80 * noise, level(80.0), expected[0])
    *_, last = EulerSampler(state_dtype="float64").integrate(data, x, expected.tolist())
    torch.testing.assert_close(sampler(data, noise), last.x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("protocol", "sigma_skip", "nfe", "saved"),
    [("drop", 20.0, 27, 8), ("drop", 80.0, 35, 0), ("drop", 13.0, 25, 10), ("regrid", 20.0, 35, 0)],
)
def test_the_evaluations_saved_are_those_of_the_levels_left_out(
    protocol: str, sigma_skip: float, nfe: int, saved: int, gaussian: GaussianDenoiser, counted: Counter
) -> None:
    sampler = TeleportSampler(18, moments=gaussian, sigma_skip=sigma_skip, protocol=protocol)
    assert (sampler.nfe(), sampler.nfe_saved) == (nfe, saved)
    sampler(counted, normal(2, 2))
    assert counted.calls == nfe
    assert counted.highest <= sigma_skip * (1 + 1e-6)


@PROTOCOLS
@pytest.mark.parametrize(("steps", "sigma_skip"), [(18, 20.0), (40, 10.0)])
def test_a_sampler_fitted_to_a_model_knows_what_it_costs_there(
    steps: int, sigma_skip: float, protocol: str, gaussian: GaussianDenoiser, counted: Counter
) -> None:
    """A grid that ends earlier has fewer levels below sigma_skip."""
    counted.sigma_min = 0.02
    sampler = TeleportSampler(steps, moments=gaussian, sigma_skip=sigma_skip, protocol=protocol)
    fitted = fit_sampler(sampler, counted, lambda: pytest.fail("moments are given"), None)
    fitted(counted, normal(2, 2))
    assert counted.calls == fitted.nfe() == count_evaluations(fitted, counted)


def test_churn_is_shared_among_the_steps_of_the_whole_grid(gaussian: GaussianDenoiser) -> None:
    inner, noise = HeunSampler(s_churn=4.0), normal(5, 2).float()
    sampler = TeleportSampler(20, moments=gaussian, sigma_skip=20.0, inner=inner)
    x = gaussian.flow(80 * noise, torch.tensor(80.0), torch.tensor(sampler.sigmas(gaussian)[0]))
    whole = replace(inner, steps=20)
    *_, last = whole.integrate(gaussian, x, sampler.sigmas(gaussian), rng=BatchRng("churn", size=5))
    assert torch.equal(sampler(gaussian, noise, rng=BatchRng("churn", size=5)), last.x)


def test_each_class_is_carried_by_its_own_moments(gaussian: GaussianDenoiser) -> None:
    other = GaussianDenoiser(level(-2.0).expand(2), level(0.1))
    both = ClassGaussianDenoiser([gaussian, other], other)
    noise, cond = normal(4, 2), torch.tensor([0, 1, 0, 1])
    sampler = TeleportSampler(200, state_dtype="float64", moments=both, sigma_skip=1.0)
    exact = both.flow(80 * noise, level(80.0), level(0.0), cond)
    torch.testing.assert_close(sampler(both, noise, cond), exact, rtol=0, atol=2e-3)


def test_levels_above_the_models_range_are_jumped_over(gaussian: GaussianDenoiser) -> None:
    narrow = GaussianDenoiser(gaussian.mean, gaussian.variances)
    narrow.sigma_min, narrow.sigma_max = 0.01, 50.0
    sampler = TeleportSampler(18, moments=gaussian, sigma_skip=30.0)
    whole = KarrasGrid(sigma_min=0.01)(18).tolist()
    assert sampler.sigmas(narrow) == pytest.approx([sigma for sigma in whole if sigma <= 30])
    with pytest.raises(UserError, match="sigma_skip=60 is above the model's sigma_max=50"):
        TeleportSampler(moments=gaussian, sigma_skip=60.0)(narrow, normal(1, 2))


def test_a_file_of_moments_serves_as_they_do(gaussian: GaussianDenoiser, tmp_path: Path) -> None:
    root = normal(2, 2, key="root")
    moments = GaussianDenoiser.from_covariance(gaussian.mean, root @ root.T)
    save_gaussian(moments, tmp_path / "moments.npz")
    from_file = TeleportSampler(moments=str(tmp_path / "moments.npz"))
    assert torch.equal(
        from_file(gaussian, normal(3, 2)), TeleportSampler(moments=moments)(gaussian, normal(3, 2))
    )


@pytest.mark.parametrize(("size", "low", "numbers"), [(8, 9.9, "4.72 from 2.5"), (64, 19.0, "3.51 from 5")])
def test_a_jump_below_the_published_range_is_warned_of_with_numbers(size, low, numbers) -> None:
    with pytest.warns(UserWarning, match=numbers):
        warn_of_low_skip(low, (3, size, size))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_low_skip(low * 2, (3, size, size))
        warn_of_low_skip(low, (2,))


def test_impossible_jumps_are_refused(gaussian: GaussianDenoiser) -> None:
    with pytest.raises(UserError, match=r"sigma_skip=100 must lie above .* not above its sigma_max=80"):
        TeleportSampler(sigma_skip=100.0)
    with pytest.raises(UserError, match="with steps=1 no level of the grid lies between 0 and sigma_skip=20"):
        TeleportSampler(steps=1, moments=gaussian)(gaussian, normal(1, 2))
    with pytest.raises(UserError, match="teleport needs the mean and covariance of the training data"):
        TeleportSampler()(gaussian, normal(1, 2))
    with pytest.raises(UserError, match=r"samples of shape \(2,\), the model's have shape \(3,\)"):
        TeleportSampler(moments=gaussian)(GaussianDenoiser(torch.zeros(3), torch.ones(3)), normal(1, 3))


def test_the_configured_sampler_saves_eight_of_35_evaluations() -> None:
    sampler = config.instantiate(config.choose("sampler", "teleport")[0])
    assert (sampler.nfe(), sampler.nfe_saved) == (27, 8)
