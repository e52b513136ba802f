"""Solvers that are the same thing in other words, and diffusers as an independent oracle."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from scoregen.denoisers.mixture import GaussianMixtureDenoiser
from scoregen.errors import UserError
from scoregen.rng import BatchRng, SampleRng, generator
from scoregen.samplers import SAMPLERS
from scoregen.samplers.adams import DEISSampler, LMSSampler
from scoregen.samplers.ancestral import DDIMSampler, EulerAncestralSampler
from scoregen.samplers.base import Sampler
from scoregen.samplers.edm import EulerSampler, HeunSampler
from scoregen.samplers.multistep import DPMpp2MSampler, DPMpp2MSDESampler
from scoregen.samplers.quadrature import lagrange_integrals, phi_integral
from scoregen.samplers.scheduler_adapter import SchedulerSampler
from scoregen.samplers.singlestep import DPMpp2SSampler
from scoregen.samplers.unipc import UniPCSampler

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")

EULER = EulerSampler(steps=12, state_dtype="float64")


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator("noise"), dtype=torch.float64)


def run(sampler: Sampler, denoiser: GaussianMixtureDenoiser) -> Tensor:
    """The states [N, 16, 2] after each step."""
    same = replace(sampler, steps=12, state_dtype="float64")
    return torch.stack(
        [step.x for step in same.iterate(denoiser, normal(16, 2), rng=BatchRng("id", size=16))]
    )


@pytest.mark.parametrize(
    "sampler",
    [DDIMSampler(), EulerAncestralSampler(eta=0.0), LMSSampler(solver_order=1), DEISSampler(solver_order=1)],
)
def test_first_order_solvers_are_eulers_method(sampler: Sampler, mixture: GaussianMixtureDenoiser) -> None:
    torch.testing.assert_close(run(sampler, mixture), run(EULER, mixture), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["dpmpp_2m", "dpmpp_3m", "unipc", "lms", "deis"])
def test_the_first_step_of_a_multistep_solver_is_eulers(name: str, mixture: GaussianMixtureDenoiser) -> None:
    first, after_euler = (run(sampler, mixture)[0] for sampler in (SAMPLERS[name](), EULER))
    torch.testing.assert_close(first, after_euler, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("variant", ["midpoint", "heun"])
def test_the_sde_solver_without_noise_is_2m(variant: str, mixture: GaussianMixtureDenoiser) -> None:
    quiet = run(DPMpp2MSDESampler(variant=variant, eta=0.0), mixture)
    torch.testing.assert_close(quiet, run(DPMpp2MSampler(variant=variant), mixture), rtol=0, atol=0)


def test_ancestral_noise_is_that_of_ddim_in_vp_coordinates(mixture: GaussianMixtureDenoiser) -> None:
    """x / sqrt(1 + sigma^2) moves by equations 12 and 16 of DDIM."""
    sampler, eta = EulerAncestralSampler(steps=12, eta=0.7, state_dtype="float64"), 0.7
    sigmas, rng = torch.tensor(sampler.sigmas(mixture), dtype=torch.float64), BatchRng("id", size=16)
    alpha_bar, x = 1 / (1 + sigmas**2), 80 * normal(16, 2)
    states = []
    for (sigma, _), (a, a_next) in zip(pairwise(sigmas), pairwise(alpha_bar), strict=True):
        x0 = mixture(x, sigma)
        eps = (x - x0) / sigma
        spread = eta * ((1 - a_next) / (1 - a) * (1 - a / a_next)).sqrt()
        vp = a_next.sqrt() * x0 + (1 - a_next - spread**2).clamp(min=0).sqrt() * eps
        x = (vp + spread * rng.randn_like(x)) / a_next.sqrt() if a_next < 1 else x0
        states.append(x)
    torch.testing.assert_close(run(sampler, mixture), torch.stack(states), rtol=1e-10, atol=1e-10)


PLAIN = {"lower_order_final": False}


@pytest.mark.parametrize(
    ("sampler", "scheduler", "arguments", "tolerance"),
    [
        (EulerSampler(), "EulerDiscreteScheduler", {}, 1e-5),
        (HeunSampler(), "HeunDiscreteScheduler", {}, 1e-12),
        (LMSSampler(), "LMSDiscreteScheduler", {}, 1e-3),  # its integrals are good to 1e-4
        (DPMpp2MSampler(), "DPMSolverMultistepScheduler", PLAIN, 1e-5),  # in float32
        (
            DPMpp2MSampler(variant="heun"),
            "DPMSolverMultistepScheduler",
            {**PLAIN, "solver_type": "heun"},
            1e-5,
        ),
        (DEISSampler(solver_order=2), "DEISMultistepScheduler", {**PLAIN, "solver_order": 2}, 1e-12),
        (DEISSampler(solver_order=3), "DEISMultistepScheduler", {**PLAIN, "solver_order": 3}, 1e-12),
        *(
            (
                UniPCSampler(solver_order=order, variant=variant),
                "UniPCMultistepScheduler",
                {**PLAIN, "solver_order": order, "solver_type": variant},
                1e-12,
            )
            for order in (2, 3)
            for variant in ("bh1", "bh2")
        ),
    ],
    ids=repr,
)
def test_solvers_agree_with_diffusers(
    sampler: Sampler,
    scheduler: str,
    arguments: dict,
    tolerance: float,
    mixture: GaussianMixtureDenoiser,
) -> None:
    theirs = run(SchedulerSampler(scheduler=scheduler, arguments=arguments), mixture)
    ours = run(sampler, mixture)
    error = ((ours - theirs).abs() / (1 + theirs.abs())).amax((1, 2))
    assert error.max() < tolerance


def test_2s_is_the_single_step_scheduler_of_diffusers(mixture: GaussianMixtureDenoiser) -> None:
    """Theirs calls every evaluation a step, so its grid is ours with the middles."""
    sampler, noise = DPMpp2SSampler(steps=7, state_dtype="float64"), normal(16, 2)
    sigmas = sampler.sigmas(mixture)[:-1]
    *_, ours = sampler.integrate(mixture, 80 * noise, sigmas)
    both = [level for a, b in pairwise(sigmas) for level in (a, (a * b) ** 0.5)] + sigmas[-1:]
    adapter = SchedulerSampler(
        scheduler="DPMSolverSinglestepScheduler", arguments={"lower_order_final": False}
    )
    *_, theirs = adapter.integrate(mixture, 80 * noise, both)
    torch.testing.assert_close(ours.x, theirs.x, rtol=1e-12, atol=1e-12)


def test_a_schedulers_noise_is_a_function_of_the_samples_seed(mixture: GaussianMixtureDenoiser) -> None:
    sampler, noise = SchedulerSampler(5, scheduler="EulerAncestralDiscreteScheduler"), normal(3, 2)
    assert not sampler.deterministic
    whole = sampler(mixture, noise, rng=SampleRng([4, 5, 6]))
    part = sampler(mixture, noise[1:], rng=SampleRng([5, 6]))
    torch.testing.assert_close(whole[1:], part)
    assert not torch.equal(whole[1:], sampler(mixture, noise[1:], rng=SampleRng([6, 5])))


def test_an_unknown_scheduler_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match="scheduler=DDIMScheduler: known are EulerDiscreteScheduler"):
        SchedulerSampler(scheduler="DDIMScheduler")


def test_coefficients_are_exact_integrals() -> None:
    half = lagrange_integrals([1.0, 0.5, 0.25, 0.1], 1.0, 0.05, lambda u: u * 0 + 1)
    cubic = [u**3 for u in (1.0, 0.5, 0.25, 0.1)]
    assert sum(c * y for c, y in zip(half, cubic, strict=True)) == pytest.approx((0.05**4 - 1) / 4, rel=1e-14)
    z = -0.7
    exact = [(2.718281828459045**z - 1) / z]
    exact.append((exact[0] - 1) / z)
    exact.append(2 * (exact[1] - 0.5) / z)
    assert [phi_integral(j, z) for j in range(3)] == pytest.approx(exact, rel=1e-12)
