"""Laws of sound: mel spectrograms agree with an independent library, clips with their file."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from scoregen.data.conditions import Conditions, conditions_of
from scoregen.data.digits import load_digits
from scoregen.data.mel import LogMel
from scoregen.data.sound import SoundDataset, load_speech, synthesise_vowels
from scoregen.data.stats import measure
from scoregen.data.stream import Stream
from scoregen.errors import UserError

# From librosa 0.11.0: filters.mel(htk=True, norm=None, dtype=float64) of (sr, n_fft, n_mels, fmin, fmax).
NARROW = (8000, 256, 40, 20.0, 4000.0)
ENTRIES = [
    (0, 1, 0.333719502),
    (1, 3, 0.871425769),
    (5, 9, 0.238574967),
    (10, 17, 0.279031677),
    (20, 40, 0.229912124),
    (30, 80, 0.0),
    (39, 120, 0.801880925),
    (39, 125, 0.445971704),
]
SUMS = {0: 1.084662425, 1: 1.145978601, 7: 1.576816668, 19: 2.66355247, 39: 6.556323695}
# The same of (22050, 2048, 128, 20, 11025): row, where its largest entry is, that entry, its sum.
WIDE = [
    (0, 3, 0.781286903, 1.423445795),
    (10, 20, 0.903430335, 1.815575538),
    (50, 137, 0.888692867, 4.329040361),
    (100, 529, 0.976969825, 12.85707768),
    (127, 1001, 0.987033965, 23.045758084),
]
# feature.melspectrogram(power=1, hop_length=64, center=True, pad_mode="reflect", window="hann") of `tones`.
SPECTROGRAM = [
    (0, 0, 4.6816746),
    (3, 0, 8.24249377),
    (7, 2, 0.77333256),
    (12, 5, 0.04378124),
    (39, 15, 0.55940745),
]


def narrow() -> LogMel:
    sample_rate, n_fft, n_mels, f_min, f_max = NARROW
    return LogMel(sample_rate, n_fft, 64, n_mels, f_min, f_max)


def tones() -> torch.Tensor:
    """Two tones and a sweep, [1, 1, 1024]."""
    t = torch.arange(1024, dtype=torch.float64) / 8000
    turn = 2 * torch.pi * t
    x = 0.5 * (440 * turn).sin() + 0.25 * (1500 * turn).cos() + 0.1 * ((200 + 1500 * t) * turn).sin()
    return x[None, None]


def test_filters_are_those_of_an_independent_library() -> None:
    filters = narrow().filters()
    assert filters.shape == (40, 129)
    for row, column, value in ENTRIES:
        assert float(filters[row, column]) == pytest.approx(value, abs=1e-9)
    for row, total in SUMS.items():
        assert float(filters[row].sum()) == pytest.approx(total, abs=1e-8)
    wide = LogMel(22050, 2048, 300, 128, 20.0, 11025.0).filters()
    for row, place, value, total in WIDE:
        assert int(wide[row].argmax()) == place
        assert float(wide[row, place]) == pytest.approx(value, abs=1e-9)
        assert float(wide[row].sum()) == pytest.approx(total, abs=1e-7)


def test_spectrograms_are_those_of_an_independent_library() -> None:
    magnitudes = narrow().magnitudes(tones())
    assert magnitudes.shape == (1, 40, 16)
    for row, frame, value in SPECTROGRAM:
        assert float(magnitudes[0, row, frame]) == pytest.approx(value, rel=1e-5)


def test_levels_are_decibels_between_silence_and_20_dB() -> None:
    mel, x = narrow(), tones()
    assert not mel(torch.zeros(1, 1, 1024)).any()
    inside = (mel(x) > 0.25) & (mel(x) < 0.95)
    torch.testing.assert_close(
        (mel(x) - mel(x / 10))[inside], torch.full_like(x, 0.2).flatten()[: int(inside.sum())]
    )
    assert float(mel(1000 * x).max()) == 1.0


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"f_max": 5000.0}, "half the sample rate, 4000"), ({"n_mels": 100}, "some hold no frequency")],
)
def test_spectrograms_that_cannot_be_are_refused(settings: dict[str, float], said: str) -> None:
    with pytest.raises(UserError, match=said):
        LogMel(**{"sample_rate": 8000, "n_fft": 256, "n_mels": 40, "f_max": 4000.0, **settings})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A packed set of six clips: takes 0, 7, 3, 8, 9, 4, each a different constant length."""
    lengths, takes = np.array([100, 200, 300, 5000, 128, 64]), np.array([0, 7, 3, 8, 9, 4], dtype=np.uint8)
    offsets = np.concatenate([[0], lengths.cumsum()])
    audio = np.random.default_rng(0).integers(-3000, 3000, lengths.sum()).astype(np.int16)
    (tmp_path / "fsdd").mkdir()
    np.savez(tmp_path / "fsdd" / "fsdd.npz", audio=audio, offsets=offsets, index=takes)
    return tmp_path


