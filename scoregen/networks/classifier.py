"""Noise-conditional classifiers and discriminators: the encoder half of a DDPM++, pooled to logits."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from scoregen.errors import UserError
from scoregen.networks.layers import GroupNorm, Init, Linear, PositionalEmbedding
from scoregen.networks.unet import Block, UNet
from scoregen.networks.unet_song import DDPMpp
from scoregen.ranges import Fraction, NonNegativeInt, PositiveInt

_INIT = Init("xavier_uniform")
_INIT_LAST = Init("xavier_uniform", weight=1e-5)
_EPS = 1e-6


class EncoderNetwork(UNet):
    """Judge images [B, channels, R, R] by `logits` numbers: linear mean silu norm block encode(x, emb).

    emb = silu(L1 silu(L0(e(c_noise) + L one_hot + A augment_labels))), with e, encoder and blocks of DDPM++.
    Norms are of groups of channels and activations are smooth, so that the gradient of a sample's logits
    exists and depends on that sample alone.

    Args:
        resolution, channels, num_classes, augment_dim: of the data; filled in by the framework.
        out_channels: of a denoiser of the data, which this network has no use for; filled in likewise.
        model_channels, channel_mult: level l works in model_channels * channel_mult[l] channels.
        num_blocks: residual blocks per level; one more, with attention, follows at the lowest resolution.
        attention_resolutions: where further blocks attend, with a single head.
        dropout: probability, before the last convolution of each branch.

    Raises UserError on widths, resolutions and inputs that do not fit.
    """

    style = DDPMpp.style
    attend_throughout = False
    sees_class: ClassVar[bool]  # whether class ids enter emb

    def __init__(
        self,
        *,
        resolution: PositiveInt,
        channels: PositiveInt,
        num_classes: NonNegativeInt = 0,
        augment_dim: NonNegativeInt = 0,
        out_channels: PositiveInt | None = None,
        model_channels: PositiveInt = 64,
        channel_mult: Sequence[PositiveInt] = (1, 2),
        num_blocks: PositiveInt = 1,
        attention_resolutions: Sequence[PositiveInt] = (),
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
        emb = 4 * model_channels
        self.map_noise = PositionalEmbedding(model_channels, endpoint=True)
        self.map_layer0 = Linear(model_channels, emb, init=_INIT)
        self.map_layer1 = Linear(emb, emb, init=_INIT)
        self.map_label = (
            Linear(num_classes, model_channels, init=_INIT) if self.sees_class and num_classes else None
        )
        if augment_dim:
            self.map_augment = Linear(augment_dim, model_channels, init=_INIT, bias=False)

    @property
    @abstractmethod
    def logits(self) -> int:
        """How many logits there are."""

    def build_decoder(self, block: Block, skips: list[int]) -> None:
        """A last block and the head, in place of a decoder."""
        width = self.widths[-1]
        self.dec["last"] = block(width, width, attend=True)
        self.dec["norm"] = GroupNorm(width, eps=_EPS)
        self.dec["logits"] = Linear(width, self.logits, init=_INIT_LAST)

    def embed(self, noise_labels: Tensor, one_hot: Tensor, augment_labels: Tensor | None) -> Tensor:
        emb = self.map_noise(noise_labels).to(one_hot.dtype)
        if self.map_label is not None:
            emb = emb + self.map_label(one_hot)
        if self.augment_dim and augment_labels is not None:
            emb = emb + self.map_augment(augment_labels.to(one_hot.dtype))
        return F.silu(self.map_layer1(F.silu(self.map_layer0(emb))))

    def decode(self, skips: list[Tensor], emb: Tensor) -> Tensor:
        """The features [B, widths[-1], r, r] before the head, at the lowest resolution r."""
        features: Tensor = self.dec["last"](skips[-1], emb)
        return features

    def head(self, x: Tensor) -> Tensor:
        """Logits [B, logits] from the features."""
        pooled = F.silu(self.dec["norm"](x)).mean((2, 3))
        out: Tensor = self.dec["logits"](pooled)
        return out


class Classifier(EncoderNetwork):
    """Tell the classes of noisy images apart: logits [B, num_classes]. Class ids in a call are ignored.

    Arguments as in EncoderNetwork. Raises UserError where the data have no classes.
    """

    role = "classifier"
    sees_class = False

    @property
    def logits(self) -> int:
        """num_classes."""
        if self.num_classes == 0:
            raise UserError("network=classifier needs data with classes; set data.conditional=true")
        return self.num_classes


class Discriminator(EncoderNetwork):
    """Tell noisy real images from generated ones: the logit [B, 1] of real, told the class if there is one.

    Arguments as in EncoderNetwork.
    """

    role = "discriminator"
    sees_class = True

    @property
    def logits(self) -> int:
        """1."""
        return 1
