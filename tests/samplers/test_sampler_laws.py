from collections.abc import Callable
from dataclasses import replace
from math import inf, sqrt

import pytest
import torch
from torch import Tensor

from scoregen.denoisers.base import Cond, Denoiser
from scoregen.denoisers.function import FunctionDenoiser
from scoregen.denoisers.gaussian import GaussianDenoiser
from scoregen.denoisers.mixture import GaussianMixtureDenoiser
from scoregen.diffusion.grids import KarrasGrid
from scoregen.diffusion.precond import IDDPMPrecond
from scoregen.errors import UserError
from scoregen.rng import BatchRng, generator
from scoregen.samplers import SAMPLERS
from scoregen.samplers.adams import DEISSampler, LMSSampler
from scoregen.samplers.base import Sampler
from scoregen.samplers.edm import EulerSampler, HeunSampler
from scoregen.samplers.multistep import DPMpp2MSampler
from scoregen.samplers.unipc import UniPCSampler

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")

MEMORYLESS = ("euler", "heun", "dpm_2", "dpmpp_2s", "ddim")
EVERY_SAMPLER = pytest.mark.parametrize("name", SAMPLERS)
ORDERED = pytest.mark.parametrize(
    "name", [name for name, sampler in SAMPLERS.items() if sampler.order is not None]
)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator("noise"), dtype=torch.float64)


def gaussian(s: float, size: int = 1) -> GaussianDenoiser:
    return GaussianDenoiser(torch.zeros(size, dtype=torch.float64), torch.tensor(s**2, dtype=torch.float64))


def build(name: str, steps: int) -> Sampler:
    """The sampler with its defaults and as many steps as it takes."""
    return SAMPLERS[name](steps=1 if name == "one_step" else steps)


class Recorder:
    """A denoiser that notes the noise levels it is asked for."""

    num_classes = 0

    def __init__(self, inner: Denoiser, sigma_min: float = 0.0, sigma_max: float = inf) -> None:
        self.inner, self.shape, self.sigmas = inner, inner.shape, []
        self.sigma_min, self.sigma_max = sigma_min, sigma_max

    def __call__(self, x: Tensor, sigma: Tensor, cond: Cond = None) -> Tensor:
        self.sigmas.append(float(sigma))
        return self.inner(x, sigma, cond)

    def forget(self) -> None:
        self.sigmas = []


def prepare(sampler: Sampler, denoiser: Recorder) -> None:
    """Sample once and forget what was asked: some samplers get to know a denoiser first, once for all."""
    sampler(denoiser, torch.ones(1, 1), rng=BatchRng("prepare", size=1))
    denoiser.forget()


@pytest.mark.parametrize("problem", ["gaussian", "mixture"])
@pytest.mark.parametrize(
    ("sampler", "order"),
    [
        (SAMPLERS[name](), SAMPLERS[name].order)
        for name in SAMPLERS
        if SAMPLERS[name].order and name != "dpm_v3"
    ]
    + [
        (DPMpp2MSampler(variant="heun"), 2),
        (LMSSampler(solver_order=1), 1),
        (LMSSampler(solver_order=2), 2),
        (LMSSampler(solver_order=3), 3),
        (DEISSampler(solver_order=2), 2),
        *((UniPCSampler(solver_order=p, variant=v), p + 1) for p in (1, 2, 3) for v in ("bh1", "bh2")),
    ],
    ids=repr,
)
def test_the_error_falls_with_the_order_of_the_sampler(
    sampler: Sampler, order: float, problem: str, flows: dict[str, tuple[Denoiser, Tensor]]
) -> None:
    denoiser, exact = flows[problem]
    errors = []
    for steps in (128, 256, 512):
        fine = replace(sampler, steps=steps, grid=KarrasGrid(0.05, 80.0), state_dtype="float64")
        at_sigma_min = [step.x for step in fine.iterate(denoiser, normal(8, 2)) if step.sigma > 0][-1]
        errors.append((at_sigma_min - exact).square().mean().sqrt())
    slopes = -torch.stack(errors).log2().diff()
    assert slopes.tolist() == pytest.approx([order] * 2, abs=0.15)


@pytest.mark.parametrize(
    ("sampler", "s", "ratio"),
    [
        (HeunSampler(18), 0.1, 1.0902),
        (HeunSampler(40), 0.1, 1.0155),
        (HeunSampler(18), 0.5, 1.0552),
        (HeunSampler(40), 0.5, 1.0098),
        (HeunSampler(18), 1.0, 1.0447),
        (HeunSampler(40), 1.0, 1.0079),
        (EulerSampler(18), 0.1, 0.8103),
        (EulerSampler(18), 0.5, 0.8461),
        (EulerSampler(18), 1.0, 0.8595),
    ],
)
@pytest.mark.parametrize("state_dtype", ["float32", "float64"])
def test_gaussian_data_come_out_with_the_known_spread(
    sampler: EulerSampler, s: float, ratio: float, state_dtype: str
) -> None:
    out = replace(sampler, state_dtype=state_dtype)(gaussian(s), torch.ones(1, 1))
    assert out.dtype == getattr(torch, state_dtype)
    assert float(out) / s == pytest.approx(ratio, abs=6e-5)


