"""What every training objective takes and returns."""

from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from scoregen.denoisers.base import Cond, Denoise
from scoregen.rng import BatchRng


@dataclass
class Loss:
    """Per-sample losses, unreduced, so that loss-by-sigma curves and learned weights need no second pass."""

    value: Tensor  # [B], mean over the elements of a sample
    sigma: Tensor  # [B], the noise level of each sample
    logs: dict[str, Tensor] = field(default_factory=dict)  # further per-sample values [B] to average and log


class Objective(Protocol):
    """A loss for one denoiser. If it is an nn.Module, the trainer trains its parameters too."""

    def __call__(self, denoiser: Denoise, x0: Tensor, cond: Cond, rng: BatchRng) -> Loss:
        """The loss at clean data x0 [B, *shape] with class ids cond."""
        ...
