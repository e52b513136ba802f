"""What the loop trains: a method with its roles, and the phases of a step. An objective has one of each."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from scoregen.denoisers.base import Cond
from scoregen.denoisers.network import NetworkDenoiser
from scoregen.objectives.base import Loss
from scoregen.parallel import Parallel
from scoregen.rng import BatchRng, derive_seed


@dataclass
class MicroBatch:
    """Some rows of a step's global batch, through all phases of the step."""

    x0: Tensor  # clean data [B, *shape]; [B, 0] for methods without data
    cond: Cond  # class ids [B]
    seed: int  # of the run
    nimg: int  # images before this step
    size: int  # of the global batch
    rows: slice  # those held here
    kept: dict[str, Tensor] = field(default_factory=dict)  # [B, ...], by an earlier phase for a later one

    def rng(self, *stream: str) -> BatchRng:
        """The step's stream of that name, from its start: equal names give equal draws in every phase."""
        key: tuple[int | str, ...] = (self.seed, "step", self.nimg, *stream)
        return BatchRng(*key, size=self.size, rows=self.rows, device=self.x0.device)

    def dropout_seed(self, *stream: str) -> int:
        """A seed for torch's global generator, which dropout draws from."""
        return derive_seed(self.seed, "dropout", self.nimg, self.rows.start, *stream)


@dataclass(frozen=True)
class Phase:
    """One optimizer step of one role.

    While it lasts, that role is in training mode and all others are frozen, in evaluation mode.

    Args:
        role: whose parameters step.
        loss: of a micro-batch, per sample.
        prepare: called with all micro-batches of this process before the first loss, for what must be known
            of the whole global batch (`measure_whole`).
    """

    role: str
    loss: Callable[[MicroBatch], Loss]
    prepare: Callable[[Sequence[MicroBatch], Parallel], None] | None = None


class Method(Protocol):
    """What a run trains: one denoiser to sample from, and whatever learns beside it."""

    @property
    def denoiser(self) -> NetworkDenoiser:
        """The model: what is averaged, stored and sampled from. Its parameters are of the first role."""
        ...

    @property
    def roles(self) -> Mapping[str, nn.Module]:
        """What learns, each with an optimizer of its own; the model's role is the first."""
        ...

    @property
    def state(self) -> Mapping[str, nn.Module]:
        """What a checkpoint must hold beside the model."""
        ...

    @property
    def lr_factors(self) -> Mapping[str, float]:
        """Learning rates by role, relative to the optimizer's, where they differ."""
        ...

    def phases(self, step: int, nimg: int) -> Sequence[Phase]:
        """What the step number `step`, which begins at image number `nimg`, does, in this order."""
        ...


@torch.no_grad()
def measure_whole(
    measure: Callable[[MicroBatch], Mapping[str, Tensor]], batches: Sequence[MicroBatch], parallel: Parallel
) -> dict[str, Tensor]:
    """Per-sample values of micro-batches, [B] each, as vectors over the global batch of all processes."""
    parts = [(batch.rows, measure(batch)) for batch in batches]
    whole = {name: value.new_zeros(batches[0].size) for name, value in parts[0][1].items()}
    for name, vector in whole.items():
        for rows, values in parts:
            vector[rows] = values[name]
        parallel.sum(vector)
    return whole
