"""Local curvature smoothing with Stein's identity (LCSS): the trace from values around the point."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from scoregen.denoisers.base import expand
from scoregen.errors import UserError
from scoregen.objectives.score_matching import Score, ScoreMatchingLoss, dot, half_norm
from scoregen.ranges import Positive
from scoregen.rng import BatchRng

Estimator = Literal["control_variate", "plain", "antithetic"]
NormAt = Literal["x", "xprime"]


def lcss(
    score: Score,
    x: Tensor,
    width: Tensor,
    e: Tensor,
    *,
    estimator: Estimator = "control_variate",
    norm_at: NormAt = "x",
) -> Tensor:
    """||s(x)||^2 / 2 + e . s(x') / w, [B], at x' = x + w e with e ~ N(0, I) like x [B, *shape], w [B].

    By Stein's identity the mean over e of the second term is that of tr J(x'). Alone (`plain`) its variance
    grows as 1 / w^2; less e . s(x) / w, whose mean is 0 (`control_variate`), or less half of it at x' and at
    x - w e (`antithetic`), it does not. The subtracted score is not detached: it quiets the gradient, too.
    """
    step = expand(width, x) * e
    there = score(x + step)
    here = score(x) if norm_at == "x" or estimator == "control_variate" else there
    if estimator == "plain":
        change = there
    elif estimator == "control_variate":
        change = there - here
    else:
        change = (there - score(x - step)) / 2
    return half_norm(here if norm_at == "x" else there) + dot(e, change) / width


@dataclass(frozen=True)
class LCSSLoss(ScoreMatchingLoss):
    """m of `lcss` with w = width sigma: no kernel of the process, no derivative of the score.

    With the norm at x the minimiser is (p_w / p) grad log p_w at each noise level, p_w the density of x': the
    score with an error of order w^2. With the norm at x' (and `plain`) it is denoising score matching with a
    kernel of width w, exactly, and the score of p_w. Only the abstract and a summary of the paper were read:
    the place of the norm, the width, its schedule and the weight are inferred, the two variance reductions
    are this project's.

    Args:
        width: r, w in units of sigma; below 1, and about 0.1 in many dimensions (p_w / p spreads as
            exp(r^2 sqrt(d / 2))).
        estimator: of the trace.
        norm_at: where the norm is charged.

    Raises UserError for width >= 1: where the tails have variance sigma^2, the loss has no lower bound then.
    Source: Osada, Shing and Nishide, Local Curvature Smoothing with Stein's Identity for Efficient Score
    Matching, 2024, arXiv 2412.03962.
    """

    subtracts: ClassVar[bool] = True
    width: Positive = 0.1
    estimator: Estimator = "control_variate"
    norm_at: NormAt = "x"

    def __post_init__(self) -> None:
        if self.width >= 1:
            raise UserError(
                f"objective.width={self.width:g}: the width is in units of sigma and must be below 1, or the "
                "loss has no lower bound; 0.1 is a good start"
            )

    def matching(self, score: Score, x: Tensor, sigma: Tensor, rng: BatchRng) -> Tensor:
        """m [B] at x [B, *shape] of level sigma [B]."""
        e = rng.randn_like(x)
        return lcss(score, x, self.width * sigma, e, estimator=self.estimator, norm_at=self.norm_at)
