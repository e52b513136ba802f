"""Laws of runs on a cluster: several by one command, checked before, and requeued when stopped."""

import json
import signal
import time
from pathlib import Path

import psutil
import pytest
from submitit import AutoExecutor

from scoregen import config
from scoregen.cli.entry import DONE, INTERRUPTED, WRONG_INPUT
from scoregen.launch import SlurmLauncher, Submitted
from tests.cli.conftest import ROOT, TINY, Run, call  # noqa: F401 - a fixture

LOCAL = ["launcher=slurm", "launcher.cluster=local", "launcher.gpus_per_node=null"]


def test_a_run_for_each_combination_of_values() -> None:
    runs = config.sweep(["seed=0,1", "data=digits", "network.channel_mult=[1,2],[1]", "data.root='a,b'"])
    assert runs == [
        [f"seed={seed}", "data=digits", f"network.channel_mult={mult}", "data.root='a,b'"]
        for seed in (0, 1)
        for mult in ("[1,2]", "[1]")
    ]
    nested = "sampler.segments=[[3,2,0.14,0.3],[4,1,1,2]]"
    assert config.sweep([nested]) == [[nested]]
    assert config.sweep([f"{nested},[]", "x={a: [1,2], b: {c: 3}},{a: 1}"]) == [
        [a, b] for a in (nested, "sampler.segments=[]") for b in ("x={a: [1,2], b: {c: 3}}", "x={a: 1}")
    ]
    assert config.without("launcher", ["+launcher=slurm", "launcher.nodes=2", "seed=0"]) == ["seed=0"]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["-m", "launcher=slurm", "trainer.batch=30"],
            "trainer.batch=30: must be a multiple of the 8 processes",
        ),
        (["-m", "launcher=slurm", "launcher.nodes=0"], "launcher.nodes=0: an integer at least 1 is expected"),
        (["-m", "seed=0,1", "run_dir=x"], "run_dir=x: of two of these runs"),
        (["launcher=slurm"], "launcher: it submits runs to others: add -m"),
    ],
)
def test_mistakes_are_told_before_anything_is_submitted(
    call: Run,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    overrides: list[str],
    said: str,
) -> None:
    monkeypatch.setattr(SlurmLauncher, "submit", lambda *_: pytest.fail("submitted"))
    refused = call("train.py", *overrides)
    assert refused.returncode == WRONG_INPUT
    assert said in refused.stderr


def test_several_runs_are_trained_in_turn(call: Run, tmp_path: Path) -> None:  # noqa: F811
    done = call("train.py", "-m", "seed=0,1", "run_dir=run${seed}", *TINY, "trainer.total=64")
    assert done.returncode == DONE, done.stderr
    assert all((tmp_path / name / "summary.json").is_file() for name in ("run0", "run1"))


@pytest.mark.parametrize(
    ("code", "rank", "requeued"), [(INTERRUPTED, 0, 1), (INTERRUPTED, 1, 0), (DONE, 0, 0)]
)
def test_the_first_task_of_a_stopped_job_passes_the_signal_on_to_submitit(
    monkeypatch: pytest.MonkeyPatch, code: int, rank: int, requeued: int
) -> None:
    job = {"SUBMITIT_EXECUTOR": "local", "SUBMITIT_LOCAL_NTASKS": "1", "SUBMITIT_LOCAL_GLOBALID": str(rank)}
    for name, value in job.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("scoregen.cli.train.main", lambda _: code)
    received: list[int] = []
    before = signal.signal(signal.SIGUSR2, lambda number, _: received.append(number))
    assert Submitted(("seed=0",))() == code
    signal.signal(signal.SIGUSR2, before)
    assert len(received) == requeued


def test_what_is_asked_of_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The batch script that submitit writes, with a stand-in for sbatch's presence."""
    monkeypatch.setattr("submitit.SlurmExecutor.affinity", lambda *_: 1)
    monkeypatch.setattr(AutoExecutor, "submit_array", lambda self, _: [self._executor.parameters])
    launcher = SlurmLauncher(nodes=2, tasks_per_node=8, gpus_per_node=8, parameters={"partition": "gpu"})
    (asked,) = launcher.submit([["seed=0"]])
    wanted = {"nodes": 2, "ntasks_per_node": 8, "gpus_per_node": 8, "time": 1440, "signal_delay_s": 120}
    assert wanted.items() <= asked.items()
    assert asked["additional_parameters"] == {"partition": "gpu"}


@pytest.mark.slow
def test_a_job_told_to_stop_is_requeued_and_ends_like_one_that_was_not(
    call: Run,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert call("train.py", *TINY, "run_dir=whole", "trainer.total=8192").returncode == DONE
    launcher = SlurmLauncher(cluster="local", tasks_per_node=2)
    (job,) = launcher.submit([[*TINY, "run_dir=stopped", "trainer.total=8192"]])
    log = tmp_path / "stopped/log.jsonl"
    while not log.is_file():
        time.sleep(0.05)
    for task in psutil.Process(int(job.job_id)).children():  # as Slurm does, and submitit where time is up
        task.send_signal(signal.SIGUSR2)
    assert job.results() == [DONE, DONE]
    assert "Requeued" in job.task(0).stderr()
    ours, theirs = (
        [json.loads(line)["loss"] for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("whole", "stopped")
    )
    assert ours == pytest.approx(theirs, rel=1e-6)
