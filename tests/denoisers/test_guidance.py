"""Laws of guidance: neutral weights, decisions once a step, cost, closed forms, composition."""

from collections.abc import Callable
from math import inf, sqrt

import pytest
import torch

from scoregen.denoisers.base import Denoiser
from scoregen.denoisers.empirical import EmpiricalDenoiser
from scoregen.denoisers.gaussian import ClassGaussianDenoiser
from scoregen.denoisers.guidance import (
    Autoguidance,
    ClassifierFreeGuidance,
    ClassifierGuidance,
    DiscriminatorGuidance,
    Guidance,
    build_guidance,
    count_evaluations,
)
from scoregen.denoisers.mixture import GaussianMixtureDenoiser
from scoregen.denoisers.smoothed import SmoothedDenoiser
from scoregen.diffusion.grids import KarrasGrid
from scoregen.errors import UserError
from scoregen.rng import SampleRng
from scoregen.samplers.edm import EulerSampler, HeunSampler
from scoregen.samplers.generate import generate
from scoregen.samplers.teleport import TeleportSampler
from tests.denoisers.guidance_oracles import (
    EVERY_SAMPLER,
    SIGMA,
    WIDE,
    BayesClassifier,
    Blind,
    Classes,
    Ratio,
    Recorder,
    draw,
    gaussian,
    normal,
    sampler_of,
)

Wrap = Callable[[Denoiser, GaussianMixtureDenoiser, float], Guidance]

KINDS: dict[str, tuple[float, Wrap]] = {  # the neutral weight, and guidance of a denoiser by a weight
    "classifier_free": (1.0, lambda d, other, w: ClassifierFreeGuidance(d, w)),
    "autoguidance": (1.0, lambda d, other, w: Autoguidance(d, other, w)),
    "classifier": (0.0, lambda d, other, w: ClassifierGuidance(d, BayesClassifier(other), w)),
    "discriminator": (0.0, lambda d, other, w: DiscriminatorGuidance(d, Ratio(other, WIDE), w)),
}
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)


@EVERY_SAMPLER
@EVERY_KIND
@pytest.mark.parametrize("everywhere", [True, False])
def test_neutral_guidance_is_no_guidance_bit_for_bit_and_costs_nothing(
    name: str, kind: str, everywhere: bool, mixture: GaussianMixtureDenoiser, other: GaussianMixtureDenoiser
) -> None:
    """At the neutral weight; and at another weight on an interval that no step starts in."""
    neutral, wrap = KINDS[kind]
    plain, recorder = Recorder(mixture), Recorder(mixture)
    guided = wrap(recorder, other, neutral if everywhere else 3.0)
    guided.interval = None if everywhere else (1e3, 1e4)
    assert torch.equal(draw(name, guided), draw(name, plain))
    assert recorder.batches == plain.batches
    assert count_evaluations(sampler_of(name), guided) == plain.batches.count(5)


@EVERY_KIND
def test_a_random_denoiser_is_settled_inside_of_guidance(kind: str, mixture: GaussianMixtureDenoiser) -> None:
    """Every sample has random numbers of its own, guided or not, and the two of a pair the same."""
    neutral, wrap = KINDS[kind]
    data = normal(40, 2)
    smoothed = SmoothedDenoiser(EmpiricalDenoiser(data, (data[:, 0] > 0).long()), sigma_s=1.0)
    guided, cond = wrap(smoothed, mixture, neutral + 1e-9), torch.tensor([0, 1, 1, 0])

    def sample(denoiser: Denoiser) -> torch.Tensor:
        return HeunSampler(state_dtype="float64")(denoiser, normal(4, 2), cond, SampleRng(range(4)))

    torch.testing.assert_close(sample(guided), sample(smoothed), rtol=0, atol=1e-5)


@EVERY_SAMPLER
def test_the_cost_announced_is_the_cost(name: str, mixture: GaussianMixtureDenoiser) -> None:
    """Twice in steps that start in the interval, once elsewhere; the two in one batch."""
    recorder = Recorder(mixture)
    guided = ClassifierFreeGuidance(recorder, 2.0, (0.1, 5.0))
    draw(name, guided)
    mine = [size for size in recorder.batches if size in (5, 10)]  # dpm_v3 learns from batches of 64 before
    assert sum(mine) == 5 * count_evaluations(sampler_of(name), guided)


