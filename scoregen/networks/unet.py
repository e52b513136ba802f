"""The skeleton of all U-Net families: an encoder, a bottleneck and a decoder with skips."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from scoregen.errors import UserError
from scoregen.networks.base import Network
from scoregen.networks.blocks import BlockStyle, ResidualBlock
from scoregen.networks.layers import Conv2d

Block = Callable[..., nn.Module]  # (in_channels, out_channels, attend=False, direction=None)


class UNet(Network, ABC):
    """Map images [B, channels, R, R] to [B, out_channels, R, R]: head(decode(encode(x, emb), emb)).

    A subclass says `style` and `attend_throughout`, and defines `embed` and `head`; one with layers of its
    own overrides `stem`, `blocks` and `join` instead of saying a `style`. At the `attention_resolutions` all
    blocks of the encoder attend, and of the decoder all (`attend_throughout`) or the last of a level;
    elsewhere only the first block of the bottleneck does. The embedding has 4 model_channels.

    Raises UserError where the resolution cannot be halved, or an attention resolution is none of the levels.
    """

    style: ClassVar[BlockStyle]
    attend_throughout: ClassVar[bool]

    def __init__(
        self,
        *,
        resolution: int,
        channels: int,
        num_classes: int,
        augment_dim: int,
        out_channels: int | None,
        model_channels: int,
        channel_mult: Sequence[int],
        num_blocks: int,
        attention_resolutions: Sequence[int],
        dropout: float,
    ) -> None:
        shape = (channels, resolution, resolution)
        super().__init__(shape, num_classes=num_classes, augment_dim=augment_dim, out_channels=out_channels)
        self.sizes = levels(resolution, len(channel_mult), attention_resolutions)
        self.widths = [model_channels * mult for mult in channel_mult]
        self.num_blocks, self.attends = num_blocks, frozenset(attention_resolutions)
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        self.enc[f"{_name(resolution)}_conv"] = self.stem(channels, model_channels)
        encoding, decoding = self.blocks(model_channels, dropout)
        self.build_decoder(decoding, self.build_encoder(encoding, model_channels))

    def stem(self, channels: int, width: int) -> nn.Module:
        """The first convolution, of images with `channels` to `width` features."""
        return Conv2d(channels, width, 3, init=self.style.init)

    def blocks(self, model_channels: int, dropout: float) -> tuple[Block, Block]:
        """What makes the blocks of the encoder, and those of the decoder."""
        block = partial(ResidualBlock, style=self.style, emb_channels=4 * model_channels, dropout=dropout)
        return block, block

    def join(self, x: Tensor, skip: Tensor) -> Tensor:
        """What a block of the decoder takes, from the features x and those of the encoder."""
        return torch.cat([x, skip], 1)

    def build_encoder(self, block: Block, width: int) -> list[int]:
        """Fill `enc` behind its first convolution to `width` channels; return the channels of all skips."""
        skips = []
        for level, (size, out) in enumerate(zip(self.sizes, self.widths, strict=True)):
            if level:
                self.enc[f"{_name(size)}_down"] = block(width, width, direction="down")
            skips.append(width)
            for i in range(self.num_blocks):
                self.enc[f"{_name(size)}_block{i}"] = block(width, out, attend=size in self.attends)
                width = out
                skips.append(width)
        return skips

    def build_decoder(self, block: Block, skips: list[int]) -> None:
        """Fill `dec`, except for the head."""
        width = self.widths[-1]
        self.dec[f"{_name(self.sizes[-1])}_in0"] = block(width, width, attend=True)
        self.dec[f"{_name(self.sizes[-1])}_in1"] = block(width, width)
        for size, out in zip(reversed(self.sizes), reversed(self.widths), strict=True):
            if size != self.sizes[-1]:
                self.dec[f"{_name(size)}_up"] = block(width, width, direction="up")
            for i in range(self.num_blocks + 1):
                attend = size in self.attends and (self.attend_throughout or i == self.num_blocks)
                self.dec[f"{_name(size)}_block{i}"] = block(width + skips.pop(), out, attend=attend)
                width = out

    @abstractmethod
    def embed(self, noise_labels: Tensor, one_hot: Tensor, augment_labels: Tensor | None) -> Tensor:
        """The embedding [B, 4 model_channels] of noise level, class and augmentation."""

    @abstractmethod
    def head(self, x: Tensor) -> Tensor:
        """The output [B, out_channels, R, R] from the decoder's features."""

    def forward(
        self,
        x: Tensor,
        noise_labels: Tensor,
        cond: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        self.check(x, noise_labels, cond, augment_labels)
        emb = self.embed(noise_labels, self.one_hot(cond, x), augment_labels)
        return self.head(self.decode(self.encode(x, emb), emb))

    @property
    def taps(self) -> dict[str, tuple[int, ...]]:
        """The last block of the encoder at each resolution, for example 16x16."""
        return {_name(size): (width, size, size) for size, width in zip(self.sizes, self.widths, strict=True)}

    def features(
        self,
        x: Tensor,
        noise_labels: Tensor,
        cond: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """What the last block of each resolution of the encoder gives; the decoder is not run."""
        self.check(x, noise_labels, cond, augment_labels)
        skips = self.encode(x, self.embed(noise_labels, self.one_hot(cond, x), augment_labels))
        return dict(zip(self.taps, skips[self.num_blocks :: self.num_blocks + 1], strict=True))

    def encode(self, x: Tensor, emb: Tensor) -> list[Tensor]:
        """The features that the decoder takes, first to last."""
        if x.device.type == "cpu" or torch.compiler.is_compiling():
            # The layout that convolutions are fast in. On GPUs the norms keep it only when compiled.
            x = x.contiguous(memory_format=torch.channels_last)
        image, skips = x, []
        for size in self.sizes:
            if size == self.sizes[0]:
                x = self.enc[f"{_name(size)}_conv"](x)
            else:
                x, image = self.descend(size, x, image, emb)
            skips.append(x)
            for i in range(self.num_blocks):
                x = self.enc[f"{_name(size)}_block{i}"](x, emb)
                skips.append(x)
        return skips

    def descend(self, size: int, x: Tensor, image: Tensor, emb: Tensor) -> tuple[Tensor, Tensor]:
        """Features and running image at resolution `size`, from those at twice that resolution."""
        return self.enc[f"{_name(size)}_down"](x, emb), image

    def decode(self, skips: list[Tensor], emb: Tensor) -> Tensor:
        """The features [B, widths[0], R, R] before the head."""
        x: Tensor = self.dec[f"{_name(self.sizes[-1])}_in0"](skips[-1], emb)
        x = self.dec[f"{_name(self.sizes[-1])}_in1"](x, emb)
        for size in reversed(self.sizes):
            if size != self.sizes[-1]:
                x = self.dec[f"{_name(size)}_up"](x, emb)
            for i in range(self.num_blocks + 1):
                x = self.dec[f"{_name(size)}_block{i}"](self.join(x, skips.pop()), emb)
        return x


def _name(size: int) -> str:
    return f"{size}x{size}"


def levels(resolution: int, count: int, attention_resolutions: Sequence[int]) -> list[int]:
    """The resolutions of the levels, halved from one to the next; UserError where that cannot be."""
    if count == 0 or resolution % 2 ** (count - 1):
        raise UserError(
            f"images of resolution {resolution} cannot be halved for the {count} levels of channel_mult;"
            " change the number of levels (at least 1) or resize the images"
        )
    sizes = [resolution >> level for level in range(count)]
    if unknown := sorted(set(attention_resolutions) - set(sizes)):
        raise UserError(
            f"network.attention_resolutions={unknown}: none of the levels {sizes}; choose from these, or []"
        )
    return sizes
