"""Metrics of a model itself, rather than of the images that it draws."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from scoregen.data.base import Dataset
from scoregen.denoisers.base import Denoiser
from scoregen.evaluation.processes import Processes
from scoregen.evaluation.result import Result


@dataclass(frozen=True)
class Subject:
    """A model and what it may be examined on.

    Args:
        denoiser: the model, on `device`.
        data: reads a split of its data, train or test.
        num: samples at most, `batch` at a time.
        seed: of what is drawn at random.
        device: where to compute.
        processes: this process among the others.
    """

    denoiser: Denoiser
    data: Callable[[str], Dataset]
    num: int
    batch: int
    seed: int
    device: torch.device
    processes: Processes


Examine = Callable[[Subject], Result]  # the same result in every process

# By the names that evaluate.py knows: one file with such a function, and one line here.
EXAMINATIONS: dict[str, Examine] = {}
