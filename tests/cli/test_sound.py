"""Sound through the same commands: a tiny vocoder trained, sampled to wav files, and scored."""

import json
import wave
from pathlib import Path

import numpy as np
import torch

from scoregen.cli.sound import to_wav
from scoregen.data.sound import load_speech
from tests.cli.conftest import Run

TINY = [
    "experiment=wavegrad_toy",
    "device=cpu",
    "data.length=512",
    "network.up_channels=[8, 8, 8, 8]",
    "network.mel_channels=8",
    "network.down_channels=[4, 4, 4, 4]",
    "trainer.total=32",
    "trainer.batch=16",
    "hooks.status.every=16",
    "hooks.checkpoint.every=16",
    "hooks.grid.every=null",
    "run_dir=run",
]


def read_wav(file: Path) -> tuple[np.ndarray, int]:
    with wave.open(str(file)) as sound:
        assert (sound.getnchannels(), sound.getsampwidth()) == (1, 2)
        return np.frombuffer(sound.readframes(sound.getnframes()), "<i2"), sound.getframerate()


def test_a_vocoder_is_trained_sampled_and_scored_by_the_same_commands(call: Run, tmp_path: Path) -> None:
    done = call("train.py", *TINY, "hooks.grid.every=32", "hooks.grid.count=2", "sampler.steps=4")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "samples" / "000000000032.png").exists()
    args = ["--run", "run", "--seeds", "3,201", "--sampler", "wavegrad_6", "--device", "cpu"]
    done = call("sample.py", *args)
    assert done.returncode == 0, done.stderr
    assert "out/wav, " in done.stdout
    with np.load(tmp_path / "out" / "samples.npz") as arrays:
        audio = arrays["audio"]
    data = load_speech(root=str(tmp_path), split="test", length=512)
    for row, seed in enumerate((3, 201)):
        drawn, rate = read_wav(tmp_path / "out" / "wav" / f"{seed:06d}.wav")
        assert rate == 8000
        np.testing.assert_array_equal(drawn, np.round(audio[row].clip(-1, 1) * 32767).astype(np.int16))
        real, _ = read_wav(tmp_path / "out" / "wav" / f"{seed:06d}-real.wav")
        expected = data.x[seed % len(data), 0].numpy()
        np.testing.assert_allclose(real / 32767, expected, atol=1 / 32767)
    assert (tmp_path / "out" / "spectrograms.png").stat().st_size > 1000
    sampler = ["--sampler", "wavegrad_6", "--device", "cpu"]
    done = call("evaluate.py", "--run", "run", "--metrics", "ls_mae", "--num", "5", *sampler)
    assert done.returncode == 0, done.stderr
    (record,) = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert (record["name"], record["n"], record["reference"], record["nfe"]) == ("ls_mae", 5, "vowels", 6)


def test_a_short_schedule_is_searched_and_its_command_draws_with_it(call: Run) -> None:
    assert call("train.py", *TINY).returncode == 0
    flags = ["--run", "run", "--steps", "4", "--trials", "20", "--clips", "2", "--device", "cpu"]
    done = call("search_schedule", *flags)
    assert done.returncode == 0, done.stderr
    command = done.stdout.splitlines()[-1].split()
    assert command[:2] == ["python", "sample.py"]
    done = call(*command[1:], "--seeds", "0", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert "WaveGradSampler: 4 steps" in done.stdout


def test_a_vocoder_draws_alone_what_it_draws_in_a_batch(call: Run, tmp_path: Path) -> None:
    assert call("train.py", *TINY).returncode == 0
    args = ["--run", "run", "--sampler", "wavegrad_6", "--device", "cpu"]
    call("sample.py", *args, "--seeds", "0-4", "--out", "all")
    call("sample.py", *args, "--seeds", "3", "--out", "one")
    together, alone = (np.load(tmp_path / out / "samples.npz")["audio"] for out in ("all", "one"))
    np.testing.assert_allclose(together[3], alone[0], rtol=1e-4, atol=1e-5)


def test_a_vocoder_has_a_report(call: Run, tmp_path: Path) -> None:
    assert call("train.py", *TINY).returncode == 0
    done = call("evaluate.py", "--run", "run", "--report", "--sampler", "wavegrad_6", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert "64 samples" in (tmp_path / "run" / "report.html").read_text()


def test_a_run_is_planned(call: Run) -> None:
    done = call("train.py", *TINY, "dry=true")
    assert done.returncode == 0, done.stderr
    assert "samples of 1x512" in done.stdout


def test_wav_files_clip_what_is_too_loud(tmp_path: Path) -> None:
    (tmp_path / "x.wav").write_bytes(to_wav(torch.tensor([-2.0, -0.5, 0.0, 0.25, 3.0]), 8000))
    assert read_wav(tmp_path / "x.wav")[0].tolist() == [-32767, -16384, 0, 8192, 32767]


def test_what_is_for_images_or_classes_is_refused(call: Run) -> None:
    assert call("train.py", *TINY).returncode == 0
    done = call("sample.py", "--run", "run", "--class", "1", "--device", "cpu")
    assert done.returncode == 2
    assert "the model has no classes" in done.stderr
    done = call("train.py", *TINY, "network.n_mels=30", "run_dir=other")
    assert done.returncode == 2
    assert "data.n_mels" in done.stderr
