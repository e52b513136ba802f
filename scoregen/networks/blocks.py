"""The residual block of both U-Net families, with its optional self-attention."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scoregen.errors import UserError
from scoregen.networks.layers import (
    Conv2d,
    Direction,
    GroupNorm,
    Init,
    Linear,
    Resample,
    ResampleConv2d,
    attention,
)


@dataclass(frozen=True)
class BlockStyle:
    """What tells the blocks of one family from those of another."""

    init: Init
    init_last: Init  # of the last convolution of the branch and of the attention
    init_attention: Init  # of qkv
    eps: float  # of the group norms
    skip_scale: float  # multiplies the sum of skip and branch
    adaptive_scale: bool  # emb scales and shifts after the second norm, instead of being added before
    project_resampled: bool  # a resampling skip has a 1 x 1 convolution even where the channels agree
    channels_per_head: int | None  # None is a single head
    taps: Sequence[int]  # of the separable resampling filter

    def heads(self, channels: int) -> int:
        """The number of attention heads for `channels`; UserError unless they divide evenly."""
        return count_heads(channels, self.channels_per_head or channels)


def count_heads(channels: int, width: int) -> int:
    """The number of attention heads of `width` channels; UserError unless they divide evenly."""
    if channels % width:
        raise UserError(
            f"{channels} channels do not divide into heads of {width}; choose multiples of {width}"
        )
    return channels // width


class ResidualBlock(nn.Module):
    """Map x [B, in, H, W] to y = s (skip(x) + branch(x, emb)), and then, if it attends, to s (y + attend(y)).

    branch = conv1 dropout silu modulate conv0 silu norm0, where modulate is h -> norm1(h + A emb), or with
    an adaptive scale h -> (1 + a) norm1(h) + b, [a, b] = A emb; attend = proj attention qkv norm2. s is the
    `skip_scale`. With a direction, conv0 and skip resample first.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        style: BlockStyle,
        emb_channels: int,
        dropout: float,
        attend: bool = False,
        direction: Direction | None = None,
    ) -> None:
        super().__init__()
        self.style, self.dropout = style, dropout
        self.heads = style.heads(out_channels) if attend else 0
        modulation = 2 * out_channels if style.adaptive_scale else out_channels
        self.norm0 = GroupNorm(in_channels, eps=style.eps)
        self.conv0 = _conv(in_channels, out_channels, 3, style, direction)
        self.affine = Linear(emb_channels, modulation, init=style.init)
        self.norm1 = GroupNorm(out_channels, eps=style.eps)
        self.conv1 = Conv2d(out_channels, out_channels, 3, init=style.init_last)
        self.skip = _skip(in_channels, out_channels, style, direction)
        if attend:
            self.norm2 = GroupNorm(out_channels, eps=style.eps)
            self.qkv = Conv2d(out_channels, 3 * out_channels, 1, init=style.init_attention)
            self.proj = Conv2d(out_channels, out_channels, 1, init=style.init_last)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self._modulate(self.conv0(F.silu(self.norm0(x))), self.affine(emb)[:, :, None, None])
        h = self.conv1(F.dropout(F.silu(h), self.dropout, self.training))
        y: Tensor = (self.skip(x) + h) * self.style.skip_scale
        if self.heads:
            y = (y + self.proj(attention(self.qkv(self.norm2(y)), self.heads))) * self.style.skip_scale
        return y

    def _modulate(self, h: Tensor, affine: Tensor) -> Tensor:
        if self.style.adaptive_scale:
            scale, shift = affine.chunk(2, 1)
            return torch.addcmul(shift, self.norm1(h), scale + 1)
        normed: Tensor = self.norm1(h + affine)
        return normed


def _conv(n_in: int, n_out: int, kernel: int, style: BlockStyle, direction: Direction | None) -> nn.Module:
    if direction is None:
        return Conv2d(n_in, n_out, kernel, init=style.init)
    return ResampleConv2d(n_in, n_out, kernel, init=style.init, direction=direction, taps=style.taps)


def _skip(n_in: int, n_out: int, style: BlockStyle, direction: Direction | None) -> nn.Module:
    if n_in != n_out or (direction is not None and style.project_resampled):
        return _conv(n_in, n_out, 1, style, direction)
    return nn.Identity() if direction is None else Resample(direction, style.taps)
