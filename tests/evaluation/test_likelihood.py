"""Laws of the log-likelihood by the probability flow."""

from itertools import pairwise
from math import e, log, pi

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal, Normal

from scoregen.denoisers.gaussian import ClassGaussianDenoiser, GaussianDenoiser
from scoregen.denoisers.mixture import GaussianMixtureDenoiser
from scoregen.diffusion.grids import KarrasGrid
from scoregen.errors import UserError
from scoregen.evaluation.likelihood import (
    BIN,
    FlowLikelihood,
    bits_per_dimension,
    dequantise,
    trace_along,
)
from scoregen.evaluation.ode import DormandPrince, RungeKutta4
from scoregen.rng import SampleRng, generator

HALF = GaussianDenoiser(torch.zeros(1, dtype=torch.float64), torch.tensor([0.25], dtype=torch.float64))
POINTS = torch.tensor([[-1.0], [-0.5], [0.0]], dtype=torch.float64)


def normal(*shape: int, key: str = "x") -> Tensor:
    return torch.randn(*shape, generator=generator(key), dtype=torch.float64)


def gaussian(dim: int = 6, key: str = "root") -> GaussianDenoiser:
    root = normal(dim, dim, key=key) / 3
    return GaussianDenoiser.from_covariance(normal(dim, key=f"{key} mean"), root @ root.T)


def moments(mixture: GaussianMixtureDenoiser, members: list[int]) -> GaussianDenoiser:
    weights, means = mixture.log_weights[members].softmax(0), mixture.means[members]
    mean = weights @ means
    spread = (means - mean).T @ (weights[:, None] * (means - mean))
    return GaussianDenoiser.from_covariance(
        mean, spread + weights @ mixture.variances[members] * torch.eye(2)
    )


def density(mixture: GaussianMixtureDenoiser, members: list[int], sigma: float = 0.002) -> MixtureSameFamily:
    scale = (mixture.variances[members] + sigma**2).sqrt()[:, None].expand(-1, 2)
    weights = Categorical(mixture.log_weights[members].exp())
    return MixtureSameFamily(weights, Independent(Normal(mixture.means[members], scale), 1))


@pytest.mark.parametrize("solver", [DormandPrince(1e-2), RungeKutta4(1)])
@pytest.mark.parametrize("probes", [1, None])
def test_gaussian_data_are_exact_with_one_probe_and_the_coarsest_steps(
    solver: RungeKutta4, probes: int | None
) -> None:
    denoiser, x = gaussian(), normal(5, 6)
    covariance = denoiser.eigenvectors * denoiser.variances @ denoiser.eigenvectors.T
    exact = MultivariateNormal(denoiser.mean, covariance + 0.002**2 * torch.eye(6)).log_prob(x)
    got = FlowLikelihood(denoiser, denoiser, solver=solver, probes=probes)(x, SampleRng(range(5)))
    torch.testing.assert_close(got.nats, exact, rtol=0, atol=1e-8)


def test_the_density_of_a_gaussian_counts_the_directions_that_its_tail_stands_for() -> None:
    full = gaussian()
    basis = full.eigenvectors
    part = GaussianDenoiser(full.mean, full.variances[3:], eigenvectors=basis[:, 3:], tail=0.3)
    whole = torch.cat([torch.full((3,), 0.3, dtype=torch.float64), full.variances[3:]])
    same = GaussianDenoiser(full.mean, whole, eigenvectors=basis)
    x, sigma = normal(4, 6), torch.linspace(0.1, 2, 4, dtype=torch.float64)
    torch.testing.assert_close(part.log_density(x, sigma), same.log_density(x, sigma))
    noisy = MultivariateNormal(full.mean, basis * (whole + sigma[1] ** 2) @ basis.T)
    assert float(part.log_density(x, sigma)[1]) == pytest.approx(float(noisy.log_prob(x[1])))


def test_moments_stored_in_float32_are_orthonormal_again() -> None:
    denoiser = gaussian(40)
    stored = FlowLikelihood(denoiser, gaussian(40).float()).prior
    basis = stored.eigenvectors
    assert float((basis.T @ basis - torch.eye(40)).abs().max()) < 1e-12


