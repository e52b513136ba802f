"""Give a sampler what it wants of the training data: moments to jump by, samples to start from."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from scoregen.data.base import Dataset
from scoregen.data.codec import codec_of, encoded
from scoregen.denoisers.base import Denoiser
from scoregen.denoisers.moments import cached_gaussian, measure_gaussian
from scoregen.samplers.base import Sampler
from scoregen.samplers.closed_form import ClosedFormSampler
from scoregen.samplers.consistency import ConsistencySampler
from scoregen.samplers.langevin import LangevinSampler
from scoregen.samplers.multiplicative import MultiplicativeSampler
from scoregen.samplers.one_step import OneStepSampler
from scoregen.samplers.teleport import TeleportSampler

LOWEST_START = 10.0  # a noise level beside which data of the model's range hardly show


def fit_sampler(
    sampler: Sampler, denoiser: Denoiser, data: Callable[[], Dataset], cache: Path | None
) -> Sampler:
    """The sampler, ready for a denoiser of these training data, which are read only where they are wanted.

    Teleportation also gets a grid that ends where the denoiser does: which of its levels lie below
    sigma_skip, and so what it costs, is then a matter of the sampler alone.

    Args:
        sampler: teleportation and multiplicative samplers without moments get those of the data, by class
            for a denoiser with classes; Langevin dynamics from data gets the data. Any other is returned as
            it is.
        denoiser: the one to sample from.
        data: reads its training data.
        cache: folder that keeps measured moments; None keeps none.
    """
    if isinstance(sampler, TeleportSampler):
        sampler = replace(sampler, grid=sampler.grid.within(denoiser.sigma_min, sampler.grid.sigma_max))
    if isinstance(sampler, TeleportSampler | MultiplicativeSampler):
        if sampler.moments is not None:
            return sampler
        per_class, seen = denoiser.num_classes > 0, encoded(data(), codec_of(denoiser))
        if cache is None:
            return replace(sampler, moments=measure_gaussian(seen, per_class=per_class))
        return replace(sampler, moments=str(cached_gaussian(seen, cache, per_class=per_class)))
    if isinstance(sampler, LangevinSampler) and sampler.init == "data":
        return sampler if sampler.data else replace(sampler, data=encoded(data(), codec_of(denoiser)))
    _warn_of_low_start(sampler, denoiser)
    return sampler


def _warn_of_low_start(sampler: Sampler, denoiser: Denoiser) -> None:
    """Warn where the data show at the model's highest noise level; students are trained for their level."""
    started = OneStepSampler | ConsistencySampler | ClosedFormSampler
    if denoiser.sigma_max < LOWEST_START and not isinstance(sampler, started):
        warnings.warn(
            f"{type(sampler).__name__} starts from noise alone at sigma={denoiser.sigma_max:g}, the model's "
            "highest level, where data still show: start from the moments of the data instead, with "
            f"--sampler teleport sigma_skip={denoiser.sigma_max:g} protocol=regrid",
            stacklevel=3,
        )
