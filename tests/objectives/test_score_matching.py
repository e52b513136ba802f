"""Laws of score matching without a target: values at the truth, minimisers, variances, gradients."""

from collections.abc import Callable
from math import exp, pi, sqrt

import pytest
import torch
from torch import Tensor, nn

from scoregen import config
from scoregen.build import build_step
from scoregen.denoisers.gaussian import GaussianDenoiser
from scoregen.denoisers.mixture import GaussianMixtureDenoiser
from scoregen.denoisers.network import NetworkDenoiser
from scoregen.diffusion.forward import AddedNoise, SimulatedSDE
from scoregen.diffusion.precond import EDMPrecond
from scoregen.errors import UserError
from scoregen.model import ModelSpec, build_denoiser
from scoregen.networks import MLP
from scoregen.objectives import OBJECTIVES
from scoregen.objectives.denoising import DenoisingLoss, EDMWeight, InverseVarianceWeight
from scoregen.objectives.implicit import ImplicitLoss, NonNegativeLoss, implicit, implicit_nonnegative
from scoregen.objectives.kinks import find_kinks
from scoregen.objectives.lcss import LCSSLoss, lcss
from scoregen.objectives.score_matching import ScoreMatchingLoss, draw_direction
from scoregen.objectives.sliced import (
    FiniteDifferenceLoss,
    SlicedLoss,
    SlicedVRLoss,
    finite_difference,
    finite_difference_energy,
    sliced,
    sliced_vr,
)
from scoregen.rng import BatchRng, generator

Normal = Callable[..., Tensor]
LOSSES = {name: kind for name, kind in OBJECTIVES.items() if issubclass(kind, ScoreMatchingLoss)}
DENOISER_LOSSES = [
    name for name, kind in OBJECTIVES.items() if getattr(kind, "trains", "denoiser") == "denoiser"
]


class Fixed:
    """All noise levels are one."""

    def __init__(self, sigma: float) -> None:
        self.sigma = sigma

    def quantile(self, u: Tensor) -> Tensor:
        return torch.full_like(u, self.sigma)


def assert_mean(value: Tensor, expected: float, resolution: float) -> None:
    """The mean of independent values is as expected to 4 standard errors, and these to the resolution."""
    value = value.detach()
    error = 4 * float(value.std()) / len(value) ** 0.5
    assert error < resolution
    assert float(value.mean()) == pytest.approx(expected, abs=error + 1e-12)


# Gaussian data: value at the true score


@pytest.fixture
def gaussian(normal: Normal) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
    """Samples [N, 3] of a correlated Gaussian, its precision P, and its score."""
    root = normal(3, 3) / 2 + torch.eye(3, dtype=torch.float64)
    precision = torch.linalg.inv(root @ root.T)
    mean = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    x = mean + normal(200_000, 3, key=1) @ root.T
    return x, precision, lambda x: (mean - x) @ precision


@pytest.mark.parametrize("kind", ["implicit", "gaussian", "rademacher", "sphere", 0.1, 2.0])
def test_at_the_truth_of_a_gaussian_the_loss_is_minus_half_the_trace_of_its_precision(kind, gaussian):
    x, precision, score = gaussian
    rng = BatchRng("directions", size=len(x))
    if kind == "implicit":
        value = implicit(score, x)
    elif isinstance(kind, str):
        value = sliced_vr(score, x, draw_direction(kind, x, rng))
    else:  # finite differences are exact for any step where log p is quadratic
        value = finite_difference(score, x, kind * draw_direction("sphere", x, rng))
    expected = -float(precision.trace()) / 2
    assert_mean(value, expected, 0.03 * abs(expected))


@pytest.mark.parametrize("step", [None, 0.1, 2.0])
def test_along_unit_directions_it_is_the_share_of_one_dimension(step, gaussian):
    x, precision, score = gaussian
    unit = draw_direction("sphere", x, BatchRng("directions", size=len(x))) / sqrt(3)
    if step is None:
        value = sliced(score, x, unit)
    else:
        mean = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
        value = (
            finite_difference_energy(
                lambda x: -((x - mean) * ((x - mean) @ precision)).sum(1) / 2, x, step * unit
            )
            / 3
        )
    expected = -float(precision.trace()) / 6
    assert_mean(value, expected, 0.05 * abs(expected))


