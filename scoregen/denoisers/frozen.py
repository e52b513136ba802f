"""A trained denoiser as a constant of another one's training."""

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from scoregen.denoisers.base import Cond, Denoiser


class Frozen(nn.Module):
    """Stand for a denoiser that follows the module holding it to a device, and in nothing else.

    It has neither parameters nor state, so no optimizer changes it and no checkpoint repeats it; it stays in
    evaluation mode and gives no gradients, not even of its input.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self._constant = (denoiser,)  # in a tuple, where nn.Module does not see its parameters
        if isinstance(denoiser, nn.Module):
            denoiser.eval().requires_grad_(False)

    @property
    def denoiser(self) -> Any:
        """What is frozen."""
        return self._constant[0]

    @torch.no_grad()
    def forward(self, x: Tensor, sigma: Tensor, cond: Cond = None) -> Tensor:
        """E[x0 | x] for x [B, *shape], sigma [] or [B] and class ids cond [B]."""
        denoised: Tensor = self.denoiser(x, sigma, cond)
        return denoised

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move the denoiser along: `to`, `cuda` and their like end here."""
        if isinstance(self.denoiser, nn.Module):
            self.denoiser._apply(fn)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch gives it no types
        return self
