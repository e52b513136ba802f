"""Metrics class by class: each class's samples against real samples of that class."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from scoregen.data.base import Batch, Dataset, labels_of
from scoregen.denoisers.base import Denoiser
from scoregen.errors import UserError
from scoregen.evaluation.evaluator import Evaluator
from scoregen.evaluation.model import evaluate_model
from scoregen.evaluation.result import Result
from scoregen.parallel import Parallel
from scoregen.samplers.base import Sampler


class OneClass:
    """The samples of one class of a data set. Raises UserError where there are none."""

    def __init__(self, data: Dataset, label: int) -> None:
        self.data, self.name = data, f"{data.name}-class{label}"
        labels = labels_of(data) if data.num_classes else torch.empty(0, dtype=torch.long)
        self.rows = (labels == label).nonzero()[:, 0]
        if not len(self.rows):
            raise UserError(f"{data.name} has no samples of class {label}; set data.conditional=true")
        rows = hashlib.sha256(self.rows.numpy().tobytes()).hexdigest()
        self.fingerprint = hashlib.sha256(f"{data.fingerprint} rows {rows}".encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.rows)

    def fetch(self, indices: Tensor) -> Batch:
        """The samples at indices (int64, on the CPU) among those of the class."""
        return self.data.fetch(self.rows[indices])


def evaluate_classes(
    metrics: Sequence[str],
    data: Dataset,
    denoiser: Denoiser,
    sampler: Sampler,
    seeds: Sequence[int],
    *,
    batch: int,
    parallel: Parallel,
    weights: dict[str, Path] | None = None,
    cache: Path | None = None,
) -> list[dict[str, Result]]:
    """For each class the metrics of one sample of it per seed, against the real ones of the class.

    Their mean over the classes is the class-wise metric of Chao et al., Denoising Likelihood Score Matching
    for Conditional Score-based Data Generation, 2022, arXiv 2203.14206. Unlike the metric over all samples it
    sees samples that are good, but of another class than the one asked for.
    """
    results = []
    for label in range(data.num_classes):
        evaluator = Evaluator(
            metrics,
            OneClass(data, label),
            weights=weights,
            device=parallel.device,
            cache=cache,
            processes=parallel,
        )
        results.append(
            evaluate_model(evaluator, denoiser, sampler, seeds, batch=batch, parallel=parallel, label=label)
        )
    return results
