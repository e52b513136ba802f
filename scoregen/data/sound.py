"""Sound with its mel spectrogram as what the model is told: spoken digits, or synthesised vowels."""

import warnings
import zipfile
from math import pi
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scoregen.data.base import ArrayDataset, Batch, Split
from scoregen.data.locate import Wanted, find
from scoregen.data.mel import LogMel
from scoregen.errors import UserError
from scoregen.ranges import NonNegative, Positive, PositiveInt
from scoregen.rng import generator

WANTED = Wanted(
    "The Free Spoken Digit Dataset",
    ("fsdd",),
    "3,000 clips of 8 kHz, CC BY-SA 4.0, https://github.com/Jakobovski/free-spoken-digit-dataset; packed as "
    "fsdd.npz with int16 `audio` end to end, int64 `offsets` [N + 1] and `index` [N], the number of the take",
)
RATE = 8000
TEST_TAKES = 5  # takes 0 to 4 of each speaker and digit are the official test split
PEAK = 0.95


class SoundDataset(ArrayDataset):
    """Waveforms float32 [N, 1, T] in [-1, 1], each fetched with its log-mel spectrogram for a label."""

    def __init__(self, name: str, x: Tensor, mel: LogMel) -> None:
        super().__init__(name, x)
        if x.shape[-1] % mel.hop:
            raise UserError(f"data.length={x.shape[-1]} must be a multiple of data.hop={mel.hop}")
        self.mel = mel
        self.cond_shape = (mel.n_mels, x.shape[-1] // mel.hop)

    def fetch(self, indices: Tensor) -> Batch:
        """The waveforms at indices (int64, on the CPU), and their spectrograms."""
        x = self.x[indices.to(self.x.device, non_blocking=True)]
        return Batch(x, self.mel(x))

    def _like(self, x: Tensor, label: Tensor | None) -> "SoundDataset":
        return SoundDataset(self.name, x, self.mel)


def load_speech(
    *,
    split: Split = "train",
    root: str | None = None,
    synthesise: bool = True,
    length: PositiveInt = 4096,
    n_fft: PositiveInt = 256,
    hop: PositiveInt = 64,
    n_mels: PositiveInt = 40,
    f_min: NonNegative = 20.0,
    f_max: Positive = 4000.0,
) -> SoundDataset:
    """Read the spoken digits, or synthesise vowels where their file is missing (with a warning).

    Each clip is scaled to a peak of 0.95, cut or padded with silence to `length` samples at 8 kHz. The test
    split is the official one, takes 0 to 4.
    Raises UserError where the file is damaged, or missing and not to be replaced.
    """
    mel = LogMel(RATE, n_fft, hop, n_mels, f_min, f_max)
    try:
        file = find(WANTED, ["fsdd.npz"], root)
    except UserError as error:
        if not synthesise:
            raise
        warnings.warn(f"{str(error).splitlines()[0]} Vowels are synthesised in its place.", stacklevel=2)
        return SoundDataset("vowels", synthesise_vowels(split, length), mel)
    return SoundDataset("fsdd", _read(file, split, length), mel)


def _read(file: Path, split: Split, length: int) -> Tensor:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            audio, offsets, take = (arrays[key] for key in ("audio", "offsets", "index"))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{file} is damaged or no packed {WANTED.title}: {error}") from error
    if audio.dtype != np.int16 or len(offsets) != len(take) + 1 or offsets[-1] != len(audio):
        raise UserError(f"{file} is damaged: audio {audio.dtype}, {len(offsets)} offsets, {len(take)} takes")
    chosen = np.flatnonzero((take < TEST_TAKES) == (split == "test"))
    clips = [torch.from_numpy(audio[offsets[i] : offsets[i + 1]].astype(np.float32)) for i in chosen]
    return torch.stack([_fit(clip, length) for clip in clips])[:, None]


def _fit(clip: Tensor, length: int) -> Tensor:
    """A clip [n] scaled to the peak, [length]."""
    clip = clip[:length] * (PEAK / clip.abs().max().clamp(min=1e-9))
    return torch.nn.functional.pad(clip, (0, length - len(clip)))


def synthesise_vowels(split: Split, length: int, count: int = 1000) -> Tensor:
    """Sounds like sung vowels, float32 [count, 1, length]; a fifth as many for the test split.

    Harmonics of a gliding pitch of 90 to 250 Hz, each as loud as three formants drawn at random let it be,
    swell and die away.
    """
    g = generator("vowels", split)
    n = count if split == "train" else count // 5

    def draw(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, 1, generator=g)

    t = torch.arange(length) / RATE
    pitch = draw(90, 250) * (1 + draw(-0.3, 0.3) * t / t[-1])  # [n, T], in Hz
    phase = 2 * pi * pitch.cumsum(1) / RATE
    formants = [(draw(250, 900), 80.0), (draw(900, 2300), 120.0), (draw(2300, 3300), 180.0)]
    sound = torch.zeros(n, length)
    for k in range(1, 40):
        frequency = k * pitch
        gain = sum(1 / (1 + ((frequency - centre) / width).square()) for centre, width in formants)
        sound += torch.where(frequency < RATE / 2, gain * (k * phase).sin() / k**0.5, 0.0)
    start, end = draw(0, 0.1), draw(0.3, 0.5)
    sound *= ((t - start) / 0.03).clamp(0, 1) * ((end - t) / 0.05).clamp(0, 1)
    return torch.stack([_fit(clip, length) for clip in sound])[:, None]
