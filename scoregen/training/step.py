"""The method of an objective: one role, one phase."""

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from scoregen.data.augment import Augment
from scoregen.denoisers.base import Cond, expand
from scoregen.denoisers.network import NetworkDenoiser
from scoregen.objectives.base import Loss, Objective
from scoregen.rng import BatchRng
from scoregen.training.phases import MicroBatch, Phase


class TrainStep(nn.Module):
    """Augment clean data, drop labels, and evaluate the objective of the denoiser on them.

    Args:
        denoiser: the network denoiser that is trained.
        objective: the loss; parameters of its own are trained too.
        augment: non-leaky augmentation, whose labels the network is told.
        label_dropout: probability of the null class instead of a label (for classifier-free guidance).
    """

    def __init__(
        self, denoiser: NetworkDenoiser, objective: Objective, augment: Augment, *, label_dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.denoiser, self.objective, self.augment = denoiser, objective, augment
        self.label_dropout = label_dropout

    @property
    def roles(self) -> Mapping[str, nn.Module]:
        """The model with what the objective learns."""
        return {"model": self}

    @property
    def state(self) -> Mapping[str, nn.Module]:
        """The objective, where it has parameters."""
        return {"objective": self.objective} if isinstance(self.objective, nn.Module) else {}

    @property
    def lr_factors(self) -> Mapping[str, float]:
        """None."""
        return {}

    def phases(self, step: int, nimg: int) -> Sequence[Phase]:
        """The same every step."""
        return (Phase("model", self._loss),)

    def _loss(self, batch: MicroBatch) -> Loss:
        return self.forward(batch.x0, batch.cond, batch.rng())

    def forward(self, x0: Tensor, cond: Cond, rng: BatchRng) -> Loss:
        """The per-sample loss at clean data x0 [B, *shape] with class ids cond [B]."""
        if self.label_dropout and cond is not None:
            dropped = rng.rand() < self.label_dropout
            cond = torch.where(expand(dropped, cond), self.denoiser.num_classes, cond)
        x0, augment_labels = self.augment(x0, rng)
        return self.objective(partial(self.denoiser, augment_labels=augment_labels), x0, cond, rng)
