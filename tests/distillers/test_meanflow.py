"""Laws of MeanFlow: its fixed point is the average velocity, known for Gaussians."""

import pytest
import torch
from torch import Tensor

from scoregen.denoisers.base import Cond, expand
from scoregen.denoisers.network import NetworkDenoiser
from scoregen.diffusion.noise import LevelsSigma, LogUniformSigma
from scoregen.diffusion.precond import EDMPrecond
from scoregen.distillers.meanflow import MeanFlowLoss, total_derivative, velocity
from scoregen.networks import DDPMpp
from scoregen.rng import BatchRng
from tests.distillers.oracle import NODE_WEIGHTS, NODES, GridRng, gaussian

MU, S = 0.7, 0.5
TEACHER = gaussian(MU, S)
LOSS = MeanFlowLoss(LogUniformSigma(0.5, 5.0), LogUniformSigma(0.05, 0.4), equal=0.0)


def variance(t: Tensor) -> Tensor:
    return t**2 + (1 - t) ** 2 * S**2


def average(x: Tensor, r: Tensor, t: Tensor, cond: Cond = None) -> Tensor:
    """(x - x_r) / (t - r), x_r = (1 - r) mu + sqrt(variance(r) / variance(t)) (x - (1 - t) mu)."""
    ratio = expand((variance(r) / variance(t)).sqrt(), x)
    x_r = expand(1 - r, x) * MU + ratio * (x - expand(1 - t, x) * MU)
    return (x - x_r) / expand(t - r, x)


def test_the_velocity_is_the_flows() -> None:
    """-mu + (t - (1 - t) s^2) / variance(t) (x - (1 - t) mu)."""
    x = torch.linspace(-3, 3, 7, dtype=torch.float64)[:, None]
    t = torch.linspace(0.1, 0.9, 7, dtype=torch.float64)
    slope = expand((t - (1 - t) * S**2) / variance(t), x)
    torch.testing.assert_close(velocity(TEACHER, x, t, None), -MU + slope * (x - expand(1 - t, x) * MU))


def test_the_average_velocity_of_a_known_flow_is_its_own_target() -> None:
    """Distilling the exact teacher: no loss at any sample."""
    x0 = MU + S * torch.randn(200, 1, dtype=torch.float64)
    loss = LOSS(average, x0, None, BatchRng("loss", size=200), TEACHER)
    assert float(loss.logs["error"].max()) < 1e-20


def test_training_on_data_has_the_same_fixed_point() -> None:
    wrong = torch.zeros(2, dtype=torch.float64, requires_grad=True)

    def student(x: Tensor, r: Tensor, t: Tensor, cond: Cond) -> Tensor:
        return average(x, r, t) + wrong[0] + wrong[1] * x

    loss = MeanFlowLoss(LevelsSigma((2.0,)), LevelsSigma((0.3,)), equal=0.0, power=0.0)
    value = loss(student, MU + S * NODES[:, :1], None, GridRng(NODES[:, 1:])).value
    (slope,) = torch.autograd.grad((NODE_WEIGHTS * value).sum(), wrong)
    torch.testing.assert_close(slope, torch.zeros(2, dtype=torch.float64), atol=1e-8, rtol=0)


def test_where_both_times_agree_it_is_a_regression_on_the_velocity() -> None:
    x0 = torch.randn(50, 1, dtype=torch.float64)
    loss = MeanFlowLoss(equal=1.0, power=0.0)
    found = loss(lambda x, r, t, cond: x + expand(r - t, x), x0, None, BatchRng("loss", size=50))
    rng = BatchRng("loss", size=50)
    sigma = torch.maximum(*(d.quantile(rng.stratified()) for d in (loss.later, loss.earlier))).clamp(max=80)
    rng.rand()
    t, noise = (sigma / (1 + sigma))[:, None], rng.randn_like(x0)
    expected = ((1 - t) * x0 + t * noise - (noise - x0)).square().squeeze(1)
    torch.testing.assert_close(found.value, expected)
    torch.testing.assert_close(found.sigma, sigma)


def test_the_adaptive_weight_is_not_differentiated() -> None:
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)

    def slope(power: float) -> tuple[float, float]:
        loss = MeanFlowLoss(equal=1.0, power=power)
        found = loss(lambda x, r, t, cond: scale * x, torch.ones(1, 3).double(), None, BatchRng("a", size=1))
        error = float(found.logs["error"])
        return float(torch.autograd.grad(found.value.sum(), scale)[0]), error

    (plain, error), (weighted, _) = slope(0.0), slope(0.75)
    assert weighted == pytest.approx(plain / (error + 1e-3) ** 0.75)


def test_the_derivative_passes_through_a_network_with_attention() -> None:
    """Against central differences along (v, 1)."""
    network = DDPMpp(
        resolution=4,
        channels=1,
        model_channels=8,
        channel_mult=(1,),
        num_blocks=1,
        attention_resolutions=(4,),
    ).double()
    model = NetworkDenoiser(network, EDMPrecond(), shape=(1, 4, 4)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p), alpha=0.05)
    x, v = torch.randn(2, 3, 1, 4, 4, dtype=torch.float64)
    t = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)

    def student(x: Tensor, r: Tensor, t: Tensor, cond: Cond) -> Tensor:
        return velocity(model, x, t, cond)

    u, derivative = total_derivative(student, x, 0 * t, t, v, None)
    h = 1e-5
    difference = student(x + h * v, t, t + h, None) - student(x - h * v, t, t - h, None)
    torch.testing.assert_close(derivative, difference / (2 * h), rtol=1e-6, atol=1e-7)
    assert u.requires_grad
