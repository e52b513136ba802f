from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from scoregen.denoisers.base import Cond, Denoise, expand
from scoregen.denoisers.empirical import EmpiricalDenoiser
from scoregen.denoisers.gaussian import GaussianDenoiser
from scoregen.diffusion.noise import LogNormalSigma, LogUniformSigma, SigmaDistribution, VPSigma
from scoregen.diffusion.precond import EDMPrecond, FlowPrecond, Precond, VEPrecond, VPPrecond
from scoregen.objectives.base import Loss
from scoregen.objectives.denoising import (
    DenoisingLoss,
    EDMLoss,
    EDMWeight,
    InverseVarianceWeight,
    VelocityWeight,
)
from scoregen.rng import BatchRng, generator

Precondition = Callable[[Callable[[Tensor, Tensor], Tensor], Precond], Denoise]
VP_LOSS = DenoisingLoss(VPSigma(), InverseVarianceWeight())
FLOW_LOSS = DenoisingLoss(LogNormalSigma(0.0, 1.0), VelocityWeight())
VE_LOSS = DenoisingLoss(LogUniformSigma(), InverseVarianceWeight())


@dataclass(frozen=True)
class Fixed:
    sigma: float

    def quantile(self, u: Tensor) -> Tensor:
        return torch.full_like(u, self.sigma)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator("data"), dtype=torch.float64)


def evaluate(loss: Callable, denoiser: Denoise, x0: Tensor, key: int = 0) -> Loss:
    return loss(denoiser, x0, None, BatchRng("test", key, size=len(x0)))


def assert_mean(value: Tensor, expected: float, resolution: float) -> None:
    """The mean of independent values is as expected to 4 standard errors, and these to the resolution."""
    error = 4 * float(value.std()) / len(value) ** 0.5
    assert error < resolution
    assert float(value.mean()) == pytest.approx(expected, abs=error)


def network(x: Tensor, noise: Tensor) -> Tensor:
    return torch.sin(3 * x) + expand(noise, x)


