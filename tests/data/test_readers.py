"""Readers of published layouts, on small files of the same form."""

import gzip
import io
import os
import pickle
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from scoregen.data.arrays import load_arrays
from scoregen.data.cifar10 import load_cifar10
from scoregen.data.idx import load_idx
from scoregen.data.pickles import load_plain
from scoregen.errors import UserError

RNG = np.random.default_rng(0)
SUB_SET = pytest.mark.filterwarnings("ignore:.*not the published set")


def idx_bytes(array: np.ndarray) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_mnist(folder: Path, n: int = 5) -> tuple[np.ndarray, np.ndarray]:
    images = RNG.integers(0, 256, (n, 28, 28), np.uint8)
    labels = RNG.integers(0, 10, n).astype(np.uint8)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(images)))
    (folder / "train-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
    return images, labels


@SUB_SET
@pytest.mark.parametrize("inside", [".", "mnist", "MNIST/raw"])
def test_idx_files_are_read_plain_and_gzipped(tmp_path: Path, inside: str) -> None:
    images, labels = write_mnist(tmp_path / inside)
    data = load_idx(name="mnist", root=str(tmp_path), conditional=True)
    assert np.array_equal(data.x[:, 0].numpy(), images)
    assert data.label is not None
    assert data.label.tolist() == labels.tolist()
    assert data.num_classes == 10


@SUB_SET
def test_padding_to_32_adds_a_black_border_of_2(tmp_path: Path) -> None:
    images, _ = write_mnist(tmp_path)
    x = load_idx(name="mnist", root=str(tmp_path), resolution=32).x
    assert np.array_equal(x[:, 0, 2:-2, 2:-2].numpy(), images)
    assert int(x.sum()) == images.sum(dtype=int)


def test_the_environment_variable_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mnist(tmp_path / "mnist")
    monkeypatch.setenv("SCOREGEN_DATA", str(tmp_path))
    with pytest.warns(UserWarning, match="not the published set"):
        assert len(load_idx(name="mnist")) == 5


def test_a_missing_file_tells_places_name_checksum_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        load_idx(name="mnist", root=str(tmp_path))
    for part in (
        *(f"{tmp_path}/mnist", f"{tmp_path}\n", "train-images-idx3-ubyte.gz", "9,912,422"),
        *("f68b3c2dcbeaaa9fbdd348bbdeb94873", "data.root", "SCOREGEN_DATA"),
    ):
        assert part in str(error.value)


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw[:-3],
        lambda raw: raw + b"\0",
        lambda raw: b"\0\0\x0d\x03" + raw[4:],
        lambda raw: raw[:10],
        lambda _: b"",
    ],
)
def test_damaged_idx_files_are_refused(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    images, _ = write_mnist(tmp_path)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(damage(idx_bytes(images)))
    with pytest.raises(UserError, match="train-images-idx3-ubyte is"):
        load_idx(name="mnist", root=str(tmp_path))


def test_a_truncated_gz_is_refused(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="damaged"):
        load_idx(name="mnist", root=str(tmp_path))


def write_cifar(root: Path, protocol: int = 2, n: int = 3) -> tuple[np.ndarray, list[int]]:
    folder, pixels, labels = root / "cifar-10-batches-py", [], []
    folder.mkdir(parents=True)
    for i in range(1, 6):
        data, label = RNG.integers(0, 256, (n, 3072), np.uint8), RNG.integers(0, 10, n).tolist()
        batch = {b"batch_label": b"x", b"labels": label, b"data": data, b"filenames": [b"a.png"] * n}
        (folder / f"data_batch_{i}").write_bytes(pickle.dumps(batch, protocol=protocol))
        pixels.append(data)
        labels += label
    return np.concatenate(pixels).reshape(-1, 3, 32, 32), labels


@SUB_SET
def test_cifar_is_read_from_its_folder_and_its_archive_alike(tmp_path: Path) -> None:
    pixels, labels = write_cifar(tmp_path / "a")
    (tmp_path / "b/cifar10").mkdir(parents=True)
    with tarfile.open(tmp_path / "b/cifar10/cifar-10-python.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "a/cifar-10-batches-py", "cifar-10-batches-py")
    for root in ("a", "b", "a/cifar-10-batches-py", "b/cifar10/cifar-10-python.tar.gz"):
        data = load_cifar10(root=str(tmp_path / root), conditional=True)
        assert np.array_equal(data.x.numpy(), pixels)
        assert data.label is not None
        assert data.label.tolist() == labels
        assert data.class_names[0] == "airplane"


@SUB_SET
def test_cifar_is_read_from_an_image_zip(tmp_path: Path, save_zip: Callable[..., Path]) -> None:
    images = {f"{i}.png": RNG.integers(0, 256, (32, 32, 3), np.uint8) for i in range(4)}
    order = [["2.png", 9], ["0.png", 0], ["3.png", 1], ["1.png", 0]]
    save_zip(tmp_path / "cifar10-train.zip", images, {"labels": order})
    data = load_cifar10(root=str(tmp_path), conditional=True)
    for row, (name, _) in enumerate(order):
        assert np.array_equal(data.x[row].permute(1, 2, 0).numpy(), images[str(name)])
    assert data.label is not None
    assert data.label.tolist() == [9, 0, 1, 0]


def python2_pickle(data: np.ndarray) -> bytes:
    """{"data": array} as Python 2 pickled it in the published files: byte strings, the old module path."""
    rows, columns = (b"M" + struct.pack("<H", n) for n in data.shape)
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    minus_one = b"J\xff\xff\xff\xff"
    dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNN" + 2 * minus_one + b"K\x00tb"
    content = b"T" + struct.pack("<I", data.nbytes) + data.tobytes()
    state = b"(K\x01" + rows + columns + b"\x86" + dtype + b"\x89" + content + b"tb"
    return b"\x80\x02}(U\x04data" + array + state + b"u."


def test_python_2_pickles_of_the_published_form_are_read() -> None:
    data = RNG.integers(0, 256, (2, 300), np.uint8)
    assert np.array_equal(load_plain(python2_pickle(data), "here")[b"data"], data)


class Exploit:
    def __reduce__(self) -> tuple:
        return os.mkdir, (os.environ["SCOREGEN_TEST_TRAP"],)


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_hostile_pickle_executes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: int
) -> None:
    trap = tmp_path / "trap"
    monkeypatch.setenv("SCOREGEN_TEST_TRAP", str(trap))
    write_cifar(tmp_path)
    batch = {b"x": Exploit(), b"data": np.zeros((3, 3072), np.uint8), b"labels": [0, 0, 0]}
    (tmp_path / "cifar-10-batches-py/data_batch_3").write_bytes(pickle.dumps(batch, protocol=protocol))
    with pytest.raises(UserError, match=r"data_batch_3.*mkdir"):
        load_cifar10(root=str(tmp_path))
    assert not trap.exists()


@pytest.mark.parametrize(
    "code", [b"cbuiltins\neval\n(S'1'\ntR.", b"cnumpy\nload\n(S'x'\ntR.", b"c_codecs\ndecode\n."]
)
def test_only_array_constructors_can_be_named(code: bytes) -> None:
    with pytest.raises(UserError, match="asks for"):
        load_plain(code, "here")


@pytest.mark.parametrize(
    "batch",
    [
        [1, 2],
        {b"data": np.zeros((2, 3072), np.float32), b"labels": [0, 1]},
        {b"data": np.zeros((2, 3071), np.uint8), b"labels": [0, 1]},
        {b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 10]},
        {b"data": np.zeros((2, 3072), np.uint8), b"labels": [0]},
    ],
)
def test_batches_of_another_form_are_refused(tmp_path: Path, batch: object) -> None:
    write_cifar(tmp_path)
    (tmp_path / "cifar-10-batches-py/data_batch_2").write_bytes(pickle.dumps(batch))
    with pytest.raises(UserError, match="data_batch_2 does not hold"):
        load_cifar10(root=str(tmp_path))


