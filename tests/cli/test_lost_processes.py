"""Laws of several processes of which one is lost: the others stop with one message, and the run goes on."""

import json
import os
import random
import subprocess
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
import torch

from scoregen.parallel import Parallel, lost_process
from tests.cli.conftest import TINY, Run, Start

RUN = [*TINY, "trainer.batch=12", "hooks.status.every=48", "hooks.checkpoint.every=48"]
AGAIN = "give the same command again"


def kill(process: "subprocess.Popen[str]", rank: int, after: float = 0.0) -> str:
    """SIGKILL one of torchrun's processes a moment after it is there; what was told."""
    while not (found := [c for c in psutil.Process(process.pid).children() if _rank(c) == rank]):
        time.sleep(0.02)
    time.sleep(after)
    found[0].kill()
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1, err  # torchrun's own, whatever ours are
    return err


def _rank(child: psutil.Process) -> int:
    try:
        return int(child.environ().get("RANK", -1))
    except psutil.Error:
        return -1


def wait_for(process: "subprocess.Popen[str]", ready: Callable[[], bool]) -> None:
    while process.poll() is None and not ready():
        time.sleep(0.02)


def has_rows(folder: Path, rows: int) -> Callable[[], bool]:
    log = folder / "log.jsonl"
    return lambda: log.is_file() and len(log.read_text().splitlines()) >= rows


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


def assert_one_message(err: str) -> None:
    assert err.count(AGAIN) == 1, err
    assert "RuntimeError" not in err, err


def resume_until_done(
    run: Run, start: Start, folder: Path, steps: list[tuple[int, int]], last: int, total: int
) -> None:
    """Kill rank r of n processes for each (n, r) of `steps`, in one run, and end it with `last`."""
    options = [*RUN, f"run_dir={folder}", f"trainer.total={total}"]
    for processes, rank in steps:
        before = len(losses(folder)) if has_rows(folder, 1)() else 0
        training = start("train.py", *options, processes=processes)
        wait_for(training, has_rows(folder, before + 2))
        assert_one_message(kill(training, rank, after=random.random() * 0.3))
    done = run("train.py", *options, processes=last)
    assert done.returncode == 0, done.stderr


def test_a_run_that_loses_a_process_and_changes_their_number_keeps_its_loss_curve(
    call: Run, run: Run, start: Start, tmp_path: Path
) -> None:
    total = 20 * 48
    assert call("train.py", *RUN, "run_dir=whole", f"trainer.total={total}").returncode == 0
    resume_until_done(run, start, tmp_path / "lost", [(3, random.randrange(3))], last=4, total=total)
    assert losses(tmp_path / "lost") == pytest.approx(losses(tmp_path / "whole"), rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3, 4])
def test_every_rank_may_be_lost(run: Run, start: Start, tmp_path: Path, processes: int) -> None:
    total = 100 * 48
    assert run("train.py", *RUN, "run_dir=whole", f"trainer.total={total}").returncode == 0
    steps = [(processes, rank) for rank in range(processes)]
    resume_until_done(run, start, tmp_path / "lost", steps, last=1, total=total)
    assert losses(tmp_path / "lost") == pytest.approx(losses(tmp_path / "whole"), rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("after", [0.0, 1.0, 2.0, 3.0, 4.0, 6.0])
def test_a_process_lost_while_the_run_begins_stops_it(
    run: Run, start: Start, tmp_path: Path, after: float
) -> None:
    options = [*RUN, "run_dir=lost", "trainer.total=4800"]
    kill(start("train.py", *options, processes=3), rank=random.randrange(3), after=after)
    assert run("train.py", *options, processes=2).returncode == 0


@pytest.mark.parametrize("entry", ["sample.py --seeds 0-999", "evaluate.py --num 1000"])
def test_sampling_and_evaluation_stop_when_a_process_is_lost(start: Start, entry: str) -> None:
    script, *flags = entry.split()
    drawing = start(script, "--data", "digits", *flags, "--steps", "3000", processes=2)
    assert drawing.stdout is not None
    assert drawing.stdout.readline()  # what is drawn from; then it begins
    err = kill(drawing, rank=random.randrange(2), after=1.0)
    assert_one_message(err)


def _meet(rank: int, file: str, answers: bool) -> None:
    """Join, as rank of 2, and add up, or join and fall silent."""
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(20_000 + os.getppid() % 20_000))
    parallel = Parallel("cpu", patience=timedelta(seconds=2))
    parallel.barrier()
    if not answers:
        time.sleep(60)
    with pytest.raises(RuntimeError) as caught:
        parallel.sum(torch.ones(3))
    Path(file).write_text(lost_process(caught.value) or f"not recognised: {caught.value}")


def test_a_process_that_does_not_answer_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    context = torch.multiprocessing.get_context("spawn")
    file = tmp_path / "said"
    silent = context.Process(target=_meet, args=(1, str(file), False))
    answering = context.Process(target=_meet, args=(0, str(file), True))
    silent.start()
    answering.start()
    answering.join(60)
    silent.kill()
    assert "Timed out" in file.read_text()


@pytest.mark.parametrize("message", ["CUDA out of memory", "mat1 and mat2 shapes cannot be multiplied"])
def test_other_errors_do_not_pass_for_a_lost_process(message: str) -> None:
    assert lost_process(RuntimeError(message)) is None
