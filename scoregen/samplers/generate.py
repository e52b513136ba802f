"""From seeds to samples: a sample depends on the denoiser, the sampler and its seed, not on others."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scoregen.data.codec import codec_of
from scoregen.data.conditions import Conditions
from scoregen.denoisers.base import Cond, Denoiser
from scoregen.errors import UserError
from scoregen.images import to_uint8
from scoregen.rng import Rng, SampleRng
from scoregen.samplers.base import Sampler

Solve = Callable[[Denoiser, Tensor, Cond, Rng | None], Tensor]  # what a sampler does when it is called


class DivergedError(UserError):
    """Samples are not finite."""


@dataclass(frozen=True)
class Samples:
    """One batch of samples and what they came from."""

    x: Tensor  # float32 [B, *shape], images in [-1, 1] up to overshoot
    seeds: tuple[int, ...]
    labels: Tensor | None  # int64 [B]; None for a denoiser without classes

    @property
    def images(self) -> Tensor:
        """uint8 [B, C, H, W]."""
        return to_uint8(self.x)


@torch.no_grad()
def generate(
    denoiser: Denoiser,
    sampler: Solve,
    seeds: Sequence[int],
    *,
    batch: int,
    device: torch.device | str,
    label: int | Sequence[int] | None = None,
    start: Callable[[Sequence[int], torch.device | str], SampleRng] = SampleRng,
    conditions: Conditions | None = None,
) -> Iterator[Samples]:
    """Draw one sample per seed, in batches; the codes of a model that has a codec are decoded.

    Args:
        denoiser: any denoiser, on `device`.
        sampler: any sampler, or a `Recorder` of one.
        seeds: one for each sample.
        batch: samples at a time; the last batch may be smaller.
        device: where to compute.
        label: the class of all samples, or one for each; None draws each sample's class uniformly from its
            own seed.
        start: makes the generators of some seeds; `SobolLatents` gives them a quasi-random first draw.
        conditions: what a denoiser with a `cond_shape` is told, by seed.

    Raises:
        UserError: for a batch below 1, a class that the denoiser does not know, classes for other than all
            seeds, missing conditions, or samples that are not finite, which as images would pass for black.
    """
    if batch < 1:
        raise UserError(f"batch={batch}: at least 1 sample at a time")
    labels = _each(label, len(seeds))
    for one in set(labels or ()):
        _check_class(denoiser, one)
    if getattr(denoiser, "cond_shape", ()) and conditions is None:
        raise UserError("this model is told more than a class: give `conditions`, as sample.py does")
    for first in range(0, len(seeds), batch):
        rng = start(seeds[first : first + batch], device)
        noise = rng.randn(*denoiser.shape)
        classes = _draw_classes(denoiser, rng, labels and labels[first : first + batch])
        cond = classes if conditions is None else conditions(rng.seeds).to(device)
        x = codec_of(denoiser).decode(sampler(denoiser, noise, cond, rng).float())
        _check_finite(x, rng.seeds)
        yield Samples(x, rng.seeds, classes)


def _each(label: int | Sequence[int] | None, count: int) -> list[int] | None:
    """The class of every sample, where classes are given."""
    if label is None:
        return None
    labels = [int(one) for one in label] if isinstance(label, Iterable) else [int(label)] * count
    if len(labels) != count:
        raise UserError(f"{len(labels)} classes for {count} seeds: give one for each, or one for all")
    return labels


def _draw_classes(denoiser: Denoiser, rng: SampleRng, labels: list[int] | None) -> Tensor | None:
    """Class ids [B]; drawn in any case, so that the noise that follows is the same for a given class."""
    if denoiser.num_classes == 0:
        return None
    drawn = rng.randint(denoiser.num_classes)
    return drawn if labels is None else drawn.new_tensor(labels)


def _check_finite(x: Tensor, seeds: Sequence[int]) -> None:
    finite = x.flatten(1).isfinite().all(1).tolist()
    bad = [seed for seed, fine in zip(seeds, finite, strict=True) if not fine]
    if bad:
        raise DivergedError(
            f"{len(bad)} of {len(seeds)} samples are not finite, first that of seed {bad[0]}; the model has "
            "diverged, or the sampler's settings do not suit it (try another sampler or precision=fp32)"
        )


def _check_class(denoiser: Denoiser, label: int) -> None:
    if not 0 <= label < denoiser.num_classes:
        allowed = (
            f"0 to {denoiser.num_classes - 1}" if denoiser.num_classes else "none: the model has no classes"
        )
        raise UserError(f"class {label} is unknown to the model; allowed: {allowed}")


def steps_for_nfe(sampler: Sampler, nfe: int) -> int:
    """The most steps within a budget of nfe evaluations of the denoiser; UserError where not one fits."""
    if sampler.nfe(1) > nfe:
        raise UserError(
            f"{type(sampler).__name__} needs at least {sampler.nfe(1)} network evaluations, "
            f"the budget is {nfe}"
        )
    steps = 1
    while sampler.nfe(steps + 1) <= nfe:
        steps += 1
    return steps
