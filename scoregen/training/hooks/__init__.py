"""What happens at intervals of a run: status, held-out loss, sample grids, metrics, profile, checkpoints."""

from scoregen.training.hooks.base import Hook
from scoregen.training.hooks.evaluate import EvaluateHook
from scoregen.training.hooks.grid import GridHook
from scoregen.training.hooks.heldout import HeldoutHook
from scoregen.training.hooks.profile import ProfileHook
from scoregen.training.hooks.save import CheckpointHook, EMASnapshotHook
from scoregen.training.hooks.status import ProgressHook, StatusHook

__all__ = [
    "CheckpointHook",
    "EMASnapshotHook",
    "EvaluateHook",
    "GridHook",
    "HeldoutHook",
    "Hook",
    "ProfileHook",
    "ProgressHook",
    "StatusHook",
]
