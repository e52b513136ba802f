"""Samples of the averaged model, to look at."""

from typing import TYPE_CHECKING

import torch

from scoregen.data.conditions import conditions_of
from scoregen.denoisers.network import NetworkDenoiser
from scoregen.images import picture, save_png
from scoregen.ranges import PositiveInt
from scoregen.samplers.generate import generate
from scoregen.training.hooks.base import Hook

if TYPE_CHECKING:
    from scoregen.training.trainer import Trainer


class GridHook(Hook):
    """Draw images from fixed seeds with the averaged weights: `samples/<nimg>.png`.

    Args:
        every: images between two grids.
        count: how many images, with seeds 0 to count - 1.
        columns: images in a row.
        batch: images drawn at a time.
    """

    def __init__(
        self,
        every: PositiveInt | None = None,
        *,
        count: PositiveInt = 64,
        columns: PositiveInt = 8,
        batch: PositiveInt = 64,
    ) -> None:
        super().__init__(every)
        self.count, self.columns, self.batch = count, columns, batch

    def __call__(self, trainer: "Trainer") -> None:
        with trainer.averaged_denoiser() as denoiser:  # in every process, which may hold a part of it
            if trainer.parallel.is_main:
                self._draw(trainer, denoiser)

    def _draw(self, trainer: "Trainer", denoiser: NetworkDenoiser) -> None:
        seeds, device = range(self.count), trainer.parallel.device
        # Only a model that is told something needs the data, which a distillation may do without.
        told = conditions_of(trainer.heldout or trainer.stream.dataset) if denoiser.cond_shape else None
        drawn = list(
            generate(denoiser, trainer.sampler, seeds, batch=self.batch, device=device, conditions=told)
        )
        image = picture(torch.cat([samples.x for samples in drawn]).cpu(), self.columns)
        save_png(image, trainer.run_dir / "samples" / f"{trainer.nimg:012d}.png")
        trainer.log_image("samples", image)
