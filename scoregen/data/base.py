"""What a data set is, the whole set as one tensor, and the split into training and test images."""

import hashlib
import warnings
from collections.abc import Sequence
from functools import cached_property
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from scoregen.errors import UserError
from scoregen.rng import generator

Split = Literal["train", "test"]


class Batch(NamedTuple):
    """Samples and what the model is told of them."""

    x: Tensor  # uint8 [B, C, H, W] (images) or float32 [B, *shape]
    label: Tensor | None  # class ids int64 [B]; of data with a cond_shape, [B, *cond_shape]


class Dataset(Protocol):
    """A finite, ordered set of samples of one shape."""

    name: str
    shape: tuple[int, ...]  # of one sample
    num_classes: int  # 0 = unconditional: fetch gives no labels
    on_demand: bool  # whether fetch decodes files, so that threads ahead of time pay

    @property
    def fingerprint(self) -> str:
        """sha256 that identifies the samples and their order."""
        ...

    def __len__(self) -> int: ...

    def fetch(self, indices: Tensor) -> Batch:
        """The samples at indices (int64, on the CPU)."""
        ...


def to_model_range(x: Tensor) -> Tensor:
    """uint8 levels as x / 127.5 - 1 in [-1, 1], float32; float samples pass as they are."""
    return x.to(torch.float32) / 127.5 - 1 if x.dtype == torch.uint8 else x


class ArrayDataset:
    """Holds the whole set as one tensor, on the CPU or on the device that trains.

    x is uint8 [N, C, H, W] or float32 [N, *shape], label int64 [N] in [0, num_classes) or None
    (unconditional); num_classes defaults to the number of class names, else to the largest label + 1. Raises
    UserError for an empty set, NaN or infinity, labels out of range or of another length.
    """

    on_demand = False

    def __init__(
        self,
        name: str,
        x: Tensor,
        label: Tensor | None = None,
        *,
        class_names: Sequence[str] = (),
        num_classes: int | None = None,
    ) -> None:
        if not len(x):
            raise UserError(f"{name} holds no samples")
        if x.is_floating_point() and (bad := _first_not_finite(x)) is not None:
            raise UserError(f"{name} holds NaN or infinity, first in sample {bad}: remove or repair it")
        self.name, self.x, self.label = name, x, label
        self.shape = tuple(x.shape[1:])
        self.class_names = tuple(class_names) if label is not None else ()
        self.num_classes = 0 if label is None else check_labels(name, len(x), label, class_names, num_classes)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the decoded bytes, images as [N, H, W, C]; labels are not part of it."""
        digest = hashlib.sha256()
        for part in self.x.split(4096):
            rows = part.permute(0, 2, 3, 1) if part.ndim == 4 else part
            digest.update(rows.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.x)

    def fetch(self, indices: Tensor) -> Batch:
        """The samples at indices (int64, on the CPU), gathered where the tensor lives."""
        indices = indices.to(self.x.device, non_blocking=True)
        return Batch(self.x[indices], None if self.label is None else self.label[indices])

    def to(self, device: torch.device | str) -> "ArrayDataset":
        """The same set on another device."""
        label = None if self.label is None else self.label.to(device)
        return self._like(self.x.to(device), label)

    def select(self, indices: Tensor) -> "ArrayDataset":
        """The sub-set at indices, with the same classes."""
        return self._like(*self.fetch(indices))

    def _like(self, x: Tensor, label: Tensor | None) -> "ArrayDataset":
        names, classes = self.class_names, self.num_classes
        return ArrayDataset(self.name, x, label, class_names=names, num_classes=classes)


def _first_not_finite(x: Tensor) -> int | None:
    """The first sample with NaN or infinity, looked for in parts: x may be mapped from disk."""
    for first, part in zip(range(0, len(x), 4096), x.split(4096), strict=True):
        finite = torch.isfinite(part).flatten(1).all(1)
        if not finite.all():
            return first + int((~finite).nonzero()[0])
    return None


def labels_of(data: Dataset) -> Tensor:
    """The class ids [N] of data with classes, on the CPU, without decoding samples where that can be."""
    label = getattr(data, "label", None)
    if label is None:
        parts = [data.fetch(indices).label for indices in torch.arange(len(data)).split(1024)]
        label = torch.cat([part for part in parts if part is not None])
    return label.cpu()


def labels_fingerprint(data: Dataset) -> str:
    """sha256 of the class ids of data with classes, which `fingerprint` leaves out."""
    return hashlib.sha256(labels_of(data).numpy().tobytes()).hexdigest()


def first_samples(data: Dataset, count: int) -> ArrayDataset:
    """The first `count` samples, in memory; a UserError where there are fewer."""
    if count > len(data):
        raise UserError(f"trainer.subset={count}: {data.name} has only {len(data)} samples to train on")
    rows = torch.arange(count)
    if isinstance(data, ArrayDataset):
        return data.select(rows)
    names = getattr(data, "class_names", ())
    return ArrayDataset(data.name, *data.fetch(rows), class_names=names, num_classes=data.num_classes)


def check_labels(
    name: str, n: int, label: Tensor, class_names: Sequence[str], num_classes: int | None = None
) -> int:
    """The number of classes: as given, else of the names, else the largest label + 1.

    Raises UserError unless label [n] lies in [0, classes).
    """
    if len(label) != n:
        raise UserError(f"{name} has {n} samples but {len(label)} labels")
    classes = num_classes or len(class_names) or int(label.max()) + 1
    wrong = ((label < 0) | (label >= classes)).nonzero()
    if len(wrong):
        first = int(wrong[0])
        raise UserError(
            f"{name}: sample {first} has label {int(label[first])}, allowed are 0 to {classes - 1} "
            f"({classes} classes)"
        )
    return classes


def split_off(name: str, n: int, split: Split, test_fraction: float) -> Tensor:
    """Indices [n'] of one part of n samples, increasing: a fixed permutation of n decides who is held out.

    Raises UserError if the part is empty.
    """
    order = torch.randperm(n, generator=generator("split", n))
    held_out = round(n * test_fraction)
    part = order[:held_out] if split == "test" else order[held_out:]
    if not len(part):
        raise UserError(
            f"the {split} split of {name} is empty: {n} samples, data.test_fraction={test_fraction:g}; "
            "give a fraction that leaves samples on both sides"
        )
    return part.sort().values


def verify_content(name: str, got: str, published: str | None, *, complete: bool) -> None:
    """Compare a sha256 with the published one.

    A set of the official size that differs is damaged or another one: UserError. A set of another size
    (`complete=False`) is somebody's sub-set: a warning.
    """
    if published is None or got == published:
        return
    if complete:
        raise UserError(
            f"{name} is damaged or not what its name says: its content has sha256 {got}, "
            f"the published one has {published}. Fetch it again; for a set of your own use data=folder "
            "or data=npz"
        )
    warnings.warn(f"{name} is not the published set: results do not compare with others'", stacklevel=3)
