"""What a guided sample costs, since guidance differs from step to step."""

from typing import Self

import torch
from torch import Tensor

from scoregen.denoisers.base import Cond, Denoiser, denoiser_for_step
from scoregen.denoisers.guidance.base import Around, evaluations
from scoregen.rng import BatchRng, Rng
from scoregen.samplers.base import Sampler


class _Meter(Around):
    """Count the evaluations that a denoiser would make for one sample, without making them."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__(denoiser)
        self.step, self.total = denoiser, 0

    def for_trajectory(self, rng: Rng) -> Self:
        return self

    def for_step(self, sigma: float) -> Denoiser:
        self.step = denoiser_for_step(self.denoiser, sigma)
        return self

    def __call__(self, x: Tensor, sigma: Tensor, cond: Cond = None) -> Tensor:
        self.total += evaluations(self.step) if len(x) == 1 else 0
        return 0 * x


def count_evaluations(sampler: Sampler, denoiser: Denoiser) -> int:
    """Evaluations of denoising networks for one sample: `sampler.nfe()` where the denoiser is not guided.

    Walks the sampler's grid for a denoiser that returns zeros. Like `nfe` it leaves out what some samplers
    estimate once, in batches, before they begin.
    """
    if not isinstance(denoiser, Around):
        return sampler.nfe()
    meter, rng = _Meter(denoiser), BatchRng("evaluations", size=1)
    sampler(meter, torch.zeros(1, *denoiser.shape), None, rng)
    return meter.total
