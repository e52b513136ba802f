"""CIFAR-10: the official archive, its extracted folder, or an image zip."""

import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scoregen.data.base import ArrayDataset, Split, verify_content
from scoregen.data.folder import ImageFiles, in_memory
from scoregen.data.locate import Wanted, find
from scoregen.data.pickles import load_plain
from scoregen.data.sources import list_images, open_source
from scoregen.errors import UserError

ARCHIVE, FOLDER = "cifar-10-python.tar.gz", "cifar-10-batches-py"
WANTED = Wanted(
    "CIFAR-10",
    ("cifar10", "cifar-10", "CIFAR10"),
    f"{ARCHIVE}, 170,498,071 bytes, md5 c58f30108f718f92721af3b95e74349a; "
    "https://www.cs.toronto.edu/~kriz/cifar.html",
)
FILES = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
SIZES = {"train": 50_000, "test": 10_000}
SHA256 = {  # of the decoded uint8 [N, H, W, C] bytes
    "train": "47af8b02cfcfb6cdf3dbbd1969ad7f1b70f4413f6f80f437b020ee4e5bc8304a",
    "test": "f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04",
}
CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def load_cifar10(
    *, split: Split = "train", root: str | None = None, conditional: bool = False
) -> ArrayDataset:
    """Read CIFAR-10: uint8 [N, 3, 32, 32] in the official order, 10 classes.

    50,000 images are for training, 10,000 for the test.
    Looked for: `cifar-10-batches-py/`, `cifar-10-python.tar.gz`, `cifar10-<split>.zip` (images with
    dataset.json). Raises UserError if nothing is found, or for damage.

    Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, technical report, 2009.
    """
    path = find(WANTED, [FOLDER, ARCHIVE, f"cifar10-{split}.zip"], root)
    x, label = _read_zip(path) if path.suffix == ".zip" else _read_official(path, FILES[split])
    data = ArrayDataset("cifar10", x, label if conditional else None, class_names=CLASS_NAMES)
    if data.shape != (3, 32, 32):
        raise UserError(f"{path} holds images of shape {data.shape}, CIFAR-10's are (3, 32, 32)")
    complete = len(data) == SIZES[split]
    verify_content(f"{path} ({split})", data.fingerprint, SHA256[split], complete=complete)
    return data


def _read_zip(path: Path) -> tuple[Tensor, Tensor | None]:
    source = open_source(path)
    data = in_memory(ImageFiles("cifar10", source, list_images(source)))
    if data.label is None:
        raise UserError(f"{path} has no labels: CIFAR-10's zip must hold a dataset.json")
    return data.x, data.label


def _read_official(path: Path, names: Sequence[str]) -> tuple[Tensor, Tensor]:
    read = _read_folder if path.is_dir() else _read_tar
    raw = read(path, names)
    parts = [_parse(raw[name], f"{path}: {name}") for name in names]
    x = np.concatenate([data for data, _ in parts]).reshape(-1, 3, 32, 32)
    return torch.from_numpy(x), torch.cat([label for _, label in parts])


def _read_folder(path: Path, names: Sequence[str]) -> dict[str, bytes]:
    try:
        return {name: (path / name).read_bytes() for name in names}
    except OSError as error:
        raise UserError(f"{path} is incomplete ({error}): extract {ARCHIVE} again") from error


def _read_tar(path: Path, names: Sequence[str]) -> dict[str, bytes]:
    """The named members in one pass through the compressed stream; nothing is written to disk."""
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r|gz") as tar:
            for member in tar:
                file = tar.extractfile(member) if Path(member.name).name in names else None
                if file is not None:
                    found[Path(member.name).name] = file.read()
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise UserError(f"{path} is damaged ({error}): fetch it again. {WANTED.official}") from error
    missing = [name for name in names if name not in found]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}: fetch it again. {WANTED.official}")
    return found


def _parse(raw: bytes, where: str) -> tuple[np.ndarray, Tensor]:
    """The pixels [n, 3072] and labels [n] of one official batch, a pickled dictionary."""
    batch = load_plain(raw, where)
    data = batch.get(b"data") if isinstance(batch, dict) else None
    labels = batch.get(b"labels") if isinstance(batch, dict) else None
    if not (isinstance(data, np.ndarray) and data.dtype == np.uint8 and data.shape[1:] == (3072,)):
        raise UserError(f"{where} does not hold uint8 data of shape [n, 3072]: extract {ARCHIVE} again")
    if not (isinstance(labels, list) and len(labels) == len(data) and set(labels) <= set(range(10))):
        raise UserError(
            f"{where} does not hold one label from 0 to 9 for each image: extract {ARCHIVE} again"
        )
    return data, torch.tensor(labels)