def test_incomplete_and_damaged_archives_are_refused(tmp_path: Path) -> None:
    write_cifar(tmp_path / "a")
    (tmp_path / "a/cifar-10-batches-py/data_batch_4").unlink()
    with pytest.raises(UserError, match="data_batch_4"):
        load_cifar10(root=str(tmp_path / "a"))
    archive = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "a/cifar-10-batches-py", "cifar-10-batches-py")
    with pytest.raises(UserError, match="lacks data_batch_4"):
        load_cifar10(root=str(tmp_path))
    archive.write_bytes(archive.read_bytes()[:-2000])
    with pytest.raises(UserError, match=r"damaged.*170,498,071"):
        load_cifar10(root=str(tmp_path))


IMAGES = RNG.integers(0, 256, (10, 4, 5, 3), np.uint8)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (IMAGES, IMAGES.transpose(0, 3, 1, 2)),
        (IMAGES.transpose(0, 3, 1, 2), IMAGES.transpose(0, 3, 1, 2)),
        (IMAGES[..., 0], IMAGES[:, None, :, :, 0]),
        (IMAGES[:, 0, 0] / 3, (IMAGES[:, 0, 0] / 3).astype(np.float32)),
    ],
)
def test_arrays_of_every_layout_are_read(tmp_path: Path, array: np.ndarray, expected: np.ndarray) -> None:
    np.save(tmp_path / "a.npy", array)
    np.savez(tmp_path / "b.npz", images=array, labels=np.arange(10)[:, None] % 3)
    plain = load_arrays(root=str(tmp_path / "a.npy"), test_fraction=0.0)
    labelled = load_arrays(root=str(tmp_path), path="b.npz", test_fraction=0.0, conditional=True)
    assert np.array_equal(plain.x.numpy(), expected)
    assert np.array_equal(labelled.x.numpy(), expected)
    assert labelled.label is not None
    assert labelled.label.tolist() == [i % 3 for i in range(10)]
    assert plain.num_classes == 0