def test_the_nonnegative_form_of_a_log_normal_has_its_known_values(normal: Normal):
    """At the truth, log x ~ N(.3, .5^2), and at the wrong log normal (0, .8^2)."""
    x = (0.3 + 0.5 * normal(400_000, 1)).exp()
    for mean, std, expected in ((0.3, 0.5, -2.5), (0.0, 0.8, -1.6470)):
        value = implicit_nonnegative(lambda x, m=mean, s=std: -(1 + (x.log() - m) / s**2) / x, x)
        assert_mean(value, expected, 0.05)


def test_the_nonnegative_form_is_the_implicit_one_on_logarithms(field: nn.Module, normal: Normal):
    u = normal(50, 3)
    in_logs = implicit(field, u)
    in_x = implicit_nonnegative(lambda x: (field(x.log()) - 1) / x, u.exp())
    torch.testing.assert_close(in_x, in_logs - 1.5, rtol=1e-10, atol=1e-10)


def test_denoising_with_the_exact_denoiser_has_its_known_value(normal: Normal):
    """(d / sigma^2 - tr (Sigma + sigma^2)^-1) / 2 in terms of the score."""
    root, sigma = normal(3, 3), 0.7
    x0 = normal(200_000, 3, key=1) @ root.T
    denoiser = GaussianDenoiser.from_covariance(torch.zeros(3, dtype=torch.float64), root @ root.T)
    loss = DenoisingLoss(Fixed(sigma), lambda sigma: 3 / (2 * sigma**4))
    value = loss(denoiser, x0, None, BatchRng("dsm", size=len(x0))).value
    noised = root @ root.T + sigma**2 * torch.eye(3, dtype=torch.float64)
    assert_mean(value, float(3 / sigma**2 - torch.linalg.inv(noised).trace()) / 2, 0.05)


# Stein's identity


@pytest.mark.parametrize("width", [1.0, 0.3, 0.1])
def test_values_nearby_give_the_trace_averaged_around_the_point(width, field: nn.Module, normal: Normal):
    count = 50_000
    x, e = normal(3).expand(count, 3), normal(count, 3, key=1)
    w = torch.full((count,), width, dtype=torch.float64)
    jacobian = torch.func.vmap(torch.func.jacrev(field))(x + width * e)
    trace = jacobian.diagonal(dim1=1, dim2=2).sum(1)
    spread = {}
    for estimator in ("plain", "control_variate", "antithetic"):
        loss = lcss(field, x, w, e, estimator=estimator)
        value = (loss - field(x).square().sum(1) / 2).detach()
        spread[estimator] = float(value.std())
        assert_mean(value - trace.detach(), 0.0, 0.5)
    assert spread["plain"] > 0.9 * float(field(x[0]).detach().norm()) / width
    assert max(spread["control_variate"], spread["antithetic"]) < 3


def test_the_noise_of_the_trace_in_64_dimensions(normal: Normal):
    """Var of e . s(x + w e) / w for s = -x: d / w^2 + 2 d; with either variance reduction, 2 d for any w."""
    x, e = normal(20_000, 64), normal(20_000, 64, key=1)
    for width, variance in ((1.0, 192), (0.1, 6528), (0.01, 640128)):
        w = torch.full((len(x),), width, dtype=torch.float64)
        for estimator, expected in (("plain", variance), ("control_variate", 128), ("antithetic", 128)):
            trace = lcss(torch.neg, x, w, e, estimator=estimator) - x.square().sum(1) / 2
            assert float(trace.var()) == pytest.approx(expected, rel=0.06)
            assert float(trace.mean()) == pytest.approx(-64, abs=4 * sqrt(expected / len(x)))
    signs = draw_direction("rademacher", x, BatchRng("signs", size=len(x)))
    hutchinson = sliced_vr(torch.neg, x, signs) - x.square().sum(1) / 2
    torch.testing.assert_close(hutchinson, torch.full_like(hutchinson, -64), rtol=1e-12, atol=0)


