"""Metrics straight from a generator: no image needs to touch the disk, and all processes draw their share."""

from collections.abc import Callable, Sequence

import torch

from scoregen.denoisers.base import Denoiser
from scoregen.evaluation.evaluator import Evaluator
from scoregen.evaluation.result import Result
from scoregen.parallel import Parallel
from scoregen.rng import SampleRng
from scoregen.samplers.base import Sampler
from scoregen.samplers.generate import generate


def evaluate_model(
    evaluator: Evaluator,
    denoiser: Denoiser,
    sampler: Sampler,
    seeds: Sequence[int],
    *,
    batch: int,
    parallel: Parallel,
    label: int | None = None,
    start: Callable[[Sequence[int], torch.device | str], SampleRng] = SampleRng,
) -> dict[str, Result]:
    """Results over one image per seed, the same in every process; a share may be uneven or empty.

    `label` is the class of all images; None draws each image's class from its own seed. `start` makes the
    generators, as in `generate`.
    """
    mine = seeds[parallel.rank :: parallel.world]
    drawn = generate(denoiser, sampler, mine, batch=batch, device=parallel.device, label=label, start=start)
    return evaluator(samples.images for samples in drawn)
