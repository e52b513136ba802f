from math import log

import pytest
import torch

from scoregen.denoisers.gaussian import GaussianDenoiser
from scoregen.objectives.base import Loss
from scoregen.objectives.denoising import EDMLoss
from scoregen.objectives.uncertainty import UncertaintyLoss
from scoregen.rng import BatchRng


@pytest.mark.parametrize("s", [0.25, 1.0])
def test_the_learned_log_variance_is_the_log_of_the_loss(s: float) -> None:
    sigma = torch.logspace(-1.5, 0.7, 24, dtype=torch.float64)
    expected = (sigma**2 + 0.25) / (0.25 * sigma**2) * s**2 * sigma**2 / (s**2 + sigma**2)
    objective = UncertaintyLoss(lambda denoiser, x0, cond, rng: Loss(expected, sigma)).double()
    optimizer = torch.optim.LBFGS(objective.parameters(), max_iter=300, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = objective(None, None, None, None).value.mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    value = objective(None, None, None, None).value
    learned = objective.log_variance(torch.tensor([0.3], dtype=torch.float64))
    torch.testing.assert_close(objective.log_variance(sigma), expected.log(), atol=5e-3, rtol=0)
    torch.testing.assert_close(value, 1 + expected.log(), atol=1e-3, rtol=0)
    published = {0.25: -0.58451, 1.0: 0.22131}[s]
    assert learned.item() == pytest.approx(published, abs=5e-3)


def test_the_denoiser_is_trained_by_the_loss_divided_by_its_variance() -> None:
    gain = torch.ones((), requires_grad=True)
    x0 = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))

    def denoiser(x: torch.Tensor, sigma: torch.Tensor, cond: None) -> torch.Tensor:
        return gain * GaussianDenoiser(torch.zeros(3), torch.tensor(1.0))(x, sigma)

    objective = UncertaintyLoss(EDMLoss())
    loss = objective(denoiser, x0, None, BatchRng("u", size=64))
    weighed = torch.autograd.grad(loss.value.sum(), gain, retain_graph=True)[0]
    by_hand = loss.logs["unweighted"] / objective.log_variance(loss.sigma).exp()
    torch.testing.assert_close(weighed, torch.autograd.grad(by_hand.sum(), gain)[0])


def test_the_log_variance_has_no_scale_to_learn() -> None:
    objective, sigma = UncertaintyLoss(EDMLoss()), torch.logspace(-2, 2, 9)
    before = objective.log_variance(sigma).detach()
    with torch.no_grad():
        objective.weight.mul_(7)
    torch.testing.assert_close(objective.log_variance(sigma), before)
    assert before.abs().max() <= (2 * 128) ** 0.5
    assert log(float(before.std())) == pytest.approx(0, abs=1.5)
