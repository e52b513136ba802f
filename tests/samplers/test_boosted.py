"""Boosting of discriminator guidance: whom it churns, whom it pushes twice, and what stays as it was."""

from math import sqrt

import pytest
import torch
from torch import Tensor

from scoregen.denoisers.base import Cond
from scoregen.denoisers.gaussian import GaussianDenoiser
from scoregen.denoisers.guidance import DiscriminatorGuidance
from scoregen.rng import BatchRng, SampleRng, generator
from scoregen.samplers.boosted import BoostedHeunSampler
from scoregen.samplers.edm import HeunSampler

STEPS = 12


class Line:
    """The logit L = slope x + level, in one dimension."""

    shape, num_classes = (1,), 0

    def __init__(self, slope: float, level: float) -> None:
        self.slope, self.level = slope, level

    def __call__(self, x: Tensor, sigma: Tensor, cond: Cond = None) -> Tensor:
        return self.slope * x / (1 + sigma**2) + self.level


def guided(judge: Line, weight: float = 1.0, later: float = 0.0) -> DiscriminatorGuidance:
    data = GaussianDenoiser(torch.zeros(1, dtype=torch.float64), torch.tensor(0.25, dtype=torch.float64))
    return DiscriminatorGuidance(data, judge, weight, later, interval=None)


def normal(count: int) -> Tensor:
    return torch.randn(count, 1, generator=generator("noise"), dtype=torch.float64)


@pytest.mark.parametrize("later", [0.0, 1.0])
def test_where_nothing_looks_generated_it_is_guided_heun(later: float) -> None:
    denoiser, noise = guided(Line(0.01, 5.0), 1.0, later), normal(16)
    boosted = BoostedHeunSampler(STEPS, state_dtype="float64")(denoiser, noise, rng=BatchRng("b", size=16))
    assert torch.equal(boosted, HeunSampler(STEPS, state_dtype="float64")(denoiser, noise))


def test_suspects_are_pushed_twice_in_every_2nd_step_and_churned_in_every_5th_but_the_first() -> None:
    judge, noise = Line(0.5, -8.0), normal(16)
    sampler = BoostedHeunSampler(STEPS, state_dtype="float64", s_noise=1.2)
    boosted = sampler(guided(judge), noise, rng=BatchRng("b", size=16))
    sigmas, rng = sampler.sigmas(guided(judge)), BatchRng("b", size=16)
    x = noise * sigmas[0]
    for i in range(STEPS):
        sigma = sigmas[i]
        if i % 5 == 0:
            z = rng.randn_like(x)
            sigma *= 1 + (4 / STEPS if i > 0 else 0.0)
            x = x + 1.2 * sqrt(sigma**2 - sigmas[i] ** 2) * z
        twice = guided(judge, 1.0 if i % 2 else 2.0)
        (step,) = HeunSampler().integrate(twice, x, (sigma, sigmas[i + 1]))
        x = step.x
    torch.testing.assert_close(boosted, x, rtol=1e-12, atol=1e-12)


def test_churn_of_suspects_keeps_the_marginal() -> None:
    """A discriminator without slope pushes nobody; the variance is that of Heun's method, 0.2519."""
    noise = normal(100_000)
    for level in (-1.0, 1.0):
        sampler = BoostedHeunSampler(64, state_dtype="float64")
        out = sampler(guided(Line(0.0, level)), noise, rng=BatchRng("churn", size=len(noise)))
        assert float(out.var()) == pytest.approx(0.2519, rel=3 * sqrt(2 / len(noise)))


def test_a_sample_does_not_depend_on_whether_others_are_suspect() -> None:
    denoiser, sampler = guided(Line(4.0, 0.0)), BoostedHeunSampler(STEPS)
    noise = SampleRng(range(12)).randn(1)
    alone = [sampler(denoiser, noise[i : i + 1], rng=SampleRng([i])) for i in range(12)]
    together = sampler(denoiser, noise, rng=SampleRng(range(12)))
    torch.testing.assert_close(torch.cat(alone), together, rtol=1e-6, atol=1e-6)
    plain = HeunSampler(STEPS)(denoiser, noise)
    assert 0 < int((together != plain).sum()) < 12