@EVERY_SAMPLER
def test_a_function_is_sampled_from_as_the_denoiser_that_it_is(name: str) -> None:
    denoiser = gaussian(0.5)
    function = FunctionDenoiser(lambda x, sigma: denoiser(x, sigma), denoiser.shape)
    sampler, noise = build(name, 6), torch.ones(3, 1)
    samples = [sampler(model, noise, rng=BatchRng("f", size=3)) for model in (denoiser, function)]
    assert torch.equal(*samples)


@EVERY_SAMPLER
@pytest.mark.parametrize("steps", [1, 2, 18])
def test_the_denoiser_is_evaluated_as_often_as_announced(name: str, steps: int) -> None:
    denoiser, sampler = Recorder(gaussian(0.5)), build(name, steps)
    prepare(sampler, denoiser)
    sampler(denoiser, torch.ones(1, 1), rng=BatchRng("nfe", size=1))
    assert len(denoiser.sigmas) == sampler.nfe() == SAMPLERS[name]().nfe(sampler.steps)


@EVERY_SAMPLER
def test_steps_report_their_noise_level_and_end_at_the_sample(name: str) -> None:
    sampler, noise = build(name, 5), torch.ones(2, 1)
    steps = list(sampler.iterate(gaussian(0.5), noise, rng=BatchRng("steps", size=2)))
    assert [step.index for step in steps] == list(range(sampler.steps))
    assert [step.sigma for step in steps] == sampler.sigmas(gaussian(0.5))[1:]
    assert torch.equal(steps[-1].x, sampler(gaussian(0.5), noise, rng=BatchRng("steps", size=2)))


@EVERY_SAMPLER
def test_the_denoiser_is_asked_only_within_its_range(name: str) -> None:
    denoiser = Recorder(gaussian(0.5), 0.02, 50.0)
    sampler = build(name, 7)
    prepare(sampler, denoiser)
    sampler(denoiser, torch.ones(1, 1), rng=BatchRng("range", size=1))
    assert max(denoiser.sigmas) == pytest.approx(50.0)
    assert min(denoiser.sigmas) == pytest.approx(0.02 if sampler.steps > 1 else 50.0)
    with pytest.raises(UserError, match="sigma_min=100 must be below sigma_max=80"):
        SAMPLERS[name]()(Recorder(gaussian(0.5), 100.0, 200.0), torch.ones(1, 1))


@EVERY_SAMPLER
def test_noise_levels_are_rounded_to_those_of_the_denoiser(name: str) -> None:
    precond = IDDPMPrecond()
    denoiser = Recorder(gaussian(0.5), precond.sigma_min, precond.sigma_max)
    denoiser.round_sigma = precond.round
    sampler = build(name, 18)
    prepare(sampler, denoiser)
    sampler(denoiser, torch.ones(1, 1), rng=BatchRng("round", size=1))
    asked = torch.tensor(denoiser.sigmas, dtype=torch.float64)
    torch.testing.assert_close(asked, precond.round(asked), rtol=1e-6, atol=0)


class Switching(Recorder):
    """A denoiser that notes for which steps another is asked for; evaluated itself, it fails."""

    def __init__(self, inner: Denoiser) -> None:
        super().__init__(inner)
        self.forget()

    def forget(self) -> None:
        self.asked, self.chosen = [], []

    def for_step(self, sigma: float) -> Recorder:
        self.asked.append(sigma)
        self.chosen.append(Recorder(self.inner))
        return self.chosen[-1]

    def __call__(self, x: Tensor, sigma: Tensor, cond: Cond = None) -> Tensor:
        raise AssertionError("this step's denoiser was not asked for")


@EVERY_SAMPLER
def test_a_step_asks_once_which_denoiser_it_is_to_use(name: str) -> None:
    sampler, denoiser = build(name, 6), Switching(gaussian(0.5))
    prepare(sampler, denoiser)
    x = sampler(denoiser, torch.ones(1, 1), rng=BatchRng("switch", size=1))
    levels = sampler.sigmas(denoiser)[:-1]
    assert [sigma for sigma in denoiser.asked if sigma in levels] == levels  # restarts ask at further levels
    assert all(chosen.sigmas for chosen in denoiser.chosen)
    assert sum(len(chosen.sigmas) for chosen in denoiser.chosen) == sampler.nfe()
    assert torch.equal(x, sampler(gaussian(0.5), torch.ones(1, 1), rng=BatchRng("switch", size=1)))


def test_an_euler_step_is_ddim() -> None:
    """x / sqrt(1 + sigma^2) moves by the deterministic DDIM rule of noise prediction."""
    denoiser, noise = gaussian(0.5, 3), normal(4, 3)
    sampler = EulerSampler(steps=10, state_dtype="float64")
    sigmas, x = sampler.sigmas(denoiser), 80.0 * noise
    for step in sampler.iterate(denoiser, noise):
        sigma, sigma_next = sigmas[step.index], sigmas[step.index + 1]
        alpha, alpha_next = (1 + sigma**2) ** -0.5, (1 + sigma_next**2) ** -0.5
        eps = (x - denoiser(x, torch.tensor(sigma, dtype=torch.float64))) / sigma
        x0 = (alpha * x - sigma * alpha * eps) / alpha
        x = (alpha_next * x0 + sigma_next * alpha_next * eps) / alpha_next
        torch.testing.assert_close(step.x, x, rtol=1e-12, atol=1e-12)


