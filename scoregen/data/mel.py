"""Mel spectrograms, of nothing but torch."""

from dataclasses import dataclass
from math import log10

import torch
from torch import Tensor

from scoregen.errors import UserError
from scoregen.ranges import NonNegative, Positive, PositiveInt

_FLOOR = 1e-5  # of a magnitude, -100 dB
_SILENCE = -80.0  # in dB, what 0 stands for
DECIBELS = 100.0  # from 0 to 1


@dataclass(frozen=True)
class LogMel:
    """Turn waveforms [B, 1, T] into log-mel spectrograms [B, n_mels, T / hop] in [0, 1].

    clip((20 log10 max(M |STFT|, 1e-5) + 80) / 100, 0, 1), with a periodic Hann window of n_fft, frame j
    centred at sample j hop of the waveform reflected at its ends, and M triangles that are 1 at their
    centres: centres and outer ends are equally spaced in 2595 log10(1 + f / 700) from f_min to f_max.

    Args:
        sample_rate: in Hz. n_fft: window, in samples. hop: between frames. n_mels: triangles.
        f_min, f_max: in Hz.

    Raises UserError where f_max exceeds half the sample rate, or a triangle holds no frequency of the STFT.
    """

    sample_rate: PositiveInt = 22050
    n_fft: PositiveInt = 1024
    hop: PositiveInt = 300
    n_mels: PositiveInt = 80
    f_min: NonNegative = 20.0
    f_max: Positive = 11025.0

    def __post_init__(self) -> None:
        if not self.f_min < self.f_max <= self.sample_rate / 2:
            raise UserError(
                f"mel bins from {self.f_min:g} to {self.f_max:g} Hz: f_max is at most half the sample rate, "
                f"{self.sample_rate / 2:g}, and more than f_min"
            )
        if not bool(self.filters().any(1).all()):
            raise UserError(
                f"{self.n_mels} mel bins are too narrow for n_fft={self.n_fft}: some hold no frequency; "
                "lower n_mels or raise n_fft"
            )

    def filters(self) -> Tensor:
        """The triangles M [n_mels, n_fft / 2 + 1], float64."""
        ends = torch.linspace(_mel(self.f_min), _mel(self.f_max), self.n_mels + 2, dtype=torch.float64)
        edges = 700 * (10 ** (ends / 2595) - 1)
        frequency = torch.arange(self.n_fft // 2 + 1, dtype=torch.float64) * (self.sample_rate / self.n_fft)
        rising = (frequency - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
        falling = (edges[2:, None] - frequency) / (edges[2:] - edges[1:-1])[:, None]
        return torch.minimum(rising, falling).clamp(min=0)

    def magnitudes(self, x: Tensor) -> Tensor:
        """M |STFT| of waveforms [B, 1, T], [B, n_mels, T / hop]."""
        window = torch.hann_window(self.n_fft, dtype=x.dtype, device=x.device)
        spectrum = torch.stft(
            x[:, 0], self.n_fft, self.hop, window=window, center=True, pad_mode="reflect", return_complex=True
        )
        return self.filters().to(x) @ spectrum.abs()[..., : x.shape[-1] // self.hop]

    def __call__(self, x: Tensor) -> Tensor:
        """The log-mel spectrograms of waveforms [B, 1, T]."""
        decibels = 20 * self.magnitudes(x).clamp(min=_FLOOR).log10()
        return ((decibels - _SILENCE) / DECIBELS).clamp(0, 1)


def _mel(frequency: float) -> float:
    return 2595 * log10(1 + frequency / 700)