def test_clips_are_cut_or_padded_scaled_to_a_peak_and_split_by_take(folder: Path) -> None:
    train, test = load_speech(root=str(folder)), load_speech(root=str(folder), split="test")
    assert (len(train), len(test), train.shape) == (3, 3, (1, 4096))
    with np.load(folder / "fsdd" / "fsdd.npz") as arrays:
        audio, offsets = arrays["audio"].astype(np.float32), arrays["offsets"]
    for row, clip in enumerate((1, 3, 4)):
        raw = audio[offsets[clip] : offsets[clip + 1]][:4096]
        expected = np.pad(raw / np.abs(raw).max() * 0.95, (0, 4096 - len(raw)))
        np.testing.assert_allclose(train.x[row, 0].numpy(), expected, rtol=1e-6)


def test_what_a_batch_tells_is_the_spectrogram_of_its_sound(folder: Path) -> None:
    data = load_speech(root=str(folder))
    x, told = Stream(data, seed=0).batch(0, 3)
    assert told is not None
    torch.testing.assert_close(told, data.mel(x))
    assert told.shape[1:] == data.cond_shape
    assert measure(data).std == pytest.approx(float(data.x.std(correction=0)), rel=1e-5)
    moved = data.select(torch.tensor([2]))
    assert isinstance(moved, SoundDataset)
    conditions = conditions_of(data)
    assert isinstance(conditions, Conditions)
    torch.testing.assert_close(conditions([1, 4, 30]), data.mel(data.x[[1, 1, 0]]))
    assert conditions_of(load_digits()) is None


def test_without_the_file_vowels_are_synthesised_and_it_is_said(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Vowels are synthesised"):
        data = load_speech(root=str(tmp_path), split="test")
    assert data.name == "vowels"
    assert torch.equal(data.x, synthesise_vowels("test", 4096))
    assert float(data.x.abs().amax((1, 2)).sub(0.95).abs().max()) < 1e-5
    with pytest.raises(UserError, match=r"fsdd\.npz"):
        load_speech(root=str(tmp_path), synthesise=False)


def test_a_vowel_has_the_harmonics_of_its_pitch() -> None:
    """Voiced sound repeats: its autocorrelation peaks at a lag of 4 to 11 ms."""
    x = synthesise_vowels("test", 4096)[:, 0, 800:2000]
    power = torch.fft.rfft(x, 4096).abs().square()
    correlation = torch.fft.irfft(power)
    peak = correlation[:, 22:128].amax(1) / correlation[:, 0]
    assert float(peak.median()) > 0.7


@pytest.mark.parametrize(
    ("broken", "said"),
    [({"audio": np.zeros(9)}, "damaged"), ({"offsets": np.array([0, 5])}, "damaged"), ({}, "damaged")],
)
def test_a_damaged_file_is_refused(broken: dict[str, np.ndarray], said: str, folder: Path) -> None:
    file = folder / "fsdd" / "fsdd.npz"
    if broken:
        with np.load(file) as arrays:
            np.savez(file, **{**dict(arrays), **broken})
    else:
        file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match=said):
        load_speech(root=str(folder))


def test_a_length_that_frames_do_not_fill_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match=r"data\.length=4100 must be a multiple of data\.hop=64"):
        load_speech(root=str(folder), length=4100)


@pytest.mark.data
@pytest.mark.skipif(
    "SCOREGEN_DATA" not in os.environ, reason="set SCOREGEN_DATA to a folder with the data sets"
)
def test_the_spoken_digits_have_their_official_split() -> None:
    train, test = load_speech(synthesise=False), load_speech(synthesise=False, split="test")
    assert (len(train), len(test)) == (2700, 300)
