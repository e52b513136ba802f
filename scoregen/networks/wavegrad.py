"""The WaveGrad network: from a noisy waveform and a mel spectrogram to the noise."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import prod

import torch.nn.functional as F
from torch import Tensor, nn

from scoregen.errors import UserError
from scoregen.networks.base import Network
from scoregen.networks.layers import PositionalEmbedding
from scoregen.ranges import NonNegativeInt, PositiveInt

_SLOPE = 0.2
_SCALE = 5000.0  # of the amplitude before its sines; one of the two ports leaves it out


class WaveGrad(Network):
    """Predict the noise in waveforms [B, 1, T], given their mel spectrogram [B, n_mels, T / hop] and l.

    A path down the noisy waveform gives features at every rate, from the full one to that before the last
    factor. A path up the spectrogram doubles back through the factors, whose product is the hop; before each
    of its convolutions but the first, the feature of the same rate and the amplitude l shift and scale it
    (FiLM). All is convolution: T may be any multiple of the hop that the data have.

    The default is the published base model (15.8 M parameters with 80 mel bins, as a port says).

    Args:
        resolution, channels, num_classes, augment_dim, out_channels: of the data, T and 1 the first two;
            filled in by the framework.
        n_mels: mel bins of the spectrogram.
        factors: of the way up, coarse to fine.
        up_channels: behind each factor. mel_channels: before the first.
        down_channels: of the features by rate, fine to coarse; the first is the stem's.
        dilations: of the four convolutions behind each factor.

    Raises UserError where the data are no sound or of another hop, and on lists of different lengths.
    Source: Chen et al., WaveGrad: Estimating Gradients for Waveform Generation, 2020, arXiv 2009.00713 (two
    implementations were read; they differ in the interpolation, here linear down and nearest up).
    """

    def __init__(
        self,
        *,
        resolution: PositiveInt,
        channels: PositiveInt,
        num_classes: NonNegativeInt = 0,
        augment_dim: NonNegativeInt = 0,
        out_channels: PositiveInt | None = None,
        n_mels: PositiveInt = 80,
        factors: Sequence[PositiveInt] = (5, 5, 3, 2, 2),
        up_channels: Sequence[PositiveInt] = (512, 512, 256, 128, 128),
        mel_channels: PositiveInt = 768,
        down_channels: Sequence[PositiveInt] = (32, 128, 128, 256, 512),
        dilations: Sequence[Sequence[PositiveInt]] = ((1, 2, 1, 2),) * 2 + ((1, 2, 4, 8),) * 3,
    ) -> None:
        hop = prod(factors)
        if channels != 1 or resolution % hop:
            raise UserError(
                f"network=wavegrad takes sound of one channel whose length is a multiple of {hop}, the "
                f"product of its factors {tuple(factors)}; the data have {channels} channels of {resolution}"
            )
        if not len(factors) == len(up_channels) == len(down_channels) == len(dilations):
            raise UserError(
                f"network=wavegrad: {len(factors)} factors need as many up_channels, down_channels and "
                f"dilations, got {len(up_channels)}, {len(down_channels)} and {len(dilations)}"
            )
        super().__init__(
            (channels, resolution),
            num_classes=num_classes,
            augment_dim=augment_dim,
            out_channels=out_channels,
        )
        self.n_mels, self.frames = n_mels, resolution // hop
        self.stem = _conv(1, down_channels[0], 5)
        self.down = nn.ModuleList(
            _Down(before, after, factor)
            for (before, after), factor in zip(pairwise(down_channels), reversed(factors[1:]), strict=True)
        )
        self.films = nn.ModuleList(
            _FiLM(feature, out) for feature, out in zip(down_channels, reversed(up_channels), strict=True)
        )
        self.mel = _conv(n_mels, mel_channels, 3)
        self.up = nn.ModuleList(
            _Up(before, after, factor, dilation)
            for (before, after), factor, dilation in zip(
                pairwise([mel_channels, *up_channels]), factors, dilations, strict=True
            )
        )
        self.output = _conv(up_channels[-1], self.out_channels, 3)

    def forward(
        self,
        x: Tensor,
        noise_labels: Tensor,
        cond: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        self.check(x, noise_labels, None, augment_labels)
        self._check_mel(cond, len(x))
        h, modulations = self.stem(x), []
        for down, film in zip([*self.down, None], self.films, strict=True):
            modulations.append(film(h, noise_labels))
            h = h if down is None else down(h)
        h = self.mel(cond)
        for up, (shift, scale) in zip(self.up, reversed(modulations), strict=True):
            h = up(h, shift, scale)
        out: Tensor = self.output(h)
        return out

    def _check_mel(self, cond: Tensor | None, batch: int) -> None:
        expected = (batch, self.n_mels, self.frames)
        if cond is None or cond.shape != expected:
            raise UserError(
                f"network=wavegrad needs mel spectrograms of shape {expected}, got "
                f"{None if cond is None else tuple(cond.shape)}: n_mels and the product of the factors must "
                "be data.n_mels and data.hop"
            )


class _Down(nn.Module):
    """Downsample by a factor, in a dilated branch beside a 1 x 1 convolution."""

    def __init__(self, n_in: int, n_out: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.skip = _conv(n_in, n_out, 1)
        self.convs = nn.ModuleList(
            _conv(n_out if i else n_in, n_out, 3, dilation) for i, dilation in enumerate((1, 2, 4))
        )

    def forward(self, x: Tensor) -> Tensor:
        h = F.interpolate(x, size=x.shape[-1] // self.factor, mode="linear")
        skip: Tensor = self.skip(h)
        for conv in self.convs:
            h = conv(F.leaky_relu(h, _SLOPE))
        return skip + h


class _FiLM(nn.Module):
    """Shift and scale [B, n_out, T], from a feature [B, n_in, T] of the waveform and the amplitude [B]."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.embedding = PositionalEmbedding(n_in, endpoint=False)
        self.input = _conv(n_in, n_in, 3, init=nn.init.xavier_uniform_)
        self.output = _conv(n_in, 2 * n_out, 3, init=nn.init.xavier_uniform_)

    def forward(self, feature: Tensor, amplitude: Tensor) -> tuple[Tensor, Tensor]:
        h = F.leaky_relu(self.input(feature), _SLOPE)
        h = h + self.embedding(_SCALE * amplitude).to(h.dtype)[:, :, None]
        shift, scale = self.output(h).chunk(2, 1)
        return shift, scale


