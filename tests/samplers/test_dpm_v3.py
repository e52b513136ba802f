"""DPM-Solver-v3 and its statistics against closed forms."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from scoregen.denoisers.base import Denoiser
from scoregen.denoisers.empirical import EmpiricalDenoiser
from scoregen.denoisers.gaussian import GaussianDenoiser
from scoregen.denoisers.guidance import Autoguidance
from scoregen.denoisers.mixture import GaussianMixtureDenoiser
from scoregen.denoisers.smoothed import SmoothedDenoiser
from scoregen.diffusion.grids import KarrasGrid
from scoregen.errors import UserError
from scoregen.rng import SampleRng, generator
from scoregen.samplers.dpm_v3 import DPMv3Sampler
from scoregen.samplers.model_statistics import ModelStatistics, estimate_statistics, regress
from scoregen.samplers.multistep import DPMpp3MSampler
from scoregen.samplers.teleport import TeleportSampler

MEAN, VARIANCES = torch.tensor([0.3, -0.5, 2.0]).double(), torch.tensor([0.09, 1.0, 0.01]).double()
SAMPLER = DPMv3Sampler(steps=12, state_dtype="float64")


def gaussian() -> GaussianDenoiser:
    return GaussianDenoiser(MEAN, VARIANCES)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator("noise"), dtype=torch.float64)


def gaussian_statistics(count: int) -> ModelStatistics:
    """l = sigma^2 / (v + sigma^2), so that f = -l mu is the same for all x: s = 0, b = df/dlambda."""
    knots = torch.linspace(-4.4, 6.3, count, dtype=torch.float64)
    square = (-2 * knots).exp()[:, None]
    slope, total = square / (VARIANCES + square), VARIANCES + square
    return ModelStatistics(knots, torch.stack([slope, 0 * slope, 2 * square * VARIANCES / total**2 * MEAN]))


def plain_statistics(size: int) -> ModelStatistics:
    """l = 1, s = b = 0."""
    values = torch.zeros(3, 50, size, dtype=torch.float64)
    values[0] = 1
    return ModelStatistics(torch.linspace(-4.4, 6.3, 50, dtype=torch.float64), values)


def kept(statistics: ModelStatistics, folder: Path) -> DPMv3Sampler:
    statistics.save(folder / "statistics.safetensors")
    return replace(SAMPLER, statistics=str(folder / "statistics.safetensors"))


def test_exact_statistics_solve_gaussian_data_in_one_step(tmp_path: Path) -> None:
    x = 80 * normal(6, 3)
    *_, step = kept(gaussian_statistics(1200), tmp_path).integrate(gaussian(), x, [80.0, 0.002])
    exact = MEAN + (x - MEAN) * ((VARIANCES + 0.002**2) / (VARIANCES + 80.0**2)).sqrt()
    torch.testing.assert_close(step.x, exact, rtol=0, atol=1e-8)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_error_falls_with_the_order_for_any_smooth_statistics(
    order: int, tmp_path: Path, flows: dict[str, tuple[Denoiser, Tensor]]
) -> None:
    """Those of other data; estimated ones are piecewise cubic, which shows where they are nearly exact."""
    (denoiser, exact), errors = flows["mixture"], []
    whole = gaussian_statistics(600)
    sampler = kept(ModelStatistics(whole.knots, whole.values[:, :, :2].contiguous()), tmp_path)
    for steps in (256, 512):
        fine = replace(sampler, steps=steps, grid=KarrasGrid(0.05, 80.0), solver_order=order)
        at_sigma_min = [step.x for step in fine.iterate(denoiser, normal(8, 2)) if step.sigma > 0][-1]
        errors.append((at_sigma_min - exact).square().mean().sqrt())
    slopes = -torch.stack(errors).log2().diff()
    assert slopes.tolist() == pytest.approx([order], abs=0.15)


def test_estimated_statistics_nearly_solve_gaussian_data_in_one_step() -> None:
    x = 80 * normal(6, 3)
    *_, step = SAMPLER.integrate(gaussian(), x, [80.0, 0.002])
    exact = MEAN + (x - MEAN) * ((VARIANCES + 0.002**2) / (VARIANCES + 80.0**2)).sqrt()
    torch.testing.assert_close(step.x, exact, rtol=0, atol=5e-3)
    *_, plain = DPMpp3MSampler().integrate(gaussian(), x, [80.0, 0.002])
    assert (plain.x - exact).abs().max() > 0.3


def test_trivial_statistics_make_it_dpm_solver_pp(tmp_path: Path, mixture: GaussianMixtureDenoiser) -> None:
    ours = kept(plain_statistics(2), tmp_path)(mixture, normal(8, 2))
    theirs = DPMpp3MSampler(steps=12, state_dtype="float64")(mixture, normal(8, 2))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-7)


def test_statistics_of_gaussian_data_are_the_closed_form() -> None:
    found = estimate_statistics(gaussian(), 0.01, 50.0, knots=200, count=16)
    exact = gaussian_statistics(4000)(found.knots)
    torch.testing.assert_close(found.values[:2], exact[:2], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.values[2, 2:-2], exact[2, 2:-2], rtol=0, atol=2e-3)


def test_the_regression_finds_a_linear_law_of_f() -> None:
    """f' = -0.7 f + 0.2 for every trajectory."""
    at = torch.linspace(0, 2, 400, dtype=torch.float64)
    f = 0.2 / 0.7 + (normal(30, 2) - 0.2 / 0.7) * (-0.7 * at).exp()[:, None, None]
    _, s, b = regress(at, f, torch.zeros_like(f), torch.zeros(400, 2, dtype=torch.float64)).values
    torch.testing.assert_close(s, torch.full_like(s, -0.7), rtol=0, atol=1e-4)
    torch.testing.assert_close(b, torch.full_like(b, 0.2), rtol=0, atol=1e-4)