Outer = Callable[[Denoiser, GaussianMixtureDenoiser], Denoiser]

OUTER: dict[str, Outer] = {
    "nothing": lambda d, other: d,
    "autoguidance": lambda d, other: Autoguidance(d, other, 1.5),
    "autoguidance, as the weaker": lambda d, other: Autoguidance(other, d, 1.5),
    "classifier": lambda d, other: ClassifierGuidance(d, BayesClassifier(other), 0.5),
    "discriminator": lambda d, other: DiscriminatorGuidance(d, Ratio(other, WIDE), 1.0, 0.5),
    "classifier_free": lambda d, other: ClassifierFreeGuidance(d, 1.5),
}


@pytest.mark.parametrize("outer", OUTER)
def test_a_step_is_guided_by_where_it_starts(
    outer: str, mixture: GaussianMixtureDenoiser, other: GaussianMixtureDenoiser
) -> None:
    """Both of Heun's evaluations, also where further guidance is around."""
    recorder, sampler = Recorder(mixture), HeunSampler(steps=5, grid=KarrasGrid(0.01, 10.0))
    sigmas = sampler.sigmas(mixture)
    inner = ClassifierFreeGuidance(recorder, 2.0, (sigmas[3], sigmas[1]))  # of 0, 1, 2, 3, 4: 1 and 2
    sampler(OUTER[outer](inner, other), normal(1, 2), torch.tensor([0]))
    rows = 2 if outer == "classifier_free" else 1
    assert recorder.batches == [n * rows for n in (1, 1, 2, 2, 2, 2, 1, 1, 1)]


@EVERY_KIND
def test_a_guided_step_is_guided_wherever_it_looks(
    kind: str, mixture: GaussianMixtureDenoiser, other: GaussianMixtureDenoiser
) -> None:
    x, cond = normal(4, 2), torch.tensor([0, 1, 1, 0])
    guided = KINDS[kind][1](mixture, other, 2.0)
    guided.interval = None
    everywhere = guided(x, SIGMA, cond)
    guided.interval = (1.0, 2.0)
    assert torch.equal(guided.for_step(1.5)(x, SIGMA, cond), everywhere)
    assert torch.equal(guided(x, SIGMA, cond), mixture(x, SIGMA, cond))


def test_a_direct_call_is_guided_sample_by_sample(mixture: GaussianMixtureDenoiser) -> None:
    x, cond = normal(4, 2), torch.tensor([0, 1, 1, 0])
    sigma = torch.tensor([0.3, 0.5, 2.0, 2.1], dtype=torch.float64)
    everywhere = ClassifierFreeGuidance(mixture, 2.0)(x, sigma, cond)
    within = ClassifierFreeGuidance(mixture, 2.0, (0.3, 2.0))(x, sigma, cond)
    assert torch.equal(within[1:3], everywhere[1:3])
    assert torch.equal(within[[0, 3]], mixture(x, sigma, cond)[[0, 3]])


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0, 2.5])
def test_guided_gaussians_of_equal_variance_shift_as_known(weight: float) -> None:
    """From x = 0 the flow ends at w delta (1 - 1 / sqrt(1 + sigma_max^2)), the mean of its samples."""
    guided = ClassifierFreeGuidance(Classes(1.0), weight)
    end = HeunSampler(steps=64, state_dtype="float64")(guided, torch.zeros(1, 1), torch.tensor([0]))
    assert float(end) == pytest.approx(weight * (1 - 1 / sqrt(1 + 80**2)), abs=0.005)
    if weight == 2.5:
        assert float(end) == pytest.approx(2.467, abs=0.02)  # measured over samples


@pytest.mark.parametrize("interval", [(0.19, 1.61), (0.5, 5.0), (0.0, 0.3), (2.0, inf)])
def test_guidance_in_an_interval_shifts_as_known(interval: tuple[float, float]) -> None:
    """The mean is 1 + (w - 1) (1 / sqrt(1 + sigma_low^2) - 1 / sqrt(1 + sigma_high^2)) for delta = 1."""
    low, high = interval
    guided = ClassifierFreeGuidance(Classes(1.0), 2.0, interval)
    end = HeunSampler(steps=512, state_dtype="float64")(guided, torch.zeros(1, 1), torch.tensor([0]))
    expected = 1 + 1 / sqrt(1 + low**2) - 1 / sqrt(1 + min(high, 80.0) ** 2)
    assert float(end) == pytest.approx(expected - 1 / sqrt(1 + 80**2), abs=0.01)


