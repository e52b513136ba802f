"""Laws of the spectral error: nothing for the sound itself, decibels for a louder one."""

from math import inf

import pytest
import torch
from torch import Tensor

from scoregen.data.base import ArrayDataset
from scoregen.data.mel import LogMel
from scoregen.data.sound import SoundDataset, synthesise_vowels
from scoregen.denoisers.base import Cond, Denoiser
from scoregen.errors import UserError
from scoregen.evaluation.processes import Alone
from scoregen.evaluation.result import Result
from scoregen.evaluation.spectral import log_mel_error, spectral_error
from scoregen.samplers.edm import EulerSampler

MEL = LogMel(8000, 256, 64, 40, 20.0, 4000.0)


class Recall:
    """A vocoder that knows each sound by its spectrogram, and returns it at some loudness."""

    num_classes, sigma_min, sigma_max = 0, 0.0, inf

    def __init__(self, data: SoundDataset, gain: float) -> None:
        self.data, self.gain, self.shape, self.cond_shape = data, gain, data.shape, data.cond_shape

    def __call__(self, x: Tensor, sigma: Tensor, cond: Cond = None) -> Tensor:
        assert cond is not None
        known = self.data.mel(self.data.x)
        which = (cond[:, None] - known).flatten(2).square().sum(2).argmin(1)
        return self.gain * self.data.x[which]


@pytest.fixture(scope="module")
def data() -> SoundDataset:
    return SoundDataset("some", synthesise_vowels("test", 2048)[:7], MEL)


def test_the_sound_itself_has_no_error_and_a_louder_one_its_decibels(data: SoundDataset) -> None:
    told = MEL(data.x)
    assert not log_mel_error(data.x, told, MEL).any()
    between = (told > 0.2) & (told < 0.9)
    error = log_mel_error(data.x * 10**0.25, told, MEL)
    assert bool((error >= 5 * between.float().flatten(1).mean(1) - 1e-3).all())
    assert bool((error <= 5 + 1e-3).all())


def examine(data: SoundDataset | ArrayDataset, denoiser: Denoiser) -> Result:
    cpu, sampler, seeds = torch.device("cpu"), EulerSampler(steps=2), range(3, 12)
    return spectral_error(denoiser, sampler, seeds, data, batch=4, device=cpu, processes=Alone())


@pytest.mark.parametrize(("gain", "silent"), [(1.0, True), (0.5, False)])
def test_each_seed_is_judged_by_the_spectrogram_that_it_was_given(
    gain: float, silent: bool, data: SoundDataset
) -> None:
    """Seeds 3 to 11 in batches of 4, over 7 sounds."""
    result = examine(data, Recall(data, gain))
    errors = log_mel_error(gain * data.x, MEL(data.x), MEL)[[seed % 7 for seed in range(3, 12)]]
    assert result.n == 9
    assert result.value == pytest.approx(float(errors.mean()), abs=1e-3)
    assert result.spread == pytest.approx(float(errors.std()) / 3, abs=1e-3)
    assert (result.value < 1e-3) == silent


def test_images_are_refused(data: SoundDataset) -> None:
    with pytest.raises(UserError, match="grey is no sound"):
        examine(ArrayDataset("grey", torch.zeros(2, 1, 8, 8)), Recall(data, 1.0))
