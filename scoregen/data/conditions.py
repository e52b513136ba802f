"""What a model is told, other than a class, of samples that are drawn by seed."""

from collections.abc import Sequence

import torch
from torch import Tensor

from scoregen.data.base import Batch, Dataset


class Conditions:
    """Tell what a data set yields beside its samples: the seed's is that of sample seed mod N."""

    def __init__(self, data: Dataset) -> None:
        self.data = data

    def batch(self, seeds: Sequence[int]) -> Batch:
        """The real samples of these seeds and what is told of them, on the CPU."""
        return self.data.fetch(torch.tensor([seed % len(self.data) for seed in seeds]))

    def __call__(self, seeds: Sequence[int]) -> Tensor:
        """What is told, [B, *cond_shape]."""
        told = self.batch(seeds).label
        assert told is not None, "only data with a cond_shape have conditions"
        return told


def conditions_of(data: Dataset) -> Conditions | None:
    """The conditions of a data set that has any, by its attribute `cond_shape`."""
    return Conditions(data) if getattr(data, "cond_shape", ()) else None