class _Up(nn.Module):
    """Upsample by a factor and add two pairs of dilated convolutions, modulated before all but the first."""

    def __init__(self, n_in: int, n_out: int, factor: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.factor = factor
        self.skip = _conv(n_in, n_out, 1)
        self.convs = nn.ModuleList(
            _conv(n_out if i else n_in, n_out, 3, dilation) for i, dilation in enumerate(dilations)
        )

    def forward(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        def modulated(h: Tensor) -> Tensor:
            return F.leaky_relu(shift + scale * h, _SLOPE)

        first, second, third, fourth = self.convs
        # The 1 x 1 convolution of the skip commutes with nearest-neighbour upsampling and is cheaper before.
        h = first(self._upsample(F.leaky_relu(x, _SLOPE)))
        h = self._upsample(self.skip(x)) + second(modulated(h))
        out: Tensor = h + fourth(modulated(third(modulated(h))))
        return out

    def _upsample(self, x: Tensor) -> Tensor:
        return x.repeat_interleave(self.factor, -1)


def _conv(
    n_in: int,
    n_out: int,
    kernel: int,
    dilation: int = 1,
    *,
    init: Callable[[Tensor], Tensor] = nn.init.orthogonal_,
) -> nn.Conv1d:
    """A convolution that keeps the length; zero bias."""
    conv = nn.Conv1d(n_in, n_out, kernel, padding=dilation * (kernel // 2), dilation=dilation)
    init(conv.weight)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv
