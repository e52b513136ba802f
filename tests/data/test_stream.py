"""Laws of the stream: what comes at image n depends on (seed, n) only."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from scoregen.data.base import ArrayDataset
from scoregen.data.folder import ImageFiles, in_memory
from scoregen.data.sources import list_images, open_source
from scoregen.data.stream import Stream
from scoregen.errors import UserError

N = 20


@pytest.fixture
def numbered() -> ArrayDataset:
    """Image i has all pixels i and class i mod 4."""
    x = torch.arange(N, dtype=torch.uint8)[:, None, None, None].repeat(1, 1, 2, 2)
    return ArrayDataset("numbered", x, torch.arange(N) % 4)


@pytest.mark.parametrize("size", [1, 7, 20, 33])
def test_every_image_comes_once_an_epoch(numbered: ArrayDataset, size: int) -> None:
    stream = Stream(numbered, seed=3)
    seen = torch.cat([stream.indices(n, size) for n in range(0, 20 * N * size, size)][: 20 * N // size + 1])
    for epoch in seen[: len(seen) // N * N].view(-1, N):
        assert epoch.sort().values.tolist() == list(range(N))


def test_the_order_does_not_depend_on_batch_rows_or_start(numbered: ArrayDataset) -> None:
    whole = Stream(numbered, seed=3).indices(0, 120)
    for size in (1, 7, 24, 60):
        stream = Stream(numbered, seed=3)
        assert torch.equal(
            torch.cat([stream.indices(n, size) for n in range(0, 120 - size + 1, size)]),
            whole[: 120 // size * size],
        )
    for start in (1, 19, 20, 77):
        assert torch.equal(Stream(numbered, seed=3).indices(start, 30), whole[start : start + 30])
    for rows in (slice(0, 5), slice(5, 30), slice(1, None, 3)):
        assert torch.equal(Stream(numbered, seed=3).indices(13, 30, rows), whole[13:43][rows])


def test_epochs_and_seeds_have_orders_of_their_own(numbered: ArrayDataset) -> None:
    orders = [Stream(numbered, seed=s).indices(e * N, N).tolist() for s in range(3) for e in range(3)]
    assert len({tuple(order) for order in orders}) == 9
    assert sorted(orders[0]) == list(range(N))


def test_batches_are_the_images_in_model_range(numbered: ArrayDataset) -> None:
    stream = Stream(numbered, seed=0)
    x, label = stream.batch(15, 10, slice(2, 9))
    expected = stream.indices(15, 10, slice(2, 9))
    assert x.dtype == torch.float32
    assert torch.equal(x, (expected.float() / 127.5 - 1)[:, None, None, None].expand(-1, 1, 2, 2))
    assert label is not None
    assert torch.equal(label, expected % 4)


def test_without_classes_there_are_no_labels(numbered: ArrayDataset) -> None:
    assert Stream(ArrayDataset("plain", numbered.x), seed=0).batch(0, 4).label is None


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_decoding_ahead_changes_nothing(tmp_path: Path, photos: list, save: Callable, workers: int) -> None:
    for i, photo in enumerate(photos):
        save(tmp_path / f"{'ab'[i % 2]}/{i}.png", photo)
    source = open_source(tmp_path)
    files = ImageFiles("photos", source, list_images(source))
    plain, ahead = Stream(in_memory(files), seed=1), Stream(files, seed=1, workers=workers)
    for nimg in (0, 8, 16, 24, 8, 50):  # in order, then back and ahead as after a restart
        for rows in (slice(0, 4), slice(4, 8)):
            expected, got = plain.batch(nimg, 8, rows), ahead.batch(nimg, 8, rows)
            assert torch.equal(got.x, expected.x)
            assert got.label is not None
            assert expected.label is not None
            assert torch.equal(got.label, expected.label)


def test_a_damaged_image_stops_the_stream_with_its_name(tmp_path: Path, photos: list, save: Callable) -> None:
    for i, photo in enumerate(photos):
        save(tmp_path / f"{i}.png", photo)
    (tmp_path / "7.png").write_bytes(b"not an image")
    source = open_source(tmp_path)
    stream = Stream(ImageFiles("photos", source, list_images(source)), seed=1, workers=2)
    with pytest.raises(UserError, match=r"7\.png"):
        [stream.batch(nimg, 4) for nimg in range(0, 24, 4)]
