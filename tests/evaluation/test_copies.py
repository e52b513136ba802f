"""Laws of memorisation as a metric."""

import pytest
import torch
from torch import Tensor

from scoregen.data.base import ArrayDataset
from scoregen.data.digits import load_digits
from scoregen.errors import UserError
from scoregen.evaluation.copies import measure_copies
from scoregen.evaluation.processes import Alone
from scoregen.evaluation.result import Result


class Share(Alone):
    """One of two processes; what it gives to sums is kept in order, and what others gave is added."""

    def __init__(self, rank: int, given: list[Tensor]) -> None:
        self.rank, self.world, self.given, self.kept = rank, 2, list(given), []

    def sum(self, tensor: Tensor) -> Tensor:
        self.kept.append(tensor.clone())
        return tensor + self.given.pop(0) if self.given else tensor


def measure(images: list[Tensor], num: int, processes: Alone) -> Result:
    return measure_copies(images, num, load_digits(), load_digits(split="test"), processes=processes)


def test_processes_share_images_and_agree_with_one() -> None:
    images = load_digits(split="test").x[:151]
    alone = measure(list(images.split(40)), 151, Alone())
    first = Share(0, [])
    measure(list(images[0::2].split(30)), 151, first)
    together = measure(list(images[1::2].split(17)), 151, Share(1, first.kept))
    assert together == alone
    assert alone.value < 0.02
    assert alone.details["authentic_pixels"] == pytest.approx(0.5, abs=0.15)
    assert alone.details["authentic_scatter"] == pytest.approx(0.5, abs=0.15)


def test_training_images_are_copies_in_pixels_and_in_features() -> None:
    found = measure([load_digits().x[:100]], 100, Alone())
    assert found.value == 1
    assert found.details["nearest_levels"] == found.details["median_levels"] == 0
    for space in ("pixels", "scatter"):
        assert found.details[f"ratio_{space}"] == 1
        assert found.details[f"authentic_{space}"] == 0
        assert found.details[f"c_t_{space}"] < -5


def test_a_statistic_without_enough_samples_is_left_out() -> None:
    found = measure([load_digits(split="test").x[:10]], 10, Alone())
    assert "c_t_pixels" not in found.details


def test_points_are_refused() -> None:
    points = ArrayDataset("points", torch.randn(50, 2))
    with pytest.raises(UserError, match="measured on images; points holds"):
        measure_copies([], 5, points, points, processes=Alone())