def test_the_published_values_of_the_plain_flow_and_what_they_approximate() -> None:
    """256 Heun steps of EDM's grid in sigma under N(0, 80^2) are 1e-3 off; the density itself is ours."""
    x, total = POINTS, torch.zeros(3, dtype=torch.float64)

    def field(x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        level, ones = torch.tensor(sigma, dtype=torch.float64), torch.ones(1, 3, 1, dtype=torch.float64)
        slope, trace = trace_along(lambda x: (x - HALF(x, level)) / level, x, ones)
        return slope, trace

    for sigma, after in pairwise(KarrasGrid()(256)[:-1].flip(0).tolist()):
        slope, trace = field(x, sigma)
        slope_after, trace_after = field(x + (after - sigma) * slope, after)
        x = x + (after - sigma) / 2 * (slope + slope_after)
        total = total + (after - sigma) / 2 * (trace + trace_after)
    plain = total + Normal(0.0, 80.0).log_prob(x[:, 0])
    assert plain.tolist() == pytest.approx([-2.22451, -0.72512, -0.22533], abs=1e-5)
    ours = FlowLikelihood(HALF, HALF)(POINTS, SampleRng(range(3))).nats
    assert ours.tolist() == pytest.approx([-2.22577, -0.72579, -0.22580], abs=5e-6)


@pytest.mark.parametrize(("scale", "published"), [(127.5, 8.0414), (128.0, 8.0471), (256.0, 9.0471)])
def test_bits_per_dimension_of_a_gaussian_are_its_entropy_plus_the_offset(
    scale: float, published: float
) -> None:
    nats = torch.tensor([-3 * log(2 * pi * e * 0.25) / 2], dtype=torch.float64)  # of three dimensions
    assert float(bits_per_dimension(nats, 3, 1 / scale)) == pytest.approx(published, abs=5e-5)


def test_the_offset_of_the_models_range() -> None:
    assert float(bits_per_dimension(torch.zeros(1), 7)) == pytest.approx(6.9944, abs=5e-5)


@pytest.fixture
def measure(mixture: GaussianMixtureDenoiser) -> FlowLikelihood:
    """The exact trace of the mixture's flow, against the Gaussians of its two classes and of the whole."""
    classes = [moments(mixture, members) for members in ([0], [1, 2])]
    return FlowLikelihood(mixture, ClassGaussianDenoiser(classes, moments(mixture, [0, 1, 2])), probes=None)


@pytest.mark.parametrize("members", [[0], [1, 2], [0, 1, 2]])
def test_a_mixture_is_integrated_to_the_tolerance(
    mixture: GaussianMixtureDenoiser, measure: FlowLikelihood, members: list[int]
) -> None:
    p = density(mixture, members)
    x, cond = p.sample((8,)), torch.full((8,), {1: 0, 2: 1, 3: 2}[len(members)])
    got = measure(x, SampleRng(range(8)), cond)
    torch.testing.assert_close(got.nats, p.log_prob(x), rtol=0, atol=1e-3)


def test_probes_estimate_the_trace_without_bias(
    mixture: GaussianMixtureDenoiser, measure: FlowLikelihood
) -> None:
    """The mean over trajectories with probes of their own is the exact value, within 4 standard errors."""
    x = torch.tensor([[0.1, 0.4]], dtype=torch.float64).expand(200, 2)
    solver = RungeKutta4(24)
    prior = moments(mixture, [0, 1, 2])
    estimates = FlowLikelihood(mixture, prior, solver=solver, probes=1)(x, SampleRng(range(200))).nats
    exact = FlowLikelihood(mixture, prior, solver=solver, probes=None)(x[:1], SampleRng([0])).nats
    assert estimates.std() > 0.1
    assert abs(float(estimates.mean() - exact)) < 4 * float(estimates.std()) / 200**0.5
    many = FlowLikelihood(mixture, prior, solver=solver, probes=16)(x, SampleRng(range(200))).nats
    assert float(many.var() / estimates.var()) == pytest.approx(1 / 16, rel=0.4)


def test_the_gaussians_part_leaves_less_variance_to_the_probes() -> None:
    """Of one probe in the trace of a correlated Gaussian's own Jacobian it takes all, of a near one most."""
    denoiser, near = gaussian(), GaussianDenoiser.from_covariance(torch.zeros(6).double(), _covariance(1.2))
    x, sigma = normal(200, 6), torch.tensor(0.5, dtype=torch.float64)
    probes = torch.where(normal(1, 200, 6, key="v") < 0, -1.0, 1.0).double()
    alone = trace_along(lambda x: denoiser(x, sigma), x, probes)[1].var()
    less = trace_along(lambda x: near(x, sigma) - denoiser(x, sigma), x, probes)[1].var()
    none = trace_along(lambda x: denoiser(x, sigma) - denoiser(x, sigma), x, probes)[1].var()
    assert less < 0.05 * alone
    assert none == 0


def _covariance(scale: float) -> Tensor:
    root = normal(6, 6, key="root") / 3
    return scale * root @ root.T


def test_unit_vectors_give_the_trace_itself() -> None:
    matrix, x = normal(4, 4, key="matrix"), normal(3, 4)
    basis = torch.eye(4, dtype=torch.float64)[:, None].expand(-1, 3, -1) * 2  # sqrt(4) e_i
    value, trace = trace_along(lambda x: x @ matrix.T, x, basis)
    torch.testing.assert_close(value, x @ matrix.T)
    torch.testing.assert_close(trace, matrix.trace().expand(3))


def test_a_samples_likelihood_is_a_function_of_its_own_seed(mixture: GaussianMixtureDenoiser) -> None:
    x, prior = normal(4, 2), moments(mixture, [0, 1, 2])
    measure = FlowLikelihood(mixture, prior)
    together = measure(x, SampleRng(range(4)))
    alone = measure(x[2:3], SampleRng([2]))
    torch.testing.assert_close(together.nats[2:3], alone.nats, rtol=0, atol=1e-10)
    assert together.evaluations[2] == alone.evaluations[0]
    assert not torch.allclose(measure(x[2:3], SampleRng([3])).nats, alone.nats, atol=1e-3)


def test_the_mean_costs_of_a_wrong_prior_fall_with_sigma_max() -> None:
    """Of N(mu, v) data and N(0, v): about <mu, z> / sigma_max nats, z the sample's own noise."""
    data = GaussianDenoiser(torch.ones(6, dtype=torch.float64), torch.full((6,), 0.25, dtype=torch.float64))
    centred = GaussianDenoiser(torch.zeros(6, dtype=torch.float64), data.variances)
    x = 1 + normal(1, 6) / 2
    exact = data.log_density(x, torch.tensor(0.002))
    errors = [
        float(
            FlowLikelihood(data, centred, sigma_max=sigma, solver=DormandPrince(1e-9))(x, SampleRng([0])).nats
            - exact
        )
        for sigma in (20.0, 80.0, 320.0)
    ]
    z = (x - 1) / 0.5
    assert errors[2] * 320 == pytest.approx(-float(z.sum()), rel=0.02)
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.2)


