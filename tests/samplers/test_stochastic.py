"""Samplers that add noise: the spread of Gaussian data in closed form, restarts, Langevin dynamics."""

from collections.abc import Callable, Iterator
from itertools import pairwise
from math import prod, sqrt

import pytest
import torch
from torch import Tensor

from scoregen.data.base import ArrayDataset
from scoregen.denoisers.base import Cond
from scoregen.denoisers.gaussian import GaussianDenoiser
from scoregen.denoisers.mixture import GaussianMixtureDenoiser
from scoregen.diffusion.grids import KarrasGrid
from scoregen.errors import UserError
from scoregen.rng import BatchRng, SampleRng, generator
from scoregen.samplers import SAMPLERS
from scoregen.samplers.ancestral import DDIMSampler, EulerAncestralSampler
from scoregen.samplers.base import Sampler
from scoregen.samplers.consistency import ConsistencySampler
from scoregen.samplers.exponential import ExponentialSampler
from scoregen.samplers.generate import generate
from scoregen.samplers.langevin import LangevinSampler
from scoregen.samplers.multistep import DPMpp2MSDESampler
from scoregen.samplers.one_step import OneStepSampler
from scoregen.samplers.predictor_corrector import PredictorCorrectorSampler
from scoregen.samplers.restart import RestartSampler

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")

V = 0.25  # the variance of the data, in 256 dimensions


def spread(sampler: Sampler, count: int = 400) -> float:
    noise = torch.randn(count, 256, generator=generator("noise"))
    denoiser = GaussianDenoiser(torch.zeros(256), torch.tensor(V))
    return float(sampler(denoiser, noise, rng=BatchRng("spread", size=count)).var())


def ancestral(sigma: float, after: float) -> Iterator[tuple[float, float]]:
    """The posterior of x' given x and x0 = D(x)."""
    keep = after**2 / sigma**2
    yield keep + (1 - keep) * V / (V + sigma**2), after**2 * (1 - keep)


def reverse_sde(sigma: float, after: float) -> Iterator[tuple[float, float]]:
    """Euler-Maruyama in sigma^2, after a Langevin step; delta is sharp in many dimensions."""
    total = V + sigma**2
    delta = 2 * 0.16**2 * total
    yield 1 - delta / total, 2 * delta
    yield 1 - (sigma**2 - after**2) / total, (sigma**2 - after**2) * (after > 0)


def ornstein_uhlenbeck(sigma: float, after: float) -> Iterator[tuple[float, float]]:
    """The exponential integrator in y = alpha x, where y has variance alpha^2 (V + sigma^2)."""
    alpha, alpha_after = (1 + sigma**2) ** -0.5, (1 + after**2) ** -0.5
    grow = alpha_after / alpha
    pull = 2 * (grow - 1) / (alpha**2 * (V + sigma**2))
    if after > 0:
        yield (grow - pull) * alpha / alpha_after, (grow**2 - 1) / alpha_after**2
    else:
        yield V / (V + sigma**2), 0.0


@pytest.mark.parametrize(
    ("sampler", "moves"),
    [
        (EulerAncestralSampler(64), ancestral),
        (DDIMSampler(64, eta=1.0), ancestral),
        (PredictorCorrectorSampler(64), reverse_sde),
        (ExponentialSampler(64), ornstein_uhlenbeck),
    ],
    ids=lambda value: type(value).__name__,
)
def test_gaussian_data_come_out_with_the_spread_of_the_method(
    sampler: Sampler, moves: Callable[[float, float], Iterator[tuple[float, float]]]
) -> None:
    sigmas = sampler.sigmas(GaussianDenoiser(torch.zeros(1), torch.tensor(V)))
    variance = sigmas[0] ** 2
    for sigma, after in pairwise(sigmas):
        for gain, noise in moves(sigma, after):
            variance = gain**2 * variance + noise
    assert spread(sampler) == pytest.approx(variance, rel=3 * sqrt(2 / 400 / 256) + 0.002)
    assert variance == pytest.approx(V, abs=4 / 64)


