"""Checkpoints, and snapshots of the averages."""

from typing import TYPE_CHECKING

from scoregen.errors import UserError
from scoregen.sharding import gathered
from scoregen.training.ema import PowerEMA, save_snapshot
from scoregen.training.hooks.base import Hook

if TYPE_CHECKING:
    from scoregen.training.trainer import Trainer


class CheckpointHook(Hook):
    """Save everything that a resume needs; the trainer does so itself at the end and at a stop signal."""

    at_end = False

    def __call__(self, trainer: "Trainer") -> None:
        trainer.save()


class EMASnapshotHook(Hook):
    """Store the tracks of a power-function EMA in `ema_snapshots/`, from which any width can be had."""

    def start(self, trainer: "Trainer") -> None:
        """Refuse an average of which no width can be reconstructed."""
        if self.every is not None and not isinstance(trainer.ema, PowerEMA):
            raise UserError(
                f"hooks.ema_snapshot.every={self.every}: snapshots are of power-function averages; "
                "set ema=power, or hooks.ema_snapshot.every=null"
            )

    def __call__(self, trainer: "Trainer") -> None:
        weights = {track: gathered(tensors) for track, tensors in trainer.ema.weights().items()}
        if isinstance(trainer.ema, PowerEMA) and trainer.parallel.is_main:
            nimg, metadata = trainer.nimg, trainer.metadata
            save_snapshot(trainer.run_dir, trainer.ema, weights, nimg=nimg, metadata=metadata)
