from dataclasses import replace

import pytest
import torch
from torch import Tensor

from scoregen import config
from scoregen.denoisers.empirical import EmpiricalDenoiser
from scoregen.denoisers.gaussian import GaussianDenoiser
from scoregen.denoisers.smoothed import SmoothedDenoiser
from scoregen.diffusion.grids import FlowGrid, KarrasGrid
from scoregen.errors import UserError
from scoregen.rng import BatchRng, SampleRng, generator
from scoregen.samplers import SAMPLERS
from scoregen.samplers.base import Sampler
from scoregen.samplers.closed_form import ClosedFormSampler
from scoregen.samplers.edm import EulerSampler
from scoregen.samplers.teleport import TeleportSampler


def normal(*shape: int, key: str = "x") -> Tensor:
    return torch.randn(*shape, generator=generator(key), dtype=torch.float64)


@pytest.fixture
def data() -> Tensor:
    return normal(60, 3, key="data")


@pytest.mark.parametrize("total", [2, 20, 100])
def test_the_grid_of_all_steps_is_the_papers(total: int) -> None:
    levels = FlowGrid(sigma_max=total - 1)(total - 1)
    expected = total / torch.arange(1, total + 1, dtype=torch.float64) - 1
    torch.testing.assert_close(levels, expected, rtol=1e-12, atol=1e-14)


def test_the_defaults_are_the_last_five_of_100_steps() -> None:
    sampler = config.instantiate(config.choose("sampler", "closed_form")[0])
    assert (sampler.steps, sampler.start, sampler.nfe()) == (5, "data", 5)
    for levels in (sampler.grid(5), ClosedFormSampler().grid(5)):
        expected = 100 / torch.arange(95, 101, dtype=torch.float64) - 1
        torch.testing.assert_close(levels, expected, rtol=1e-10, atol=1e-14)


def test_one_step_and_levels_below_the_models_range() -> None:
    assert FlowGrid(sigma_max=3.0)(1).tolist() == [3.0, 0.0]
    levels = FlowGrid(sigma_min=0.2, sigma_max=3.0)(10)
    assert float(levels[-2]) == pytest.approx(0.2)
    assert (levels.diff() < 0).all()


