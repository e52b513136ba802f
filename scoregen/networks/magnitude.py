"""Layers that keep the magnitude of what flows through them, and of their own weights.

Activations of unit variance stay so in expectation without normalisation by data-dependent groups. Names and
shapes of parameters and buffers are the file format of the published EDM2 weights.

Source: Karras et al., Analyzing and Improving the Training Dynamics of Diffusion Models, 2024, arXiv
2312.02696; equations by the numbers that its code names.
"""

from collections.abc import Sequence
from math import pi, sqrt
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scoregen.networks.blocks import count_heads
from scoregen.networks.layers import Direction, attention, repeat_pixels

HEAD = 64  # channels of an attention head
CLIP = 256.0  # of a block's output, which float16 could not hold otherwise
BRANCH_SHARE = 0.3  # of residual branches and attention in the sums that they enter


def normalise(x: Tensor, dims: Sequence[int]) -> Tensor:
    """x over its root mean square along `dims` plus 1e-4, taken in float32 at least."""
    count = torch.Size([x.shape[dim] for dim in dims]).numel()
    wide = torch.promote_types(x.dtype, torch.float32)
    norm: Tensor = torch.linalg.vector_norm(x, dim=list(dims), keepdim=True, dtype=wide)
    return x / (norm / sqrt(count) + 1e-4).to(x.dtype)


def mp_silu(x: Tensor) -> Tensor:
    """silu(x) / 0.596, of unit second moment for x ~ N(0, 1) (eq. 81)."""
    return F.silu(x) / 0.596


def mp_sum(a: Tensor, b: Tensor, share: float) -> Tensor:
    """((1 - t) a + t b) / sqrt((1 - t)^2 + t^2) with the share t of b (eq. 88)."""
    mixed: Tensor = a.lerp(b, share)
    return mixed / sqrt((1 - share) ** 2 + share**2)


def mp_cat(a: Tensor, b: Tensor) -> Tensor:
    """[w_a a, w_b b] along channels, w = sqrt((N_a + N_b) / (2 N)): both count alike in a sum (eq. 103)."""
    n_a, n_b = a.shape[1], b.shape[1]
    return torch.cat([a * sqrt((n_a + n_b) / (2 * n_a)), b * sqrt((n_a + n_b) / (2 * n_b))], 1)


class MPFourier(nn.Module):
    """Embed noise labels t [B] as sqrt(2) cos(f t + p), [B, channels], f ~ 2 pi N(0, 1), p ~ U(0, 2 pi).

    f and p are drawn once and kept (eq. 75).
    """

    freqs: Tensor
    phases: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("freqs", 2 * pi * torch.randn(channels))
        self.register_buffer("phases", 2 * pi * torch.rand(channels))

    def forward(self, noise_labels: Tensor) -> Tensor:
        t = noise_labels.to(torch.promote_types(noise_labels.dtype, torch.float32))
        angles = t[:, None] * self.freqs.to(t.dtype) + self.phases.to(t.dtype)
        return sqrt(2) * angles.cos()


class MPConv(nn.Module):
    """Convolve [B, n_in, H, W], or multiply [B, n_in] where `kernel` is 0, by g w / ||w||, without a bias.

    ||w|| is that of each output's weights (eq. 47), g the caller's gain. Each call of `train()` stores
    w sqrt(n) / ||w|| in w's place, n = fan in (forced weight normalisation, eq. 66): the trainer calls it
    before each step's first forward, so that a step's size is relative to weights of unit variance. What is
    only evaluated, averages among it, keeps its weights as they are.
    """

    def __init__(self, n_in: int, n_out: int, kernel: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_out, n_in, *([kernel, kernel] if kernel else [])))

    def train(self, mode: bool = True) -> Self:
        """Enter or leave training; entering normalises the weight in place."""
        if mode:
            with torch.no_grad():
                self.weight.copy_(self._normalised())
        return super().train(mode)

    def _normalised(self) -> Tensor:
        return normalise(self.weight, range(1, self.weight.ndim))

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        weight = self._normalised() * (gain / sqrt(self.weight[0].numel()))
        if weight.ndim == 2:
            return F.linear(x, weight)
        return F.conv2d(x, weight, padding=weight.shape[-1] // 2)


class MPBlock(nn.Module):
    """Map x [B, in, H, W] to clip(mix(y, attend(y))), y = mix(s, branch(r, emb)), mix = `mp_sum` with 0.3.

    branch = conv1 silu modulate conv0 silu, where modulate is h -> (1 + g A emb) h with a gain g that starts
    at 0; attend = proj attention(normalise(qkv)). x is resampled by the box filter first, where there is a
    direction. Blocks that `encode` have r = s = normalise(skip(x)) per pixel, the others r = x, s = skip(x).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        emb_channels: int,
        dropout: float,
        encode: bool,
        attend: bool = False,
        direction: Direction | None = None,
    ) -> None:
        super().__init__()
        self.encode, self.direction, self.dropout = encode, direction, dropout
        self.heads = count_heads(out_channels, HEAD) if attend else 0
        self.emb_gain = nn.Parameter(torch.zeros([]))
        self.conv_res0 = MPConv(out_channels if encode else in_channels, out_channels, 3)
        self.emb_linear = MPConv(emb_channels, out_channels, 0)
        self.conv_res1 = MPConv(out_channels, out_channels, 3)
        self.conv_skip = (
            MPConv(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()
        )
        if attend:
            self.attn_qkv = MPConv(out_channels, 3 * out_channels, 1)
            self.attn_proj = MPConv(out_channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        x = self._resample(x)
        if self.encode:
            x = normalise(self.conv_skip(x), [1])
            x = mp_sum(x, self._branch(x, emb), BRANCH_SHARE)
        else:
            x = mp_sum(self.conv_skip(x), self._branch(x, emb), BRANCH_SHARE)
        if self.heads:
            x = mp_sum(x, self._attend(x), BRANCH_SHARE)
        return x.clamp(-CLIP, CLIP)

    def _resample(self, x: Tensor) -> Tensor:
        if self.direction is None:
            return x
        return F.avg_pool2d(x, 2) if self.direction == "down" else repeat_pixels(x)

    def _branch(self, x: Tensor, emb: Tensor) -> Tensor:
        scale = self.emb_linear(emb, self.emb_gain)[:, :, None, None] + 1
        y = mp_silu(self.conv_res0(mp_silu(x)) * scale)
        branched: Tensor = self.conv_res1(F.dropout(y, self.dropout, self.training))
        return branched

    def _attend(self, x: Tensor) -> Tensor:
        """Attention by the cosine of q and k: each of q, k, v has unit variance over a head's channels."""
        qkv: Tensor = self.attn_qkv(x)
        split = qkv.unflatten(1, (self.heads, -1, 3))
        attended: Tensor = self.attn_proj(attention(normalise(split, [2]).flatten(1, 3), self.heads))
        return attended
