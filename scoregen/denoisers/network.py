"""The denoiser that a raw network and a preconditioner make."""

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn

from scoregen.data.codec import codec_of
from scoregen.denoisers.base import Cond, as_sigma, expand
from scoregen.diffusion.precond import Coefficients, Precond
from scoregen.errors import UserError
from scoregen.networks.base import Network

Precision = Literal["fp32", "bf16", "fp16"]


class NetworkDenoiser(nn.Module):
    """Denoise with a network: D(x; sigma) = c_skip x + c_out F(c_in x; c_noise, cond, augment_labels).

    Coefficients and sum are float32, F runs under autocast of `precision`; a network with float64 weights
    is evaluated in float64. Where the preconditioner asks F for more channels than x has, the first ones
    are kept.

    Args:
        network: F. precond: the coefficients. shape: of one sample. num_classes: 0 is unconditional.
        cond_shape: of what the network is told of one sample in a class's place; () is a class or nothing.
        precision: of F's matrix products; training and sampling use the same.

    Raises UserError on samples of another shape and on networks whose output does not fit.
    Source: Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models, 2022, arXiv
    2206.00364.
    """

    def __init__(
        self,
        network: nn.Module,
        precond: Precond,
        *,
        shape: tuple[int, ...],
        num_classes: int = 0,
        cond_shape: tuple[int, ...] = (),
        precision: Precision = "fp32",
    ) -> None:
        super().__init__()
        self.network, self.precond, self.precision = network, precond, precision
        self.shape, self.num_classes, self.cond_shape = tuple(shape), num_classes, tuple(cond_shape)
        self.sigma_min, self.sigma_max = precond.sigma_min, precond.sigma_max
        self.codec = codec_of(precond)

    def forward(
        self, x: Tensor, sigma: Tensor, cond: Cond = None, augment_labels: Tensor | None = None
    ) -> Tensor:
        """E[x0 | x] for x [B, *shape] and sigma [] or [B], in float32 (float64 for a float64 network)."""
        x, c = self._prepare(x, sigma)
        with self._autocast(x.device.type):
            f = self.network(self.network_input(x, c), c.noise, cond, augment_labels)
        return self.combine(x, self._denoised_part(f, x), c)

    def features(self, x: Tensor, sigma: Tensor, cond: Cond = None) -> dict[str, Tensor]:
        """The network's features at all of its taps, [B, ...] each, in the dtype of `forward`'s result."""
        x, c = self._prepare(x, sigma)
        assert isinstance(self.network, Network)
        with self._autocast(x.device.type):
            features = self.network.features(self.network_input(x, c), c.noise, cond)
        return {name: feature.to(x.dtype) for name, feature in features.items()}

    def network_input(self, x: Tensor, c: Coefficients) -> Tensor:
        """What F sees of x [B, *shape]."""
        return expand(c.input, x) * x

    def combine(self, x: Tensor, f: Tensor, c: Coefficients) -> Tensor:
        """D from x and the output f of the network, both [B, *shape]."""
        return expand(c.skip, x) * x + expand(c.out, x) * f

    def round_sigma(self, sigma: Tensor) -> Tensor:
        """The nearest noise levels that the preconditioner knows; all but iDDPM's know every level."""
        return self.precond.round(sigma)

    def _prepare(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Coefficients]:
        """x [B, *shape] in the dtype of the work, and the coefficients at its noise levels."""
        if x.ndim == 0 or x.shape[1:] != self.shape:
            raise UserError(
                f"this denoiser takes batches of samples of shape {self.shape}, got shape {tuple(x.shape)}"
            )
        x = x.to(self._dtype())
        return x, self.precond(as_sigma(sigma, x).expand(x.shape[0]))

    def _denoised_part(self, f: Tensor, x: Tensor) -> Tensor:
        expected = (x.shape[0], self.precond.channel_factor * x.shape[1], *x.shape[2:])
        if f.shape != expected:
            raise UserError(
                f"the network returned shape {tuple(f.shape)}, {type(self.precond).__name__} needs"
                f" {expected}; build it with out_channels={expected[1]}"
            )
        return f[:, : x.shape[1]].to(x.dtype)

    def _dtype(self) -> torch.dtype:
        weight = next(self.network.parameters(), None)
        return torch.float64 if weight is not None and weight.dtype == torch.float64 else torch.float32

    def _autocast(self, device: str) -> AbstractContextManager:
        if self.precision == "fp32" or device == "meta":  # meta tensors have no autocast
            return nullcontext()
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float16
        return torch.autocast(device, dtype)
