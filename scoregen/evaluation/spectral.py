"""How far generated sound is from the real one whose spectrogram it was given."""

from collections.abc import Sequence
from statistics import stdev

import torch
from torch import Tensor

from scoregen.data.conditions import Conditions
from scoregen.data.mel import DECIBELS, LogMel
from scoregen.data.sound import SoundDataset
from scoregen.denoisers.base import Denoiser
from scoregen.errors import UserError
from scoregen.evaluation.result import Result
from scoregen.parallel import Parallel
from scoregen.samplers.base import Sampler
from scoregen.samplers.generate import generate

LS_MAE = "ls_mae"


def log_mel_error(x: Tensor, told: Tensor, mel: LogMel) -> Tensor:
    """The mean over bins and frames of |log mel(x) - told|, in dB: [B] for sounds x [B, 1, T]."""
    return DECIBELS * (mel(x) - told).abs().flatten(1).mean(1)


def evaluate_sound(
    denoiser: Denoiser,
    sampler: Sampler,
    seeds: Sequence[int],
    conditions: Conditions,
    *,
    batch: int,
    parallel: Parallel,
) -> dict[str, Result]:
    """`ls_mae` over one sound a seed: `log_mel_error` against the spectrogram that it was given, in dB.

    The spread is its standard error. After the log-mel spectral error of Chen et al., WaveGrad, 2020, arXiv
    2009.00713 (remembered); theirs is in other units and of other spectrograms, so the numbers do not
    compare. Raises UserError where the data are no sound.
    """
    data = conditions.data
    if not isinstance(data, SoundDataset):
        raise UserError(f"{data.name} is no sound: {LS_MAE} does not apply to it")
    mine, device = seeds[parallel.rank :: parallel.world], parallel.device
    errors = [
        log_mel_error(samples.x, conditions(samples.seeds).to(device), data.mel).tolist()
        for samples in generate(denoiser, sampler, mine, batch=batch, device=device, conditions=conditions)
    ]
    gathered = parallel.gather([error for part in errors for error in part])
    values = [error for share in gathered for error in share] or [0.0]
    spread = stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
    result = Result(
        LS_MAE,
        float(torch.tensor(values, dtype=torch.float64).mean()),
        len(values),
        reference=data.name,
        reference_fingerprint=data.fingerprint,
        reference_n=len(data),
        spread=spread,
    )
    return {LS_MAE: result}
