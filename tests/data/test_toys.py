"""The toys have the moments, the support and the classes that their docstrings state."""

from collections.abc import Callable
from math import pi, sqrt

import pytest
import torch

from scoregen.data.base import ArrayDataset
from scoregen.data.stats import measure
from scoregen.data.toys import load_checkerboard, load_mixture, load_moons, ring_means

TOYS = [load_checkerboard, load_moons, load_mixture]
SIZE = 100_000


@pytest.mark.parametrize("load", TOYS)
def test_sigma_data_is_one_half(load: Callable[..., ArrayDataset]) -> None:
    stats = measure(load(size=SIZE))
    assert stats.std == pytest.approx(0.5, abs=0.003)
    assert stats.channel_mean == pytest.approx([0.0, 0.0], abs=4 * 0.6 / sqrt(SIZE))


@pytest.mark.parametrize("load", TOYS)
def test_draws_are_a_function_of_seed_and_split(load: Callable[..., ArrayDataset]) -> None:
    assert load(size=100).fingerprint == load(size=100).fingerprint
    others = [load(size=100), load(size=100, split="test"), load(size=100, seed=1)]
    assert len({data.fingerprint for data in others}) == 3


@pytest.mark.parametrize("cells", [2, 4, 6])
def test_the_checkerboard_fills_its_dark_cells_evenly(cells: int) -> None:
    x = load_checkerboard(size=SIZE, cells=cells).x.double() / sqrt(0.75)
    cell = ((x + 1) / 2 * cells).floor().long()
    assert ((cell >= 0) & (cell < cells)).all()
    assert not (cell.sum(1) % 2).any()
    counts = (cell[:, 0] * cells + cell[:, 1]).bincount(minlength=cells**2).double()
    expected = SIZE / (cells**2 / 2)
    assert (counts[counts > 0] - expected).abs().max() < 5 * sqrt(expected)
    assert int((counts > 0).sum()) == cells**2 // 2


def test_moons_lie_on_half_circles() -> None:
    data = load_moons(size=10_000, noise=0.0, conditional=True)
    assert data.label is not None
    variance = (3 / 4 + 1 / 2 - 4 / pi**2 + (2 / pi - 1 / 4) ** 2) / 2
    x = data.x.double() * sqrt(variance) / 0.5 + torch.tensor([0.5, 0.25])
    outer, inner = x[data.label == 0], x[data.label == 1]
    torch.testing.assert_close(outer.norm(dim=1), torch.ones(len(outer)).double(), atol=1e-5, rtol=0)
    assert (outer[:, 1] > -1e-5).all()
    inner_radius = (inner - torch.tensor([1.0, 0.5])).norm(dim=1)
    torch.testing.assert_close(inner_radius, torch.ones(len(inner)).double(), atol=1e-5, rtol=0)
    assert (inner[:, 1] < 0.5 + 1e-5).all()


def test_the_mixture_has_its_means_and_standard_deviation() -> None:
    data = load_mixture(size=SIZE, components=5, std=0.1, conditional=True)
    assert data.label is not None
    assert data.num_classes == 5
    for k, mean in enumerate(ring_means(5, 0.1)):
        part = data.x[data.label == k].double()
        assert len(part) == pytest.approx(SIZE / 5, rel=0.05)
        torch.testing.assert_close(part.mean(0), mean, atol=0.004, rtol=0)
        assert float(part.std()) < 0.5
        torch.testing.assert_close(part.std(0), torch.full((2,), 0.1).double(), atol=0.003, rtol=0)
