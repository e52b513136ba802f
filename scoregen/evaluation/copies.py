"""Memorisation as a metric of a model: how near its images are to training images, in pixels and features."""

from collections.abc import Callable, Iterable
from math import nan

import torch
from torch import Tensor

from scoregen.data.base import Dataset, to_model_range
from scoregen.errors import UserError
from scoregen.evaluation.memorization import Copies, TrainingSet
from scoregen.evaluation.processes import Processes
from scoregen.evaluation.result import Result
from scoregen.evaluation.scatter import ScatterExtractor

LARGEST = 50_000  # training images that are looked at
_CHUNK = 4096  # images at a time, through the extractor

Space = Callable[[Tensor], Tensor]  # images uint8 [n, C, H, W] -> points [n, ...]


def measure_copies(
    images: Iterable[Tensor], num: int, train: Dataset, held_out: Dataset, *, processes: Processes
) -> Result:
    """The ratio test, AuthPct and C_T of `num` images, in pixels and in the `scatter` features.

    Args:
        images: batches uint8 [B, C, H, W]: of w processes, process r gives the images r, r + w, ...
        num: over all processes.
        train, held_out: images of the shape that is drawn; of a larger training set the first 50,000.

    Raises:
        UserError: the data are not images.
    """
    known = _images(train, LARGEST)
    others = _images(held_out, LARGEST)
    extractor = ScatterExtractor()
    spaces: dict[str, Space] = {"pixels": to_model_range, "scatter": extractor}
    sets = {
        name: TrainingSet(_mapped(space, known), _mapped(space, others)) for name, space in spaces.items()
    }
    places = {name: torch.zeros(num, 6, dtype=torch.float64) for name in spaces}
    seen = processes.rank
    for batch in images:
        rows = slice(seen, seen + processes.world * len(batch), processes.world)
        for name, space in spaces.items():
            places[name][rows] = sets[name].place(space(batch.cpu()))
        seen += processes.world * len(batch)
    found = {name: sets[name].judge(processes.sum(places[name])) for name in spaces}
    return _result(found, num, train, known)


def _images(data: Dataset, most: int) -> Tensor:
    x = data.fetch(torch.arange(min(len(data), most))).x.cpu()
    if x.dtype != torch.uint8 or x.ndim != 4:
        raise UserError(
            f"memorization is measured on images; {data.name} holds {tuple(x.shape[1:])} {x.dtype}"
        )
    return x


def _mapped(space: Space, images: Tensor) -> Tensor:
    return torch.cat([space(part) for part in images.split(_CHUNK)])


def _result(found: dict[str, Copies], num: int, train: Dataset, known: Tensor) -> Result:
    levels = 127.5 * found["pixels"].distances / known[0].numel() ** 0.5
    details = {"nearest_levels": float(levels.min()), "median_levels": float(levels.median())}
    for name, copies in found.items():
        details |= {f"ratio_{name}": copies.ratio, f"authentic_{name}": copies.authentic}
        details |= {f"c_t_{name}": nan if copies.c_t is None else copies.c_t}
    return Result(
        name="memorization",
        value=found["pixels"].ratio,
        n=num,
        reference=train.name,
        reference_fingerprint=train.fingerprint,
        reference_n=len(known),
        details={name: value for name, value in details.items() if value == value},  # JSON has no NaN
    )
