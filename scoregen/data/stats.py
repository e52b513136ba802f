"""Mean, sigma_data and class counts of a data set."""

from dataclasses import dataclass

import torch
from torch import Tensor

from scoregen.data.base import Batch, Dataset

CHUNK = 1024


@dataclass(frozen=True)
class Stats:
    """Moments of the samples as the model sees them (images in [-1, 1])."""

    mean: float  # over all elements
    std: float  # sigma_data: the standard deviation over all elements
    channel_mean: tuple[float, ...]  # over the first axis of a sample
    class_counts: tuple[int, ...]  # () where there are no labels
    shape: tuple[int, ...]
    count: int


class Moments:
    """Accumulates statistics of batches in float64; exact for uint8, whose sums are integers below 2^53."""

    def __init__(self, shape: tuple[int, ...], num_classes: int = 0) -> None:
        self.shape, self.count, self.is_levels = shape, 0, False
        self._sum, self._squares = torch.zeros(2, shape[0], dtype=torch.float64)
        self._classes = torch.zeros(num_classes, dtype=torch.long)

    def add(self, batch: Batch) -> None:
        """Take in samples [B, *shape] and class ids [B]."""
        self.is_levels = batch.x.dtype == torch.uint8
        x = batch.x.cpu().double().flatten(2) if batch.x.ndim > 2 else batch.x.cpu().double()[..., None]
        self.count += len(x)
        self._sum += x.sum((0, 2))
        self._squares += x.square().sum((0, 2))
        if batch.label is not None and len(self._classes):
            self._classes += batch.label.cpu().bincount(minlength=len(self._classes))

    def result(self) -> Stats:
        """The statistics of everything taken in."""
        per_channel = self.count * torch.Size(self.shape[1:]).numel()
        mean, square = self._sum / per_channel, (self._squares / per_channel).mean()
        variance = (square - mean.mean().square()).clamp(min=0)
        scale, shift = (1 / 127.5, -1.0) if self.is_levels else (1.0, 0.0)
        channels: Tensor = mean * scale + shift
        return Stats(
            mean=float(channels.mean()),
            std=float(variance.sqrt()) * scale,
            channel_mean=tuple(channels.tolist()),
            class_counts=tuple(self._classes.tolist()),
            shape=self.shape,
            count=self.count,
        )


def measure(dataset: Dataset, limit: int | None = None) -> Stats:
    """The statistics of a data set, or of at most `limit` of its samples, evenly spaced."""
    count = min(len(dataset), limit or len(dataset))
    rows = torch.arange(count) * len(dataset) // count
    moments = Moments(tuple(dataset.shape), dataset.num_classes)
    for indices in rows.split(CHUNK):
        moments.add(dataset.fetch(indices))
    return moments.result()
