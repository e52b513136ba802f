"""Laws of guidance: closed forms, Bayes' rule, neutral weights, decisions once a step, and their cost."""

from collections.abc import Callable
from dataclasses import replace
from math import inf, log, sqrt

import pytest
import torch
from torch import Tensor, nn

from scoregen.denoisers.base import Cond, Denoiser
from scoregen.denoisers.classifier import NetworkClassifier
from scoregen.denoisers.gaussian import GaussianDenoiser
from scoregen.denoisers.guidance import (
    Autoguidance,
    ClassifierFreeGuidance,
    ClassifierGuidance,
    DiscriminatorGuidance,
    Guidance,
    build_guidance,
    count_evaluations,
)
from scoregen.denoisers.guidance.gradient import DISCRIMINATOR_INTERVAL
from scoregen.denoisers.mixture import GaussianMixtureDenoiser, log_membership
from scoregen.diffusion.grids import KarrasGrid
from scoregen.diffusion.precond import VPPrecond
from scoregen.diffusion.schedules import vp_time
from scoregen.errors import UserError
from scoregen.rng import BatchRng, generator
from scoregen.samplers import SAMPLERS
from scoregen.samplers.base import Sampler
from scoregen.samplers.edm import EulerSampler, HeunSampler
from scoregen.samplers.generate import generate

SIGMA = torch.tensor(0.7, dtype=torch.float64)
EVERY_SAMPLER = pytest.mark.parametrize("name", SAMPLERS)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator("guidance"), dtype=torch.float64)


def gaussian(mean: float, variance: float) -> GaussianDenoiser:
    return GaussianDenoiser(
        torch.full((1,), mean, dtype=torch.float64), torch.tensor(variance, dtype=torch.float64)
    )


def log_densities(mixture: GaussianMixtureDenoiser, x: Tensor, sigma: Tensor, cond: Cond = None) -> Tensor:
    """log p(x, k; sigma) up to a constant for each component k of the class, [B, K]."""
    total = mixture.variances + sigma.reshape(-1, 1).square()
    distance = (x[:, None] - mixture.means).square().sum(-1)
    logits = mixture.log_weights - distance / (2 * total) - x.shape[1] / 2 * total.log()
    return logits + log_membership(cond, mixture.labels, mixture.num_classes)


class BayesClassifier:
    """The exact classifier of a labelled mixture."""

    shape, num_classes = (2,), 2

    def __init__(self, mixture: GaussianMixtureDenoiser) -> None:
        self.mixture = mixture

    def __call__(self, x: Tensor, sigma: Tensor, cond: Cond = None) -> Tensor:
        classes = [torch.full((len(x),), y) for y in range(self.num_classes)]
        return torch.stack([log_densities(self.mixture, x, sigma, y).logsumexp(1) for y in classes], 1)


class Ratio:
    """The exact discriminator of two mixtures, or one of an offset from it, that counts its calls."""

    shape, num_classes = (2,), 0

    def __init__(self, p: GaussianMixtureDenoiser, q: GaussianMixtureDenoiser, offset: float = 0.0) -> None:
        self.p, self.q, self.offset, self.sigmas = p, q, offset, []

    def __call__(self, x: Tensor, sigma: Tensor, cond: Cond = None) -> Tensor:
        self.sigmas.append(float(sigma.max()))
        ratio = log_densities(self.p, x, sigma).logsumexp(1) - log_densities(self.q, x, sigma).logsumexp(1)
        return ratio + self.offset


class GaussianRatio:
    """The exact discriminator of N(0, 1) against N(0.6, 2)."""

    shape, num_classes = (1,), 0

    def __call__(self, x: Tensor, sigma: Tensor, cond: Cond = None) -> Tensor:
        p = torch.distributions.Normal(0.0, (1 + sigma**2).sqrt())
        q = torch.distributions.Normal(0.6, (2 + sigma**2).sqrt())
        return p.log_prob(x) - q.log_prob(x)


class Blind:
    """An unconditional denoiser, which refuses class ids."""

    num_classes, sigma_min, sigma_max = 0, 0.0, inf

    def __init__(self, inner: Denoiser) -> None:
        self.inner, self.shape = inner, inner.shape

    def __call__(self, x: Tensor, sigma: Tensor, cond: Cond = None) -> Tensor:
        assert cond is None
        return self.inner(x, sigma)


class Recorder:
    """A denoiser that notes the size of each batch that it is asked for."""

    def __init__(self, inner: Denoiser) -> None:
        self.inner, self.shape, self.num_classes = inner, inner.shape, inner.num_classes
        self.sigma_min, self.sigma_max, self.batches = inner.sigma_min, inner.sigma_max, []

    def __call__(self, x: Tensor, sigma: Tensor, cond: Cond = None) -> Tensor:
        self.batches.append(len(x))
        return self.inner(x, sigma, cond)


