"""Laws of what is kept of a stream: bounded, and the same for every sharing-out of the images."""

import numpy as np
import pytest
import torch
from torch import Tensor

from scoregen.errors import UserError
from scoregen.evaluation.frechet import Moments
from scoregen.evaluation.processes import Alone
from scoregen.evaluation.running import InParts, random_keys, random_parts
from scoregen.evaluation.store import FeatureStore


def rows(n: int, dim: int = 3) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(n))


def stored(features: Tensor, index: np.ndarray, capacity: int = 50, batch: int = 7) -> FeatureStore:
    store = FeatureStore(features.shape[1], capacity=capacity)
    for rows in np.array_split(np.arange(len(index)), max(1, len(index) // batch)):
        store.update(features[rows], index[rows])
    return store


@pytest.mark.parametrize("n", [20, 50, 51, 400])
def test_a_store_keeps_the_same_images_however_they_were_shared_out(n: int) -> None:
    features, index = rows(n), np.arange(n)
    whole = stored(features, index).summary()
    assert (len(whole.features), whole.n) == (min(n, 50), n)
    shares = [stored(features[r::3], index[r::3]) for r in range(3)]
    left = shares[0].merge(shares[1]).merge(shares[2]).summary()
    right = shares[2].merge(shares[1].merge(shares[0])).summary()
    for merged in (left, right):
        assert torch.equal(merged.features, whole.features)
        assert merged.n == n
    assert torch.equal(stored(features, index, batch=400).reduce(Alone()).summary().features, whole.features)


def test_a_store_is_bounded() -> None:
    store = FeatureStore(3, capacity=40)
    for start in range(0, 4000, 10):
        store.update(rows(10), np.arange(start, start + 10))
        assert sum(map(len, store._rows)) <= 50


def test_what_a_store_keeps_is_drawn_evenly_from_the_whole_stream() -> None:
    index = np.arange(100_000)
    kept = stored(torch.from_numpy(index)[:, None].float(), index, capacity=2000, batch=1000).summary()
    deciles = torch.histc(kept.features[:, 0], 10, 0, 100_000)
    assert float((deciles - 200).square().sum() / 200) < 27.9  # chi^2 with 9 degrees: p = 0.001
    order = np.corrcoef(np.arange(2000), kept.features[:, 0])[0, 1]
    assert abs(order) < 3.3 / 2000**0.5


def test_keys_are_distinct_and_a_function_of_index_and_seed() -> None:
    keys = random_keys(np.arange(100_000))
    assert len(np.unique(keys)) == 100_000
    assert np.array_equal(random_keys(np.array([7, 99_999])), keys[[7, 99_999]])
    assert not np.array_equal(random_keys(np.arange(5), 1), keys[:5])


@pytest.mark.parametrize("parts", [2, 8, 10])
def test_parts_are_equal_at_any_n_and_blind_to_periods(parts: int) -> None:
    part = random_parts(np.arange(100 * parts), parts)
    for n in (1, parts - 1, parts, 37, 100 * parts):
        counts = np.bincount(part[:n], minlength=parts)
        assert counts.max() - counts.min() <= 1
    periodic = part[np.arange(0, 100 * parts, parts)]  # every parts-th image is of one class
    assert np.bincount(periodic, minlength=parts).max() < 40 + 100 / parts


def test_parts_together_are_the_whole() -> None:
    features, index = rows(501).double(), np.arange(501)
    in_parts, whole = InParts(Moments, 8, 1, 3), Moments(3)
    for chosen in np.array_split(index, 5):
        in_parts.update(features[chosen], chosen)
        whole.update(features[chosen])
    first, *others = in_parts.summary()
    for part in others:
        first = first.merge(part)
    assert torch.allclose(first.summary().cov, whole.summary().cov, rtol=1e-12)
    assert sorted(int(part.n) for part in in_parts.parts) == [62] * 3 + [63] * 5


def test_a_store_needs_two_images_and_hides_no_nan() -> None:
    with pytest.raises(UserError, match="at least 2 images on each side, not 1"):
        stored(rows(1), np.arange(1)).summary()
    with pytest.raises(ValueError, match="not finite"):
        stored(torch.full((2, 3), float("nan")), np.arange(2)).summary()
