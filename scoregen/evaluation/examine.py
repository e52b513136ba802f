"""Metrics of a model itself, rather than of the images that it draws."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from scoregen.data.base import Dataset
from scoregen.denoisers.base import Denoiser
from scoregen.evaluation.processes import Processes
from scoregen.evaluation.result import Result
from scoregen.samplers.base import Sampler


@dataclass(frozen=True)
class Subject:
    """A model and what it may be examined on.

    Args:
        denoiser: the model, on `device`.
        data: reads a split of its data, train or test.
        draw: the images uint8 [B, C, H, W] that are this process's share of `num`: every world-th one.
        num: samples at most, `batch` at a time.
        seed: of what is drawn at random.
        device: where to compute.
        processes: this process among the others.
        sampler: with which it would draw.
    """

    denoiser: Denoiser
    data: Callable[[str], Dataset]
    draw: Callable[[], Iterator[Tensor]]
    num: int
    batch: int
    seed: int
    device: torch.device
    processes: Processes
    sampler: Sampler


Examine = Callable[[Subject], Result]  # the same result in every process


def _nll(subject: Subject) -> Result:
    from scoregen.evaluation.nll import flow_likelihood, measure_nll

    likelihood = flow_likelihood(subject.denoiser, subject.data("train"), device=subject.device)
    return measure_nll(
        likelihood,
        subject.data("test"),
        num=subject.num,
        batch=subject.batch,
        device=subject.device,
        processes=subject.processes,
        seed=subject.seed,
    )


def _memorization(subject: Subject) -> Result:
    from scoregen.evaluation.copies import measure_copies

    return measure_copies(
        subject.draw(), subject.num, subject.data("train"), subject.data("test"), processes=subject.processes
    )


def _spectral_error(subject: Subject) -> Result:
    from scoregen.evaluation.spectral import spectral_error

    return spectral_error(
        subject.denoiser,
        subject.sampler,
        range(subject.seed, subject.seed + subject.num),
        subject.data("test"),
        batch=subject.batch,
        device=subject.device,
        processes=subject.processes,
    )


# By the names that evaluate.py knows: one file with such a function, and one line here.
EXAMINATIONS: dict[str, Examine] = {
    "nll": _nll,
    "memorization": _memorization,
    "ls_mae": _spectral_error,
}
OF_SCORES = frozenset({"nll"})  # those that ask the model itself, at all noise levels, about data as they are
