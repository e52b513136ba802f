"""Laws that only whole processes can show: kill -9 and resume, signals, and several processes."""

import json
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.cli.conftest import TINY, Run, Start

TWO = [*TINY, "trainer.total=256"]


def log_of(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{**row, "time": None} for row in rows]


def assert_same_end(a: Path, b: Path) -> None:
    """The last checkpoints agree bit for bit, and so do the logs."""
    ours, theirs = (max((folder / "checkpoints").iterdir()) for folder in (a, b))
    assert ours.name == theirs.name
    for name in ("model.safetensors", "ema.safetensors"):
        torch.testing.assert_close(load_file(ours / name), load_file(theirs / name), rtol=0, atol=0)
    training = (torch.load(folder / "optimizer.pt", weights_only=True) for folder in (ours, theirs))
    torch.testing.assert_close(*training, rtol=0, atol=0)
    assert log_of(a) == log_of(b)


def kill_when(process: Any, log: Path, rows: int) -> None:
    """SIGKILL a moment after the log has so many rows; a moment that differs from test to test."""
    while process.poll() is None and not (log.is_file() and len(log.read_text().splitlines()) >= rows):
        time.sleep(0.02)
    time.sleep(random.random() * 0.3)
    process.kill()
    process.communicate()


@pytest.mark.parametrize("options", [[], ["trainer.microbatch=8"]], ids=["whole", "micro-batches"])
def test_kill_9_and_the_same_command_equal_an_uninterrupted_run(
    run: Run, start: Start, tmp_path: Path, options: list[str]
) -> None:
    assert run("train.py", *TINY, *options, "run_dir=whole").returncode == 0
    killed = start("train.py", *TINY, *options, "run_dir=killed")
    kill_when(killed, tmp_path / "killed/log.jsonl", rows=random.randint(1, 5))
    resumed = run("train.py", *TINY, *options, "run_dir=killed")
    assert resumed.returncode == 0, resumed.stderr
    assert_same_end(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1], ids=lambda n: n.name)
def test_a_stop_signal_leaves_a_resumable_run(run: Run, start: Start, tmp_path: Path, number: int) -> None:
    stopped = start("train.py", *TINY, "trainer.total=100000000", "run_dir=stopped")
    while stopped.poll() is None and not (tmp_path / "stopped/log.jsonl").is_file():
        time.sleep(0.02)
    time.sleep(0.3)
    stopped.send_signal(number)
    _, err = stopped.communicate(timeout=60)
    assert stopped.returncode == 130, err
    assert "the same command resumes" in err
    at = max((tmp_path / "stopped/checkpoints").iterdir())
    again = run("train.py", *TINY, f"trainer.total={int(at.name) + 64}", "run_dir=stopped")
    assert again.returncode == 0, again.stderr
    assert f"resuming stopped at {int(at.name):,} images" in again.stdout


def test_one_process_two_and_micro_batches_have_one_loss_curve_and_one_set_of_samples(
    run: Run, tmp_path: Path
) -> None:
    runs = {"one": ([], 1), "two": ([], 2), "micro": (["trainer.microbatch=8"], 1)}
    for name, (options, processes) in runs.items():
        done = run("train.py", *TWO, *options, f"run_dir={name}", processes=processes)
        assert done.returncode == 0, done.stderr
        drawn = run("sample.py", "--run", name, "--seeds", "0-7", "--out", f"{name}-out", processes=processes)
        assert drawn.returncode == 0, drawn.stderr
    assert len(log_of(tmp_path / "one")) == 2
    for name in ("two", "micro"):
        for ours, theirs in zip(log_of(tmp_path / "one"), log_of(tmp_path / name), strict=True):
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-6)
        ours, theirs = (_images(tmp_path / f"{run}-out") for run in ("one", name))
        assert (ours - theirs).abs().max() <= 1


def _images(folder: Path) -> torch.Tensor:
    import numpy as np

    with np.load(folder / "samples.npz") as file:
        return torch.from_numpy(file["images"].astype(np.int64))


def test_there_may_be_more_processes_than_seeds(run: Run, tmp_path: Path) -> None:
    done = run("sample.py", "--seeds", "7", "--steps", "2", processes=2)
    assert done.returncode == 0, done.stderr
    assert len(_images(tmp_path / "out")) == 1


def test_two_processes_resume_exactly(run: Run, tmp_path: Path) -> None:
    assert run("train.py", *TWO, "run_dir=whole", processes=2).returncode == 0
    assert run("train.py", *TWO, "trainer.total=128", "run_dir=halves", processes=2).returncode == 0
    assert run("train.py", *TWO, "run_dir=halves", processes=2).returncode == 0
    assert_same_end(tmp_path / "whole", tmp_path / "halves")


def test_metrics_of_two_processes_equal_those_of_one(run: Run, tmp_path: Path) -> None:
    assert run("train.py", *TWO, "run_dir=model").returncode == 0
    values = {}
    for processes in (1, 2):
        out = tmp_path / f"{processes}.json"
        args = ["--run", "model", "--num", "131", "--nfe", "3", "--out", str(out)]
        done = run("evaluate.py", *args, processes=processes)
        assert done.returncode == 0, done.stderr
        values[processes] = json.loads(out.read_text())[0]
    assert values[1]["n"] == values[2]["n"] == 131
    assert values[1]["value"] == pytest.approx(values[2]["value"], rel=1e-9)


def test_distillation_by_two_processes_is_that_by_one_and_resumes_exactly(run: Run, tmp_path: Path) -> None:
    assert run("train.py", *TINY, "trainer.total=64", "run_dir=teacher").returncode == 0
    distil = ["experiment=digits_f_distill", "teacher=teacher", *TINY, "hooks.evaluate.every=null"]
    for name, total, processes in (("one", 256, 1), ("two", 256, 2), ("halves", 128, 2), ("halves", 256, 2)):
        done = run("train.py", *distil, f"trainer.total={total}", f"run_dir={name}", processes=processes)
        assert done.returncode == 0, done.stderr
    assert_same_end(tmp_path / "two", tmp_path / "halves")
    drawn = run("sample.py", "--run", "two", "--seeds", "0-3")
    assert "OneStepSampler: 1 steps, 1 network evaluations per image" in drawn.stdout
    assert len(_images(tmp_path / "out")) == 4
    for ours, theirs in zip(log_of(tmp_path / "one"), log_of(tmp_path / "two"), strict=True):
        for name in ("loss", "fake/loss", "critic/loss", "ratio_q50"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4)
