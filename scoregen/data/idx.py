"""idx files (plain or gzipped): MNIST, Fashion-MNIST, KMNIST."""

import gzip
import hashlib
import struct
import zlib
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch.nn import functional as F

from scoregen.data.base import ArrayDataset, Split, verify_content
from scoregen.data.locate import Wanted, find
from scoregen.errors import UserError

Name = Literal["mnist", "fashion_mnist", "kmnist"]
SIZES = {"train": 60_000, "test": 10_000}
PREFIX = {"train": "train", "test": "t10k"}


@dataclass(frozen=True)
class _Published:
    wanted: Wanted
    class_names: tuple[str, ...]
    sha256: dict[str, str]  # of the unpacked idx files, images and labels of a split joined by a space


_PARTS = "train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images-..., t10k-labels-...; "

PUBLISHED: dict[str, _Published] = {
    "mnist": _Published(
        Wanted(
            "MNIST",
            ("mnist", "MNIST/raw", "MNIST"),
            _PARTS + "training images 9,912,422 bytes, md5 f68b3c2dcbeaaa9fbdd348bbdeb94873; "
            "http://yann.lecun.com/exdb/mnist/ or a mirror of it",
        ),
        tuple("0123456789"),
        {
            "train": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db "
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "test": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7 "
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        },
    ),
    "fashion_mnist": _Published(
        Wanted(
            "Fashion-MNIST",
            ("fashion_mnist", "fashion-mnist", "FashionMNIST/raw", "FashionMNIST"),
            _PARTS + "training images md5 8d4fb7e6c68d591d4c3dfef9ec88bf0d (47,040,016 bytes unpacked); "
            "https://github.com/zalandoresearch/fashion-mnist, "
            "on Debian and Ubuntu: apt-get install dataset-fashion-mnist",
            system=("/usr/share/datasets/fashion-mnist",),
        ),
        (
            *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
            *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        ),
        {
            "train": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888 "
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "test": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b "
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        },
    ),
    "kmnist": _Published(
        Wanted(
            "KMNIST",
            ("kmnist", "KMNIST/raw", "KMNIST"),
            _PARTS + "training images md5 bdb82020997e1d708af4cf47b453dcf7 (47,040,016 bytes unpacked); "
            "http://codh.rois.ac.jp/kmnist/",
        ),
        ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
        {  # the training files were not at hand when this table was made, so they are not checked
            "test": "76fbd229ce87db80dd281af5e6670de4ad0e42fb30a7bd643972994c47c1f42e "
            "a11dc742be8e781a40a92f53d6a4957e7b7d36df2faa097659131ebfd8fd60c6",
        },
    ),
}


def load_idx(
    *,
    name: Name,
    split: Split = "train",
    root: str | None = None,
    resolution: Literal[28, 32] = 28,
    conditional: bool = False,
) -> ArrayDataset:
    """Read one of the three sets: uint8 [N, 1, 28, 28], 10 classes, zero-padded to 32 x 32 on request.

    Raises UserError if files are missing, damaged or those of another set.
    """
    known = PUBLISHED[name]
    wanted = replace(known.wanted, title=f"{known.wanted.title} ({split})")
    images, image_hash = _read(wanted, f"{PREFIX[split]}-images", "idx3", root)
    labels, label_hash = _read(wanted, f"{PREFIX[split]}-labels", "idx1", root)
    verify_content(
        wanted.title,
        f"{image_hash} {label_hash}",
        known.sha256.get(split),
        complete=len(images) == SIZES[split],
    )
    x = torch.from_numpy(images)[:, None]
    if resolution > x.shape[-1]:
        x = F.pad(x, [(resolution - x.shape[-1]) // 2] * 4)
    label = torch.from_numpy(labels.astype(np.int64)) if conditional else None
    return ArrayDataset(name, x, label, class_names=known.class_names)


def _read(wanted: Wanted, stem: str, kind: str, root: str | None) -> tuple[np.ndarray, str]:
    names = [f"{stem}{sep}{kind}-ubyte{end}" for sep in "-." for end in ("", ".gz")]
    path = find(wanted, names, root)
    raw = _unpack(path)
    return read_idx(raw, str(path), int(kind[-1])), hashlib.sha256(raw).hexdigest()


def _unpack(path: Path) -> bytes:
    try:
        return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} is damaged or not readable ({error}): fetch it again") from error


def read_idx(raw: bytes, where: str, ndim: int) -> np.ndarray:
    """An idx file of unsigned bytes as an array: 0, 0, type 8, rank, big-endian sizes, row-major bytes.

    Raises UserError, naming `where`, for another type or rank or a wrong length.
    """
    header = 4 + 4 * ndim
    if len(raw) < header or raw[:4] != bytes((0, 0, 8, ndim)):
        raise UserError(f"{where} is not an idx file of unsigned bytes with {ndim} dimensions")
    shape = struct.unpack(f">{ndim}I", raw[4:header])
    if len(raw) != header + prod(shape):
        raise UserError(
            f"{where} is damaged: {len(raw) - header} bytes of data, but its header says "
            f"{' x '.join(map(str, shape))}"
        )
    return np.frombuffer(bytearray(raw[header:]), np.uint8).reshape(shape)
