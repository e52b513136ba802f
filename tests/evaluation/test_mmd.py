"""Laws of KID and CMMD (K1, K2)."""

from math import exp

import pytest
import torch
from torch import Tensor

from scoregen.evaluation import mmd
from scoregen.evaluation.mmd import cmmd, cubic, gaussian, kid, squared_mmd
from scoregen.evaluation.store import Sample


def normals(n: int, dim: int, seed: int) -> Tensor:
    return torch.randn(n, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def sample(features: Tensor) -> Sample:
    return Sample(features.float(), len(features))


def assert_unbiased(values: Tensor, exact: float) -> None:
    """The mean of independent estimates is within 3 standard errors of the exact value."""
    error = float(values.std()) / len(values) ** 0.5
    assert abs(float(values.mean()) - exact) < 3 * error
    assert error < 0.2 * max(exact, float(values.abs().max()))


def test_the_cubic_mmd_is_that_of_three_moments() -> None:
    """In one dimension MMD^2 = sum_k C(3, k) (E x^k - E y^k)^2."""
    x, y = ((normals(400, 100, seed) * s + m) for seed, s, m in ((1, 1.0, 0.0), (2, 1.3, 0.4)))
    values = torch.stack([squared_mmd(cubic, a[:, None], b[:, None])[0] for a, b in zip(x, y, strict=True)])
    moments = zip((0, 0.4, 0.4**2 + 1.69, 0.4**3 + 3 * 0.4 * 1.69), (0, 0, 1, 0), strict=True)
    exact = sum(c * (a - b) ** 2 for c, (a, b) in zip((1, 3, 3, 1), moments, strict=True))
    assert_unbiased(values, exact)


def test_the_cubic_mmd_of_equal_distributions_is_zero_on_average() -> None:
    pairs = [squared_mmd(cubic, normals(60, 5, k), normals(60, 5, 1000 + k)) for k in range(400)]
    unbiased, v_statistic = (torch.stack(side) for side in zip(*pairs, strict=True))
    assert_unbiased(unbiased, 0.0)
    assert float(v_statistic.mean()) > 10 * abs(float(unbiased.mean()))


def test_the_gaussian_mmd_has_the_closed_form() -> None:
    """E k = (S^2 / (S^2 + v1 + v2))^(d/2) exp(-|D|^2 / 2 (S^2 + v1 + v2)) for normals of variances v1, v2."""
    dim, sigma, spread, shift = 4, 1.5, 1.4, 0.5

    def expected(v: float, squared_shift: float) -> float:
        total = sigma**2 + v
        return (sigma**2 / total) ** (dim / 2) * exp(-squared_shift / (2 * total))

    exact = expected(2, 0) + expected(2 * spread**2, 0) - 2 * expected(1 + spread**2, dim * shift**2)
    kernel = gaussian(sigma)
    values = [
        squared_mmd(kernel, normals(100, dim, k), normals(80, dim, 1000 + k) * spread + shift)
        for k in range(200)
    ]
    assert_unbiased(torch.stack([unbiased for unbiased, _ in values]), exact)


def test_cmmd_is_a_thousand_times_the_v_statistic_of_directions() -> None:
    x, y = normals(90, 6, 1), normals(70, 6, 2) + 0.3
    score = cmmd(sample(x), sample(y))
    unit = [z.float().double() / z.float().double().norm(dim=1, keepdim=True) for z in (x, y)]
    k = [[(-torch.cdist(a, b).square() / 200).exp().mean() for b in unit] for a in unit]
    assert score.value == pytest.approx(float(1000 * (k[0][0] + k[1][1] - 2 * k[0][1])), rel=1e-9)
    assert score.details["unbiased"] < score.value
    assert cmmd(sample(7 * x), sample(y)).value == pytest.approx(score.value, rel=1e-5)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = normals(53, 4, 1), normals(31, 4, 2)
    whole = squared_mmd(cubic, x, y)
    monkeypatch.setattr(mmd, "_CHUNK", 10)
    for a, b in zip(squared_mmd(cubic, x, y), whole, strict=True):
        assert float(a) == pytest.approx(float(b), rel=1e-12)


def test_kid_is_repeatable_has_a_spread_and_says_when_subsets_are_small(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mmd, "KID_SIZE", 150)
    x, y = normals(400, 8, 1), normals(300, 8, 2) + 0.5
    score = kid(sample(x), sample(y))
    assert score == kid(sample(x), sample(y))
    assert score.note == ""
    assert score.spread is not None
    assert 0 < score.spread < 0.5 * score.value
    whole = float(squared_mmd(cubic, x.float(), y.float())[0])
    assert score.value == pytest.approx(whole, abs=3 * score.spread / 10 + 0.05 * whole)
    assert kid(sample(x[:90]), sample(y)).note == "subsets of 90 images, not 150"