def test_float_images_that_are_never_dark_are_warned_of(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.random.default_rng(0).random((10, 1, 4, 4)).astype(np.float32))
    with pytest.warns(UserWarning, match=r"if 0 is black, give 2 x - 1"):
        load_arrays(root=str(tmp_path / "a.npy"))


@pytest.mark.parametrize(
    "keys",
    [
        ("x_train", "y_train", "x_test", "y_test"),
        ("train_images", "train_labels", "test_images", "test_labels"),
    ],
)
def test_a_split_in_the_file_is_kept(tmp_path: Path, keys: tuple[str, ...]) -> None:
    arrays = dict(zip(keys, (IMAGES[:7], np.arange(7), IMAGES[7:], np.arange(3)), strict=True))
    np.savez(tmp_path / "a.npz", **arrays)
    for split, part in (("train", IMAGES[:7]), ("test", IMAGES[7:])):
        data = load_arrays(root=str(tmp_path / "a.npz"), split=split, conditional=True)
        assert np.array_equal(data.x.numpy(), part.transpose(0, 3, 1, 2))
        assert data.num_classes == 7


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": IMAGES.astype(np.int32)}, "int32"),
        ({"images": IMAGES.reshape(10, 2, 2, 15)}, r"\(10, 2, 2, 15\)"),
        ({"images": IMAGES.astype(np.float32)}, r"\[-1, 1\]"),
        ({"x": np.full((10, 2), np.nan)}, "NaN"),
        ({"images": IMAGES, "labels": np.arange(9)}, "9 labels"),
        ({"images": IMAGES, "labels": np.arange(10) - 1}, "label -1"),
        ({"images": IMAGES, "labels": np.arange(10) / 2}, "float64"),
        ({"images": IMAGES}, "no labels"),
        ({"a": IMAGES, "b": IMAGES}, "a, b"),
        ({"x": np.array([{}, {}], dtype=object)}, "plain arrays"),
    ],
)
def test_arrays_that_cannot_be_used_are_refused(tmp_path: Path, arrays: dict, message: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UserError, match=message):
        load_arrays(
            root=str(tmp_path / "a.npz"),
            conditional="labels" in arrays or message == "no labels",
            test_fraction=0.0,
        )


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no zip", b"hello"])
def test_files_that_are_no_arrays_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.npz is not a readable"):
        load_arrays(root=str(tmp_path / "a.npz"))


def test_a_missing_array_file_tells_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"{tmp_path}/a\.npz"):
        load_arrays(root=str(tmp_path), path="a.npz")


def test_samples_written_by_the_sampler_are_read_back(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, images=IMAGES, seeds=np.arange(10), labels=np.arange(10) % 2)
    (tmp_path / "samples.npz").write_bytes(buffer.getvalue())
    data = load_arrays(root=str(tmp_path / "samples.npz"), test_fraction=0.0)
    assert torch.equal(data.x, torch.from_numpy(IMAGES).permute(0, 3, 1, 2))