@pytest.mark.parametrize("weight", [1.0, 2.0])
def test_teleported_samples_are_guided_from_where_they_land(weight: float) -> None:
    """The jump follows the class's own flow; from sigma_skip on the mean is that of the guided flow."""
    gaussians = ClassGaussianDenoiser([gaussian(1.0, 1.0), gaussian(2.0, 1.0)], gaussian(0.0, 1.0))
    guided = ClassifierFreeGuidance(Classes(1.0), weight)
    teleport = TeleportSampler(
        256,
        KarrasGrid(),
        "float64",
        moments=gaussians,
        sigma_skip=10.0,
        protocol="regrid",
        inner=HeunSampler(),
    )
    end = teleport(guided, torch.zeros(1, 1), torch.tensor([0]))
    landed = 1 - sqrt((1 + 10**2) / (1 + 80**2))
    assert float(end) == pytest.approx(weight + (landed - weight) / sqrt(1 + 10**2), abs=0.002)
    assert count_evaluations(teleport, guided) == teleport.nfe() * (1 if weight == 1 else 2)


def test_classifier_free_guidance_interpolates_both_estimates(mixture: GaussianMixtureDenoiser) -> None:
    x, cond = normal(6, 2), torch.tensor([0, 1, 0, 1, 2, 0])
    d, d_0 = mixture(x, SIGMA, cond), mixture(x, SIGMA)
    for weight in (-1.0, 0.0, 0.5, 3.0):
        guided = ClassifierFreeGuidance(mixture, weight)
        torch.testing.assert_close(guided(x, SIGMA, cond), d_0 + weight * (d - d_0))
        assert torch.equal(guided(x, SIGMA), d_0)
        assert torch.equal(guided(x, SIGMA.expand(6), cond), guided(x, SIGMA, cond))


def test_weights_of_nested_guidance_multiply(mixture: GaussianMixtureDenoiser) -> None:
    x, cond = normal(6, 2), torch.tensor([0, 1, 0, 1, 1, 0])
    nested = ClassifierFreeGuidance(ClassifierFreeGuidance(mixture, 1.5), 2.0)
    torch.testing.assert_close(nested(x, SIGMA, cond), ClassifierFreeGuidance(mixture, 3.0)(x, SIGMA, cond))
    assert nested.evaluations == 4


def test_autoguidance_interpolates_both_models(
    mixture: GaussianMixtureDenoiser, other: GaussianMixtureDenoiser
) -> None:
    x, cond = normal(6, 2), torch.tensor([0, 1, 0, 1, 2, 0])
    d, d_0 = mixture(x, SIGMA, cond), other(x, SIGMA, cond)
    torch.testing.assert_close(Autoguidance(mixture, other, 2.5)(x, SIGMA, cond), d_0 + 2.5 * (d - d_0))
    assert torch.equal(Autoguidance(mixture, mixture, 2.5)(x, SIGMA, cond), d)


def test_guidance_of_all_kinds_adds_up(
    mixture: GaussianMixtureDenoiser, other: GaussianMixtureDenoiser
) -> None:
    x, cond = normal(6, 2), torch.tensor([0, 1, 0, 1, 1, 0])
    classifier, ratio = BayesClassifier(mixture), Ratio(mixture, other)
    guided = build_guidance(
        mixture,
        weight=2.0,
        weaker=other,
        classifier=classifier,
        classifier_weight=0.5,
        discriminator=ratio,
        discriminator_weights=(1.0, 1.0),
    )
    auto = Autoguidance(mixture, other, 2.0)(x, SIGMA, cond)
    by_class = ClassifierGuidance(mixture, classifier, 0.5)(x, SIGMA, cond) - mixture(x, SIGMA, cond)
    by_ratio = DiscriminatorGuidance(mixture, ratio, 1.0)(x, SIGMA, cond) - mixture(x, SIGMA, cond)
    torch.testing.assert_close(guided(x, SIGMA, cond), auto + by_class + by_ratio)


