"""The forward of one training step: what DDP wraps, so that objectives call the denoiser as they like."""

from functools import partial

import torch
from torch import Tensor, nn

from scoregen.data.augment import Augment
from scoregen.denoisers.base import Cond
from scoregen.denoisers.network import NetworkDenoiser
from scoregen.objectives.base import Loss, Objective
from scoregen.rng import BatchRng


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

    def forward(self, x0: Tensor, cond: Cond, rng: BatchRng) -> Loss:
        """The per-sample loss at clean data x0 [B, *shape] with class ids cond [B]."""
        if self.label_dropout and cond is not None:
            dropped = rng.rand() < self.label_dropout
            cond = torch.where(dropped, self.denoiser.num_classes, cond)
        x0, augment_labels = self.augment(x0, rng)
        return self.objective(partial(self.denoiser, augment_labels=augment_labels), x0, cond, rng)
