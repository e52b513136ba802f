"""Noise-conditional residual networks that classify noisy images."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from scoregen.errors import UserError
from scoregen.networks.base import Network
from scoregen.networks.layers import FourierEmbedding, GroupNorm, Init, Linear
from scoregen.ranges import NonNegativeInt, PositiveInt

_INIT = Init("xavier_uniform")
_INIT_LAST = Init("xavier_uniform", weight=1e-5)
_EPS = 1e-5


class ResNetClassifier(Network):
    """Tell the classes of noisy images apart by a residual network: logits [B, num_classes].

    A 3 x 3 stem; stages of width, 2 width, 4 width, ... channels at full, half, quarter, ... resolution, to
    whose output a linear map of emb is added; linear mean. emb = silu(L1 silu(L0(f(c_noise) + A augment))), f
    random Fourier features. num_blocks (2, 2, 2, 2) is ResNet-18 and (3, 4, 6, 3) ResNet-34.

    Where the published classifier of DLSM has BatchNorm and ReLU, this one has GroupNorm and SiLU: the
    gradient of a sample's logits depends on that sample alone, and has a derivative.

    Args:
        resolution, channels, num_classes, augment_dim: of the data; filled in by the framework.
        out_channels: of a denoiser of the data, which this network has no use for; filled in likewise.
        width: channels of the first stage. num_blocks: residual blocks of each stage.
        emb_channels: of emb.

    Raises UserError where the data have no classes, and on inputs that do not fit.
    Source: Chao et al., Denoising Likelihood Score Matching for Conditional Score-based Data Generation,
    2022, arXiv 2203.14206 (the official code was read), after He et al., Deep Residual Learning for Image
    Recognition, 2015, arXiv 1512.03385.
    """

    role = "classifier"

    def __init__(
        self,
        *,
        resolution: PositiveInt,
        channels: PositiveInt,
        num_classes: NonNegativeInt = 0,
        augment_dim: NonNegativeInt = 0,
        out_channels: PositiveInt | None = None,
        width: PositiveInt = 64,
        num_blocks: Sequence[PositiveInt] = (2, 2, 2, 2),
        emb_channels: PositiveInt = 128,
    ) -> None:
        if num_classes == 0:
            raise UserError("network=resnet18 needs data with classes; set data.conditional=true")
        shape = (channels, resolution, resolution)
        super().__init__(shape, num_classes=num_classes, augment_dim=augment_dim, out_channels=out_channels)
        self.map_noise = FourierEmbedding(emb_channels // 2)
        features = 2 * (emb_channels // 4)
        self.map_augment = Linear(augment_dim, features, init=_INIT, bias=False) if augment_dim else None
        self.map_layer0 = Linear(features, emb_channels, init=_INIT)
        self.map_layer1 = Linear(emb_channels, emb_channels, init=_INIT)
        widths = [width * 2**stage for stage in range(len(num_blocks))]
        self.stem = _conv_norm(channels, width, 3)
        self.stages = nn.ModuleList(
            nn.Sequential(_Block(before, out, stride), *[_Block(out, out) for _ in range(blocks - 1)])
            for before, out, stride, blocks in zip(
                [width, *widths], widths, [1, *[2] * len(widths)], num_blocks, strict=False
            )
        )
        self.affines = nn.ModuleList(Linear(emb_channels, out, init=_INIT) for out in widths)
        self.logits = Linear(widths[-1], num_classes, init=_INIT_LAST)

    def forward(
        self,
        x: Tensor,
        noise_labels: Tensor,
        cond: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        self.check(x, noise_labels, cond, augment_labels)
        emb = self._embed(noise_labels.to(x.dtype), augment_labels)
        h = F.silu(self.stem(x))
        for stage, affine in zip(self.stages, self.affines, strict=True):
            h = stage(h) + affine(emb)[:, :, None, None]
        out: Tensor = self.logits(h.mean((2, 3)))
        return out

    def _embed(self, noise_labels: Tensor, augment: Tensor | None) -> Tensor:
        features = self.map_noise(noise_labels)
        if self.map_augment is not None and augment is not None:
            features = features + self.map_augment(augment.to(features.dtype))
        return F.silu(self.map_layer1(F.silu(self.map_layer0(features))))


class _Block(nn.Module):
    """silu(skip(x) + branch(x)), branch = conv_norm silu conv_norm, a stride in the first and in skip."""

    def __init__(self, n_in: int, n_out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv0 = _conv_norm(n_in, n_out, 3, stride)
        self.conv1 = _conv_norm(n_out, n_out, 3)
        same = stride == 1 and n_in == n_out
        self.skip = nn.Identity() if same else _conv_norm(n_in, n_out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.skip(x) + self.conv1(F.silu(self.conv0(x))))


def _conv_norm(n_in: int, n_out: int, kernel: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(n_in, n_out, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, GroupNorm(n_out, eps=_EPS))
