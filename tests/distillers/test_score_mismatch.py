"""Laws of score mismatching, its biased equilibrium among them."""

import pytest
import torch
from torch import Tensor

from scoregen.denoisers.base import Cond
from scoregen.distillers.score_mismatch import MismatchLoss, ScoreMismatchLoss, mismatch_levels
from scoregen.rng import BatchRng
from tests.distillers.oracle import NODE_WEIGHTS, NODES, GridRng, Toy

MU, S = 0.7, 0.5


class Optimum:
    """D = x - sigma S for S = -sigma p / (p + q) grad log p, p and q of a toy held fixed."""

    def __init__(self, toy: Toy) -> None:
        self.toy, self.offset = toy, torch.zeros((), dtype=torch.float64, requires_grad=True)

    def __call__(self, x: Tensor, sigma: Tensor, cond: Cond = None) -> Tensor:
        score = (self.toy.mu - x) / self.toy.v_p
        noise = -self.toy.sigma * self.toy.log_ratio(x, sigma).sigmoid() * score
        return x - self.toy.sigma * (noise + self.offset * (1 + x + x**2))


def gradient(toy: Toy) -> list[float]:
    loss = ScoreMismatchLoss(toy.level)
    # The second noise draw is the first one mirrored: the same grid, so the same expectation.
    return toy.gradient(lambda x0, rng: loss(Optimum(toy), x0, None, rng), -NODES[:, 1:])


@pytest.mark.parametrize(("sigma", "slope"), [(0.1, 0.036982), (0.31, 0.200567)])
def test_equal_distributions_are_not_stationary(sigma: float, slope: float) -> None:
    toy = Toy(mu=MU, s=S, a=S, b=MU, sigma=sigma)
    assert slope == pytest.approx(sigma**2 * S / (2 * toy.v_p**2), abs=1e-6)
    assert gradient(toy) == pytest.approx([slope, 0], abs=1e-6)


@pytest.mark.parametrize(("sigma", "ratio"), [(0.01, 0.725), (0.1, 0.712), (0.3103, 0.586)])
def test_the_generator_comes_to_rest_at_the_documented_smaller_spread(sigma: float, ratio: float) -> None:
    def slope(a: float) -> float:
        return gradient(Toy(mu=MU, s=S, a=a, b=MU, sigma=sigma))[0]

    assert slope((ratio - 0.002) * S) < 0 < slope((ratio + 0.002) * S)


def test_the_optimal_score_network_is_stationary() -> None:
    """In a direction that is wrong for real and generated samples alike."""
    toy = Toy(mu=MU, s=S)
    optimum = Optimum(toy)
    z, noise = NODES[:, :1], NODES[:, 1:]
    total = 0.0
    # n' is independent of zero mean: S^2 - 2 S n' + n'^2 averages over n' and -n'.
    for sign in (1, -1):
        rng = GridRng(noise, noise, sign * noise)
        loss = MismatchLoss(toy.level)(optimum, MU + S * z, None, toy.b + toy.a * z, None, rng)
        total = total + (NODE_WEIGHTS * loss.value).sum() / 2
    assert float(torch.autograd.grad(total, optimum.offset)[0]) == pytest.approx(0, abs=1e-8)


def test_the_levels_are_the_published_ones() -> None:
    published = [0.0100, 0.0491, 0.0832, 0.1167, 0.1498, 0.1826, 0.2151, 0.2472, 0.2790, 0.3103]
    assert mismatch_levels().levels == pytest.approx(published, abs=5e-5)


def test_both_losses_see_the_noise_that_was_added_and_the_score_network_one_that_was_not() -> None:
    """A denoiser that knows x0 predicts the noise exactly: matched errors are 0, the mismatched 2."""
    x0 = torch.randn(20_000, 1)
    levels = mismatch_levels()
    loss = ScoreMismatchLoss(levels)(lambda x, sigma, cond: x0, x0, None, BatchRng("a", size=20_000))
    assert float(loss.value.max()) < 1e-6
    loss = MismatchLoss(levels)(lambda x, sigma, cond: x0, x0, None, x0, None, BatchRng("a", size=20_000))
    assert float(loss.value.mean()) == pytest.approx(2, abs=0.1)
