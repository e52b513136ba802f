"""The entries as users start them: processes in a folder of their own."""

import os
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TINY = [
    "device=cpu",
    "network.model_channels=8",
    "network.channel_mult=[1]",
    "network.attention_resolutions=[]",
    "trainer.total=1024",
    "trainer.batch=32",
    "hooks.status.every=128",
    "hooks.heldout.every=null",
    "hooks.grid.every=null",
    "hooks.checkpoint.every=128",
]

Start = Callable[..., "subprocess.Popen[str]"]
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """start("train.py", ..., processes=2) -> the running process, its folder the test's."""

    def popen(script: str, *args: str, processes: int = 1) -> "subprocess.Popen[str]":
        # After `--`, or torchrun takes --run for an abbreviation of its own --run-path.
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "--"]
        command = [sys.executable, *(launcher if processes > 1 else []), str(ROOT / script), *args]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": str(ROOT)}
        env.pop("SCOREGEN_DATA", None)
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=tmp_path, env=env, stdout=pipe, stderr=pipe, text=True)

    return popen


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """call("train.py", ...) -> what the entry's main does in this process, in the test's folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SCOREGEN_DATA", raising=False)

    def main(script: str, *args: str) -> "subprocess.CompletedProcess[str]":
        entry = import_module(f"scoregen.cli.{Path(script).stem}")
        capsys.readouterr()
        try:
            code = entry.main(args)
        except SystemExit as end:  # argparse's own errors
            code = end.code
        out, err = capsys.readouterr()
        return subprocess.CompletedProcess([script, *args], code, out, err)

    return main


@pytest.fixture
def run(start: Start) -> Run:
    """run("train.py", ...) -> the finished process with its output."""

    def complete(script: str, *args: str, processes: int = 1) -> "subprocess.CompletedProcess[str]":
        process = start(script, *args, processes=processes)
        out, err = process.communicate(timeout=300)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    return complete
