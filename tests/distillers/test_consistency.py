"""Laws of the consistency losses: the fixed point is the end of the probability flow, known for Gaussians."""

import pytest
import torch
from torch import Tensor

from scoregen.denoisers.base import Cond, expand
from scoregen.denoisers.gaussian import GaussianDenoiser
from scoregen.diffusion.noise import LevelsSigma, LogUniformSigma
from scoregen.distillers.consistency import ConsistencyLoss, heun
from scoregen.rng import BatchRng
from tests.distillers.oracle import NODE_WEIGHTS, NODES, GridRng, gaussian

MU, S = 0.7, 0.5
TEACHER = gaussian(MU, S)


def end_of_flow(x: Tensor, sigma: Tensor, cond: Cond = None) -> Tensor:
    """mu + (x - mu) s / sqrt(s^2 + sigma^2)."""
    return MU + (x - MU) * S / expand((S**2 + sigma**2).sqrt(), x)


def test_the_end_of_the_flow_does_not_change_along_it() -> None:
    x = torch.linspace(-3, 3, 7, dtype=torch.float64)[:, None]
    sigma = torch.full((7,), 0.8, dtype=torch.float64)
    slope = (x - TEACHER(x, sigma)) / 0.8
    _, change = torch.func.jvp(end_of_flow, (x, sigma), (slope, torch.ones_like(sigma)))
    torch.testing.assert_close(change, torch.zeros_like(x), atol=1e-12, rtol=0)


@pytest.mark.parametrize("t", [0.3, 2.0])
def test_distillation_leaves_the_end_of_the_flow_to_the_order_of_its_steps(t: float) -> None:
    """The loss is the local error of Heun's rule, third order, over the step."""
    x0 = MU + S * torch.randn(50, 1, dtype=torch.float64)

    def value(stage: int) -> float:
        loss = ConsistencyLoss(LevelsSigma((t,)), k=0.0)
        rng = BatchRng("loss", size=50)
        return float(loss(end_of_flow, x0, None, rng, stage=stage, teacher=TEACHER).value.mean())

    assert value(7) / value(8) == pytest.approx(4, rel=0.05)
    assert value(9) < 1e-4


def test_tuning_leaves_the_end_of_the_flow_in_the_limit() -> None:
    """With a c that makes it a squared error, the slope of the expectation falls with the step."""

    def slope(stage: int) -> float:
        wrong = torch.zeros((), dtype=torch.float64, requires_grad=True)

        def student(x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
            return end_of_flow(x, sigma) + wrong * (1 + x)

        loss = ConsistencyLoss(LevelsSigma((0.8,)), k=0.0, c=100.0)
        value = loss(student, MU + S * NODES[:, :1], None, GridRng(NODES[:, 1:]), stage=stage).value
        return float(torch.autograd.grad((NODE_WEIGHTS * value).sum(), wrong)[0])

    assert abs(slope(4)) > 1e-5
    assert slope(4) / slope(5) == pytest.approx(2, rel=0.1)
    assert slope(7) / slope(8) == pytest.approx(2, rel=0.02)


def test_the_first_stage_at_a_low_level_is_a_regression_on_clean_data() -> None:
    """r = 0 there, where the target is x0 and no denoiser is asked."""
    x0 = torch.randn(20, 2, 3)

    def student(x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        assert bool((sigma > 0).all())
        return 0.3 * x

    loss = ConsistencyLoss(LogUniformSigma(0.1, 0.2))
    found = loss(student, x0, None, BatchRng("loss", size=20))
    rng = BatchRng("loss", size=20)
    sigma = loss.sigma.quantile(rng.stratified()).float()
    x = x0 + sigma[:, None, None] * rng.randn_like(x0)
    expected = (0.3 * x - x0).square().mean((1, 2)).sqrt() / sigma
    torch.testing.assert_close(found.value, expected)


@pytest.mark.parametrize(("stage", "t", "ratio"), [(0, 1e-4, 0.0), (3, 1e-4, 0.6875), (7, 50.0, 1 - 1 / 256)])
def test_the_earlier_level_is_as_published(stage: int, t: float, ratio: float) -> None:
    r = ConsistencyLoss().earlier(torch.tensor([t], dtype=torch.float64), stage)
    assert float(r) / t == pytest.approx(ratio, abs=2e-3)


def test_heun_carries_a_gaussian_to_third_order_and_by_euler_to_zero() -> None:
    teacher = GaussianDenoiser(torch.zeros(1).double(), torch.ones(1).double())
    x, t = torch.ones(3, 1, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    r = torch.tensor([0.9, 0.95, 0.0], dtype=torch.float64)
    exact = ((1 + r**2) / 2).sqrt()
    error = (heun(teacher, x, t, r, None).squeeze(1) - exact).abs()
    assert float(error[0] / error[1]) == pytest.approx(8, rel=0.15)
    assert float(heun(teacher, x, t, r, None)[2]) == float(teacher(x, t)[2])


def test_both_evaluations_drop_the_same_units() -> None:
    seen = []

    def student(x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        seen.append(torch.rand(5))
        return x

    ConsistencyLoss()(student, torch.zeros(4, 1), None, BatchRng("loss", size=4), stage=9)
    assert torch.equal(*seen)


def test_a_student_at_its_target_has_a_gradient() -> None:
    scale = torch.ones((), requires_grad=True)
    loss = ConsistencyLoss()(
        lambda x, sigma, cond: scale * 0 * x, torch.zeros(4, 1), None, BatchRng("loss", size=4), stage=9
    )
    loss.value.sum().backward()
    assert scale.grad is not None
    assert float(scale.grad) == 0
