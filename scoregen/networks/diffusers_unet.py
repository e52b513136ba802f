"""Adapters around the UNet2DModel of diffusers: one to train, one for what others have trained."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from scoregen.errors import UserError
from scoregen.networks.base import Network
from scoregen.networks.unet import levels
from scoregen.ranges import Fraction, NonNegativeInt, PositiveInt


class DiffusersUNet(Network):
    """Predict F(x, c_noise) with the UNet2DModel of diffusers, kept in `unet`.

    The class embedding has one more row for the null class, which is zero and stays zero. c_noise goes
    through its "positional" embedding; the "fourier" one takes a logarithm, and c_noise may be negative.

    Args:
        resolution, channels, num_classes, augment_dim, out_channels: of the data; filled in by the framework.
        block_out_channels: of each level. layers_per_block: residual blocks per level.
        attention_resolutions: where blocks attend. attention_head_dim: channels of a head.
        norm_num_groups: of the group norms; divides all of block_out_channels.
        dropout: probability.

    Raises UserError on augmentation labels, which UNet2DModel cannot take, and on shapes that do not fit.
    """

    def __init__(
        self,
        *,
        resolution: PositiveInt,
        channels: PositiveInt,
        num_classes: NonNegativeInt = 0,
        augment_dim: NonNegativeInt = 0,
        out_channels: PositiveInt | None = None,
        block_out_channels: Sequence[PositiveInt] = (128, 256, 256, 256),
        layers_per_block: PositiveInt = 2,
        attention_resolutions: Sequence[PositiveInt] = (16,),
        attention_head_dim: PositiveInt = 64,
        norm_num_groups: PositiveInt = 32,
        dropout: Fraction = 0.0,
    ) -> None:
        from diffusers import UNet2DModel

        if augment_dim:
            raise UserError(
                f"UNet2DModel has no input for {augment_dim} augmentation labels;"
                " switch the augmentation off or choose another network, for example ddpmpp"
            )
        if bad := [n for n in block_out_channels if n % norm_num_groups or n % attention_head_dim]:
            raise UserError(
                f"block_out_channels {bad} are not multiples of norm_num_groups={norm_num_groups} and"
                f" attention_head_dim={attention_head_dim}"
            )
        shape = (channels, resolution, resolution)
        super().__init__(shape, num_classes=num_classes, augment_dim=0, out_channels=out_channels)
        attends = [
            s in attention_resolutions
            for s in levels(resolution, len(block_out_channels), attention_resolutions)
        ]
        self.unet = UNet2DModel(
            sample_size=resolution,
            in_channels=channels,
            out_channels=self.out_channels,
            block_out_channels=tuple(block_out_channels),
            layers_per_block=layers_per_block,
            down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attends),
            up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
            attention_head_dim=attention_head_dim,
            norm_num_groups=norm_num_groups,
            dropout=dropout,
            num_class_embeds=num_classes + 1 if num_classes else None,
        )
        if num_classes:
            self._silence_null_class()

    def _silence_null_class(self) -> None:
        embedding = self.unet.class_embedding
        embedding.padding_idx = self.num_classes  # no gradient ever reaches this row
        with torch.no_grad():
            embedding.weight[self.num_classes].zero_()

    def forward(
        self,
        x: Tensor,
        noise_labels: Tensor,
        cond: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        self.check(x, noise_labels, cond, augment_labels)
        if self.num_classes and cond is None:
            cond = torch.full_like(noise_labels, self.num_classes, dtype=torch.long)
        out: Tensor = self.unet(x, noise_labels, class_labels=cond, return_dict=False)[0]
        return out


class ForeignUNet(Network):
    """Predict with a UNet2DModel of any configuration, kept in `unet`, as a folder of diffusers describes it.

    Args:
        resolution, channels, num_classes, augment_dim, out_channels: of the data; filled in by the framework.
        settings: the arguments of UNet2DModel.

    Raises UserError on augmentation labels, on settings that are not of these data, and on the null class,
    which such a network need not know.
    """

    def __init__(
        self,
        *,
        resolution: PositiveInt,
        channels: PositiveInt,
        num_classes: NonNegativeInt = 0,
        augment_dim: NonNegativeInt = 0,
        out_channels: PositiveInt | None = None,
        settings: Mapping[str, Any],
    ) -> None:
        from diffusers import UNet2DModel

        if augment_dim:
            raise UserError(f"UNet2DModel has no input for {augment_dim} augmentation labels")
        super().__init__(
            (channels, resolution, resolution),
            num_classes=num_classes,
            augment_dim=0,
            out_channels=out_channels,
        )
        self.unet = UNet2DModel(**settings)
        own = self.unet.config
        found = (own["in_channels"], own["out_channels"], own["num_class_embeds"] or 0)
        if found != (channels, self.out_channels, num_classes):
            raise UserError(
                f"settings describe (channels in, out, classes) {found}, the data need "
                f"{(channels, self.out_channels, num_classes)}"
            )

    def forward(
        self,
        x: Tensor,
        noise_labels: Tensor,
        cond: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        self.check(x, noise_labels, cond, augment_labels)
        if self.num_classes and cond is None:
            raise UserError("this network was not trained without a class: give one, and no guidance")
        out: Tensor = self.unet(x, noise_labels, class_labels=cond, return_dict=False)[0]
        return out
