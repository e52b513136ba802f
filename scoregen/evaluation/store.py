"""A bounded, fixed random choice of the features that stream by."""

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from scoregen.errors import UserError
from scoregen.evaluation.processes import Processes
from scoregen.evaluation.running import Arrays, device_of_sums, random_keys, take

CAPACITY = 50_000  # the published number of images: 410 MB of 2048 features


@dataclass(frozen=True, eq=False)
class Sample:
    """Features [m, d], float32, of m images drawn at random, in random order, from the n that were seen."""

    features: Tensor
    n: int


class FeatureStore:
    """Keep the features of up to `capacity` images, drawn without replacement from all that stream by.

    Image i has a pseudo-random key that is a function of i; the images with the smallest keys are kept, in
    the order of the keys. Which they are depends on n alone, so sharing out and merging change nothing.

    Args:
        dim: the number of features d.
        device: where they are kept.
        capacity: how many; bounds the memory at 5 capacity d bytes.
    """

    keys: ClassVar[tuple[str, ...]] = ("features",)

    def __init__(self, dim: int, device: torch.device | str = "cpu", capacity: int = CAPACITY) -> None:
        self.capacity, self.n = capacity, 0
        self._keys = [np.empty(0, np.int64)]
        self._rows = [torch.empty(0, dim, device=device_of_sums(device))]
        self._largest = np.iinfo(np.int64).max  # keys beyond it can no longer be among the smallest

    def update(self, features: Tensor, index: np.ndarray) -> None:
        """Add features [B, d] of the images with these indices [B]; B may be 0."""
        self.n += len(index)
        keys = random_keys(index)
        rows = np.flatnonzero(keys <= self._largest)
        self._keys.append(keys[rows])
        self._rows.append(take(features, rows).to(self._rows[0].device, torch.float32))
        if sum(map(len, self._keys)) > self.capacity + self.capacity // 4:
            self._prune()

    def merge(self, other: Self) -> Self:
        """The smallest keys of both; associative and commutative."""
        new = type(self)(self._rows[0].shape[1], self._rows[0].device, self.capacity)
        new.n = self.n + other.n
        new._keys, new._rows = self._keys + other._keys, self._rows + other._rows
        new._prune()
        return new

    def reduce(self, processes: Processes) -> Self:
        """The smallest keys of all processes, on every one of them."""
        self._prune()
        keys, features = self._keys[0], self._rows[0]
        counts = torch.zeros(processes.world + 1, dtype=torch.int64)
        counts[processes.rank], counts[-1] = len(keys), self.n
        counts = processes.sum(counts)
        start, total = int(counts[: processes.rank].sum()), int(counts[:-1].sum())
        everyones = torch.zeros(total, dtype=torch.int64)
        everyones[start : start + len(keys)] = torch.from_numpy(keys)
        everyones = processes.sum(everyones).sort().values[: self.capacity]
        place = np.searchsorted(everyones.numpy(), keys)
        kept = np.flatnonzero(place < len(everyones))
        rows = features.new_zeros(len(everyones), features.shape[1])
        rows[torch.from_numpy(place[kept]).to(rows.device)] = take(features, kept)
        new = type(self)(features.shape[1], features.device, self.capacity)
        new.n, new._keys, new._rows = int(counts[-1]), [everyones.numpy()], [processes.sum(rows)]
        return new

    def summary(self) -> Sample:
        """The features kept, in the order of their keys.

        Raises:
            UserError: there are fewer than two images.
            ValueError: a feature is not finite.
        """
        self._prune()
        features = self._rows[0]
        if len(features) < 2:
            raise UserError(f"this metric needs at least 2 images on each side, not {self.n}")
        if not bool(torch.isfinite(features).all()):
            raise ValueError(f"among {self.n} features some are not finite (NaN or infinity)")
        return Sample(features, self.n)

    @staticmethod
    def write(summary: Sample) -> dict[str, np.ndarray]:
        """The array `features` [m, d]."""
        return {"features": summary.features.cpu().numpy()}

    @staticmethod
    def read(arrays: Arrays, n: int | None) -> Sample:
        """The array `features`."""
        features = torch.from_numpy(np.asarray(arrays["features"], dtype=np.float32))
        if features.ndim != 2 or not bool(torch.isfinite(features).all()):
            raise ValueError(f"features {tuple(features.shape)} are not finite and [m, d]")
        return Sample(features, n or len(features))

    def _prune(self) -> None:
        """Bring all rows into the order of their keys and drop those beyond the capacity."""
        keys = np.concatenate(self._keys)
        order = np.argsort(keys)[: self.capacity]
        rows = torch.cat(self._rows).index_select(0, torch.from_numpy(order).to(self._rows[0].device))
        self._keys, self._rows = [keys[order]], [rows]
        if len(order) == self.capacity:
            self._largest = keys[order][-1]
