"""Laws of the containers: the same image files give the same data set, wherever they are kept."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from scoregen.data.base import ArrayDataset, split_off
from scoregen.data.folder import load_images
from scoregen.data.stream import Stream
from scoregen.errors import UserError
from tests.data.containers import CLASSES, CONTAINERS, Files, Loader

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture(params=CONTAINERS)
def load(request: pytest.FixtureRequest, tmp_path: Path, files: Files) -> Loader:
    """Reads the twelve files from one of the containers."""
    write, loader, path = CONTAINERS[request.param]
    write(tmp_path, files)
    return lambda **options: loader(root=str(tmp_path), path=path, **options)


def equal(ours: torch.Tensor | None, theirs: torch.Tensor | None) -> bool:
    return ours is not None and theirs is not None and torch.equal(ours, theirs)


@pytest.mark.parametrize("cache_gb", [4.0, 0.0])
def test_pixels_labels_and_order_are_those_of_the_files(
    load: Loader, cache_gb: float, expected: ArrayDataset
) -> None:
    data = load(conditional=True, test_fraction=0.0, cache_gb=cache_gb)
    batch = data.fetch(torch.arange(12))
    assert (data.name, data.num_classes, data.on_demand) == ("set", 3, cache_gb == 0)
    assert data.class_names in (CLASSES, ("0", "1", "2"))  # shards know numbers only
    assert torch.equal(batch.x, expected.x)
    assert equal(batch.label, expected.label)
    if isinstance(data, ArrayDataset):
        assert data.fingerprint == expected.fingerprint
    assert load().num_classes == 0


def test_reading_at_random_is_reading_in_order(load: Loader, expected: ArrayDataset) -> None:
    data, rows = load(test_fraction=0.0, cache_gb=0.0), torch.tensor([11, 0, 5, 5, 8])
    assert torch.equal(data.fetch(rows).x, expected.x[rows])


def test_the_stream_is_the_same_from_every_container(load: Loader, expected: ArrayDataset) -> None:
    plain = Stream(expected, seed=5)
    for cache_gb, workers in ((4.0, 0), (0.0, 3)):
        data = load(conditional=True, test_fraction=0.0, cache_gb=cache_gb)
        stream = Stream(data, seed=5, workers=workers)
        for nimg in (0, 8, 16, 40, 8):  # in order, ahead as after a restart, and back
            ours, theirs = stream.batch(nimg, 8), plain.batch(nimg, 8)
            assert torch.equal(ours.x, theirs.x)
            assert equal(ours.label, theirs.label)


def test_the_same_images_are_held_out_of_every_container(load: Loader, expected: ArrayDataset) -> None:
    parts = [load(split=split, test_fraction=0.25).fetch(torch.arange(3)).x for split in ("train", "test")]
    indices = [[int((expected.x == image).flatten(1).all(1).nonzero()) for image in part] for part in parts]
    assert indices[1] == split_off("any", 12, "test", 0.25).tolist()
    assert not set(indices[0]) & set(indices[1])


def test_images_are_made_equal_as_asked(load: Loader, photos: list) -> None:
    data = load(test_fraction=0.0, resolution=4, mode="L")
    image = Image.fromarray(photos[7]).convert("L").resize((4, 4), Image.Resampling.LANCZOS)
    assert data.shape == (1, 4, 4)
    assert torch.equal(data.fetch(torch.tensor([7])).x[0, 0], torch.from_numpy(np.array(image)))


def test_what_is_made_of_the_images_is_part_of_the_fingerprint(load: Loader) -> None:
    prints = [load(cache_gb=0.0, **options).fingerprint for options in ({}, {"resolution": 4}, {"mode": "L"})]
    assert len(set(prints)) == 3
    assert prints[0] == load(cache_gb=0.0).fingerprint


def test_the_middle_of_an_oblong_is_kept(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 9), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    data = load_images(root=str(tmp_path), test_fraction=0.0, crop="center")
    assert np.array_equal(data.fetch(torch.tensor([0])).x[0, 0].numpy(), pixels[:, 2:6])
    with pytest.raises(UserError, match=r"a\.png is 9 x 4, not square: .*data\.crop=center"):
        load_images(root=str(tmp_path), test_fraction=0.0, resolution=4)
