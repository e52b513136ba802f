"""FID_inf and IS_inf: metrics whose bias falls as 1/n, extrapolated to infinitely many images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from scoregen.errors import UserError
from scoregen.evaluation.frechet import Gaussian, Moments, frechet_distance
from scoregen.evaluation.inception_score import Classes, ClassSums
from scoregen.evaluation.result import Score
from scoregen.evaluation.running import InParts, Running

PARTS, PART_SEED = 8, 1  # so that sizes n, n/2, n/4, n/8 are averaged over 1, 2, 4, 8 disjoint sets

moments_in_parts = partial(InParts, Moments, PARTS, PART_SEED)
classes_in_parts = partial(InParts, ClassSums, PARTS, PART_SEED)


@dataclass(frozen=True)
class Line:
    """value(n) = intercept + slope / n, and the largest distance of a point from it."""

    intercept: float
    slope: float
    residual: float


def extrapolate(parts: Sequence[Running[Any]], measure: Callable[[Any], float], least: int = 1) -> Line:
    """Fit value against 1/n by least squares, at n, n/2, n/4, ... images of which each size is all of them.

    At each size the parts are merged into disjoint sets and the values averaged. The sets of all sizes are
    independent draws, so the points have the expectations that the line is about; all images count at every
    size, so what the images have in common moves all points alike and leaves the slope alone. As published,
    subsets are taken of one quasi-random pool, of which the whole is better than n independent images but a
    subset is not: the slope is then too large and the intercept too small by about slope / n.

    Args:
        parts: accumulators of disjoint, equal parts of the images; a power of two of them.
        measure: the value of a summary.
        least: images that a set must exceed, else its size is left out.

    Source: M. J. Chong and D. Forsyth, Effectively Unbiased FID and Inception Score and where to find them,
    2020, arXiv 1911.07023; the disjoint sets in place of its pool are ours.

    Raises:
        UserError: fewer than two sizes remain.
    """
    points = []
    level = list(parts)
    while level:
        summaries = [part.summary() for part in level] if _smallest(level) > least else []
        if summaries:
            n = sum(summary.n for summary in summaries) / len(summaries)
            points.append((1 / n, sum(map(measure, summaries)) / len(summaries)))
        level = [a.merge(b) for a, b in zip(level[::2], level[1::2], strict=True)] if len(level) > 1 else []
    if len(points) < 2:
        raise UserError(f"extrapolation needs more than {2 * least:,} images: two sizes above {least:,}")
    x, y = torch.tensor(points, dtype=torch.float64).unbind(1)
    design = torch.stack([torch.ones_like(x), x / x.max()], 1)
    solution = torch.linalg.lstsq(design, y).solution
    residual = (design @ solution - y).abs().max()
    return Line(float(solution[0]), float(solution[1] / x.max()), float(residual))


def _smallest(level: Sequence[Any]) -> int:
    return min(int(part.n) for part in level)


def frechet_infinity(parts: tuple[Running[Gaussian], ...], real: Gaussian) -> Score:
    """FID_inf: the Frechet distance of infinitely many generated images to the reference, as it is.

    Sets must have more images than features, where the bias is nearly linear in 1/n.
    """
    line = extrapolate(parts, lambda drawn: frechet_distance(drawn, real), real.dim)
    return _score(line, parts)


def inception_score_infinity(parts: tuple[Running[Classes], ...]) -> Score:
    """IS_inf: the Inception score, in one split, of infinitely many images."""
    return _score(extrapolate(parts, lambda drawn: drawn.inception_score), parts)


def _score(line: Line, parts: Sequence[Any]) -> Score:
    details = {"slope": line.slope, "residual": line.residual}
    return Score(line.intercept, sum(int(part.n) for part in parts), details=details)
