"""What every guidance is: a denoiser around a denoiser, D <- D + push, decided once a step."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from copy import copy
from itertools import chain
from math import isfinite
from typing import Protocol, Self

import torch
from torch import Tensor

from scoregen.data.codec import Codec, codec_of
from scoregen.denoisers.base import Cond, Denoiser, denoiser_for_step, denoiser_for_trajectory, expand
from scoregen.denoisers.empirical import EmpiricalDenoiser
from scoregen.denoisers.smoothed import training_set
from scoregen.errors import UserError
from scoregen.rng import Rng

Interval = tuple[float, float]  # sigma_low < sigma <= sigma_high


class Judge(Protocol):
    """A noise-conditional classifier (K logits), or a discriminator of real and generated (one logit)."""

    shape: tuple[int, ...]  # of one sample
    num_classes: int  # that it tells apart, or is told; 0 = none

    def __call__(self, x: Tensor, sigma: Tensor, cond: Cond = None) -> Tensor:
        """Logits [B, K] for x [B, *shape] and sigma [] or [B]."""
        ...


class Around:
    """Stand for a denoiser, with its shape, range and classes."""

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser = denoiser
        self.shape, self.num_classes = denoiser.shape, denoiser.num_classes
        self.sigma_min, self.sigma_max = denoiser.sigma_min, denoiser.sigma_max

    @property
    def evaluations(self) -> int:
        """Evaluations of denoising networks per sample and call; those of judges are not counted."""
        return evaluations(self.denoiser)

    @property
    def codec(self) -> Codec:
        """How the denoiser's samples are decoded."""
        return codec_of(self.denoiser)

    @property
    def training_set(self) -> EmpiricalDenoiser:
        """The data that the denoiser is made of; UserError where it is not."""
        return training_set(self.denoiser)

    def parameters(self) -> Iterator[Tensor]:
        """Those of all networks in it."""
        parts = (part for part in vars(self).values() if hasattr(part, "parameters"))
        return chain.from_iterable(part.parameters() for part in parts)

    def round_sigma(self, sigma: Tensor) -> Tensor:
        """The nearest noise levels that the denoiser was trained on."""
        choose: Callable[[Tensor], Tensor] | None = getattr(self.denoiser, "round_sigma", None)
        return sigma if choose is None else choose(sigma)

    def for_trajectory(self, rng: Rng) -> Self:
        """The same around the denoiser with random numbers of each sample's own, if it has any."""
        return self.replaced(denoiser=denoiser_for_trajectory(self.denoiser, rng))

    def replaced(self, **parts: object) -> Self:
        """A copy with other attributes."""
        other = copy(self)
        vars(other).update(parts)
        return other


class Guidance(Around, ABC):
    """Push a denoiser's estimate, D <- D + push, at noise levels sigma_low < sigma <= sigma_high.

    A sampler decides once a step whether to guide (`for_step`), so that a step has one slope field and keeps
    its order; a direct call decides for each sample by its own sigma. Where nothing is pushed, at a neutral
    weight everywhere, D is what it was, bit for bit; steps outside the interval cost nothing more either.

    Args:
        denoiser: the one to guide; it may be guided itself.
        weight: a finite number.
        interval: (sigma_low, sigma_high]; None is everywhere.

    Raises UserError for a weight that is not finite or an empty interval.
    Source of the interval: Kynkaanniemi et al., Applying Guidance in a Limited Interval Improves Sample and
    Distribution Quality in Diffusion Models, 2024, arXiv 2404.07724, whose code switches by step index.
    """

    def __init__(self, denoiser: Denoiser, weight: float, interval: Interval | None) -> None:
        super().__init__(denoiser)
        check_finite("weight", weight)
        if interval is not None and not 0 <= interval[0] < interval[1]:
            raise UserError(
                f"guidance interval {interval[0]:g},{interval[1]:g}: give two noise levels, the lower first, "
                "for example 0.19,1.61"
            )
        self.weight, self.interval = weight, interval

    @property
    @abstractmethod
    def neutral(self) -> bool:
        """Whether the weight is the one that changes nothing."""

    @abstractmethod
    def push(self, x: Tensor, sigma: Tensor, cond: Cond) -> tuple[Tensor, Tensor | None]:
        """The denoiser's D [B, *shape], and what to add to it; None is nothing."""

    def __call__(self, x: Tensor, sigma: Tensor, cond: Cond = None) -> Tensor:
        """The guided D for x [B, *shape], sigma [] or [B] and class ids cond [B]."""
        if self.neutral:
            return self.denoiser(x, sigma, cond)
        denoised, push = self.push(x, sigma, cond)
        if push is None:
            return denoised
        if self.interval is not None:
            inside = (self.interval[0] < sigma) & (sigma <= self.interval[1])
            push = torch.where(expand(inside, x), push, 0.0)
        return denoised + push

    def for_step(self, sigma: float) -> Denoiser:
        """The denoiser for all evaluations of the step that starts at sigma: guided, or left alone."""
        if self.neutral or not (self.interval is None or self.interval[0] < sigma <= self.interval[1]):
            return denoiser_for_step(self.denoiser, sigma)
        return self.within(sigma)

    def within(self, sigma: float) -> Denoiser:
        """This guidance in a step from sigma that it guides throughout."""
        return self.replaced(denoiser=denoiser_for_step(self.denoiser, sigma), interval=None)


def evaluations(denoiser: Denoiser) -> int:
    """Evaluations of denoising networks per sample and call of a denoiser: 1, or what guidance says."""
    return int(getattr(denoiser, "evaluations", 1))


def check_finite(name: str, value: float) -> None:
    """Raise UserError for a setting of guidance that is infinite or NaN."""
    if not isfinite(value):
        raise UserError(f"guidance {name} {value}: a finite number is expected")


def check_shape(name: str, part: Judge | Denoiser, denoiser: Denoiser) -> None:
    """Raise UserError where a part of guidance is of other samples than the denoiser."""
    if part.shape != denoiser.shape:
        raise UserError(
            f"guidance: {name} is of samples of shape {part.shape}, the model of shape {denoiser.shape}; "
            "both must be of the same data"
        )
    if codec_of(part) != codec_of(denoiser):
        raise UserError(
            f"guidance: {name} looks at {codec_of(part)}, the model draws {codec_of(denoiser)}; train both "
            "with the same codec"
        )
