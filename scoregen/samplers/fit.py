"""Give a sampler what it wants of the training data: moments to jump by, samples to start from."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from scoregen.data.base import Dataset
from scoregen.data.codec import codec_of, encoded
from scoregen.denoisers.base import Denoiser
from scoregen.denoisers.moments import cached_gaussian, measure_gaussian
from scoregen.samplers.base import Sampler
from scoregen.samplers.langevin import LangevinSampler
from scoregen.samplers.multiplicative import MultiplicativeSampler
from scoregen.samplers.teleport import TeleportSampler


def fit_sampler(
    sampler: Sampler, denoiser: Denoiser, data: Callable[[], Dataset], cache: Path | None
) -> Sampler:
    """The sampler, ready for a denoiser of these training data, which are read only where they are wanted.

    Args:
        sampler: teleportation and multiplicative samplers without moments get those of the data, by class
            for a denoiser with classes; Langevin dynamics from data gets the data. Any other is returned as
            it is.
        denoiser: the one to sample from.
        data: reads its training data.
        cache: folder that keeps measured moments; None keeps none.
    """
    if isinstance(sampler, TeleportSampler | MultiplicativeSampler) and sampler.moments is None:
        per_class, seen = denoiser.num_classes > 0, encoded(data(), codec_of(denoiser))
        if cache is None:
            return replace(sampler, moments=measure_gaussian(seen, per_class=per_class))
        return replace(sampler, moments=str(cached_gaussian(seen, cache, per_class=per_class)))
    if isinstance(sampler, LangevinSampler) and sampler.init == "data" and sampler.data is None:
        return replace(sampler, data=encoded(data(), codec_of(denoiser)))
    return sampler
