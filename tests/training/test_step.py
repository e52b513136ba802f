"""Laws of the training step: what is dropped is dropped whole."""

from typing import Any

import pytest
import torch
from torch import Tensor

from scoregen.data.augment import NoAugment
from scoregen.denoisers.base import Cond, Denoise
from scoregen.denoisers.network import NetworkDenoiser
from scoregen.diffusion.precond import EDMPrecond
from scoregen.networks.mlp import MLP
from scoregen.objectives.base import Loss
from scoregen.rng import BatchRng
from scoregen.training.step import TrainStep

BATCH = 400


class Told:
    """An objective that keeps what the model is told."""

    def __call__(self, denoiser: Denoise, x0: Tensor, cond: Cond, rng: BatchRng) -> Loss:
        self.cond = cond
        return Loss(x0.sum(1), torch.ones(len(x0)), {})


@pytest.mark.parametrize(
    ("cond", "num_classes", "null"),
    [
        (torch.arange(BATCH) % 3, 3, 3),
        (torch.ones(BATCH, 2, BATCH), 0, 0),  # as many frames as samples
        (torch.ones(BATCH, 5), 0, 0),
    ],
    ids=["classes", "frames", "vectors"],
)
def test_a_condition_is_dropped_of_whole_samples(cond: Tensor, num_classes: int, null: int) -> None:
    network: Any = MLP(resolution=4, channels=4, width=8, depth=1, num_classes=num_classes)
    denoiser = NetworkDenoiser(network, EDMPrecond(), shape=(4,), num_classes=num_classes)
    objective = Told()
    step = TrainStep(denoiser, objective, NoAugment(), label_dropout=0.25)
    step(torch.zeros(BATCH, 4), cond, BatchRng("step", size=BATCH))
    told = objective.cond
    assert told is not None
    dropped, kept = (told == null).flatten(1) if told.ndim > 1 else (told == null)[:, None], told == cond
    whole = dropped.all(1)
    assert torch.equal(whole, dropped.any(1))
    assert kept[~whole].all()
    assert float(whole.float().mean()) == pytest.approx(0.25, abs=0.07)
