"""The published sets themselves, where SCOREGEN_DATA has them."""

import os
from pathlib import Path

import pytest
import torch

from scoregen.data.base import ArrayDataset
from scoregen.data.cifar10 import SHA256, load_cifar10
from scoregen.data.idx import load_idx
from scoregen.data.stats import measure
from scoregen.errors import UserError

needs_data = pytest.mark.skipif(
    "SCOREGEN_DATA" not in os.environ, reason="set SCOREGEN_DATA to a folder with the data sets"
)
pytestmark = [pytest.mark.data, needs_data]
DEBIAN = Path("/usr/share/datasets/fashion-mnist")


def checked(data: ArrayDataset, classes: int = 10) -> torch.Tensor:
    """The class counts, after a look at the range of levels."""
    assert (int(data.x.min()), int(data.x.max())) == (0, 255)
    assert data.num_classes == classes
    return torch.tensor(measure(data).class_counts)


def test_cifar10_test_images_are_the_published_ones() -> None:
    data = load_cifar10(split="test", conditional=True)
    assert checked(data).tolist() == [1000] * 10
    assert data.fingerprint == SHA256["test"]
    assert data.label is not None
    assert data.label[:5].tolist() == [3, 8, 8, 0, 6]


@pytest.mark.slow
def test_cifar10_training_images_have_the_published_mean() -> None:
    stats = measure(load_cifar10(conditional=True))
    assert stats.class_counts == (5000,) * 10
    assert [(m + 1) / 2 for m in stats.channel_mean] == pytest.approx([0.49140, 0.48216, 0.44653], abs=5e-6)
    assert stats.std == pytest.approx(0.5, abs=0.005)


def test_mnist_is_the_published_set() -> None:
    """Mean 0.1307 and standard deviation 0.3081 in [0, 1]; 5,923 zeros and 6,742 ones of 60,000."""
    data = load_idx(name="mnist", conditional=True)
    assert checked(data)[:2].tolist() == [5923, 6742]
    stats = measure(data)
    assert ((stats.mean + 1) / 2, stats.std / 2) == pytest.approx((0.1307, 0.3081), abs=5e-5)
    assert len(load_idx(name="mnist", split="test")) == 10_000


def test_kmnist_has_a_thousand_test_images_a_class() -> None:
    assert checked(load_idx(name="kmnist", split="test", conditional=True)).tolist() == [1000] * 10


def test_files_of_another_set_are_refused() -> None:
    with pytest.raises(UserError, match="not what its name says"):
        load_idx(name="kmnist", split="test", root=os.environ["SCOREGEN_DATA"] + "/mnist")


@pytest.mark.skipif(not DEBIAN.exists(), reason="needs the Debian package dataset-fashion-mnist")
def test_fashion_mnist_is_found_where_debian_puts_it() -> None:
    data = load_idx(name="fashion_mnist", resolution=32, conditional=True)
    assert checked(data).tolist() == [6000] * 10
    stats = measure(load_idx(name="fashion_mnist"))
    assert ((stats.mean + 1) / 2, stats.std / 2) == pytest.approx((0.2860, 0.3530), abs=5e-5)
