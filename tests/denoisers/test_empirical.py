"""The fast routes of the empirical denoiser against float64."""

import os

import pytest
import torch
from torch import Tensor

from scoregen.data.base import to_model_range
from scoregen.data.digits import load_digits
from scoregen.denoisers import empirical, rows
from scoregen.denoisers.base import Denoiser
from scoregen.denoisers.empirical import EmpiricalDenoiser
from scoregen.denoisers.int8 import has_fast_int8
from scoregen.denoisers.neighbours import NeighbourDenoiser
from scoregen.denoisers.rows import FloatRows, LevelRows, split_digits
from scoregen.rng import generator

SIGMAS = [1e-14, 0.002, 0.05, 0.3, 1.0, 2.0, 3.0, 10.0, 80.0, 150.0, 220.0]
KINDS = pytest.mark.parametrize("kind", ["levels", "floats"])


def noisy(data: Tensor, count: int, sigma: float) -> Tensor:
    g = generator("noisy")
    x = to_model_range(data[torch.randint(len(data), (count,), generator=g)])
    return x + sigma * torch.randn(x.shape, generator=g)


def build(kind: str, data: Tensor, labels: Tensor | None = None, **options) -> EmpiricalDenoiser:
    """With int8 products where the machine has them, or with float32 ones."""
    if kind == "levels" and not has_fast_int8():
        pytest.skip("no int8 products here")
    denoiser = EmpiricalDenoiser(data if kind == "levels" else to_model_range(data), labels, **options)
    assert isinstance(denoiser.rows, LevelRows if kind == "levels" else FloatRows)
    return denoiser


def same_in_float64(denoiser: Denoiser, x: Tensor, sigma: float, cond: Tensor | None = None) -> Tensor:
    return denoiser(x.double(), torch.tensor(sigma, dtype=torch.float64), cond)


@KINDS
@pytest.mark.parametrize("sigma", SIGMAS)
def test_float32_is_exact_at_every_noise_level(kind: str, sigma: float) -> None:
    data = load_digits().x
    denoiser, x = build(kind, data), noisy(data, 64, sigma)
    exact = same_in_float64(denoiser, x, sigma)
    torch.testing.assert_close(denoiser(x, torch.tensor(sigma)).double(), exact, rtol=0, atol=1e-4)


@KINDS
@pytest.mark.parametrize("sigma", [0.05, 0.5, 3.0])
def test_whichever_way_the_sum_is_taken_it_is_the_same(kind: str, sigma: float, monkeypatch) -> None:
    data = load_digits().x
    denoiser, x = build(kind, data), noisy(data, 16, sigma)
    exact = same_in_float64(denoiser, x, sigma)
    for few, known in [(0, 1e9), (10**6, 0.0), (0, 0.0), (3, 1e-3)]:
        monkeypatch.setattr(empirical, "_FEW", few)
        monkeypatch.setattr(empirical, "_KNOWN", known)
        tolerance = 2e-2 if known == 1e9 and kind == "levels" else 1e-4  # one digit of the query only
        torch.testing.assert_close(denoiser(x, torch.tensor(sigma)).double(), exact, rtol=0, atol=tolerance)


@KINDS
def test_the_error_of_a_similarity_is_within_its_bound(kind: str) -> None:
    data = load_digits().x
    denoiser, x = build(kind, data), noisy(data, 16, 0.7).flatten(1)
    whole = to_model_range(data).flatten(1).double()
    exact = x.double() @ whole.T - whole.square().sum(1) / 2
    similar, more = denoiser.rows.similarities(x, slice(0, len(data))), True
    bounds = []
    while more:
        off = similar.value - exact
        assert ((off.amax(1) - off.amin(1)) <= similar.error).all()
        assert off.var(1).mean() <= 1.2 * similar.deviation.square().mean()
        bounds.append(float(similar.error.max()))
        more = similar.refine(torch.arange(16))
    assert bounds == sorted(bounds, reverse=True)
    assert len(bounds) == (3 if kind == "levels" else 1)


@KINDS
@pytest.mark.parametrize("estimator", [None, NeighbourDenoiser])  # draws by importance jump
def test_gradients_are_those_of_finite_differences(kind: str, estimator) -> None:
    data = load_digits().x[:200]
    denoiser: Denoiser = build(kind, data)
    if estimator:
        denoiser = estimator(denoiser, neighbours=40)
    x, sigma = noisy(data, 4, 1.5).requires_grad_(), torch.tensor(1.5)
    probe, way = torch.randn(2, *x.shape, generator=generator("probe"))
    (slope,) = torch.autograd.grad((denoiser(x, sigma) * probe).sum(), x)
    ahead, behind = (same_in_float64(denoiser, x.detach() + h * way.double(), 1.5) for h in (1e-3, -1e-3))
    expected = ((ahead - behind) * probe).sum() / 2e-3
    assert float((slope * way).sum()) == pytest.approx(float(expected), rel=1e-3, abs=1e-3)