def test_levels_are_spread_over_their_bins_whatever_the_batch() -> None:
    levels = torch.arange(256, dtype=torch.uint8).repeat(8, 1)
    x = dequantise(levels, SampleRng(range(8)))
    offset = (x + 1) / BIN - levels
    assert float(offset.abs().max()) < 0.5
    assert abs(float(offset.mean())) < 4 * 12**-0.5 / offset.numel() ** 0.5
    assert float(offset.var()) == pytest.approx(1 / 12, rel=0.1)
    torch.testing.assert_close(dequantise(levels[3:4], SampleRng([3])), x[3:4], rtol=0, atol=0)


def test_dequantised_levels_cost_more_than_the_discrete_code_and_not_much() -> None:
    """E -log2 p(x + u) w >= -log2 of the bin's probability (Jensen), and closely for a wide density."""
    p = Normal(torch.zeros((), dtype=torch.float64), 0.25)
    denoiser = GaussianDenoiser(p.mean[None], p.variance[None])
    levels = torch.arange(64, 192, dtype=torch.uint8)[:, None].repeat(50, 1)
    centre = levels.double() * BIN - 1
    discrete = -(p.cdf(centre + BIN / 2) - p.cdf(centre - BIN / 2)).log2().mean()
    x = dequantise(levels, SampleRng(range(len(levels))))
    nats = FlowLikelihood(denoiser, denoiser, solver=RungeKutta4(1))(x, SampleRng([0] * len(x))).nats
    gap = float(bits_per_dimension(nats, 1).mean() - discrete)
    assert abs(gap) < 2e-3


def test_a_network_is_differentiated_through_its_preconditioning() -> None:
    """A linear network whose D is x / (1 + sigma^2) is standard normal."""

    class Standard(nn.Module):
        shape, num_classes, sigma_min, sigma_max = (2,), 0, 0.002, 80.0

        def forward(self, x: Tensor, sigma: Tensor, cond: Tensor | None = None) -> Tensor:
            return (x.float() / (1 + sigma.float() ** 2)[:, None]).float()

    prior = GaussianDenoiser(torch.full((2,), 0.1), torch.tensor([0.8, 1.3]))
    x = normal(5, 2)
    exact = Normal(0.0, (1 + 0.002**2) ** 0.5).log_prob(x).sum(1)
    got = FlowLikelihood(Standard(), prior, probes=None)(x, SampleRng(range(5)))
    torch.testing.assert_close(got.nats, exact, rtol=0, atol=3e-3)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match=r"samples \(6,\) does not fit a denoiser of \(1,\)"):
        FlowLikelihood(HALF, gaussian())

    class Detached(GaussianDenoiser):
        def forward(self, x: Tensor, sigma: Tensor, cond: Tensor | None = None) -> Tensor:
            return super().forward(x, sigma, cond).detach()

    with pytest.raises(UserError, match="Detached has no derivative"):
        FlowLikelihood(Detached(HALF.mean, HALF.variances), HALF)(POINTS, SampleRng(range(3)))
