"""What is kept of features while they stream by: bounded, mergeable, and the same for every sharing-out.

Images are known by their index in the whole stream, so that what is drawn at random (which images are kept,
which part one belongs to) is a function of the index alone: processes and batches change nothing.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from scoregen.evaluation.processes import Processes

Arrays = Mapping[str, np.ndarray]
S = TypeVar("S")
S_co = TypeVar("S_co", covariant=True)


class Running(Protocol[S_co]):
    """An accumulator of features whose result is a summary."""

    def update(self, features: Tensor, index: np.ndarray) -> None:
        """Take features [B, d] of the images with these indices [B]; B may be 0."""
        ...

    def merge(self, other: Self) -> Self:
        """The accumulator of both sets together; associative and commutative."""
        ...

    def reduce(self, processes: Processes) -> Self:
        """The accumulator over all processes, on every one of them."""
        ...

    def summary(self) -> S_co:
        """What the features come to."""
        ...


Start = Callable[[int, torch.device], Running[S]]  # (features, device) -> an empty accumulator


class Storable(Running[S_co], Protocol[S_co]):
    """An accumulator whose summary is kept in reference files, as the arrays `keys`."""

    keys: ClassVar[tuple[str, ...]]

    def __init__(self, dim: int, device: torch.device | str) -> None: ...

    @staticmethod
    def write(summary: Any) -> dict[str, np.ndarray]:
        """The arrays of a file that hold the summary."""
        ...

    @staticmethod
    def read(arrays: Arrays, n: int | None) -> Any:
        """The summary of n images in a file's arrays, which include `keys`.

        Raises:
            ValueError: the arrays cannot be what they should.
        """
        ...


def device_of_sums(device: torch.device | str) -> torch.device:
    """Where float64 is kept for features on `device`: there, or on the CPU where it has no float64."""
    device = torch.device(device)
    return torch.device("cpu") if device.type == "mps" else device


def random_keys(index: np.ndarray, seed: int = 0) -> np.ndarray:
    """Pseudo-random int64 in [0, 2^63), one for each index: the finaliser of splitmix64.

    Source: G. Steele, D. Lea, C. Flood, Fast Splittable Pseudorandom Number Generators, 2014 (remembered).
    """
    z = index.astype(np.uint64) + np.uint64(((seed + 1) * 0x9E3779B97F4A7C15) % 2**64)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((z ^ (z >> np.uint64(31))) >> np.uint64(1)).astype(np.int64)


def random_parts(index: np.ndarray, parts: int, seed: int = 0) -> np.ndarray:
    """The part [B], 0 ... parts - 1, of each image: every `parts` consecutive images are dealt at random.

    So parts are equal to within one image at any n, and no order of the images (by class, by period) shows.
    """
    members = index[:, None] - index[:, None] % parts + np.arange(parts)
    keys = random_keys(members, seed)
    mine = np.take_along_axis(keys, index[:, None] % parts, 1)
    part: np.ndarray = (keys < mine).sum(1)
    return part


class InParts(Generic[S]):
    """As many accumulators as there are parts, with the images dealt out among them at random.

    Args:
        start: makes the accumulator of one part from the number of features and the device.
        parts: how many; `seed` says which deal.
        dim: the number of features.
        device: where the features come out.
    """

    def __init__(
        self, start: Start[S], parts: int, seed: int, dim: int, device: torch.device | str = "cpu"
    ) -> None:
        self.seed = seed
        self.parts = tuple(start(dim, torch.device(device)) for _ in range(parts))

    def update(self, features: Tensor, index: np.ndarray) -> None:
        """Add each image's features to its part."""
        parts = random_parts(index, len(self.parts), self.seed)
        for number, part in enumerate(self.parts):
            rows = np.flatnonzero(parts == number)
            part.update(take(features, rows), index[rows])

    def merge(self, other: Self) -> Self:
        """Part by part."""
        return self._of([a.merge(b) for a, b in zip(self.parts, other.parts, strict=True)])

    def reduce(self, processes: Processes) -> Self:
        """Part by part."""
        return self._of([part.reduce(processes) for part in self.parts])

    def summary(self) -> tuple[Running[S], ...]:
        """The parts, still mergeable."""
        return self.parts

    def _of(self, parts: list[Running[S]]) -> Self:
        new = type(self).__new__(type(self))
        new.seed, new.parts = self.seed, tuple(parts)
        return new


def take(features: Tensor, rows: np.ndarray) -> Tensor:
    """features[rows], without waiting for the device: `rows` is known on the host."""
    if len(rows) == len(features):
        return features
    return features.index_select(0, torch.from_numpy(rows).to(features.device, non_blocking=True))