@KINDS
def test_only_the_rows_of_the_class_are_visited(kind: str) -> None:
    data = load_digits()
    denoiser, x = build(kind, data.x, data.label), noisy(data.x, 12, 0.4)
    cond = torch.arange(12) % 11
    visited: list[slice] = []
    similarities = denoiser.rows.similarities

    def spy(query: Tensor, part: slice):
        visited.append(part)
        return similarities(query, part)

    denoiser.rows.similarities = spy  # the operand is kept
    denoised = denoiser(x, torch.tensor(0.4), cond)
    counts = [*data.label.bincount().tolist(), len(data)]
    assert [part.stop - part.start for part in visited] == counts
    torch.testing.assert_close(denoised.double(), same_in_float64(denoiser, x, 0.4, cond), rtol=0, atol=1e-4)


@KINDS
def test_queries_of_many_noise_levels_do_not_disturb_each_other(kind: str) -> None:
    data = load_digits().x
    denoiser, sigma = build(kind, data), torch.logspace(-3, 2, 24)
    noise = torch.randn(24, 1, 8, 8, generator=generator("levels"))
    x = to_model_range(data[:24]) + sigma[:, None, None, None] * noise
    each = torch.cat([same_in_float64(denoiser, x[i : i + 1], float(sigma[i])) for i in range(24)])
    torch.testing.assert_close(denoiser(x, sigma).double(), each, rtol=0, atol=1e-4)


def test_data_far_from_zero_keep_their_digits() -> None:
    data = 100 + 0.01 * torch.randn(400, 5, generator=generator("far"))
    x = data[:20] + 0.003 * torch.randn(20, 5, generator=generator("noise"))
    denoiser = EmpiricalDenoiser(data)
    exact = same_in_float64(denoiser, x, 0.003)
    torch.testing.assert_close(denoiser(x, torch.tensor(0.003)).double(), exact, rtol=0, atol=2e-5)


def test_crowds_closer_than_float32_can_tell_are_left_to_float64(monkeypatch) -> None:
    g = generator("crowd")
    crowd = torch.tensor([10.0, -10.0]) + 1e-5 * torch.randn(500, 2, generator=g)
    data = torch.cat([crowd, -crowd])
    x = data[:4] + 1e-5 * torch.randn(4, 2, generator=g)
    denoiser = EmpiricalDenoiser(data)
    exact = same_in_float64(denoiser, x, 1e-5)
    torch.testing.assert_close(denoiser(x, torch.tensor(1e-5)).double(), exact, rtol=0, atol=1e-6)


def test_digits_add_up() -> None:
    x = torch.randn(5, 100, generator=generator("x")) * torch.tensor([1e-3, 1, 0, 50, 1e4])[:, None]
    for count, left in [(1, 4e-3), (2, 1.6e-5), (3, 1e-7)]:
        parts = list(split_digits(x, count))
        whole = sum(digit.double() * scale.double() for digit, scale, _ in parts)
        torch.testing.assert_close(whole + parts[-1][2], x.double(), rtol=1e-6, atol=0)
        assert ((whole - x).abs() <= left * x.abs().amax(1, keepdim=True)).all()
        assert all(digit.abs().max() <= 127 for digit, _, _ in parts)


@KINDS
def test_weighted_means_keep_constant_data_and_small_weights(kind: str) -> None:
    if kind == "levels" and not has_fast_int8():
        pytest.skip("no int8 products here")
    data = torch.randint(0, 256, (3 * rows._BLOCK // 2, 6), generator=generator("rows"), dtype=torch.uint8)
    data[:, 0] = 77
    operand = LevelRows(data) if kind == "levels" else FloatRows(data)
    weights = (torch.randn(3, len(data), generator=generator("w")) * torch.tensor([[0.1], [2], [6]])).exp()
    weights /= weights.amax(1, keepdim=True)
    found = operand.mean(weights, slice(0, len(data))).double()
    exact = (weights.double() @ to_model_range(data).double()) / weights.double().sum(1, keepdim=True)
    torch.testing.assert_close(found, exact, rtol=0, atol=4e-5)


def test_moving_the_module_moves_its_operand() -> None:
    denoiser = EmpiricalDenoiser(torch.randn(30, 4, generator=generator("data")))
    before = denoiser.rows
    assert denoiser.double().rows is not before


@pytest.fixture(scope="module")
def cifar10() -> Tensor:
    from scoregen.data.cifar10 import load_cifar10

    return load_cifar10(split="test").x


@pytest.mark.data
@pytest.mark.skipif(
    "SCOREGEN_DATA" not in os.environ, reason="set SCOREGEN_DATA to a folder with the data sets"
)
@pytest.mark.parametrize("sigma", [0.05, 1.0, 3.0, 80.0])
def test_cifar10_is_exact_at_every_noise_level(sigma: float, cifar10: Tensor) -> None:
    denoiser, x = EmpiricalDenoiser(cifar10), noisy(cifar10, 8, sigma)
    exact = same_in_float64(denoiser, x, sigma)
    torch.testing.assert_close(denoiser(x, torch.tensor(sigma)).double(), exact, rtol=0, atol=1e-4)
