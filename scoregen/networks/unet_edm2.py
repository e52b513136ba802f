"""The magnitude-preserving U-Net of EDM2."""

from collections.abc import Sequence
from functools import partial
from math import sqrt

import torch
from torch import Tensor, nn

from scoregen.errors import UserError
from scoregen.networks.magnitude import MPBlock, MPConv, MPFourier, mp_cat, mp_silu, mp_sum
from scoregen.networks.unet import Block, UNet
from scoregen.ranges import Fraction, NonNegativeInt, PositiveInt


class EDM2(UNet):
    """Predict F(x, c_noise) = g out(decode(encode([x, 1]), emb)) without biases or group norms.

    emb = silu(mix(N e(c_noise), L(sqrt(num_classes) one_hot))), mix = `mp_sum` with equal shares. All layers
    keep magnitudes (`scoregen.networks.magnitude`); the gains g of the output and of emb in each block start
    at 0. Training normalises all weights before each step, so use a rate that falls (conf/schedule/edm2).

    Args:
        resolution, channels, num_classes, augment_dim, out_channels: of the data; filled in by the framework.
        model_channels, channel_mult: level l works in model_channels * channel_mult[l] channels.
        num_blocks: residual blocks per level of the encoder; the decoder has one more.
        attention_resolutions: where all blocks attend, in heads of 64 channels.
        dropout: probability, before the last convolution of each branch.

    Raises UserError on augmentation labels, which this network has no input for, and on widths, resolutions
    and inputs that do not fit.
    Source: Karras et al., Analyzing and Improving the Training Dynamics of Diffusion Models, 2024, arXiv
    2312.02696, configuration G.
    """

    attend_throughout = True

    def __init__(
        self,
        *,
        resolution: PositiveInt,
        channels: PositiveInt,
        num_classes: NonNegativeInt = 0,
        augment_dim: NonNegativeInt = 0,
        out_channels: PositiveInt | None = None,
        model_channels: PositiveInt = 192,
        channel_mult: Sequence[PositiveInt] = (1, 2, 3, 4),
        num_blocks: PositiveInt = 3,
        attention_resolutions: Sequence[PositiveInt] = (16, 8),
        dropout: Fraction = 0.0,
    ) -> None:
        if augment_dim:
            raise UserError(
                f"EDM2's network has no input for {augment_dim} augmentation labels; switch the augmentation"
                " off (augment=none) or choose another network, for example ddpmpp"
            )
        super().__init__(
            resolution=resolution,
            channels=channels,
            num_classes=num_classes,
            augment_dim=0,
            out_channels=out_channels,
            model_channels=model_channels,
            channel_mult=channel_mult,
            num_blocks=num_blocks,
            attention_resolutions=attention_resolutions,
            dropout=dropout,
        )
        self.emb_fourier = MPFourier(self.widths[0])
        self.emb_noise = MPConv(self.widths[0], max(self.widths), 0)
        self.emb_label = MPConv(num_classes, max(self.widths), 0) if num_classes else None
        self.out_gain = nn.Parameter(torch.zeros([]))
        self.out_conv = MPConv(self.widths[0], self.out_channels, 3)

    def stem(self, channels: int, width: int) -> nn.Module:
        """One channel more, of ones, stands for the bias."""
        return MPConv(channels + 1, width, 3)

    def blocks(self, model_channels: int, dropout: float) -> tuple[Block, Block]:
        block = partial(MPBlock, emb_channels=max(self.widths), dropout=dropout)
        return partial(block, encode=True), partial(block, encode=False)

    def join(self, x: Tensor, skip: Tensor) -> Tensor:
        return mp_cat(x, skip)

    def embed(self, noise_labels: Tensor, one_hot: Tensor, augment_labels: Tensor | None) -> Tensor:
        emb: Tensor = self.emb_noise(self.emb_fourier(noise_labels).to(one_hot.dtype))
        if self.emb_label is not None:
            emb = mp_sum(emb, self.emb_label(one_hot * sqrt(self.num_classes)), 0.5)
        return mp_silu(emb)

    def encode(self, x: Tensor, emb: Tensor) -> list[Tensor]:
        return super().encode(torch.cat([x, torch.ones_like(x[:, :1])], 1), emb)

    def head(self, x: Tensor) -> Tensor:
        out: Tensor = self.out_conv(x, self.out_gain)
        return out
