"""How well a score tells two sets apart: the receiver operating characteristic and what is read off it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from scoregen.errors import UserError


@dataclass(frozen=True)
class Separation:
    """A detector's score on a set of inliers (negatives) and one of outliers (positives).

    Args:
        auroc: probability that an outlier scores higher than an inlier, ties counting half.
        fpr95: share of inliers flagged where 95 % of the outliers are.
        error: least mean of the two error rates over thresholds.
        tpr: share of outliers flagged where 1, 5 and 10 % of the inliers are.
    """

    auroc: float
    fpr95: float
    error: float
    tpr: tuple[float, float, float]


def separate(inliers: Tensor, outliers: Tensor) -> Separation:
    """Compare scores [n] of inliers with scores [m] of outliers, higher being more suspicious.

    Rates between two thresholds are interpolated linearly.

    Raises:
        UserError: an empty set, or scores that are not finite.
    """
    if not (len(inliers) and len(outliers)):
        raise UserError(
            f"{len(inliers)} inliers and {len(outliers)} outliers: at least one of each is needed"
        )
    if not (inliers.isfinite().all() and outliers.isfinite().all()):
        raise UserError(
            "a detector's scores are not finite: its model has diverged, or its features overflow"
        )
    false, true = roc(inliers, outliers)
    return Separation(
        auroc=float(torch.trapezoid(true, false)),
        fpr95=float(interpolate(0.95, true, false)),
        error=float(((1 - true + false) / 2).min()),
        tpr=tuple(float(interpolate(rate, false, true)) for rate in (0.01, 0.05, 0.1)),  # type: ignore[arg-type]
    )


def roc(inliers: Tensor, outliers: Tensor) -> tuple[Tensor, Tensor]:
    """False and true positive rates from (0, 0) to (1, 1), float64; equal scores are one threshold."""
    scores = torch.cat([inliers, outliers]).double()
    positive = torch.cat([torch.zeros(len(inliers)), torch.ones(len(outliers))]).double()
    values, place = scores.unique(return_inverse=True)
    counts = torch.zeros(2, len(values), dtype=torch.float64)
    counts[0].index_add_(0, place, 1 - positive)
    counts[1].index_add_(0, place, positive)
    rates = counts.flip(1).cumsum(1) / counts.sum(1, keepdim=True)
    false, true = torch.cat([torch.zeros(2, 1, dtype=torch.float64), rates], 1)
    return false, true


def interpolate(at: float, x: Tensor, y: Tensor) -> Tensor:
    """The least y that the increasing polygon (x, y) reaches at x = at."""
    right = int(torch.searchsorted(x, torch.tensor(at, dtype=x.dtype)).clamp(1, len(x) - 1))
    span = x[right] - x[right - 1]
    share = (at - x[right - 1]) / span if span > 0 else torch.zeros_like(span)
    return torch.lerp(y[right - 1], y[right], share.clamp(0, 1))