def hermite(nodes: int = 24) -> tuple[Tensor, Tensor]:
    """Nodes and weights of E f(z), z ~ N(0, 1), exact for polynomials of degree 2 nodes - 1."""
    import numpy as np

    z, w = np.polynomial.hermite_e.hermegauss(nodes)
    return torch.tensor(z), torch.tensor(w / sqrt(2 * pi))


@pytest.mark.parametrize("width", [1.0, 0.5, 0.1])
@pytest.mark.parametrize(
    ("norm_at", "estimator"), [("x", "plain"), ("x", "control_variate"), ("xprime", "plain")]
)
def test_the_place_of_the_norm_decides_which_linear_score_is_best(width, norm_at, estimator):
    """s = -a x on N(0, .49): with the norm at x, a = 1 / v for every width; at x', a = 1 / (v + w^2)."""
    (z, p), v = hermite(), 0.49
    x, e = (grid.reshape(-1, 1) for grid in torch.meshgrid(sqrt(v) * z, z, indexing="ij"))
    weights, w = torch.outer(p, p).reshape(-1), torch.full((len(x),), width, dtype=torch.float64)

    def loss(a: Tensor) -> Tensor:
        return (weights * lcss(lambda x: -a * x, x, w, e, estimator=estimator, norm_at=norm_at)).sum()

    zero = torch.zeros((), dtype=torch.float64)
    slope, curvature = torch.func.grad(loss)(zero), torch.func.hessian(loss)(zero)
    expected = 1 / v if norm_at == "x" else 1 / (v + width**2)
    assert float(-slope / curvature) == pytest.approx(expected, rel=1e-10)
    table = {1.0: 0.671, 0.5: 1.351, 0.1: 2.000}[width] if norm_at == "xprime" else 2.0408
    assert expected == pytest.approx(table, abs=5e-4)


def test_the_norm_at_the_moved_point_is_denoising(field: nn.Module, normal: Normal):
    """||s(x')||^2 / 2 + e . s(x') / w = ||s(x') + e / w||^2 / 2 - ||e||^2 / (2 w^2), sample by sample."""
    x, e, width = normal(20, 3), normal(20, 3, key=1), torch.linspace(0.1, 1, 20, dtype=torch.float64)
    ours = lcss(field, x, width, e, estimator="plain", norm_at="xprime")
    kernel = e / width[:, None]
    denoising = (field(x + width[:, None] * e) + kernel).square().sum(1) - kernel.square().sum(1)
    torch.testing.assert_close(ours, denoising / 2, rtol=1e-10, atol=1e-10)


MODES = ((0.6, -1.5, 0.25), (0.4, 1.5, 0.49))  # weight, mean, variance


def density(x: Tensor, extra: float = 0.0) -> Tensor:
    """The mixture of MODES with noise of variance `extra`."""
    return sum(
        a * (-((x - m) ** 2) / (2 * (v + extra))).exp() / sqrt(2 * pi * (v + extra)) for a, m, v in MODES
    )