@pytest.mark.parametrize(
    ("sampler", "variance"),
    [
        (EulerAncestralSampler(256), 0.2385),  # the published check of this specification
        (DPMpp2MSDESampler(256), 0.25),
        (DPMpp2MSDESampler(256, eta=0.5, variant="heun"), 0.25),
        (
            RestartSampler(64, s_noise=1.0, segments=[(17, 3, 0.14, 0.3), (17, 2, 1.0, 5.0)]),
            0.2519,
        ),  # Heun's: .2519
    ],
    ids=repr,
)
def test_noise_keeps_the_marginal_of_gaussian_data(sampler: Sampler, variance: float) -> None:
    assert spread(sampler) == pytest.approx(variance, rel=3 * sqrt(2 / 400 / 256) + 1 / 256)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sample_does_not_depend_on_its_batch(name: str) -> None:
    denoiser = GaussianDenoiser(torch.zeros(1, 4, 4), torch.tensor(V))
    sampler = SAMPLERS[name](steps=1 if name == "one_step" else 6)
    whole, alone = (
        torch.cat([part.x for part in generate(denoiser, sampler, range(5), batch=batch, device="cpu")])
        for batch in (5, 1)
    )
    torch.testing.assert_close(whole, alone, rtol=1e-6, atol=1e-6)
    assert len(torch.unique(whole, dim=0)) == 5


def test_restarts_cost_what_was_published() -> None:
    segments = [
        (4, 1, 19.35, 40.79),
        (4, 1, 1.09, 1.92),
        (4, 5, 0.59, 1.09),
        (4, 5, 0.30, 0.59),
        (6, 6, 0.06, 0.30),
    ]
    assert RestartSampler(36, segments=segments).nfe() == 203
    assert RestartSampler(18).nfe() == 43


def test_a_restart_goes_up_to_t_max_and_back_to_the_level_nearest_t_min() -> None:
    asked: list[float] = []
    denoiser = GaussianDenoiser(torch.zeros(2), torch.tensor(V))
    denoiser.register_forward_pre_hook(lambda _, args: asked.append(round(float(args[1]), 4)))
    sampler = RestartSampler(6, segments=[(2, 2, 0.14, 0.30)])
    sampler(denoiser, torch.ones(1, 2), rng=BatchRng("restart", size=1))
    *_, j = [round(sigma, 4) for sigma in sampler.sigmas(denoiser) if abs(sigma - 0.14) < 0.1]
    assert asked[6:].count(0.3) == 2
    assert asked[asked.index(0.3) : asked.index(0.3) + 4] == [0.3, j, 0.3, j]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"segments": [(1, 2, 0.1, 0.3)]}, "N_r at least 2 and t_min below t_max"),
        ({"segments": [(3, 2, 0.4, 0.3)]}, "N_r at least 2 and t_min below t_max"),
        ({"segments": [(3, 2, 0.0005, 0.001)]}, "t_max=0.001 must be above the grid's lowest level, 0.002"),
    ],
)
def test_impossible_segments_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        RestartSampler(18, **arguments)(
            GaussianDenoiser(torch.zeros(2), torch.tensor(V)), torch.ones(1, 2), rng=BatchRng("no", size=1)
        )


class GaussianConsistency:
    """The end of the probability flow of N(0, V): x sqrt(V / (V + sigma^2))."""

    shape, sigma_min, sigma_max, num_classes = (256,), 0.0, 80.0, 0

    def __call__(self, x: Tensor, sigma: Tensor, cond: Cond = None) -> Tensor:
        return x * (V / (V + sigma**2)).sqrt()


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_an_exact_consistency_model_keeps_the_law_of_the_data_through_every_jump(steps: int) -> None:
    sampler, model = ConsistencySampler(steps, KarrasGrid(0.821)), GaussianConsistency()
    noise = torch.randn(400, 256, generator=generator("noise"))
    samples = sampler(model, noise, rng=BatchRng("jumps", size=400))
    assert float(samples.var()) == pytest.approx(V, rel=3 * sqrt(2 / 400 / 256))
    kept = prod((V / (V + sigma**2)) ** 0.5 for sigma in sampler.sigmas(model)[1:-1])
    correlation = float((samples * OneStepSampler()(model, noise)).mean()) / V
    assert correlation == pytest.approx(kept, abs=0.02)


def test_one_step_is_one_evaluation_at_the_level_of_the_student(mixture: GaussianMixtureDenoiser) -> None:
    mixture.sigma_max = 2.5
    noise = torch.randn(8, 2, generator=generator("noise"), dtype=torch.float64)
    out = OneStepSampler(state_dtype="float64")(mixture, noise)
    assert torch.equal(out, mixture(2.5 * noise, torch.tensor(2.5, dtype=torch.float64)))
    with pytest.raises(UserError, match="one_step takes 1 step, got steps=4"):
        OneStepSampler(4)


