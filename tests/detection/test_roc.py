"""Laws of the receiver operating characteristic."""

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from scoregen.detection.roc import separate
from scoregen.errors import UserError
from scoregen.rng import generator


def integers(n: int, high: int, key: str) -> Tensor:
    return torch.randint(high, (n,), generator=generator(key)).double()


def test_the_area_is_the_probability_of_the_right_order_with_ties_for_half() -> None:
    inliers, outliers = integers(70, 12, "in"), integers(50, 12, "out") + 3
    order = (outliers[:, None] > inliers).double() + (outliers[:, None] == inliers).double() / 2
    assert separate(inliers, outliers).auroc == pytest.approx(float(order.mean()), abs=1e-12)
    assert separate(outliers, inliers).auroc == pytest.approx(1 - float(order.mean()), abs=1e-12)


def test_two_gaussians_have_the_closed_forms() -> None:
    """AUROC = Phi(d / sqrt 2), the inliers' rate at 95 % is Phi(1.645 - d), the least error Phi(-d / 2)."""
    unit, shift = Normal(0.0, 1.0), 1.5
    quantiles = unit.icdf((torch.arange(4000, dtype=torch.float64) + 0.5) / 4000)
    got = separate(quantiles, quantiles + shift)
    at = torch.tensor([shift / 2**0.5, 1.644854 - shift, -shift / 2], dtype=torch.float64)
    expected = unit.cdf(at).tolist()
    assert [got.auroc, got.fpr95, got.error] == pytest.approx(expected, abs=1e-3)
    threshold = unit.icdf(torch.tensor([0.99, 0.95, 0.9], dtype=torch.float64))
    assert got.tpr == pytest.approx(unit.cdf(shift - threshold).tolist(), abs=2e-3)


def test_separable_scores_are_perfect_at_any_scale() -> None:
    for scale in (1e-12, 1.0, 1e12):
        got = separate(scale * torch.arange(5.0), scale * torch.arange(6.0, 9.0))
        assert (got.auroc, got.fpr95, got.error, got.tpr) == (1.0, 0.0, 0.0, (1.0, 1.0, 1.0))


def test_only_the_order_counts() -> None:
    inliers, outliers = integers(40, 30, "in"), integers(40, 30, "out") + 5
    assert separate(inliers, outliers) == separate(inliers.exp(), outliers.exp())


def test_rates_between_thresholds_are_interpolated() -> None:
    """One inlier scores between two outliers of ten: 95 % of these need half the way to it."""
    outliers = torch.cat([torch.tensor([0.0]), torch.full((9,), 2.0)])
    assert separate(torch.tensor([1.0, -1.0]), outliers).fpr95 == pytest.approx(0.5)
    assert separate(torch.tensor([0.0, -1.0]), outliers).fpr95 == pytest.approx(0.25)


def test_empty_sets_and_scores_that_are_not_finite_are_refused() -> None:
    with pytest.raises(UserError, match="0 inliers and 2 outliers"):
        separate(torch.zeros(0), torch.zeros(2))
    with pytest.raises(UserError, match="not finite"):
        separate(torch.tensor([0.0, float("inf")]), torch.zeros(2))
