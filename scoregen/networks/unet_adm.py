"""The ADM build of the DhariwalUNet family."""

from collections.abc import Sequence
from math import sqrt

import torch.nn.functional as F
from torch import Tensor

from scoregen.networks.blocks import BlockStyle
from scoregen.networks.layers import Conv2d, GroupNorm, Init, Linear, PositionalEmbedding
from scoregen.networks.unet import UNet
from scoregen.ranges import Fraction, NonNegativeInt, PositiveInt

_INIT = Init("kaiming_uniform", weight=sqrt(1 / 3), bias=sqrt(1 / 3))
_ZERO = Init("kaiming_uniform", weight=0, bias=0)
_EPS = 1e-5


class ADM(UNet):
    """Predict F(x, c_noise) with blocks that the embedding scales and shifts, and zero-initialised branches.

    emb = silu(L1 silu(L0(e(c_noise) + A augment_labels)) + L one_hot)

    Args:
        resolution, channels, num_classes, augment_dim, out_channels: of the data; filled in by the framework.
        model_channels, channel_mult: level l works in model_channels * channel_mult[l] channels.
        num_blocks: residual blocks per level of the encoder; the decoder has one more.
        attention_resolutions: where all blocks attend, in heads of 64 channels.
        dropout: probability, before the last convolution of each branch.

    Raises UserError on widths, resolutions and inputs that do not fit.
    Source: Dhariwal and Nichol, Diffusion Models Beat GANs on Image Synthesis, 2021, arXiv 2105.05233; here
    in the form of Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models, 2022,
    arXiv 2206.00364.
    """

    attend_throughout = True
    style = BlockStyle(
        init=_INIT,
        init_last=_ZERO,
        init_attention=_INIT,
        eps=_EPS,
        skip_scale=1.0,
        adaptive_scale=True,
        project_resampled=False,
        channels_per_head=64,
        taps=(1, 1),
    )

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
        attention_resolutions: Sequence[PositiveInt] = (32, 16, 8),
        dropout: Fraction = 0.1,
    ) -> None:
        super().__init__(
            resolution=resolution,
            channels=channels,
            num_classes=num_classes,
            augment_dim=augment_dim,
            out_channels=out_channels,
            model_channels=model_channels,
            channel_mult=channel_mult,
            num_blocks=num_blocks,
            attention_resolutions=attention_resolutions,
            dropout=dropout,
        )
        self._build_embedding(model_channels, 4 * model_channels)
        self.out_norm = GroupNorm(self.widths[0], eps=_EPS)
        self.out_conv = Conv2d(self.widths[0], self.out_channels, 3, init=_ZERO)

    def _build_embedding(self, noise_channels: int, emb_channels: int) -> None:
        self.map_noise = PositionalEmbedding(noise_channels, endpoint=False)
        if self.augment_dim:
            self.map_augment = Linear(self.augment_dim, noise_channels, init=_ZERO, bias=False)
        self.map_layer0 = Linear(noise_channels, emb_channels, init=_INIT)
        self.map_layer1 = Linear(emb_channels, emb_channels, init=_INIT)
        if self.num_classes:
            init = Init("kaiming_normal", weight=sqrt(self.num_classes))
            self.map_label = Linear(self.num_classes, emb_channels, init=init, bias=False)

    def embed(self, noise_labels: Tensor, one_hot: Tensor, augment_labels: Tensor | None) -> Tensor:
        emb = self.map_noise(noise_labels).to(one_hot.dtype)
        if self.augment_dim and augment_labels is not None:
            emb = emb + self.map_augment(augment_labels.to(one_hot.dtype))
        emb = self.map_layer1(F.silu(self.map_layer0(emb)))
        if self.num_classes:
            emb = emb + self.map_label(one_hot)
        return F.silu(emb)

    def head(self, x: Tensor) -> Tensor:
        out: Tensor = self.out_conv(F.silu(self.out_norm(x)))
        return out
