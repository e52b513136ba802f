"""The law of a storm: a run that is stopped at random times, again and again, ends as one that never was."""

import random
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from scoregen.training.signals import STOP_SIGNALS
from tests.cli.conftest import TINY, Run, Start
from tests.cli.test_processes import assert_same_end

RUN = [*TINY, "trainer.total=16384"]
STORMS = {"stops": STOP_SIGNALS, "kills": (signal.SIGKILL,), "both": (*STOP_SIGNALS, signal.SIGKILL)}


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("storm", STORMS)
def test_a_storm_of_stops_changes_no_bit_of_the_result(
    run: Run, start: Start, tmp_path: Path, storm: str, processes: int
) -> None:
    begin = time.monotonic()
    assert run("train.py", *RUN, "run_dir=whole", processes=processes).returncode == 0
    longest, stopped, done = 0.4 * (time.monotonic() - begin), 0, False
    while not done:
        training = start("train.py", *RUN, "run_dir=stormy", processes=processes)
        done = survived(training, random.choice(STORMS[storm]), after=random.uniform(0.0, longest))
        stopped += not done
    assert stopped >= 2
    assert_same_end(tmp_path / "whole", tmp_path / "stormy")
    assert not list((tmp_path / "stormy").rglob(".tmp-*"))


def survived(training: "subprocess.Popen[str]", number: int, after: float) -> bool:
    """Whether the run was over before the signal came; otherwise it must have left as documented."""
    try:
        training.wait(after)
    except subprocess.TimeoutExpired:
        victim(training).send_signal(number)
    _, err = training.communicate(timeout=120)
    # Killed, or stopped before there was anything to stop, or by torchrun, whose code is its own.
    left = {-number, 130} | ({1} if by_torchrun(training) else set())
    assert training.returncode in {0, *left}, err
    return training.returncode == 0


def victim(training: "subprocess.Popen[str]") -> psutil.Process:
    """The process itself, or one of torchrun's, which would not end them all on every signal to itself."""
    process = psutil.Process(training.pid)
    return random.choice((by_torchrun(training) and process.children()) or [process])


def by_torchrun(training: "subprocess.Popen[str]") -> bool:
    return "torch.distributed.run" in training.args
