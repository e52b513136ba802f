"""The layers that networks share: Linear and Conv2d, FIR resampling, GroupNorm, embeddings, attention.

Names and shapes of parameters and buffers, and the order of q, k, v, are the file format of the published EDM
weights. Source: Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models, 2022,
arXiv 2206.00364.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from math import pi, sqrt
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from scoregen.errors import UserError

Direction = Literal["up", "down"]


@dataclass(frozen=True)
class Init:
    """Draw initial weights and biases from one law times `weight` and `bias`.

    xavier_uniform: U(-a, a), a^2 = 6 / (fan_in + fan_out); kaiming_uniform: U(-a, a), a^2 = 3 / fan_in;
    kaiming_normal: N(0, 1 / fan_in). Draws from torch's global generator, when a layer is constructed.
    """

    mode: Literal["xavier_uniform", "kaiming_uniform", "kaiming_normal"]
    weight: float = 1.0
    bias: float = 0.0

    def parameters(self, shape: tuple[int, ...], *, bias: bool) -> tuple[nn.Parameter, nn.Parameter | None]:
        """The weight of `shape` [out, in, ...] and the bias [out], or None."""
        taps = torch.Size(shape[2:]).numel()
        fan_in, fan_out = shape[1] * taps, shape[0] * taps
        weight = nn.Parameter(self._draw(shape, self.weight, fan_in, fan_out))
        return weight, nn.Parameter(self._draw(shape[:1], self.bias, fan_in, fan_out)) if bias else None

    def _draw(self, shape: tuple[int, ...], gain: float, fan_in: int, fan_out: int) -> Tensor:
        if gain == 0:
            return torch.zeros(shape)
        if self.mode == "kaiming_normal":
            return torch.randn(shape) * (gain / sqrt(fan_in))
        bound = sqrt(6 / (fan_in + fan_out)) if self.mode == "xavier_uniform" else sqrt(3 / fan_in)
        return (2 * torch.rand(shape) - 1) * (gain * bound)


class Linear(nn.Module):
    """Map [B, n_in] to [B, n_out]: x W^T + b."""

    def __init__(self, n_in: int, n_out: int, *, init: Init, bias: bool = True) -> None:
        super().__init__()
        self.weight, self.bias = init.parameters((n_out, n_in), bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class Conv2d(nn.Module):
    """Convolve [B, n_in, H, W] to [B, n_out, H, W] with an odd `kernel` and zero padding."""

    def __init__(self, n_in: int, n_out: int, kernel: int, *, init: Init) -> None:
        super().__init__()
        self.weight, self.bias = init.parameters((n_out, n_in, kernel, kernel), bias=True)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, padding=self.weight.shape[-1] // 2)


def twice_differentiable() -> AbstractContextManager[None]:
    """Within it attention is computed by a kernel that has second derivatives, which the fused ones lack."""
    return sdpa_kernel(SDPBackend.MATH)


def fir_filter(taps: Sequence[int]) -> Tensor:
    """The separable filter outer(taps, taps) / sum(taps)^2 as [1, 1, K, K]."""
    row = torch.tensor(tuple(taps), dtype=torch.float32)
    return (row[:, None] * row / row.sum() ** 2)[None, None]


def downsample(x: Tensor, fir: Tensor, *, padding: int | None = None) -> Tensor:
    """Filter channels with fir [1, 1, K, K] and halve the resolution; zero padding, (K - 1) // 2 if None."""
    if fir.shape[-1] == 2:  # the box filter; pooling is up to ten times faster than a convolution
        return F.avg_pool2d(x, 2)
    channels, pad = x.shape[1], (fir.shape[-1] - 1) // 2 if padding is None else padding
    return F.conv2d(x, fir.expand(channels, -1, -1, -1), stride=2, padding=pad, groups=channels)


def upsample(x: Tensor, fir: Tensor) -> Tensor:
    """Put zeros between pixels and filter each channel with 4 fir: the transpose of `downsample`, times 4."""
    if fir.shape[-1] == 2:
        return repeat_pixels(x)
    channels, pad = x.shape[1], (fir.shape[-1] - 1) // 2
    weight = (4 * fir).expand(channels, -1, -1, -1)
    return F.conv_transpose2d(x, weight, stride=2, padding=pad, groups=channels)


def repeat_pixels(x: Tensor) -> Tensor:
    """Each pixel of [B, C, H, W] four times over: [B, C, 2 H, 2 W], channels last where x is.

    Compiled, `interpolate` would add up its gradient by atomics, slowly and in no fixed order.
    """
    if not torch.compiler.is_compiling():
        return F.interpolate(x, scale_factor=2, mode="nearest")
    batch, channels, height, width = x.shape
    pixels = x.permute(0, 2, 3, 1)[:, :, None, :, None]
    repeated = pixels.expand(batch, height, 2, width, 2, channels)
    return repeated.reshape(batch, 2 * height, 2 * width, channels).permute(0, 3, 1, 2)


