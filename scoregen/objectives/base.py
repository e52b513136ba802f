"""What every training objective takes and returns."""

from dataclasses import dataclass, field
from math import log10
from typing import Protocol

import torch
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


SIGMA_EDGES = tuple(10 ** (k / 2) for k in range(-4, 5))  # two bins a decade and two open ends
SIGMA_BINS = len(SIGMA_EDGES) + 1


def describe_bin(index: int) -> str:
    """The range of sigma of a bin of `sigma_bins`, in words for people."""
    if index == 0:
        return f"below {SIGMA_EDGES[0]:.3g}"
    if index == len(SIGMA_EDGES):
        return f"above {SIGMA_EDGES[-1]:.3g}"
    return f"{SIGMA_EDGES[index - 1]:.3g} to {SIGMA_EDGES[index]:.3g}"


def sigma_bins(loss: Loss) -> dict[str, Tensor]:
    """Sum the losses and what is logged with them per bin of sigma, on the device and without a host sync.

    Returns [SIGMA_BINS] each: `loss`, the sums of the finite losses, `count`, how many they are, `bad`,
    how many losses are not finite, and `log/<name>`, the sums of further values where losses are finite.
    All add up over micro-batches, steps and processes. Bin k holds SIGMA_EDGES[k - 1] <= sigma <
    SIGMA_EDGES[k].
    """
    position = (loss.sigma.detach().log10() - log10(SIGMA_EDGES[0])) * 2 + 1
    index = position.floor().clamp(0, SIGMA_BINS - 1)
    member = index[:, None] == torch.arange(SIGMA_BINS, device=index.device)
    value = loss.value.detach()[:, None]
    good = member & value.isfinite()
    dtype = torch.float32 if value.device.type == "mps" else torch.float64
    sums = {
        "loss": torch.where(good, value, 0.0).sum(0, dtype=dtype),
        "count": good.sum(0, dtype=dtype),
        "bad": (member & ~value.isfinite()).sum(0, dtype=dtype),
    }
    for name, logged in loss.logs.items():
        sums[f"log/{name}"] = torch.where(good, logged.detach()[:, None], 0.0).sum(0, dtype=dtype)
    return sums
