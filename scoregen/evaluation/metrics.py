"""Metrics by name: which features they compare, what they keep of them, and what they make of it.

A metric is a function of two summaries, one of the generated and one of the real images. A new one is one
file with that function and one line in `METRICS`.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from operator import attrgetter
from typing import Any

from scoregen.errors import UserError
from scoregen.evaluation.features import EXTRACTORS
from scoregen.evaluation.fid import frechet_score
from scoregen.evaluation.frechet import Moments
from scoregen.evaluation.inception_score import ClassSums, am_score, in_splits, inception_score
from scoregen.evaluation.infinity import (
    classes_in_parts,
    frechet_infinity,
    inception_score_infinity,
    moments_in_parts,
)
from scoregen.evaluation.mmd import cmmd, kid
from scoregen.evaluation.prdc import compare_manifolds
from scoregen.evaluation.reference import Kind
from scoregen.evaluation.result import Score
from scoregen.evaluation.running import Start
from scoregen.evaluation.store import FeatureStore

PUBLISHED_N = 50_000  # generated images; where the bias depends on n, another n is another quantity


def _itself(score: Score) -> Score:
    return score


@dataclass(frozen=True)
class Metric:
    """A registered metric.

    Args:
        extractor: whose features it compares.
        drawn: the accumulator of the generated images' features.
        real: the accumulator of the real ones'; None where none are needed.
        compare: makes something of the two summaries (the generated images' first); done once for all
            metrics that share it.
        layer: which of the extractor's features; "" is its first.
        read: takes the metric's score out of the comparison.
        published_n: at another n the name says so; None where the value does not depend on n.
        least: images that it needs.
        extrapolates: whether it takes the images for independent draws.
    """

    extractor: str
    drawn: Start[Any]
    real: Kind | None
    compare: Callable[..., Any]
    layer: str = ""
    read: Callable[[Any], Score] = _itself
    published_n: int | None = None
    least: int = 2
    extrapolates: bool = False

    def name(self, registered: str, n: int) -> str:
        """What the value at n images is called: `fid` at 50,000, else `fid_<n>`."""
        return registered if self.published_n in (None, n) else f"{registered}_{n}"


METRICS: dict[str, Metric] = {
    "fid": Metric("inception", Moments, Moments, frechet_score, published_n=PUBLISHED_N),
    "fid_inf": Metric(
        "inception", moments_in_parts, Moments, frechet_infinity, least=4104, extrapolates=True
    ),
    "is": Metric("inception", in_splits, None, inception_score, "logits", published_n=PUBLISHED_N, least=10),
    "is_inf": Metric(
        "inception", classes_in_parts, None, inception_score_infinity, "logits", least=16, extrapolates=True
    ),
    "am": Metric("inception", ClassSums, ClassSums, am_score, "logits"),
    "sfid": Metric("inception", Moments, Moments, frechet_score, "spatial", published_n=PUBLISHED_N),
    "kid": Metric("inception", FeatureStore, FeatureStore, kid),
    "cmmd": Metric("clip", FeatureStore, FeatureStore, cmmd),
    **{
        name: Metric(
            "inception", FeatureStore, FeatureStore, compare_manifolds, read=attrgetter(name), least=6
        )
        for name in ("precision", "recall", "density", "coverage")
    },
    **{
        f"fd_{name}": Metric(name, Moments, Moments, frechet_score)
        for name in EXTRACTORS
        if name != "inception"
    },
}


def check_metrics(names: Sequence[str], known: Collection[str] = METRICS) -> None:
    """Check that all names are known, all at once.

    Raises:
        UserError: no metric has such a name; says which do, and the near one.
    """
    unknown = [name for name in names if name not in known]
    if not unknown and names:
        return
    hints = [f"did you mean {near[0]}?" for name in unknown if (near := get_close_matches(name, known, n=1))]
    problem = f"metrics not known: {', '.join(unknown)}" if unknown else "no metrics were named"
    raise UserError("; ".join([problem, f"allowed: {', '.join(known)}", *hints]))


def check_number(names: Sequence[str], n: int) -> None:
    """Check that n images are enough for all metrics, before any is drawn.

    Raises:
        UserError: they are not; says how many each metric needs.
    """
    short = [f"{name} at least {METRICS[name].least:,}" for name in names if n < METRICS[name].least]
    if short:
        raise UserError(f"n = {n:,} is too few: {', '.join(short)} images")