def test_statistics_are_estimated_anew_where_the_weights_change() -> None:
    denoiser = gaussian()
    denoiser.mean = torch.nn.Parameter(denoiser._buffers.pop("mean"))
    guided = Autoguidance(gaussian(), denoiser, 2.0)  # by a network that changes
    for model in (denoiser, guided):
        first = SAMPLER.statistics_of(model, normal(1, 3))
        assert SAMPLER.statistics_of(model, normal(1, 3)) is first
        with torch.no_grad():
            denoiser.mean += 1
        assert not torch.equal(SAMPLER.statistics_of(model, normal(1, 3)).values, first.values)


def test_behind_a_jump_they_are_estimated_once_and_of_no_trajectory() -> None:
    data = normal(30, 3)
    denoiser = SmoothedDenoiser(EmpiricalDenoiser(data), sigma_s=0.5)
    moments = GaussianDenoiser(data.mean(0), data.var(0))
    sampler = TeleportSampler(8, moments=moments, sigma_skip=20.0, inner=replace(SAMPLER))
    noise, asked = normal(4, 3), []
    denoiser.register_forward_pre_hook(lambda _, args: asked.append(len(args[0])))
    x = sampler(denoiser, noise, rng=SampleRng([1, 2, 3, 4]))
    before = len(asked)
    alone = sampler(denoiser, noise[2:3], rng=SampleRng([3]))
    assert len(asked) - before < 10  # the estimate takes hundreds
    torch.testing.assert_close(alone[0], x[2], rtol=0, atol=1e-4)


def test_statistics_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    sampler = kept(plain_statistics(2), tmp_path)
    with pytest.raises(UserError, match=r"of samples of shape \(2,\), the model's have shape \(3,\)"):
        sampler(gaussian(), normal(4, 3))
    narrow = kept(gaussian_statistics(50), tmp_path.parent)
    with pytest.raises(
        UserError, match=r"cover noise levels from 0.00184 to 81.5, the steps reach from 0.001"
    ):
        list(narrow.integrate(gaussian(), normal(4, 3), [80.0, 1.0, 0.001]))
    with pytest.raises(UserError, match="is no file of model statistics"):
        replace(SAMPLER, statistics=str(tmp_path / "none"))(gaussian(), normal(4, 3))
