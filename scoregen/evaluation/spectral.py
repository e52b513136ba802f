"""How far generated sound is from the real one whose spectrogram it was given."""

from collections.abc import Sequence

import torch
from torch import Tensor

from scoregen.data.base import Dataset
from scoregen.data.conditions import Conditions
from scoregen.data.mel import DECIBELS, LogMel
from scoregen.data.sound import SoundDataset
from scoregen.denoisers.base import Denoiser
from scoregen.errors import UserError
from scoregen.evaluation.processes import Processes
from scoregen.evaluation.result import Result
from scoregen.samplers.base import Sampler
from scoregen.samplers.generate import generate


def log_mel_error(x: Tensor, told: Tensor, mel: LogMel) -> Tensor:
    """The mean over bins and frames of |log mel(x) - told|, in dB: [B] for sounds x [B, 1, T]."""
    return DECIBELS * (mel(x) - told).abs().flatten(1).mean(1)


def spectral_error(
    denoiser: Denoiser,
    sampler: Sampler,
    seeds: Sequence[int],
    data: Dataset,
    *,
    batch: int,
    device: torch.device,
    processes: Processes,
) -> Result:
    """`ls_mae`: the mean `log_mel_error` of one sound a seed, each told a spectrogram of `data`, in dB.

    The spread is its standard error. After the log-mel spectral error of Chen et al., WaveGrad, 2020, arXiv
    2009.00713 (remembered); theirs is in other units and of other spectrograms, so the numbers do not
    compare. Raises UserError where the data are no sound.
    """
    if not isinstance(data, SoundDataset):
        raise UserError(f"{data.name} is no sound: ls_mae does not apply to it")
    conditions, mine = Conditions(data), seeds[processes.rank :: processes.world]
    totals = torch.zeros(3, dtype=torch.float64)  # how many, their sum, and that of their squares
    for samples in generate(denoiser, sampler, mine, batch=batch, device=device, conditions=conditions):
        error = log_mel_error(samples.x, conditions(samples.seeds).to(device), data.mel).double().cpu()
        totals += torch.stack([torch.ones_like(error), error, error.square()], 1).sum(0)
    n, total, squares = processes.sum(totals).tolist()
    variance = max(squares / n - (total / n) ** 2, 0.0) * n / max(n - 1, 1)
    return Result(
        "ls_mae",
        total / n,
        int(n),
        reference=data.name,
        reference_fingerprint=data.fingerprint,
        reference_n=len(data),
        spread=(variance / n) ** 0.5,
    )