def test_a_heun_step_is_the_published_one(mixture: GaussianMixtureDenoiser) -> None:
    sampler = HeunSampler(steps=6, state_dtype="float64", s_churn=2.0, s_min=0.01, s_max=10.0, s_noise=1.1)
    noise, rng = normal(4, 2), BatchRng("churn", size=4)
    sigmas, x = sampler.sigmas(mixture), 80.0 * noise
    for step in sampler.iterate(mixture, noise, rng=BatchRng("churn", size=4)):
        sigma, sigma_next = (
            torch.tensor(s, dtype=torch.float64) for s in sigmas[step.index : step.index + 2]
        )
        gamma = min(2.0 / 6, sqrt(2) - 1) if 0.01 <= sigma <= 10.0 else 0.0
        sigma_hat = sigma * (1 + gamma)
        if gamma > 0:
            x = x + (sigma_hat**2 - sigma**2).sqrt() * 1.1 * rng.randn_like(x)
        d = (x - mixture(x, sigma_hat)) / sigma_hat
        ahead = x + (sigma_next - sigma_hat) * d
        if sigma_next > 0:
            d_next = (ahead - mixture(ahead, sigma_next)) / sigma_next
            ahead = x + (sigma_next - sigma_hat) * (d + d_next) / 2
        x = ahead
        torch.testing.assert_close(step.x, x, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("s_churn", [10.0, 80.0])
def test_churn_keeps_the_marginal_of_gaussian_data(s_churn: float) -> None:
    sampler, count = HeunSampler(steps=256, s_churn=s_churn), 100_000
    noise = torch.randn(count, 1, generator=generator("noise"))
    variance = float(sampler(gaussian(0.5), noise, rng=BatchRng("churn", size=count)).var())
    assert variance == pytest.approx(0.25, abs=3 * 0.25 * sqrt(2 / count) + 0.25 / 256)


def test_churn_spares_the_noise_levels_outside_its_range() -> None:
    noise = torch.ones(1, 1)
    churned = HeunSampler(steps=18, s_churn=40.0, s_min=100.0)
    assert torch.equal(
        churned(gaussian(0.5), noise), HeunSampler(steps=18)(gaussian(0.5), noise)
    )  # no rng needed
    with pytest.raises(ValueError, match="give the sampler an rng"):
        HeunSampler(steps=18, s_churn=40.0)(gaussian(0.5), noise)


def test_a_part_of_the_grid_is_churned_like_the_whole() -> None:
    sampler, denoiser = HeunSampler(steps=20, s_churn=3.0), gaussian(0.5)
    rng = BatchRng("churn", size=4)
    whole = list(sampler.iterate(denoiser, torch.ones(4, 1), rng=rng))
    rng = BatchRng("churn", size=4)
    for _ in range(8):
        rng.randn(1)
    *_, last = sampler.integrate(denoiser, whole[7].x, sampler.sigmas(denoiser)[8:], rng=rng)
    assert torch.equal(last.x, whole[-1].x)


@ORDERED
def test_the_float32_state_loses_nothing_that_shows(name: str, mixture: GaussianMixtureDenoiser) -> None:
    sampler, noise = SAMPLERS[name](steps=18), normal(64, 2)
    exact = replace(sampler, state_dtype="float64")(mixture, noise)
    torch.testing.assert_close(sampler(mixture, noise).double(), exact, rtol=0, atol=2e-4)


@ORDERED
def test_any_piece_of_the_grid_may_be_integrated_alone(
    name: str, flows: dict[str, tuple[Denoiser, Tensor]], exact_flow: Callable[..., Tensor]
) -> None:
    denoiser, exact = flows["gaussian"]
    sampler = SAMPLERS[name](steps=512, grid=KarrasGrid(0.05, 80.0), state_dtype="float64")
    sigmas, x = sampler.sigmas(denoiser), exact_flow(denoiser, 80 * normal(8, 2), 80.0, 10.0)
    tail = [10.0, *[sigma for sigma in sigmas if 0 < sigma < 10]]
    *_, last = sampler.integrate(denoiser, x, tail)
    assert last.sigma == pytest.approx(0.05)
    torch.testing.assert_close(last.x, exact, rtol=0, atol=2e-2 if sampler.order == 1 else 2e-4)
    middle = len(tail) // 2
    *_, half = sampler.integrate(denoiser, x, tail[: middle + 1])
    *_, resumed = sampler.integrate(denoiser, half.x, tail[middle:])
    torch.testing.assert_close(resumed.x, last.x, rtol=0, atol=1e-12 if name in MEMORYLESS else 1e-3)
