"""npz and npy files."""

import warnings
import zipfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from scoregen.data.base import ArrayDataset, Split, split_off
from scoregen.data.locate import find_path
from scoregen.errors import UserError
from scoregen.ranges import Fraction

SAMPLES, LABELS = ("images", "x", "data", "arr_0"), ("labels", "label", "y")


def load_arrays(
    *,
    split: Split = "train",
    root: str | None = None,
    path: str | None = None,
    conditional: bool | Literal["auto"] = False,
    test_fraction: Fraction = 0.1,
) -> ArrayDataset:
    """Read samples from an .npy file, or from an .npz file with labels.

    Samples (`images`, `x`, `data` or the only array): uint8 images [N, H, W, C], [N, C, H, W] or [N, H, W];
    float images [N, C, H, W] in [-1, 1]; or float vectors [N, D]. Labels (`labels`, `label` or `y`): integers
    [N]. Arrays named `x_train` or `train_images` with a `test` twin keep that split; else `test_fraction` is
    held out. With conditional=auto the class is told where there are labels. Raises UserError for a missing
    or damaged file, other shapes, NaN, labels out of range or missing.
    """
    file = find_path("the npz or npy file", path, root)
    splits = _splits(_read(file))
    arrays, official = splits[split], splits["train"] is not splits["test"]
    samples = _pick(arrays, SAMPLES) or (next(iter(arrays)) if len(arrays) == 1 else None)
    labels = _pick(arrays, LABELS)
    if samples is None:
        raise UserError(f"{file} holds {', '.join(arrays)}: name the samples one of {', '.join(SAMPLES)}")
    if conditional is True and labels is None:
        raise UserError(f"{file} has no labels ({' or '.join(LABELS)}): set data.conditional=false")
    x, label, classes = _samples(arrays[samples], f"{file}: {samples}"), None, None
    if labels and conditional:  # the classes are those of both splits
        read = partial(_labels, where=f"{file}: {labels}")
        known = {name: read(part[labels]) for name, part in splits.items() if labels in part}
        last = max((int(ids.max()) for ids in known.values() if len(ids)), default=0)
        label, classes = known[split], last + 1
    whole = ArrayDataset(file.stem, x, label, num_classes=classes)
    return whole if official else whole.select(split_off(file.stem, len(x), split, test_fraction))


def _read(file: Path) -> dict[str, np.ndarray]:
    try:
        loaded = np.load(file, allow_pickle=False)
        return {"x": loaded} if isinstance(loaded, np.ndarray) else {key: loaded[key] for key in loaded}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{file} is not a readable npz or npy file of plain arrays: {error}") from error


def _splits(arrays: Mapping[str, np.ndarray]) -> dict[str, Mapping[str, np.ndarray]]:
    """The arrays of either split under their bare names: of all samples where the file does not part them."""
    parts: dict[str, dict[str, np.ndarray]] = {"train": {}, "test": {}}
    for key, value in arrays.items():
        words = key.split("_")
        for split, part in parts.items():
            if len(words) == 2 and split in words:
                part[words[1] if words[0] == split else words[0]] = value
    return dict(parts) if all(parts.values()) else dict.fromkeys(parts, arrays)


def _pick(arrays: Mapping[str, np.ndarray], names: Sequence[str]) -> str | None:
    return next((name for name in names if name in arrays), None)


def _samples(array: np.ndarray, where: str) -> Tensor:
    if array.dtype == np.uint8:
        return torch.from_numpy(_channels_first(array, where))
    if array.dtype.kind != "f" or array.ndim < 2:
        raise UserError(
            f"{where} is {array.dtype} of shape {array.shape}: expected uint8 images or "
            "float samples [N, ...]"
        )
    x = torch.from_numpy(array.astype(np.float32))
    if x.ndim == 4 and len(x) and float(x.abs().max()) > 1:
        raise UserError(
            f"{where} reaches {float(x.abs().max()):g}: float images must lie in [-1, 1] and be "
            "[N, C, H, W]; or give uint8 levels"
        )
    if x.ndim == 4 and len(x) and float(x.min()) >= 0:
        warnings.warn(
            f"{where} lies in [{float(x.min()):g}, {float(x.max()):g}], float images lie in [-1, 1]: "
            "if 0 is black, give 2 x - 1, or uint8 levels",
            stacklevel=3,
        )
    return x


def _channels_first(array: np.ndarray, where: str) -> np.ndarray:
    if array.ndim == 3:
        return np.ascontiguousarray(array[:, None])
    if array.ndim == 4 and array.shape[3] in (1, 3):
        return np.ascontiguousarray(array.transpose(0, 3, 1, 2))
    if array.ndim == 4 and array.shape[1] in (1, 3):
        return np.ascontiguousarray(array)
    raise UserError(
        f"{where} has shape {array.shape}: expected [N, H, W, C], [N, C, H, W] or [N, H, W], C = 1 or 3"
    )


def _labels(array: np.ndarray, where: str) -> Tensor:
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise UserError(f"{where} is {array.dtype} of shape {array.shape}: expected integers [N]")
    return torch.from_numpy(array.astype(np.int64))