SIGMA = 0.3  # of Langevin dynamics on a Gaussian of variance V in all; h = 0.05


@pytest.mark.parametrize(("metropolis", "variance"), [(False, V / (1 - 0.05 / (2 * V))), (True, V)])
def test_langevin_dynamics_have_the_known_variance(metropolis: bool, variance: float) -> None:
    denoiser = GaussianDenoiser(torch.zeros(1), torch.tensor(V - SIGMA**2))
    sampler, count = LangevinSampler(step_size=0.05 / SIGMA**2, metropolis=metropolis), 100_000
    x, rng = torch.zeros(count, 1), BatchRng("langevin", size=count)
    *_, last = sampler.integrate(denoiser, x, [SIGMA] * 60, rng=rng)
    assert float(last.x.var()) == pytest.approx(variance, rel=0.02)


def two_modes() -> tuple[GaussianMixtureDenoiser, ArrayDataset]:
    """A model that gives the modes -4 and 4, of variance 1/2, equal weight; data with 22 % on the right."""
    model = GaussianMixtureDenoiser(torch.tensor([[-4.0], [4.0]]), torch.tensor(0.5 - 0.04))
    side = torch.where(torch.arange(500) < 110, 4.0, -4.0)[:, None]
    return model, ArrayDataset("modes", side + 0.46**0.5 * torch.randn(500, 1, generator=generator("modes")))


def test_langevin_dynamics_from_data_keep_the_weights_of_the_modes() -> None:
    model, data = two_modes()
    noise, rng = torch.randn(4000, 1, generator=generator("noise")), BatchRng("init", size=4000)
    sampler = LangevinSampler(302, init="data", data=data, step_size=0.5)
    object.__setattr__(sampler, "grid", sampler.grid.within(0.2, 80.0))  # h = 0.02
    assert sampler.sigmas(model) == [0.2] * 302 + [0.0]
    *_, x, _ = (step.x for step in sampler.iterate(model, noise, rng=rng))
    assert float((x > 0).float().mean()) == pytest.approx(0.22, abs=0.02)  # 0.219 of 500 in the specification
    assert float((x[x < 0]).var()) == pytest.approx(0.5 / (1 - 0.02), rel=0.1)
    *_, x = (step.x for step in sampler.integrate(model, 3 * noise, [0.2] * 302, rng=rng))
    assert float((x > 0).float().mean()) == pytest.approx(0.5, abs=0.03)


def test_chains_from_data_start_at_samples_of_their_seed_and_class() -> None:
    labels = torch.arange(60) % 3
    data = ArrayDataset("classes", 10.0 * torch.arange(60)[:, None].float(), labels)
    model = GaussianMixtureDenoiser(data.x, torch.tensor(0.0), labels=labels)
    sampler = LangevinSampler(1, init="data", data=data)
    cond = torch.tensor([2, 0, 1, 2])
    whole = sampler(model, torch.zeros(4, 1), cond, SampleRng([1, 2, 3, 4]))
    assert torch.equal((whole[:, 0] / 10).round().long() % 3, cond)
    part = sampler(model, torch.zeros(2, 1), cond[2:], SampleRng([3, 4]))
    assert torch.equal(whole[2:], part)
    with pytest.raises(UserError, match=r"needs training data of shape \(1,\); none are given"):
        LangevinSampler(1, init="data")(model, torch.zeros(4, 1), None, SampleRng([1, 2, 3, 4]))
    with pytest.raises(UserError, match="no samples of a class"):
        sampler(model, torch.zeros(1, 1), torch.tensor([3]), SampleRng([1]))


@pytest.mark.parametrize(("init", "nfe"), [("noise", 13), ("data", 7)])
def test_a_metropolis_step_evaluates_the_proposal_only_where_the_level_stays(init: str, nfe: int) -> None:
    asked: list[Tensor] = []
    denoiser = GaussianDenoiser(torch.zeros(1), torch.tensor(V))
    denoiser.register_forward_pre_hook(lambda _, args: asked.append(args[1]))
    data = ArrayDataset("points", torch.zeros(5, 1))
    sampler = LangevinSampler(7, init=init, data=data, metropolis=True)
    sampler(denoiser, torch.ones(2, 1), rng=BatchRng("nfe", size=2))
    assert len(asked) == sampler.nfe() == nfe
