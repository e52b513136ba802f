"""The SongUNet family: the DDPM++ and NCSN++ builds."""

from abc import abstractmethod
from collections.abc import Sequence
from math import sqrt
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scoregen.networks.blocks import BlockStyle
from scoregen.networks.layers import (
    Conv2d,
    ConvDownsample,
    FourierEmbedding,
    GroupNorm,
    Init,
    Linear,
    PositionalEmbedding,
)
from scoregen.networks.unet import Block, UNet
from scoregen.ranges import Fraction, NonNegativeInt, PositiveInt

_INIT = Init("xavier_uniform")
_INIT_LAST = Init("xavier_uniform", weight=1e-5)
_EPS = 1e-6


def _style(taps: Sequence[int]) -> BlockStyle:
    return BlockStyle(
        init=_INIT,
        init_last=_INIT_LAST,
        init_attention=Init("xavier_uniform", weight=sqrt(0.2)),
        eps=_EPS,
        skip_scale=sqrt(0.5),
        adaptive_scale=False,
        project_resampled=True,
        channels_per_head=None,
        taps=taps,
    )


class SongUNet(UNet):
    """Predict F(x, c_noise) with averaging blocks; subclasses fix embedding, filter and encoder.

    emb = silu(L1 silu(L0(e(c_noise) + L(sqrt(num_classes) one_hot) + A augment_labels)))

    Args:
        resolution, channels, num_classes, augment_dim, out_channels: of the data; filled in by the framework.
        model_channels, channel_mult: level l works in model_channels * channel_mult[l] channels.
        num_blocks: residual blocks per level of the encoder; the decoder has one more.
        attention_resolutions: where blocks attend, with a single head.
        dropout: probability, before the last convolution of each branch.

    Raises UserError on widths, resolutions and inputs that do not fit.
    Source: Song et al., Score-Based Generative Modeling through Stochastic Differential Equations, 2021,
    arXiv 2011.13456; here in the form of Karras et al., Elucidating the Design Space of Diffusion-Based
    Generative Models, 2022, arXiv 2206.00364.
    """

    attend_throughout = False
    noise_mult: ClassVar[int]  # width of e(c_noise) in model_channels

    def __init__(
        self,
        *,
        resolution: PositiveInt,
        channels: PositiveInt,
        num_classes: NonNegativeInt = 0,
        augment_dim: NonNegativeInt = 0,
        out_channels: PositiveInt | None = None,
        model_channels: PositiveInt = 128,
        channel_mult: Sequence[PositiveInt] = (2, 2, 2),
        num_blocks: PositiveInt = 4,
        attention_resolutions: Sequence[PositiveInt] = (16,),
        dropout: Fraction = 0.0,
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
        self._build_embedding(self.noise_mult * model_channels, 4 * model_channels)
        self._aux = f"{resolution}x{resolution}_aux"
        self.dec[f"{self._aux}_norm"] = GroupNorm(self.widths[0], eps=_EPS)
        self.dec[f"{self._aux}_conv"] = Conv2d(self.widths[0], self.out_channels, 3, init=_INIT_LAST)

    def _build_embedding(self, noise_channels: int, emb_channels: int) -> None:
        self.map_noise = self.noise_embedding(noise_channels)
        if self.num_classes:
            self.map_label = Linear(self.num_classes, noise_channels, init=_INIT)
        if self.augment_dim:
            self.map_augment = Linear(self.augment_dim, noise_channels, init=_INIT, bias=False)
        self.map_layer0 = Linear(noise_channels, emb_channels, init=_INIT)
        self.map_layer1 = Linear(emb_channels, emb_channels, init=_INIT)

    @abstractmethod
    def noise_embedding(self, channels: int) -> nn.Module:
        """The module that embeds c_noise [B] as [cos, sin], [B, channels]."""

    def embed(self, noise_labels: Tensor, one_hot: Tensor, augment_labels: Tensor | None) -> Tensor:
        cos, sin = self.map_noise(noise_labels).to(one_hot.dtype).chunk(2, 1)
        emb = torch.cat([sin, cos], 1)  # the order that published weights expect
        if self.num_classes:
            emb = emb + self.map_label(one_hot * sqrt(self.num_classes))
        if self.augment_dim and augment_labels is not None:
            emb = emb + self.map_augment(augment_labels.to(one_hot.dtype))
        return F.silu(self.map_layer1(F.silu(self.map_layer0(emb))))

    def head(self, x: Tensor) -> Tensor:
        out: Tensor = self.dec[f"{self._aux}_conv"](F.silu(self.dec[f"{self._aux}_norm"](x)))
        return out


class DDPMpp(SongUNet):
    """Build DDPM++: positional embedding with endpoint, box filter; arguments and sources as in SongUNet."""

    style = _style((1, 1))
    noise_mult = 1

    def noise_embedding(self, channels: int) -> nn.Module:
        return PositionalEmbedding(channels, endpoint=True)


class NCSNpp(SongUNet):
    """Build NCSN++: Fourier features, filter [1, 3, 3, 1], a pyramid of the input; arguments as in SongUNet.

    image_l = sqrt(1/2) (x_l + downsample(conv(image_{l-1}))), image_0 = x, replaces the features x_l
    entering level l.
    """

    style = _style((1, 3, 3, 1))
    noise_mult = 2

    def noise_embedding(self, channels: int) -> nn.Module:
        return FourierEmbedding(channels)

    def build_encoder(self, block: Block, width: int) -> list[int]:
        skips = super().build_encoder(block, width)
        channels = [self.shape[0], *self.widths]
        for size, n_in, n_out in zip(self.sizes[1:], channels, self.widths, strict=False):
            conv = ConvDownsample(n_in, n_out, 3, init=_INIT, taps=self.style.taps)
            self.enc[f"{size}x{size}_aux_residual"] = conv
        return skips

    def descend(self, size: int, x: Tensor, image: Tensor, emb: Tensor) -> tuple[Tensor, Tensor]:
        x, image = super().descend(size, x, image, emb)
        x = (x + self.enc[f"{size}x{size}_aux_residual"](image)) * self.style.skip_scale
        return x, x
