"""Metrics by name: the features they compare, how they accumulate over batches, what they report."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from scoregen.errors import UserError
from scoregen.evaluation.features import EXTRACTORS, Extractor, build_extractor
from scoregen.evaluation.frechet import Moments, finite_sample_bias, frechet_distance
from scoregen.evaluation.reference import Alone, Images, Processes, Reference, read_reference, reference_of

FID_PROTOCOL = 50_000  # generated images; the bias depends on n, so another n is another quantity


@dataclass(frozen=True)
class Result:
    """One number and everything that it is a function of.

    Args:
        name: `fid` at exactly 50,000 images, else `fid_<n>`; `fd_<extractor>` for any other extractor.
        value: the distance.
        n: generated images.
        floor: about what n real images score, by the reference's spectrum; what a perfect model would get.
        extractor: its name, with `extractor_sha256` of weights and configuration and `resize`, its input
        rule. reference_sha256: hash of the reference statistics, made from `reference_n` images (0: not
        known). note: what a reader must know before quoting the number, or "".
    """

    name: str
    value: float
    n: int
    floor: float
    extractor: str
    extractor_sha256: str
    resize: str
    reference_sha256: str
    reference_n: int
    note: str = ""


class Accumulator(Protocol):
    """One metric while images stream by."""

    def update(self, features: Tensor) -> None:
        """Take the features [B, d] of a batch."""
        ...

    def compute(self, reference: Reference, processes: Processes) -> Result:
        """The metric over the images of all processes; every process calls it."""
        ...


class FrechetAccumulator:
    """The Frechet distance of the features of one extractor, from float64 moments."""

    def __init__(self, extractor: Extractor) -> None:
        self.extractor = extractor
        self.moments = Moments(extractor.dim, extractor.device)

    def update(self, features: Tensor) -> None:
        """Add features [B, d] to the moments."""
        self.moments.update(features)

    def compute(self, reference: Reference, processes: Processes) -> Result:
        """Sum the moments over the processes and compare with the reference."""
        moments = self.moments.reduce(processes.sum)
        n, extractor = int(moments.n), self.extractor
        value = frechet_distance(moments.gaussian(), reference.gaussian)
        floor = finite_sample_bias(reference.gaussian, n)
        return Result(
            frechet_name(extractor.name, n),
            value,
            n,
            floor,
            extractor.name,
            extractor.sha256,
            extractor.resize,
            reference.sha256,
            reference.origin.n,
            _note(extractor, n, floor, reference),
        )


def frechet_name(extractor: str, n: int) -> str:
    """`fid` for the published features at n = 50,000, `fid_<n>` for another n, `fd_<extractor>` otherwise."""
    if extractor != "inception":
        return f"fd_{extractor}"
    return "fid" if n == FID_PROTOCOL else f"fid_{n}"


def _note(extractor: Extractor, n: int, floor: float, reference: Reference) -> str:
    notes = []
    if n <= extractor.dim:
        notes.append(
            f"n = {n} does not exceed the {extractor.dim} features: the covariance is singular and the "
            f"bias large (about {floor:.3g} for real images); compare equal n only"
        )
    elif extractor.name == "inception" and n != FID_PROTOCOL:
        notes.append(
            f"FID is defined at n = {FID_PROTOCOL:,}; at n = {n} real images score about {floor:.3g}"
        )
    if not reference.origin.extractor:
        notes.append("the reference file does not name its extractor; taken for the published Inception")
    return "; ".join(notes)


@dataclass(frozen=True)
class Metric:
    """A registered metric: the extractor it needs and how it accumulates that extractor's features."""

    extractor: str
    accumulate: Callable[[Extractor], Accumulator]


METRICS: dict[str, Metric] = {"fid": Metric("inception", FrechetAccumulator)} | {
    f"fd_{name}": Metric(name, FrechetAccumulator) for name in EXTRACTORS if name != "inception"
}


def check_metrics(names: Sequence[str]) -> None:
    """Check metric names, all at once.

    Raises:
        UserError: no metric has such a name; says which do, and the near one.
    """
    unknown = [name for name in names if name not in METRICS]
    if not unknown and names:
        return
    hints = [
        f"did you mean {near[0]}?" for name in unknown if (near := get_close_matches(name, METRICS, n=1))
    ]
    problem = f"metrics not known: {', '.join(unknown)}" if unknown else "no metrics were named"
    raise UserError("; ".join([problem, f"allowed: {', '.join(METRICS)}", *hints]))


class Evaluator:
    """Metrics against one reference, ready for any number of image streams.

    Args:
        metrics: names from `METRICS`.
        reference: the real data, of which statistics are computed, or an `.npz` file of statistics.
        weights: the file of an extractor that needs weights; None looks in the usual places.
        device: where extractors run.
        cache: folder that keeps computed statistics; None keeps none.
        processes: this process among the others (`Parallel`); None is alone.

    Raises:
        UserError: an unknown metric, missing weights, or statistics of another extractor.
    """

    def __init__(
        self,
        metrics: Sequence[str],
        reference: Images | Path,
        *,
        weights: Path | None = None,
        device: torch.device | str = "cpu",
        cache: Path | None = None,
        processes: Processes | None = None,
    ) -> None:
        check_metrics(metrics)
        self.metrics = tuple(dict.fromkeys(metrics))
        self.processes = processes or Alone()
        wanted = dict.fromkeys(METRICS[name].extractor for name in self.metrics)
        self.extractors = {name: build_extractor(name, weights, device) for name in wanted}
        self.references = {
            name: read_reference(reference, extractor)
            if isinstance(reference, Path)
            else reference_of(reference, extractor, cache, self.processes)
            for name, extractor in self.extractors.items()
        }

    def __call__(self, images: Iterable[Tensor]) -> dict[str, Result]:
        """Results by their names, from batches uint8 [B, C, H, W] (this process's share of the images).

        Features are computed once for each extractor, whatever the number of metrics.

        Raises:
            UserError: fewer than two images over all processes.
        """
        running = {name: METRICS[name].accumulate(self._extractor(name)) for name in self.metrics}
        for batch in images:
            features = {name: extractor(batch) for name, extractor in self.extractors.items()}
            for name, accumulator in running.items():
                accumulator.update(features[METRICS[name].extractor])
        results = [
            accumulator.compute(self.references[METRICS[name].extractor], self.processes)
            for name, accumulator in running.items()
        ]
        return {result.name: result for result in results}

    def _extractor(self, metric: str) -> Extractor:
        return self.extractors[METRICS[metric].extractor]


def evaluate(
    images: Iterable[Tensor],
    metrics: Sequence[str],
    reference: Images | Path,
    *,
    weights: Path | None = None,
    device: torch.device | str = "cpu",
    cache: Path | None = None,
    processes: Processes | None = None,
) -> dict[str, Result]:
    """Judge one stream of images; see `Evaluator`, which this builds and calls."""
    judge = Evaluator(metrics, reference, weights=weights, device=device, cache=cache, processes=processes)
    return judge(images)