def slope_of(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    (slope,) = torch.autograd.grad(f(y := x.clone().requires_grad_()).sum(), y)
    return slope


GRID = torch.linspace(-6, 6, 2401, dtype=torch.float64)
STEP = float(GRID[1] - GRID[0])


def smoothed_score(x: Tensor, width: float) -> Tensor:
    """grad p_w / p, what LCSS with the norm at x learns."""
    return slope_of(lambda x: density(x, width**2), x) / density(x)


@pytest.mark.parametrize(
    ("width", "ours", "denoising"),
    [(0.25, 0.4129, 0.3270), (0.125, 0.1036, 0.0951), (0.0625, 0.0261, 0.0248)],
)
def test_the_bias_falls_as_the_square_of_the_width(width, ours, denoising):
    """Root mean square distance to the true score under p; each minimiser is stationary for its loss."""
    p, true = density(GRID), slope_of(lambda x: density(x).log(), GRID)
    rms = lambda s: float((p * (s - true).square()).sum() * STEP) ** 0.5  # noqa: E731
    assert rms(smoothed_score(GRID, width)) == pytest.approx(ours, abs=1e-4)
    assert rms(slope_of(lambda x: density(x, width**2).log(), GRID)) == pytest.approx(denoising, abs=1e-4)
    assert ours / width**2 == pytest.approx(6.6, abs=0.1)


@pytest.mark.parametrize("direction", [torch.ones_like, torch.clone, torch.sin, torch.tanh])
@pytest.mark.parametrize("norm_at", ["x", "xprime"])
def test_lcss_is_stationary_at_its_minimiser_and_nowhere_near(norm_at, direction):
    width, (z, q) = 0.125, hermite(40)
    x = GRID[::8]
    points, e = (grid.reshape(-1, 1) for grid in torch.meshgrid(x, z, indexing="ij"))
    weights = torch.outer(density(x) * 8 * STEP, q).reshape(-1)
    w = torch.full((len(points),), width, dtype=torch.float64)
    best = {
        "x": lambda x: smoothed_score(x, width),
        "xprime": lambda x: slope_of(lambda x: density(x, width**2).log(), x),
    }

    def derivative(minimiser: str) -> float:
        def loss(t: float) -> float:
            score = lambda x: best[minimiser](x) + t * direction(x)  # noqa: E731
            return float((weights * lcss(score, points, w, e, estimator="plain", norm_at=norm_at)).sum())

        return (loss(1e-3) - loss(-1e-3)) / 2e-3

    other = {"x": "xprime", "xprime": "x"}[norm_at]
    assert abs(derivative(norm_at)) < 1e-6
    if direction in (torch.clone, torch.tanh):
        assert abs(derivative(other)) > 1e-3


# Gradients


def gradient_of(field: nn.Module, value: Tensor) -> Tensor:
    grads = torch.autograd.grad(value.mean(), tuple(field.parameters()), allow_unused=True)
    return torch.cat([g.reshape(-1) for g in grads if g is not None])


@pytest.mark.parametrize(
    ("estimate", "tolerance"),
    [
        (lambda f, x, z, e: sliced_vr(f, x, z), 0.012),
        (lambda f, x, z, e: finite_difference(f, x, 0.01 * z), 0.012),
        (lambda f, x, z, e: lcss(f, x, x.new_full((len(x),), 0.05), e), 0.012),
        (lambda f, x, z, e: lcss(f, x, x.new_full((len(x),), 0.05), e, estimator="antithetic"), 0.012),
    ],
    ids=["ssm_vr", "fd_ssm", "lcss", "antithetic"],
)
def test_gradients_agree_with_the_exact_trace(estimate, tolerance, field: nn.Module, normal: Normal):
    points = normal(3, 3)
    x = points.repeat(120_000, 1)  # 360,000 projections of a fixed field
    z = draw_direction("sphere", x, BatchRng("z", size=len(x)))
    exact = gradient_of(field, implicit(field, points))
    ours = gradient_of(field, estimate(field, x, z, normal(len(x), 3, key=2)))
    assert float((ours - exact).norm() / exact.norm()) < tolerance


def test_a_large_step_or_width_shows_as_bias(field: nn.Module, normal: Normal):
    points = normal(3, 3)
    x, e = points.repeat(120_000, 1), normal(360_000, 3, key=2)
    z = draw_direction("sphere", x, BatchRng("z", size=len(x)))
    exact = gradient_of(field, implicit(field, points))
    far = gradient_of(field, finite_difference(field, x, 0.5 * z))
    assert 0.03 < float((far - exact).norm() / exact.norm()) < 0.5
    w = torch.full((len(x),), 0.3, dtype=torch.float64)
    plain, ours = (
        gradient_of(field, lcss(field, x, w, e, estimator=kind)) for kind in ("plain", "control_variate")
    )
    assert float((plain - ours).norm() / ours.norm()) < 0.02


@pytest.fixture
def denoiser() -> NetworkDenoiser:
    network = MLP(resolution=2, channels=2, width=12, depth=1).double()
    with torch.no_grad():
        for p in network.parameters():
            p.add_(torch.randn(p.shape, generator=generator("p", len(p)), dtype=p.dtype), alpha=0.3)
    return NetworkDenoiser(network, EDMPrecond(), shape=(2,))


@pytest.mark.parametrize("name", DENOISER_LOSSES)
def test_the_gradient_of_each_objective_is_that_of_finite_differences(name, denoiser, normal: Normal):
    cfg, _ = config.compose([f"objective={name}"])
    objective = config.instantiate(cfg.objective)
    objective = objective.double() if isinstance(objective, nn.Module) else objective
    x0, parameters = normal(8, 2) / 2, list(denoiser.parameters())
    direction = [
        torch.randn(p.shape, generator=generator("d", i), dtype=p.dtype) for i, p in enumerate(parameters)
    ]

    def value() -> Tensor:
        return objective(denoiser, x0, None, BatchRng("gradient", size=8)).value.mean()

    def moved(t: float) -> float:
        with torch.no_grad():
            torch._foreach_add_(parameters, direction, alpha=t)
        at = float(value().detach())
        with torch.no_grad():
            torch._foreach_add_(parameters, direction, alpha=-t)
        return at

    grads = torch.autograd.grad(value(), parameters)
    slope = sum(float((g * d).sum()) for g, d in zip(grads, direction, strict=True))
    h = 1e-4
    numeric = (8 * (moved(h) - moved(-h)) - (moved(2 * h) - moved(-2 * h))) / (12 * h)
    assert slope == pytest.approx(numeric, rel=1e-6)
    assert abs(slope) > 1e-3


# The objectives: time-conditional, on any process


FORMS = {
    "lcss": LCSSLoss,
    "ssm": SlicedLoss,
    "ssm_vr": SlicedVRLoss,
    "fd_ssm": FiniteDifferenceLoss,
    "implicit": ImplicitLoss,
}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("weight", [EDMWeight(), InverseVarianceWeight()])
def test_each_objective_estimates_the_denoising_loss(name, weight, normal: Normal):
    """For any denoiser, at one noise level; LCSS and finite differences are exact where D is linear."""
    sigma, count = 0.4, 100_000
    x0 = normal(count, 2).sign() + normal(count, 2, key=1) / 4

    def denoiser(x: Tensor, sigma: Tensor, cond: None) -> Tensor:
        return x @ torch.tensor([[0.7, 0.2], [-0.1, 0.5]], dtype=torch.float64) + 0.1

    rng = BatchRng("risk", size=count)
    risk = FORMS[name](AddedNoise(Fixed(sigma)), weight)(denoiser, x0, None, rng).value
    denoising = DenoisingLoss(Fixed(sigma), weight)(denoiser, x0, None, BatchRng("dsm", size=count)).value
    assert float(denoising.std()) / count**0.5 < 0.01
    assert_mean(risk - denoising, 0.0, 0.1 * float(denoising.mean()))


@pytest.mark.parametrize("name", [*FORMS, "implicit_nonnegative"])
def test_the_exact_denoiser_is_stationary_at_every_noise_level(name, mixture: GaussianMixtureDenoiser):
    """Moving it any way changes the loss to second order only, but for the bias of width or step."""
    count = 20_000
    g = generator("mixture")
    k = torch.multinomial(mixture.log_weights.exp(), count, replacement=True, generator=g)
    x0 = mixture.means[k] + mixture.variances[k, None].sqrt() * torch.randn(
        count, 2, generator=g, dtype=torch.float64
    )
    cfg, _ = config.compose([f"objective={name}"])
    objective = config.instantiate(cfg.objective)
    for away in (lambda d, x, s: torch.ones_like(x), lambda d, x, s: x, lambda d, x, s: d):

        def loss(t: float, away: Callable = away) -> Tensor:
            def moved(x: Tensor, sigma: Tensor, cond: None) -> Tensor:
                denoised = mixture(x, sigma)
                return denoised + t * sigma[:, None] / (1 + sigma[:, None]) * away(denoised, x, sigma)

            return objective(moved, x0, None, BatchRng("loss", size=count)).value.detach()

        change = (loss(0.01) - loss(-0.01)) / 0.02
        wrong = (loss(0.31) - loss(0.29)) / 0.02
        standard_error = float(change.std()) / count**0.5
        assert abs(float(change.mean())) < 4 * standard_error + 0.01
        assert float(wrong.mean()) > 4 * float(wrong.std()) / count**0.5


def test_a_process_without_a_known_kernel_is_learned(normal: Normal):
    """dx = tanh(x) dt + dw, simulated. Data of density ~ cosh(x) N(x; 0, v) have score tanh(x) - x / (v + t).

    Of the scores a tanh(x) - b x / (v + t) every objective picks a = b = 1; denoising cannot be used.
    """
    v, sigma, count = 0.3, 0.8, 100_000
    sign = normal(count, 1).sign()
    x0 = v * sign + sqrt(v) * normal(count, 1, key=1)
    process = SimulatedSDE(Fixed(sigma), torch.tanh, steps=64)
    noisy, _ = process(x0, BatchRng("sde", size=count))
    variance = v + sigma**2  # +-(v + t) with variance v + t
    assert float(noisy.square().mean()) == pytest.approx(variance**2 + variance, rel=0.03)
    assert float(noisy.abs().mean()) == pytest.approx(
        variance * (1 - 2 * normal_tail(sqrt(variance))) + 2 * sqrt(variance / (2 * pi)) * exp(-variance / 2),
        rel=0.02,
    )
    for name, kind in FORMS.items():
        objective, fit = kind(process, InverseVarianceWeight()), torch.zeros(2, dtype=torch.float64)

        def loss(ab: Tensor, objective: ScoreMatchingLoss = objective) -> Tensor:
            def denoiser(x: Tensor, sigma: Tensor, cond: None) -> Tensor:
                return x + sigma[:, None] ** 2 * (ab[0] * x.tanh() - ab[1] * x / variance)

            return objective(denoiser, x0, None, BatchRng("sde", size=count)).value.mean()

        fit.requires_grad_()
        (slope,) = torch.autograd.grad(loss(fit), fit, create_graph=True)
        curvature = torch.stack([torch.autograd.grad(slope[i], fit, retain_graph=True)[0] for i in range(2)])
        assert (-torch.linalg.solve(curvature, slope)).tolist() == pytest.approx([1, 1], abs=0.06), name


def normal_tail(z: float) -> float:
    return float(torch.special.ndtr(torch.tensor(-z, dtype=torch.float64)))


def test_differences_are_of_one_dropout_mask(normal: Normal):
    """With masks of their own the trace estimates would have noise of order 1 / width."""
    network = MLP(resolution=2, channels=2, width=16, depth=2, dropout=0.5).double().train()
    with torch.no_grad():
        for p in network.parameters():
            p.add_(torch.randn(p.shape, generator=generator("q", len(p)), dtype=p.dtype), alpha=0.3)
    denoiser = NetworkDenoiser(network, EDMPrecond(), shape=(2,))
    x0 = normal(512, 2)
    for kind in (LCSSLoss, FiniteDifferenceLoss):
        objective = [kind(AddedNoise(Fixed(0.5)), EDMWeight(), width=width) for width in (1e-6, 0.1)]
        near, far = (o(denoiser, x0, None, BatchRng("dropout", size=512)).value.std() for o in objective)
        assert float(near.detach()) < 2 * float(far.detach())


def test_the_weights_of_far_modes_are_invisible():
    """Weights .8 / .2 or .5 / .5 of modes of variance 1/2 at -4 and 4: 3e-7 of E||score||^2 = 2 apart."""
    means, sigma = torch.tensor([[-4.0], [4.0]], dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)
    x = torch.linspace(-12, 12, 4801, dtype=torch.float64)[:, None]
    true, wrong = (
        GaussianMixtureDenoiser(
            means, torch.tensor(0.25, dtype=torch.float64), weights=torch.tensor(w).double()
        )(x, sigma)
        for w in ([0.8, 0.2], [0.5, 0.5])
    )
    p = sum(w * (-((x - m) ** 2)).exp() / sqrt(pi) for m, w in ((-4, 0.8), (4, 0.2)))
    gap, size = (float((p * (d / sigma**2).square()).sum()) * 24 / 4800 for d in (true - wrong, true - x))
    assert gap == pytest.approx(3.16e-7, rel=0.01)
    assert size == pytest.approx(2, rel=0.01)


# Bad input


def test_a_width_that_leaves_the_loss_unbounded_is_refused():
    for width in (1.0, 3.0):
        with pytest.raises(UserError, match=r"must be below 1, or the loss has no lower bound"):
            LCSSLoss(AddedNoise(Fixed(1.0)), EDMWeight(), width=width)


def test_the_exact_trace_of_large_samples_is_refused_with_what_to_use(normal: Normal):
    for kind in (ImplicitLoss, NonNegativeLoss):
        loss = kind(AddedNoise(Fixed(1.0)), EDMWeight())
        with pytest.raises(UserError, match=r"each of 65 dimensions .* Choose objective=ssm_vr"):
            loss(lambda x, sigma, cond: x, normal(2, 65), None, BatchRng("x", size=2))


@pytest.mark.parametrize("kink", [nn.ReLU(), nn.LeakyReLU(), nn.Hardtanh(), nn.SiLU(), nn.Softplus()])
def test_kinks_are_found_where_there_are_some(kink: nn.Module, denoiser: NetworkDenoiser) -> None:
    class Kinked(nn.Module):
        def forward(self, x: Tensor, *_: object) -> Tensor:
            return smooth(kink(x), *_)

    smooth, denoiser.network = denoiser.network, Kinked()
    denoiser.network.inner = smooth
    found = find_kinks(denoiser)
    assert found == (
        [] if isinstance(kink, nn.SiLU | nn.Softplus) else [type(kink).__name__.replace("LU", "lu")]
    )


@pytest.mark.parametrize("name", LOSSES)
def test_each_objective_trains_a_network_with_attention(name: str) -> None:
    """Of fused attention kernels there is no second derivative; the objectives do not meet them."""
    cfg, _ = config.compose([f"objective={name}", "network.model_channels=8", "network.channel_mult=[1]"])
    denoiser = build_denoiser(cfg, ModelSpec((1, 4, 4)))
    x0 = torch.randn(4, 1, 4, 4, generator=generator("x0")) / 2
    loss = config.instantiate(cfg.objective)(denoiser, x0, None, BatchRng("unet", size=4)).value.mean()
    loss.backward()
    attention = [p for key, p in denoiser.named_parameters() if "proj" in key]
    assert attention
    assert all(p.grad is not None and p.grad.any() for p in attention)


@pytest.mark.parametrize("options", [["objective=ssm_vr"], ["network=energy_ddpmpp", "objective=lcss"]])
def test_what_is_differentiated_twice_is_not_compiled(options: list[str]) -> None:
    cfg, _ = config.compose([*options, "trainer.compile=true"])
    with pytest.raises(UserError, match=r"torch.compile has no second derivatives"):
        build_step(cfg, ModelSpec((1, 8, 8)), config.instantiate(cfg.augment))


def test_a_network_with_kinks_is_told_what_it_costs(caplog: pytest.LogCaptureFixture) -> None:
    cfg, _ = config.compose(["data=moons", "network=mlp", "objective=implicit"])
    build_step(cfg, ModelSpec((2,)), config.instantiate(cfg.augment))
    assert caplog.text == ""
    cfg.network._target_ = f"{__name__}.ReluMLP"
    for objective, warned in (("implicit", True), ("ssm", True), ("lcss", False), ("denoising", False)):
        caplog.clear()
        cfg.objective = config.compose([f"objective={objective}"])[0].objective
        build_step(cfg, ModelSpec((2,)), config.instantiate(cfg.augment))
        assert ("ReluMLP has kinks (Relu): the trace misses" in caplog.text) == warned


@pytest.mark.parametrize(
    ("objective", "precision", "warned"),
    [("lcss", "bf16", True), ("fd_ssm", "fp16", True), ("lcss", "fp32", False), ("ssm_vr", "bf16", False)],
)
def test_differences_in_half_precision_are_warned_of(
    objective: str, precision: str, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    cfg, _ = config.compose(["data=moons", "network=mlp", f"objective={objective}", f"precision={precision}"])
    build_step(cfg, ModelSpec((2,)), config.instantiate(cfg.augment))
    assert (f"the rounding of precision={precision}" in caplog.text) == warned


class ReluMLP(MLP):
    """An MLP with a layer before it that autograd sees as piecewise linear."""

    def forward(self, x: Tensor, *rest: Tensor | None) -> Tensor:
        return super().forward(torch.relu(x), *rest)