class Classes:
    """Class y is N((y + 1) delta, 1), no class is N(0, 1): data of equal variances, on a line."""

    shape, num_classes, sigma_min, sigma_max = (1,), 2, 0.0, inf

    def __init__(self, delta: float) -> None:
        self.delta = delta

    def __call__(self, x: Tensor, sigma: Tensor, cond: Cond = None) -> Tensor:
        assert cond is not None
        mean = torch.where(cond < self.num_classes, (cond + 1) * self.delta, 0.0)[:, None]
        return mean + (x - mean) / (1 + sigma.square())


@pytest.fixture
def other() -> GaussianMixtureDenoiser:
    """A mixture near that of the fixture `mixture`, of the same classes."""
    return GaussianMixtureDenoiser(
        torch.tensor([[-0.8, 0.0], [0.5, 0.6], [0.6, -0.7]], dtype=torch.float64),
        torch.tensor([0.09, 0.16, 0.25], dtype=torch.float64),
        weights=torch.full((3,), 1 / 3, dtype=torch.float64),
        labels=torch.tensor([0, 1, 1]),
    )


Wrap = Callable[[Denoiser, GaussianMixtureDenoiser, float], Guidance]

KINDS: dict[str, tuple[float, Wrap]] = {  # the neutral weight, and guidance of a denoiser by a weight
    "classifier_free": (1.0, lambda d, other, w: ClassifierFreeGuidance(d, w)),
    "autoguidance": (1.0, lambda d, other, w: Autoguidance(d, other, w)),
    "classifier": (0.0, lambda d, other, w: ClassifierGuidance(d, BayesClassifier(other), w)),
    "discriminator": (0.0, lambda d, other, w: DiscriminatorGuidance(d, Ratio(other, other), w)),
}
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)


def sampler_of(name: str) -> Sampler:
    return replace(SAMPLERS[name](steps=1 if name == "one_step" else 6), state_dtype="float64")


def draw(name: str, denoiser: Denoiser) -> Tensor:
    cond = torch.tensor([0, 1, 1, 0, 2])
    return sampler_of(name)(denoiser, normal(5, 2), cond, BatchRng("draw", size=5))


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


@EVERY_SAMPLER
def test_the_cost_announced_is_the_cost(name: str, mixture: GaussianMixtureDenoiser) -> None:
    """Twice in steps that start in the interval, once elsewhere; the two in one batch."""
    recorder = Recorder(mixture)
    guided = ClassifierFreeGuidance(recorder, 2.0, (0.1, 5.0))
    draw(name, guided)
    mine = [size for size in recorder.batches if size in (5, 10)]  # dpm_v3 learns from batches of 64 before
    assert sum(mine) == 5 * count_evaluations(sampler_of(name), guided)


def test_a_step_is_guided_by_where_it_starts(mixture: GaussianMixtureDenoiser) -> None:
    recorder, sampler = Recorder(mixture), HeunSampler(steps=5, grid=KarrasGrid(0.01, 10.0, rho=7.0))
    sigmas = sampler.sigmas(mixture)
    guided = ClassifierFreeGuidance(recorder, 2.0, (sigmas[3], sigmas[1]))  # of 0, 1, 2, 3, 4: 1 and 2
    sampler(guided, normal(1, 2), torch.tensor([0]))
    assert recorder.batches == [1, 1, 2, 2, 2, 2, 1, 1, 1]


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
        assert float(end) == pytest.approx(2.467, abs=0.02)  # the sheet's measurement, over samples


@pytest.mark.parametrize("interval", [(0.19, 1.61), (0.5, 5.0), (0.0, 0.3), (2.0, inf)])
def test_guidance_in_an_interval_shifts_as_known(interval: tuple[float, float]) -> None:
    """The mean is 1 + (w - 1) (1 / sqrt(1 + sigma_low^2) - 1 / sqrt(1 + sigma_high^2)) for delta = 1."""
    low, high = interval
    guided = ClassifierFreeGuidance(Classes(1.0), 2.0, interval)
    end = HeunSampler(steps=512, state_dtype="float64")(guided, torch.zeros(1, 1), torch.tensor([0]))
    expected = 1 + 1 / sqrt(1 + low**2) - 1 / sqrt(1 + min(high, 80.0) ** 2)
    assert float(end) == pytest.approx(expected - 1 / sqrt(1 + 80**2), abs=0.01)


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