@pytest.mark.parametrize("sigma_s", [0.0, 0.3])
def test_euler_steps_are_the_papers_in_its_own_clock(sigma_s: float, data: Tensor) -> None:
    denoiser, total = SmoothedDenoiser(EmpiricalDenoiser(data), sigma_s=sigma_s, noises=3), 40
    noise = normal(5, 3)
    sampler = ClosedFormSampler(
        total - 1, FlowGrid(sigma_max=total - 1), state_dtype="float64", start="noise"
    )
    z, h = noise * (total - 1) / total, 1 / total  # z = t x
    for step in sampler.iterate(denoiser, noise):
        t = (step.index + 1) * h
        k = t * denoiser(z / t, torch.tensor((1 - t) / t, dtype=torch.float64))
        velocity = (z + (1 - t) * (k - z) / (1 - t) ** 2) / t
        z = z + h * velocity
        torch.testing.assert_close(step.x * (t + h), z, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("start", ["data", "noise"])
def test_without_smoothing_every_sample_is_a_training_sample(start: str, data: Tensor) -> None:
    grid = FlowGrid() if start == "data" else FlowGrid(sigma_max=99.0)
    sampler = ClosedFormSampler(99, grid, state_dtype="float64", start=start)
    x = sampler(EmpiricalDenoiser(data), normal(50, 3), rng=BatchRng("draw", size=50))
    distance = torch.cdist(x, data, compute_mode="donot_use_mm_for_euclid_dist").amin(1)
    assert float(distance.max()) <= 1e-12


def test_with_smoothing_samples_are_means_of_the_neighbours_of_their_perturbed_ends(data: Tensor) -> None:
    rng = BatchRng("noise", size=30)
    smoothed = SmoothedDenoiser(EmpiricalDenoiser(data), sigma_s=0.5, noises=3).for_trajectory(rng)
    smoothed.for_trajectory = lambda rng: smoothed  # the noise is known here
    sampler = ClosedFormSampler(300, FlowGrid(sigma_max=99.0), state_dtype="float64", start="noise")
    x = sampler(smoothed, normal(30, 3), rng=rng)
    moved = x[:, None] + 0.5 * smoothed.noise.double()
    nearest = data[(moved[:, :, None] - data).square().sum(-1).argmin(-1)]
    distance = (x - nearest.mean(1)).norm(dim=1)
    assert float(distance.median()) <= 1e-10
    assert (distance < 1e-10).float().mean() > 0.9  # the rest ends on the border between two
    assert (torch.cdist(x, data).amin(1) > 1e-3).float().mean() > 0.5  # most are new


def test_a_late_start_gives_the_distribution_of_an_early_one() -> None:
    """Both memorise uniformly: the counts of training samples agree within chance."""
    data = torch.tensor([[-1.0], [0.2], [0.5], [2.0]], dtype=torch.float64)
    count = 4000
    for start, grid, steps in [("data", FlowGrid(), 5), ("noise", FlowGrid(sigma_max=99.0), 99)]:
        sampler = ClosedFormSampler(steps, grid, start=start, state_dtype="float64")
        noise = torch.randn(count, 1, generator=generator("noise"), dtype=torch.float64)
        x = sampler(EmpiricalDenoiser(data), noise, rng=BatchRng("draw", size=count))
        counts = (x - data.T).abs().argmin(1).bincount(minlength=4)
        tolerance = 4 * (count / 4) ** 0.5 if start == "data" else 0.1 * count  # Euler's own error
        assert (counts - count / 4).abs().max() < tolerance


def test_a_sample_depends_on_its_seed_only(data: Tensor) -> None:
    denoiser = SmoothedDenoiser(EmpiricalDenoiser(data.float()), sigma_s=0.3, noises=2)
    sampler = ClosedFormSampler()

    def sample(seeds: list[int]) -> Tensor:
        rng = SampleRng(seeds)
        return sampler(denoiser, rng.randn(3), rng=rng)

    together = sample([4, 5, 6])
    torch.testing.assert_close(sample([6])[0], together[2], rtol=0, atol=1e-6)


def test_noise_is_settled_once_a_trajectory_and_for_each_sample(data: Tensor) -> None:
    smoothed = SmoothedDenoiser(EmpiricalDenoiser(data), sigma_s=1.0, noises=2)
    grid = FlowGrid(sigma_max=99.0)
    sampler = ClosedFormSampler(50, grid, state_dtype="float64", start="noise")
    x = sampler(smoothed, normal(1, 3).expand(6, 3), rng=SampleRng([1, 2, 3, 4, 5, 1]))
    assert len(torch.unique(x[:5].round(decimals=6), dim=0)) > 1
    torch.testing.assert_close(x[5], x[0])
    settled = smoothed.for_trajectory(SampleRng([1]))
    expected = EulerSampler(50, grid, state_dtype="float64")(settled, normal(1, 3))
    torch.testing.assert_close(x[:1], expected)


@pytest.mark.parametrize("name", [name for name, kind in SAMPLERS.items() if kind().deterministic])
def test_noise_is_settled_by_every_sampler(name: str, data: Tensor) -> None:
    smoothed, grid = SmoothedDenoiser(EmpiricalDenoiser(data), sigma_s=1.0), KarrasGrid(sigma_max=20.0)
    sampler: Sampler = replace(SAMPLERS[name](), grid=grid, state_dtype="float64")
    if isinstance(sampler, TeleportSampler):
        moments = GaussianDenoiser(data.mean(0), data.var(0))
        sampler = replace(sampler, moments=moments, sigma_skip=10.0)
    x = sampler(smoothed, normal(1, 3).expand(3, 3), rng=SampleRng([1, 2, 1]))
    alone = sampler(smoothed, normal(1, 3), rng=SampleRng([1]))
    assert torch.equal(x[0], x[2])
    assert not torch.allclose(x[0], x[1], atol=1e-3)
    torch.testing.assert_close(x[:1], alone, rtol=0, atol=1e-9)


def test_classes_start_from_their_own_data(data: Tensor) -> None:
    labels = torch.arange(60) % 2
    denoiser = EmpiricalDenoiser(data, labels)
    cond = torch.tensor([0, 1]).repeat(10)
    x = ClosedFormSampler()(denoiser, normal(20, 3), cond, BatchRng("draw", size=20))
    _, index = denoiser.nearest(x)
    assert torch.equal(labels[index], cond)


def test_any_denoiser_may_start_from_noise() -> None:
    gaussian, grid = GaussianDenoiser(torch.zeros(2), torch.ones(2)), FlowGrid(sigma_max=20.0)
    sampler = ClosedFormSampler(10, grid, start="noise")
    assert torch.equal(
        sampler(gaussian, torch.ones(1, 2)), EulerSampler(10, grid)(gaussian, torch.ones(1, 2))
    )
    with pytest.raises(UserError, match="GaussianDenoiser holds no training data"):
        ClosedFormSampler()(gaussian, torch.ones(1, 2), rng=BatchRng("draw", size=1))
    with pytest.raises(ValueError, match="give the sampler an rng, or start=noise"):
        ClosedFormSampler()(EmpiricalDenoiser(torch.ones(1, 2)), torch.ones(1, 2))
