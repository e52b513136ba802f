"""Judge streams of images by any metrics, each image's features computed once."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoregen.errors import UserError
from scoregen.evaluation.features import Extractor, build_extractor
from scoregen.evaluation.frechet import Moments
from scoregen.evaluation.metrics import METRICS, Metric, check_metrics
from scoregen.evaluation.processes import Alone, Processes
from scoregen.evaluation.reference import Images, Kind, Reference, read_reference, references_of
from scoregen.evaluation.result import Result, Score

Place = tuple[str, str]  # extractor and layer


class Evaluator:
    """Metrics against one reference, ready for any number of image streams.

    Args:
        metrics: names from `METRICS`.
        reference: the real data, of which statistics are computed, an `.npz` file of statistics, or None for
            metrics that need neither.
        weights: files of extractors that need weights, by extractor; else they look in the usual places.
        device: where extractors run.
        cache: folder that keeps computed statistics; None keeps none.
        processes: this process among the others (`Parallel`); None is alone.

    Raises:
        UserError: an unknown metric, missing weights, no reference, or statistics of another extractor.
    """

    def __init__(
        self,
        metrics: Sequence[str],
        reference: Images | Path | None,
        *,
        weights: Mapping[str, Path] | None = None,
        device: torch.device | str = "cpu",
        cache: Path | None = None,
        processes: Processes | None = None,
    ) -> None:
        if metrics:
            check_metrics(metrics)
        self.metrics = {name: METRICS[name] for name in dict.fromkeys(metrics)}
        self.processes = processes or Alone()
        self.extractors = {
            name: build_extractor(name, (weights or {}).get(name), device)
            for name in dict.fromkeys(metric.extractor for metric in self.metrics.values())
        }
        for name, metric in self.metrics.items():
            _check_layer(name, metric, self.extractors[metric.extractor])
        self.real_size = _size_of(reference)
        self.references: dict[Place, Reference] = {}
        for name, extractor in self.extractors.items():
            found = self._references(name, extractor, reference, cache)
            self.references |= {(name, layer): one for layer, one in found.items()}

    def __call__(self, images: Iterable[Tensor]) -> dict[str, Result]:
        """Results by their names, from batches uint8 [B, C, H, W].

        Of w processes, process r gives the images r, r + w, r + 2 w, ... of the whole stream, so that what is
        drawn at random among the images does not depend on w.

        Raises:
            UserError: fewer than two images over all processes.
        """
        running = {(self._place(metric), metric.drawn) for metric in self.metrics.values()}
        accumulators = {
            (place, start): start(self._extractor(place).layers[place[1]], self._extractor(place).device)
            for place, start in running
        }
        rank, world, seen = self.processes.rank, self.processes.world, 0
        size = self.real_size
        for batch in images:
            size = tuple(batch.shape[2:])
            index = rank + world * np.arange(seen, seen + len(batch))
            features = {name: extractor.features(batch) for name, extractor in self.extractors.items()}
            for (place, _), accumulator in accumulators.items():
                accumulator.update(features[place[0]][place[1]], index)
            seen += len(batch)
        results = self._results(accumulators)
        if self.real_size not in (None, size):
            warning = f"images of {size} pixels against real ones of {self.real_size}: the size counts, too"
            results = {name: _warned(result, warning) for name, result in results.items()}
        return results

    def _results(self, accumulators: Mapping[Any, Any]) -> dict[str, Result]:
        """Every process reduces all accumulators in one order, that of the metrics."""
        summaries: dict[Any, Any] = {}
        compared: dict[Any, Any] = {}
        results = {}
        for name, metric in self.metrics.items():
            place = self._place(metric)
            key = place, metric.drawn
            if key not in summaries:
                summaries[key] = accumulators[key].reduce(self.processes).summary()
            comparison = key, metric.real, metric.compare
            if comparison not in compared:
                real = () if metric.real is None else (self.references[place].summaries[metric.real],)
                compared[comparison] = metric.compare(summaries[key], *real)
            result = self._result(name, metric, metric.read(compared[comparison]))
            results[result.name] = result
        return results

    def _result(self, name: str, metric: Metric, score: Score) -> Result:
        place = self._place(metric)
        reference, extractor = self.references.get(place), self._extractor(place)
        origin: dict[str, Any] = {}
        if metric.real is not None and reference is not None:
            origin = {
                "reference": reference.origin.data,
                "reference_fingerprint": reference.origin.fingerprint,
                "reference_sha256": reference.sha256,
                "reference_n": reference.origin.n,
            }
        named = {
            "name": metric.name(name, score.n),
            "note": "; ".join(_notes(name, metric, score, reference)),
        }
        return Result(
            **{**asdict(score), **named},
            **origin,
            extractor=extractor.name,
            extractor_sha256=extractor.sha256,
            resize=extractor.resize,
            layer=place[1],
        )

    def _references(
        self, name: str, extractor: Extractor, reference: Images | Path | None, cache: Path | None
    ) -> dict[str, Reference]:
        wanted: dict[str, tuple[Kind, ...]] = {}
        for metric in self.metrics.values():
            if metric.extractor == name and metric.real is not None:
                layer = self._place(metric)[1]
                wanted[layer] = tuple(dict.fromkeys((*wanted.get(layer, ()), metric.real)))
        if not wanted:
            return {}
        if reference is None:
            raise UserError(f"{', '.join(self.metrics)}: compared with which real images? Give a reference")
        if isinstance(reference, Path):
            return {
                layer: read_reference(reference, extractor, layer, kinds) for layer, kinds in wanted.items()
            }
        # Moments come along, so that every file that is kept has EDM's layout.
        wanted = {layer: tuple(dict.fromkeys((Moments, *kinds))) for layer, kinds in wanted.items()}
        return references_of(reference, extractor, wanted, cache, self.processes)

    def _place(self, metric: Metric) -> Place:
        return metric.extractor, metric.layer or self.extractors[metric.extractor].layer

    def _extractor(self, place: Place) -> Extractor:
        return self.extractors[place[0]]


def _size_of(reference: Images | Path | None) -> tuple[int, ...] | None:
    """Height and width of real images; None where there are none, or only their statistics."""
    if reference is None or isinstance(reference, Path):
        return None
    return tuple(reference.fetch(torch.zeros(1, dtype=torch.long)).x.shape[2:])


def _warned(result: Result, warning: str) -> Result:
    """A result with one more note, where it compares with real images."""
    notes = filter(None, (result.note, warning))
    return replace(result, note="; ".join(notes)) if result.reference else result


def _notes(name: str, metric: Metric, score: Score, reference: Reference | None) -> Iterator[str]:
    """What a reader must know before quoting the number."""
    if score.note:
        yield score.note
    elif metric.published_n not in (None, score.n):
        floor = "" if score.floor is None else f"; at this n real images score about {score.floor:.3g}"
        yield f"{name} is defined at n = {metric.published_n:,}{floor}"
    if metric.real is not None and reference is not None and not reference.origin.extractor:
        yield "the reference file does not name its extractor; taken for the published Inception"


def _check_layer(name: str, metric: Metric, extractor: Extractor) -> None:
    if metric.layer and metric.layer not in extractor.layers:
        raise UserError(
            f"{name} needs the {metric.layer} of {extractor.name}, which {extractor.source} does not have; "
            f"give weights that have them (see docs/evaluation.md), or leave {name} out"
        )


def evaluate(
    images: Iterable[Tensor],
    metrics: Sequence[str],
    reference: Images | Path,
    *,
    weights: Mapping[str, Path] | None = None,
    device: torch.device | str = "cpu",
    cache: Path | None = None,
    processes: Processes | None = None,
) -> dict[str, Result]:
    """Judge one stream of images; see `Evaluator`, which this builds and calls."""
    judge = Evaluator(metrics, reference, weights=weights, device=device, cache=cache, processes=processes)
    return judge(images)
