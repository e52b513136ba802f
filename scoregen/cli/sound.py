"""What sample.py does more for models of sound: wav files, and spectrograms beside the real ones."""

import wave
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from scoregen.build import build_data
from scoregen.data.conditions import Conditions, conditions_of
from scoregen.data.sound import SoundDataset
from scoregen.files import write_whole
from scoregen.images import picture, to_png
from scoregen.samplers.generate import Samples

if TYPE_CHECKING:
    from scoregen.cli.source import Source

SHOWN = 8


def load_conditions(source: "Source") -> Conditions | None:
    """The test split's conditions, for a model that is told more than a class; None for others."""
    if not getattr(source.denoiser, "cond_shape", ()):
        return None
    return conditions_of(build_data(source.cfg, "test"))


def to_wav(x: Tensor, sample_rate: int) -> bytes:
    """A mono wav file of 16 bits a sample of x [T] in [-1, 1]; what exceeds that is clipped."""
    file = BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(sample_rate)
        sound.writeframes((x.clamp(-1, 1) * 32767).round().to(torch.int16).numpy().astype("<i2").tobytes())
    return file.getvalue()


def write_sounds(out: Path, samples: Samples, conditions: Conditions | None) -> list[str]:
    """Write a wav file a seed, drawn and real, and the first spectrograms of both; their names.

    Writes nothing for samples that are no sound.
    """
    if conditions is None or not isinstance(conditions.data, SoundDataset):
        return []
    rate, real = conditions.data.mel.sample_rate, conditions.batch(samples.seeds).x.cpu()
    for seed, drawn, truth in zip(samples.seeds, samples.x, real, strict=True):
        write_whole(out / "wav" / f"{seed:06d}.wav", to_wav(drawn[0], rate))
        write_whole(out / "wav" / f"{seed:06d}-real.wav", to_wav(truth[0], rate))
    both = torch.cat([_loudest_one(samples.x[:SHOWN]), _loudest_one(real[:SHOWN])])
    write_whole(out / "spectrograms.png", to_png(picture(both, columns=min(SHOWN, len(samples.x)))))
    return ["wav", "spectrograms.png"]


def _loudest_one(x: Tensor) -> Tensor:
    """Sounds [B, 1, T] to a peak of 1 each, so that a picture shows them alike."""
    return x / x.abs().amax((1, 2), keepdim=True).clamp(min=1e-9)