@pytest.mark.parametrize("sigma_data", [0.25, 0.5])
def test_edm_weight_cancels_the_output_scale(sigma_data: float) -> None:
    sigma = torch.logspace(-3, 2, 50, dtype=torch.float64)
    product = EDMWeight(sigma_data)(sigma) * EDMPrecond(sigma_data)(sigma).out ** 2
    torch.testing.assert_close(product, torch.ones_like(sigma), rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", ["edm", "vp", "ve", "flow"])
def test_each_loss_is_a_plain_regression_of_its_network(kind: str, precondition: Precondition) -> None:
    loss, precond = {
        "edm": (EDMLoss(), EDMPrecond()),
        "vp": (VP_LOSS, VPPrecond()),
        "ve": (VE_LOSS, VEPrecond()),
        "flow": (FLOW_LOSS, FlowPrecond()),
    }[kind]
    seen: dict[str, Tensor] = {}

    def recorded(x: Tensor, sigma: Tensor, cond: Cond = None) -> Tensor:
        seen.update(x=x, sigma=sigma)
        return precondition(network, precond)(x, sigma)

    x0 = 0.5 * normal(32, 3, 4, 4)
    value = evaluate(loss, recorded, x0).value
    x, sigma, c = seen["x"], seen["sigma"], precond(seen["sigma"])
    f, eps = network(expand(c.input, x) * x, c.noise), (x - x0) / expand(sigma, x)
    edm = (x0 - expand(c.skip, x) * x) / expand(c.out, x)
    target = {"edm": edm, "vp": eps, "ve": -eps, "flow": eps - x0}[kind]
    torch.testing.assert_close(value, (f - target).square().mean((1, 2, 3)), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("sigma", [0.05, 0.5, 5.0])
@pytest.mark.parametrize("scale", [0.25, 0.5, 1.0])
def test_the_loss_of_a_zero_network_needs_only_the_second_moment(
    sigma: float, scale: float, precondition: Precondition
) -> None:
    x0 = scale * normal(2000, 64).sign()  # far from Gaussian
    zero = precondition(lambda x, noise: torch.zeros_like(x), EDMPrecond())
    value = evaluate(DenoisingLoss(Fixed(sigma), EDMWeight()), zero, x0).value
    expected = (0.25 + sigma**2 * scale**2 / 0.25) / (sigma**2 + 0.25)
    assert_mean(value, expected, 0.02 * max(expected, 1))


@pytest.mark.parametrize(("s", "floor"), [(0.25, 0.58744), (0.5, 1.0), (1.0, 1.62832)])
def test_the_optimal_denoiser_reaches_the_floor_of_the_edm_loss(s: float, floor: float) -> None:
    denoiser = GaussianDenoiser(torch.zeros(64), torch.tensor(s**2))
    assert_mean(evaluate(EDMLoss(), denoiser, s * normal(4000, 64)).value, floor, 0.1 * floor)


@pytest.mark.parametrize(("loss", "distribution"), [(VP_LOSS, VPSigma()), (VE_LOSS, LogUniformSigma())])
def test_the_optimal_denoiser_reaches_the_floor_of_the_vp_and_ve_losses(
    loss: DenoisingLoss, distribution: SigmaDistribution
) -> None:
    sigma = distribution.quantile((torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000)
    denoiser = GaussianDenoiser(torch.zeros(64), torch.tensor(0.25))
    floor = float((0.25 / (0.25 + sigma**2)).mean())
    assert_mean(evaluate(loss, denoiser, 0.5 * normal(4000, 64)).value, floor, 0.05)


@pytest.mark.parametrize("sigma", [0.1, 1.0])
def test_no_denoiser_beats_the_gaussian_floor_and_the_exact_one_meets_it(sigma: float) -> None:
    root = normal(6, 6) / 2
    mean, covariance = torch.linspace(-1, 1, 6, dtype=torch.float64), root @ root.T
    x0 = mean + normal(20_000, 6) @ root.T
    denoiser = GaussianDenoiser.from_covariance(mean, covariance)
    floor = (
        covariance - covariance @ torch.linalg.solve(covariance + sigma**2 * torch.eye(6), covariance)
    ).trace() / 6
    loss = DenoisingLoss(Fixed(sigma), lambda sigma: torch.ones_like(sigma))
    best = evaluate(loss, denoiser, x0).value
    assert_mean(best, float(floor), 0.05 * float(floor))
    for factor in (0.9, 1.1):
        worse = evaluate(loss, lambda x, s, c, k=factor: mean + k * (denoiser(x, s) - mean), x0).value
        assert worse.mean() > best.mean()


@pytest.mark.parametrize(
    ("sigma", "train", "heldout"),
    [(0.2, 0.002, 13.36), (0.5, 0.152, 2.63), (1.0, 0.700, 1.27), (2.0, 0.938, 1.05)],
)
def test_memorising_shows_as_a_training_loss_below_the_floor(
    sigma: float, train: float, heldout: float
) -> None:
    data, others = normal(2, 40, 64, 8)
    loss = DenoisingLoss(Fixed(sigma), EDMWeight(1.0))  # the population's floor is 1
    values = []
    for i, (x, y) in enumerate(zip(data, others, strict=True)):
        denoiser = EmpiricalDenoiser(x)
        values.append([evaluate(loss, denoiser, z, i).value.mean() for z in (x, y)])
    assert torch.tensor(values).mean(0).tolist() == pytest.approx([train, heldout], rel=0.06, abs=0.05)


def test_noise_levels_are_stratified_over_the_global_batch() -> None:
    x0 = normal(256, 1)
    sigma = evaluate(EDMLoss(-0.4, 1.0), lambda x, s, c: x, x0).sigma
    u = torch.special.ndtr(sigma.log() + 0.4)
    assert torch.equal((u * 256).long().sort().values, torch.arange(256))
    quantiles = LogNormalSigma(-0.4, 1.0).quantile(BatchRng("test", 0, size=256).stratified())
    assert torch.equal(sigma, quantiles)


def test_a_micro_batch_sees_its_rows_of_the_global_draws() -> None:
    x0 = normal(8, 3)
    whole = evaluate(EDMLoss(), lambda x, s, c: x, x0).value
    parts = [
        EDMLoss()(lambda x, s, c: x, x0[rows], None, BatchRng("test", 0, size=8, rows=rows)).value
        for rows in (slice(0, 5), slice(5, 8))
    ]
    assert torch.equal(torch.cat(parts), whole)