@EVERY_SAMPLER
def test_guidance_around_guidance_passes_every_decision_inward(
    name: str, mixture: GaussianMixtureDenoiser, other: GaussianMixtureDenoiser
) -> None:
    """An inner interval holds within outer guidance: outside it, only the outer one shows."""
    inner = ClassifierFreeGuidance(mixture, 2.0, (1e3, 1e4))
    for around in OUTER.values():
        assert torch.equal(draw(name, around(inner, other)), draw(name, around(mixture, other)))


def test_guided_samples_depend_on_their_seed_only(
    mixture: GaussianMixtureDenoiser, other: GaussianMixtureDenoiser
) -> None:
    guided = build_guidance(
        mixture,
        weight=1.5,
        interval=(0.1, 5.0),
        classifier=BayesClassifier(mixture),
        discriminator=Ratio(mixture, other),
    )
    sampler = HeunSampler(steps=6, state_dtype="float64", s_churn=4.0)
    together, *_ = generate(guided, sampler, range(4), batch=4, device="cpu")
    alone = [batch.x for batch in generate(guided, sampler, range(4), batch=1, device="cpu")]
    torch.testing.assert_close(torch.cat(alone), together.x, rtol=1e-6, atol=1e-6)
    assert not together.x.requires_grad


def test_nothing_asked_for_is_the_denoiser_itself(mixture: GaussianMixtureDenoiser) -> None:
    assert build_guidance(mixture) is mixture


def test_autoguidance_keeps_to_the_range_of_both_models() -> None:
    strong, weak = Recorder(gaussian(0.0, 1.0)), Recorder(gaussian(0.0, 2.0))
    strong.sigma_min, weak.sigma_max = 0.01, 50.0
    guided = Autoguidance(strong, weak, 2.0)
    assert EulerSampler().sigmas(guided)[0] == pytest.approx(50.0)
    assert EulerSampler().sigmas(guided)[-2] == pytest.approx(0.01)
    assert EulerSampler().sigmas(Autoguidance(strong, weak, 1.0))[0] == pytest.approx(80.0)


def test_levels_are_rounded_to_those_of_the_guided_model(mixture: GaussianMixtureDenoiser) -> None:
    recorder = Recorder(mixture)
    recorder.round_sigma = torch.round
    nested = Autoguidance(ClassifierFreeGuidance(recorder, 2.0), mixture, 2.0)
    assert torch.equal(nested.round_sigma(torch.tensor([0.7, 3.2])), torch.tensor([1.0, 3.0]))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda m, o: ClassifierFreeGuidance(Blind(m), 1.5), "needs a model with classes"),
        (lambda m, o: ClassifierFreeGuidance(m, float("nan")), "weight nan: a finite number"),
        (lambda m, o: ClassifierFreeGuidance(m, 2.0, (1.0, 1.0)), "interval 1,1: give two noise levels"),
        (lambda m, o: ClassifierFreeGuidance(m, 2.0, (-1.0, 1.0)), "interval -1,1"),
        (lambda m, o: Autoguidance(m, Blind(o), 2.0), "weaker model knows 0 classes, the guided one 2"),
        (lambda m, o: Autoguidance(m, gaussian(0.0, 1.0), 2.0), r"samples of shape \(1,\), the model"),
        (lambda m, o: ClassifierGuidance(m, Ratio(m, o), 1.0), "the classifier knows 0 classes"),
        (lambda m, o: ClassifierGuidance(gaussian(0, 1), BayesClassifier(m), 1.0), r"of shape \(2,\)"),
        (lambda m, o: DiscriminatorGuidance(Blind(m), BayesClassifier(o)), "discriminator knows 2 classes"),
        (lambda m, o: DiscriminatorGuidance(m, Ratio(m, o), 1.0, inf), "later weight inf"),
        (lambda m, o: build_guidance(m, weaker=o), "weight 1 guides nothing"),
        (lambda m, o: build_guidance(m, interval=(0.1, 1.0)), "weight 1 guides nothing"),
    ],
)
def test_parts_that_do_not_fit_are_refused(
    make: Callable[[GaussianMixtureDenoiser, GaussianMixtureDenoiser], Denoiser],
    said: str,
    mixture: GaussianMixtureDenoiser,
    other: GaussianMixtureDenoiser,
) -> None:
    with pytest.raises(UserError, match=said):
        make(mixture, other)
