"""Learning rates as pure functions of the images seen: factors on the optimizer's `lr`.

A step reads the factor at the images seen before it. Neither the number of processes, nor micro-batches, nor
a resume can change it, and there is nothing to save.
"""

from dataclasses import dataclass
from math import cos, pi, sqrt
from typing import Protocol

from scoregen.ranges import NonNegativeInt, PositiveInt


class Schedule(Protocol):
    """A factor on the optimizer's `lr` as a function of training time."""

    def __call__(self, nimg: int) -> float:
        """The factor in the step after `nimg` images."""
        ...


@dataclass(frozen=True)
class Constant:
    """Keep the optimizer's `lr`: factor 1."""

    def __call__(self, nimg: int) -> float:
        """The factor in the step after `nimg` images."""
        return 1.0


@dataclass(frozen=True)
class RampUp:
    """Rise linearly from 0 and stay: factor min(n / rampup, 1).

    Args:
        rampup: images until the full rate; 0 starts with it.

    Source: Elucidating the Design Space of Diffusion-Based Generative Models, T. Karras, M. Aittala, T. Aila,
    S. Laine, 2022, arXiv 2206.00364; 10 million images as in its code.
    """

    rampup: NonNegativeInt = 10_000_000

    def __call__(self, nimg: int) -> float:
        """The factor in the step after `nimg` images."""
        return min(nimg / self.rampup, 1.0) if self.rampup else 1.0


@dataclass(frozen=True)
class InverseSqrt:
    """Rise linearly, then fall with the root of time: factor min(n / rampup, 1) / sqrt(max(n / flat, 1)).

    The fall makes up for weights that grow under normalised layers. It was made for networks with forced
    weight normalisation; with others use it with care (inferred, not published).

    Args:
        flat: images until the fall begins; EDM2's t_ref times its batch.
        rampup: images until the full rate; 0 starts with it.

    Source: Analyzing and Improving the Training Dynamics of Diffusion Models, T. Karras, M. Aittala,
    J. Lehtinen, J. Hellsten, T. Aila, S. Laine, 2024, arXiv 2312.02696; the rule as in its code.
    """

    flat: PositiveInt = 35_000 * 2048
    rampup: NonNegativeInt = 10_000_000

    def __call__(self, nimg: int) -> float:
        """The factor in the step after `nimg` images."""
        return RampUp(self.rampup)(nimg) / sqrt(max(nimg / self.flat, 1.0))


@dataclass(frozen=True)
class Cosine:
    """Rise linearly, fall to 0 at `total`: factor min(n / rampup, 1) (1 + cos(pi min(n / total, 1))) / 2.

    Args:
        total: images at which the rate reaches 0, by default those of the whole run.
        rampup: images until the full rate; 0 starts with it.

    Source: SGDR: Stochastic Gradient Descent with Warm Restarts, I. Loshchilov, F. Hutter, 2016,
    arXiv 1608.03983, without restarts (remembered, not re-read).
    """

    total: PositiveInt
    rampup: NonNegativeInt = 0

    def __call__(self, nimg: int) -> float:
        """The factor in the step after `nimg` images."""
        return RampUp(self.rampup)(nimg) * 0.5 * (1.0 + cos(pi * min(nimg / self.total, 1.0)))
