"""Laws of Slurm's tasks: they are the processes of one run, and other launchers go before them."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from scoregen.slurm import adopt_slurm, first_node
from tests.cli.conftest import TINY, Start, start  # noqa: F401 - a fixture

STEP = {
    "SLURM_JOB_ID": "123456",
    "SLURM_STEP_ID": "0",
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_NODELIST": "gpu[01-04]",
}


def adopted(**changes: str | None) -> dict[str, str]:
    """What is set, beside what was there."""
    env = {key: value for key, value in {**STEP, **changes}.items() if value is not None}
    before = dict(env)
    adopt_slurm(env)
    assert before.items() <= env.items()
    return {key: value for key, value in env.items() if key not in before}


def test_a_task_is_told_its_place_and_where_the_first_one_is() -> None:
    assert adopted() == {
        "RANK": "5",
        "WORLD_SIZE": "8",
        "LOCAL_RANK": "1",
        "MASTER_ADDR": "gpu01",
        "MASTER_PORT": "23456",
    }
    assert adopted(SLURM_STEP_NUM_TASKS="6")["WORLD_SIZE"] == "6"
    assert adopted(SLURM_JOB_ID=None, SLURM_STEP_ID=None, SLURM_JOB_NODELIST=None)["RANK"] == "5"


@pytest.mark.parametrize(
    ("visible", "local_rank"), [("0,1", "1"), ("0", "0"), ("GPU-1a2b", "0"), ("", "1")], ids=str
)
def test_the_gpu_is_one_that_the_task_sees(visible: str, local_rank: str) -> None:
    assert adopted(CUDA_VISIBLE_DEVICES=visible)["LOCAL_RANK"] == local_rank


@pytest.mark.parametrize(
    "changes",
    [
        {"RANK": "0"},
        {"WORLD_SIZE": "2"},
        {"SLURM_NTASKS": "1"},
        {"SLURM_STEP_ID": None},
        {"SLURM_PROCID": None},
    ],
    ids=str,
)
def test_other_launchers_single_tasks_and_the_batch_script_are_left_alone(
    changes: dict[str, str | None],
) -> None:
    assert adopted(**changes) == {}


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu7", "gpu7"),
        ("a1,b2", "a1"),
        ("gpu[007-010,12],x1", "gpu007"),
        ("n[3,5]-ib", "n3-ib"),
        ("a.b-c[1-2].cluster", "a.b-c1.cluster"),
    ],
)
def test_the_first_node_of_a_compressed_list(nodes: str, first: str) -> None:
    assert first_node(nodes) == first


def test_two_tasks_train_what_one_process_trains(
    start: Start,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = [*TINY, "trainer.total=128"]
    alone = start("train.py", *options, "run_dir=one")
    assert alone.wait() == 0
    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.setenv("MASTER_PORT", str(20_000 + os.getpid() % 20_000))
    tasks: list[subprocess.Popen[str]] = []
    for task in ("0", "1"):
        monkeypatch.setenv("SLURM_PROCID", task)
        monkeypatch.setenv("SLURM_LOCALID", task)
        tasks.append(start("train.py", *options, "run_dir=two"))
    said = [task.communicate(timeout=300) for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], said
    assert said[1][0] == ""
    ours, theirs = (json.loads((tmp_path / name / "log.jsonl").read_text()) for name in ("one", "two"))
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-6)
