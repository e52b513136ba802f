"""A residual multilayer perceptron for flat samples: 2-D toys, feature vectors, small latents."""

import torch.nn.functional as F
from torch import Tensor, nn

from scoregen.errors import UserError
from scoregen.networks.base import Network
from scoregen.networks.layers import Init, Linear, PositionalEmbedding
from scoregen.ranges import Fraction, NonNegativeInt, PositiveInt

_INIT = Init("xavier_uniform")
_INIT_LAST = Init("xavier_uniform", weight=1e-5)


class MLP(Network):
    """Predict F(x, c_noise) for flat x [B, d], in residual steps h + L1 silu(norm(L0 silu(h)) + A emb).

    emb = silu(M1 silu(M0(e(c_noise) + L one_hot + A augment_labels))), e the positional embedding of DDPM++.

    Args:
        resolution, channels, num_classes, augment_dim, out_channels: of the data, the first two both d;
            filled in by the framework.
        width, depth: hidden units, and residual blocks.
        dropout: probability, before the last matrix of each block.

    Raises UserError on images and on inputs that do not fit.
    """

    def __init__(
        self,
        *,
        resolution: PositiveInt,
        channels: PositiveInt,
        num_classes: NonNegativeInt = 0,
        augment_dim: NonNegativeInt = 0,
        out_channels: PositiveInt | None = None,
        width: PositiveInt = 128,
        depth: PositiveInt = 4,
        dropout: Fraction = 0.0,
    ) -> None:
        if resolution != channels:
            raise UserError(
                f"an MLP takes flat samples, got images of {channels} channels and resolution {resolution};"
                " choose a U-Net, for example ddpmpp"
            )
        super().__init__(
            (channels,), num_classes=num_classes, augment_dim=augment_dim, out_channels=out_channels
        )
        self.map_noise = PositionalEmbedding(width, endpoint=True)
        self.map_label = Linear(num_classes, width, init=_INIT) if num_classes else None
        self.map_augment = Linear(augment_dim, width, init=_INIT, bias=False) if augment_dim else None
        self.map_layer0 = Linear(width, width, init=_INIT)
        self.map_layer1 = Linear(width, width, init=_INIT)
        self.input = Linear(channels, width, init=_INIT)
        self.blocks = nn.ModuleList(_Block(width, dropout) for _ in range(depth))
        self.output = Linear(width, self.out_channels, init=_INIT_LAST)

    def forward(
        self,
        x: Tensor,
        noise_labels: Tensor,
        cond: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        *_, h = self.features(x, noise_labels, cond, augment_labels).values()
        out: Tensor = self.output(F.silu(h))
        return out

    @property
    def taps(self) -> dict[str, tuple[int, ...]]:
        """Every block: block0, block1, ..."""
        return {f"block{i}": (self.input.weight.shape[0],) for i in range(len(self.blocks))}

    def features(
        self,
        x: Tensor,
        noise_labels: Tensor,
        cond: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """What each block gives, [B, width]."""
        self.check(x, noise_labels, cond, augment_labels)
        emb = self._embed(x, noise_labels, cond, augment_labels)
        h, features = self.input(x), {}
        for name, block in zip(self.taps, self.blocks, strict=True):
            h = block(h, emb)
            features[name] = h
        return features

    def _embed(self, x: Tensor, noise_labels: Tensor, cond: Tensor | None, augment: Tensor | None) -> Tensor:
        emb = self.map_noise(noise_labels).to(x.dtype)
        if self.map_label is not None:
            emb = emb + self.map_label(self.one_hot(cond, x))
        if self.map_augment is not None and augment is not None:
            emb = emb + self.map_augment(augment.to(x.dtype))
        return F.silu(self.map_layer1(F.silu(self.map_layer0(emb))))


class _Block(nn.Module):
    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.layer0 = Linear(width, width, init=_INIT)
        self.affine = Linear(width, width, init=_INIT)
        self.norm = nn.LayerNorm(width)
        self.layer1 = Linear(width, width, init=_INIT_LAST)

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        branch = F.silu(self.norm(self.layer0(F.silu(h))) + self.affine(emb))
        out: Tensor = h + self.layer1(F.dropout(branch, self.dropout, self.training))
        return out