class Resample(nn.Module):
    """Double or halve the resolution of [B, C, H, W] with a FIR filter."""

    resample_filter: Tensor

    def __init__(self, direction: Direction, taps: Sequence[int]) -> None:
        super().__init__()
        self.resample = upsample if direction == "up" else downsample
        self.register_buffer("resample_filter", fir_filter(taps))

    def forward(self, x: Tensor) -> Tensor:
        return self.resample(x, self.resample_filter)


class ResampleConv2d(Conv2d):
    """Resample like `Resample`, then convolve."""

    resample_filter: Tensor

    def __init__(
        self, n_in: int, n_out: int, kernel: int, *, init: Init, direction: Direction, taps: Sequence[int]
    ) -> None:
        super().__init__(n_in, n_out, kernel, init=init)
        self.resample = upsample if direction == "up" else downsample
        self.register_buffer("resample_filter", fir_filter(taps))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.resample(x, self.resample_filter))


class ConvDownsample(Conv2d):
    """Convolve on a canvas that the filter needs, then downsample: the filter sees no zeros of its own."""

    resample_filter: Tensor

    def __init__(self, n_in: int, n_out: int, kernel: int, *, init: Init, taps: Sequence[int]) -> None:
        super().__init__(n_in, n_out, kernel, init=init)
        self.register_buffer("resample_filter", fir_filter(taps))

    def forward(self, x: Tensor) -> Tensor:
        fir = self.resample_filter
        pad = self.weight.shape[-1] // 2 + (fir.shape[-1] - 1) // 2
        return downsample(F.conv2d(x, self.weight, self.bias, padding=pad), fir, padding=0)


class GroupNorm(nn.Module):
    """Normalise groups of channels, in float32 at least, under autocast too.

    There are min(32, C // 4) groups, or the next lower number that divides C.
    """

    def __init__(self, channels: int, *, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.groups = next(n for n in range(max(1, min(32, channels // 4)), 0, -1) if channels % n == 0)
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        if torch.compiler.is_compiling():
            return self._spelled_out(wide).to(x.dtype)
        return F.group_norm(wide, self.groups, self.weight, self.bias, self.eps).to(x.dtype)

    def _spelled_out(self, x: Tensor) -> Tensor:
        """The same in primitive operations, which a compiler fuses with their neighbours.

        Of the packaged norm it makes one that goes through channels-first memory, there and back.
        """
        grouped = x.unflatten(1, (self.groups, -1))
        var, mean = torch.var_mean(grouped, (2, 3, 4), correction=0, keepdim=True)
        scale = (var + self.eps).rsqrt() * self.weight.view(1, self.groups, -1, 1, 1)
        shift = self.bias.view(1, self.groups, -1, 1, 1) - mean * scale
        return torch.addcmul(shift, grouped, scale).flatten(1, 2)


class PositionalEmbedding(nn.Module):
    """Embed noise labels t [B] as [cos(w t), sin(w t)], [B, channels].

    w_k = 10000^(-k / (channels / 2 - endpoint)), k = 0 ... channels / 2 - 1: with `endpoint` the last one
    is 1e-4.
    Raises UserError unless channels is even and at least 4.
    """

    def __init__(self, channels: int, *, endpoint: bool) -> None:
        super().__init__()
        if channels % 2 or channels < 4:
            raise UserError(
                f"a width of {channels} cannot hold sines and cosines; choose an even one of at least 4"
            )
        self.channels, self.endpoint = channels, endpoint

    def forward(self, noise_labels: Tensor) -> Tensor:
        count = self.channels // 2
        k = torch.arange(count, device=noise_labels.device, dtype=noise_labels.dtype)
        angles = noise_labels[:, None] * 10000 ** (-k / (count - self.endpoint))
        return torch.cat([angles.cos(), angles.sin()], 1)


class FourierEmbedding(nn.Module):
    """Embed noise labels t [B] as [cos(2 pi f t), sin(2 pi f t)], [B, channels], fixed f ~ N(0, 16^2)."""

    freqs: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("freqs", torch.randn(channels // 2) * 16)

    def forward(self, noise_labels: Tensor) -> Tensor:
        angles = noise_labels[:, None] * (2 * pi * self.freqs.to(noise_labels.dtype))
        return torch.cat([angles.cos(), angles.sin()], 1)


def attention(qkv: Tensor, heads: int) -> Tensor:
    """Attend over pixels: softmax(Q K^T / sqrt(d)) V for each of `heads`, d = C / heads.

    qkv is [B, 3C, H, W], where channel (head * d + i) * 3 + j holds element i of q, k, v for j = 0, 1, 2;
    the result is [B, C, H, W]. Whatever the dtype of qkv, the kernels take the softmax in float32 at least.
    """
    batch, channels, height, width = qkv.shape
    split = qkv.reshape(batch, heads, channels // (3 * heads), 3, height * width)
    q, k, v = (
        split.permute(3, 0, 1, 4, 2).contiguous().unbind()
    )  # fused kernels need the d of a pixel adjacent
    out = F.scaled_dot_product_attention(q, k, v)  # [B, heads, H W, d]
    return out.transpose(1, 2).reshape(batch, height, width, channels // 3).permute(0, 3, 1, 2)
