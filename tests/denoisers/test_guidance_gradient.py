"""Laws of guidance by gradients: Bayes' rule, density ratios, weights within a step, VP coordinates."""

from math import log

import pytest
import torch
from torch import Tensor, nn

from scoregen.denoisers.base import Cond
from scoregen.denoisers.classifier import NetworkClassifier
from scoregen.denoisers.gaussian import GaussianDenoiser
from scoregen.denoisers.guidance import (
    ClassifierFreeGuidance,
    ClassifierGuidance,
    DiscriminatorGuidance,
    build_guidance,
)
from scoregen.denoisers.guidance.gradient import DISCRIMINATOR_INTERVAL
from scoregen.denoisers.mixture import GaussianMixtureDenoiser
from scoregen.diffusion.grids import KarrasGrid
from scoregen.diffusion.precond import EDMPrecond, VPPrecond
from scoregen.diffusion.schedules import vp_time
from scoregen.networks.classifier import Classifier, Discriminator, EncoderNetwork
from scoregen.samplers.edm import HeunSampler
from tests.denoisers.guidance_oracles import (
    EVERY_SAMPLER,
    SIGMA,
    BayesClassifier,
    Blind,
    GaussianRatio,
    Ratio,
    draw,
    gaussian,
    normal,
)


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


@pytest.mark.parametrize("kind", [Classifier, Discriminator])
def test_guidance_by_a_network_with_attention_can_be_differentiated(kind: type[EncoderNetwork]) -> None:
    """Of fused attention there is no second derivative: autograd meets another, as finite differences say."""
    torch.manual_seed(0)
    network = kind(resolution=8, channels=1, num_classes=3, model_channels=8, channel_mult=(1, 1))
    with torch.no_grad():
        for p in network.parameters():
            p.add_(torch.randn_like(p), alpha=0.1)
    judge = NetworkClassifier(network, EDMPrecond(), shape=(1, 8, 8), num_classes=3).double()
    plain = GaussianMixtureDenoiser(normal(3, 1, 8, 8), torch.ones(3).double(), labels=torch.arange(3))
    guided = build_guidance(plain, **{network.role: judge})
    x, direction, cond = normal(3, 1, 8, 8).requires_grad_(), normal(3, 1, 8, 8), torch.arange(3)
    (slope,) = torch.autograd.grad((guided(x, SIGMA, cond) * direction).sum(), x)
    with torch.no_grad():
        after, before = (guided(x + h * direction, SIGMA, cond) for h in (1e-5, -1e-5))
    difference = ((after - before) * direction).sum() / 2e-5
    assert float((slope * direction).sum()) == pytest.approx(float(difference), rel=1e-6)


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