def test_a_classifier_makes_an_unconditional_model_conditional(mixture: GaussianMixtureDenoiser) -> None:
    """Bayes' rule: with the exact classifier w is the weight of classifier-free guidance; w = 1 is exact."""
    x, cond = normal(6, 2), torch.tensor([0, 1, 0, 1, 1, 2])
    for weight in (1.0, 2.5):
        guided = ClassifierGuidance(Blind(mixture), BayesClassifier(mixture), weight)
        free = ClassifierFreeGuidance(mixture, weight)
        torch.testing.assert_close(guided(x, SIGMA, cond), free(x, SIGMA, cond), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(guided(x, SIGMA.expand(6), cond), guided(x, SIGMA, cond))
    assert guided.num_classes == 2
    assert torch.equal(guided(x, SIGMA), mixture(x, SIGMA))


def test_guidance_by_gradients_can_be_differentiated_itself(mixture: GaussianMixtureDenoiser) -> None:
    """As samplers and likelihoods that need the slope of D do: Bayes' rule holds for the Jacobian, too."""
    x, cond, probe = normal(6, 2).requires_grad_(), torch.tensor([0, 1, 0, 1, 1, 0]), normal(6, 2)
    guided = ClassifierGuidance(Blind(mixture), BayesClassifier(mixture), 2.5)
    slopes = [
        torch.autograd.grad((denoiser(x, SIGMA, cond) * probe).sum(), x)[0]
        for denoiser in (guided, ClassifierFreeGuidance(mixture, 2.5))
    ]
    torch.testing.assert_close(*slopes, rtol=1e-8, atol=1e-8)


def test_the_pushes_of_a_classifier_cancel_over_its_classes(mixture: GaussianMixtureDenoiser) -> None:
    """sum_y p(y | x) grad log p(y | x) = 0."""
    x, classifier = normal(6, 2), BayesClassifier(mixture)
    guided = ClassifierGuidance(Blind(mixture), classifier, 1.0)
    by_class = torch.stack([guided(x, SIGMA, torch.full((6,), y)) for y in range(2)], 1)
    mean = (classifier(x, SIGMA).softmax(1)[..., None] * by_class).sum(1)
    torch.testing.assert_close(mean, mixture(x, SIGMA), rtol=1e-10, atol=1e-10)


@EVERY_SAMPLER
def test_an_unconditional_model_is_never_shown_the_class(name: str, mixture: GaussianMixtureDenoiser) -> None:
    guided = ClassifierGuidance(Blind(mixture), BayesClassifier(mixture), 1.0, (0.1, 5.0))
    free = ClassifierFreeGuidance(mixture, 1.0)
    everywhere = ClassifierGuidance(Blind(mixture), BayesClassifier(mixture), 1.0)
    torch.testing.assert_close(draw(name, everywhere), draw(name, free), rtol=1e-6, atol=1e-6)
    assert not torch.equal(draw(name, guided), draw(name, everywhere))


def test_the_exact_discriminator_turns_one_denoiser_into_the_other(
    mixture: GaussianMixtureDenoiser, other: GaussianMixtureDenoiser
) -> None:
    x, cond = normal(6, 2), torch.tensor([0, 1, 0, 1, 1, 2])
    guided = DiscriminatorGuidance(Blind(other), Ratio(mixture, other), 1.0)
    torch.testing.assert_close(guided(x, SIGMA), mixture(x, SIGMA), rtol=1e-10, atol=1e-10)
    conditional = DiscriminatorGuidance(other, Ratio(mixture, other), 1.0)  # one that ignores the class
    push = mixture(x, SIGMA) - other(x, SIGMA)
    torch.testing.assert_close(conditional(x, SIGMA, cond), other(x, SIGMA, cond) + push)


def test_a_discriminator_turns_samples_of_one_gaussian_into_those_of_another() -> None:
    """q = N(0.6, 2) into p = N(0, 1) with 40 Heun steps: mean -0.002 and variance 1.017."""
    guided = DiscriminatorGuidance(gaussian(0.6, 2.0), GaussianRatio(), 1.0, 1.0)
    x = HeunSampler(steps=40, state_dtype="float64")(guided, normal(100_000, 1))
    assert float(x.mean()) == pytest.approx(-0.002, abs=0.03)
    assert float(x.var()) == pytest.approx(1.017, abs=0.03)


def test_the_published_weights_agree_with_equal_ones_in_the_limit_of_small_steps() -> None:
    """Heun averages two slopes: (w_1, w_2) = (2, 0) and (1, 1) differ by the first order of the step."""

    def at_sigma_min(steps: int, *weights: float) -> Tensor:
        guided = DiscriminatorGuidance(gaussian(0.6, 2.0), GaussianRatio(), *weights)
        sampler = HeunSampler(steps=steps, grid=KarrasGrid(0.05, 20.0), state_dtype="float64")
        return [step.x for step in sampler.iterate(guided, normal(64, 1)) if step.sigma > 0][-1]

    gaps = [(at_sigma_min(n, 2.0, 0.0) - at_sigma_min(n, 1.0, 1.0)).square().mean() for n in (128, 256)]
    assert log(gaps[0] / gaps[1], 4) == pytest.approx(1.0, abs=0.1)


def test_later_evaluations_of_a_step_have_their_own_weight(
    mixture: GaussianMixtureDenoiser, other: GaussianMixtureDenoiser
) -> None:
    x, ratio = normal(3, 2), Ratio(mixture, other)
    step = DiscriminatorGuidance(Blind(other), ratio, 2.0, 0.5).for_step(0.7)
    d, exact = other(x, SIGMA), mixture(x, SIGMA)
    for weight in (2.0, 0.5, 0.5):
        torch.testing.assert_close(step(x, SIGMA), d + weight * (exact - d))
    step = DiscriminatorGuidance(Blind(other), Ratio(mixture, other), 0.0, 1.0).for_step(0.7)
    assert torch.equal(step(x, SIGMA), d)
    torch.testing.assert_close(step(x, SIGMA), exact)


def test_a_discriminator_is_asked_only_in_its_range_and_where_it_weighs(
    mixture: GaussianMixtureDenoiser, other: GaussianMixtureDenoiser
) -> None:
    """VP times 0.01 to 1, which sigma = 80, at VP time 0.934, lies in; w_2 = 0 asks once a step."""
    assert pytest.approx((0.0447, 152.167), rel=1e-3) == DISCRIMINATOR_INTERVAL
    assert float(vp_time(torch.tensor(80.0))) == pytest.approx(0.934, abs=5e-4)
    ratio, sampler = Ratio(mixture, other), HeunSampler(steps=18)
    sampler(DiscriminatorGuidance(Blind(other), ratio, 2.0, 0.0), normal(2, 2))
    assert ratio.sigmas == pytest.approx([s for s in sampler.sigmas(other) if s > 0.0447])


def test_boosting_multiplies_where_the_sample_looks_generated(
    mixture: GaussianMixtureDenoiser, other: GaussianMixtureDenoiser
) -> None:
    x, ratio = normal(16, 2), Ratio(mixture, other)
    generated = ratio(x, SIGMA) < 0
    assert 0 < int(generated.sum()) < 16
    d, push = other(x, SIGMA), mixture(x, SIGMA) - other(x, SIGMA)
    boosted = DiscriminatorGuidance(Blind(other), ratio, 1.0, boost=2.0)(x, SIGMA)
    torch.testing.assert_close(boosted, d + torch.where(generated, 2.0, 1.0)[:, None] * push)


def test_a_discriminator_that_is_certain_does_not_push(
    mixture: GaussianMixtureDenoiser, other: GaussianMixtureDenoiser
) -> None:
    """Probabilities are clipped to [1e-5, 1 - 1e-5], where their gradient ends."""
    x = 0.1 * normal(4, 2)
    for offset in (-50.0, 50.0):
        guided = DiscriminatorGuidance(Blind(other), Ratio(mixture, other, offset), 1.0)
        assert torch.equal(guided(x, SIGMA), other(x, SIGMA))


def test_a_discriminator_in_vp_coordinates_is_pushed_by_the_chain_rule() -> None:
    """D + w sigma^2 alpha grad_{x_vp} L(x_vp, tau), x_vp = alpha x, alpha = (1 + sigma^2)^-1/2."""

    class Logit(nn.Module):
        def forward(self, x: Tensor, time: Tensor, cond: Cond, augment: Tensor | None) -> Tensor:
            return (x.sin().sum(1) * (time / 999 + 1))[:, None]

    logit = Logit()
    logit.register_parameter("unused", nn.Parameter(torch.zeros(1, dtype=torch.float64)))
    judge = NetworkClassifier(logit, VPPrecond(), shape=(2,))
    denoiser = GaussianDenoiser(torch.zeros(2).double(), torch.ones(1).double())
    x, sigma = normal(5, 2), torch.tensor([0.1, 0.5, 1.0, 3.0, 60.0], dtype=torch.float64)
    alpha = (1 + sigma**2).rsqrt()[:, None]
    slope = (alpha * x).cos() * (vp_time(sigma) + 1)[:, None]
    expected = denoiser(x, sigma) + 1.5 * sigma[:, None] ** 2 * alpha * slope
    torch.testing.assert_close(DiscriminatorGuidance(denoiser, judge, 1.5)(x, sigma), expected)


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
    for around in (
        lambda d: Autoguidance(d, other, 1.5),
        lambda d: Autoguidance(other, d, 1.5),
        lambda d: ClassifierFreeGuidance(d, 1.5),
        lambda d: ClassifierGuidance(d, BayesClassifier(mixture), 0.5),
        lambda d: DiscriminatorGuidance(d, Ratio(mixture, other), 1.0, 0.5),
    ):
        assert torch.equal(draw(name, around(inner)), draw(name, around(mixture)))


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
