"""What a data set guarantees: split, content hash, and the refusal of bad input."""

import hashlib

import pytest
import torch

from scoregen.data.base import ArrayDataset, split_off, to_model_range, verify_content
from scoregen.data.digits import load_digits
from scoregen.data.stats import measure
from scoregen.errors import UserError
from scoregen.images import to_uint8


def levels() -> torch.Tensor:
    return torch.arange(2 * 3 * 4 * 5, dtype=torch.uint8).view(2, 3, 4, 5)


def test_every_level_survives_the_way_to_the_model_and_back() -> None:
    u8 = torch.arange(256, dtype=torch.uint8)
    x = to_model_range(u8)
    assert (float(x[0]), float(x[255])) == (-1.0, 1.0)
    assert torch.equal(to_uint8(x), u8)
    points = torch.tensor([[2.5, -7.0]])
    assert to_model_range(points) is points


def test_the_fingerprint_is_the_hash_of_the_pixels_as_stored_in_image_files() -> None:
    nhwc = levels().permute(0, 2, 3, 1).contiguous().numpy().tobytes()
    data = ArrayDataset("a", levels())
    assert data.fingerprint == hashlib.sha256(nhwc).hexdigest()
    assert data.fingerprint != data.select(torch.tensor([1, 0])).fingerprint


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5])
def test_the_splits_are_disjoint_and_cover_the_set(fraction: float) -> None:
    train, test = (split_off("a", 200, split, fraction) for split in ("train", "test"))
    assert len(test) == 200 * fraction
    assert torch.cat([train, test]).sort().values.tolist() == list(range(200))
    assert torch.equal(test, split_off("a", 200, "test", fraction))
    assert test.tolist() != list(range(len(test)))


def test_an_empty_split_is_refused_only_when_asked_for() -> None:
    assert len(split_off("a", 10, "train", 0.0)) == 10
    with pytest.raises(UserError, match="test split of a is empty"):
        split_off("a", 10, "test", 0.0)
    with pytest.raises(UserError, match="train split of a is empty"):
        split_off("a", 10, "train", 1.0)


@pytest.mark.parametrize(
    ("x", "label", "message"),
    [
        (levels()[:0], None, "holds no samples"),
        (torch.tensor([[0.0, 1.0], [2.0, float("nan")]]), None, "sample 1"),
        (torch.tensor([[0.0, float("inf")], [2.0, 1.0]]), None, "sample 0"),
        (levels(), torch.tensor([0, 3]), "sample 1 has label 3, allowed are 0 to 2"),
        (levels(), torch.tensor([-1, 0]), "label -1"),
        (levels(), torch.tensor([0, 1, 2]), "3 labels"),
    ],
)
def test_bad_content_is_refused(x: torch.Tensor, label: torch.Tensor | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ArrayDataset("a", x, label, class_names="xyz")


def test_a_complete_set_with_other_content_is_damaged_a_sub_set_is_not() -> None:
    verify_content("a", "12", "12", complete=True)
    verify_content("a", "12", None, complete=True)
    with pytest.raises(UserError, match=r"damaged.*12.*34"):
        verify_content("a", "12", "34", complete=True)
    with pytest.warns(UserWarning, match="not the published set"):
        verify_content("a", "12", "34", complete=False)


def test_the_digits_are_the_published_ones() -> None:
    """1,797 images, class counts of the UCI test set, and both splits together are the whole set."""
    train, test = load_digits(split="train"), load_digits(split="test")
    assert (len(train), len(test), train.shape, train.num_classes) == (1617, 180, (1, 8, 8), 10)
    counts = torch.tensor(measure(train).class_counts) + torch.tensor(measure(test).class_counts)
    assert counts.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    whole = load_digits(test_fraction=0.0)
    assert whole.x.unique().tolist() == [round(v * 255 / 16) for v in range(17)]
    first_row = [0, 0, 5, 13, 9, 1, 0, 0]  # of the first image, a zero, as published
    assert whole.x[0, 0, 0].tolist() == [round(v * 255 / 16) for v in first_row]
    assert load_digits(conditional=False).num_classes == 0


def test_measured_moments_are_those_of_the_model_range() -> None:
    x = torch.randint(0, 256, (50, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    stats = measure(ArrayDataset("a", x, torch.arange(50) % 3))
    model = x.double() / 127.5 - 1
    assert stats.mean == pytest.approx(float(model.mean()), abs=1e-12)
    assert stats.std == pytest.approx(float(model.std(correction=0)), abs=1e-12)
    assert stats.channel_mean == pytest.approx(model.mean((0, 2, 3)).tolist(), abs=1e-12)
    assert stats.class_counts == (17, 17, 16)
    few = measure(ArrayDataset("a", x), limit=10)
    assert few.count == 10
    assert few.mean == pytest.approx(float(model[::5].mean()), abs=1e-12)
