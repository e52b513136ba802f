"""Laws of several runs by one command: a folder each, a table, and going on after failures and stops."""

import json
import re
import sys
from math import log10
from pathlib import Path
from statistics import mean

import pytest
from omegaconf import DictConfig, OmegaConf

from scoregen.cli import sweep as sweeps
from scoregen.cli.sweep import Outcome
from scoregen.cli.train import train
from scoregen.errors import UserError
from tests.cli.conftest import TINY, Run
from tests.cli.test_input import assert_refused

SMALL = [*TINY, "trainer.total=32", "hooks.status.every=32", "network.model_channels=4"]
PAIR = ["-m", "seed=0,1", *SMALL]
GRID = ["-m", "network.dropout=0.0,0.5", "seed=0,1", *SMALL]
LR = "optimizer.lr=log(1e-5,1e-1)"


def ranking(folder: Path) -> list[tuple[str, float]]:
    """Names and losses of the runs of a sweep, as its file has them."""
    content = json.loads((folder / "sweep.json").read_text())
    return [(Path(run["run_dir"]).name, run["last"][content["minimize"]]) for run in content["runs"]]


def test_a_grid_has_a_folder_a_run_and_ends_with_a_table(call: Run, tmp_path: Path) -> None:
    done = call("train.py", *GRID)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs/digits_edm_sweep"
    names = {f"network.dropout={p},seed={seed}" for p in ("0.0", "0.5") for seed in (0, 1)}
    assert {path.name for path in folder.iterdir()} == {*names, "sweep.json"}
    for name in names:
        last = json.loads((folder / name / "summary.json").read_text())["last"]
        assert dict(ranking(folder))[name] == last["loss"]
    losses = [loss for _, loss in ranking(folder)]
    assert losses == sorted(losses)
    table = done.stdout.partition("loss  run")[2].splitlines()[1:5]
    assert [Path(line.split()[1]).name for line in table] == [name for name, _ in ranking(folder)]
    again = call("train.py", *GRID)
    assert again.stdout.count("is finished at 32 images") == 4


def test_trials_stay_in_their_ranges_and_the_same_command_repeats_them(call: Run, tmp_path: Path) -> None:
    command = ["-m", "--trials", "3", LR, "seed=int(3,5)", "ema=halflife,power", *SMALL]
    done = call("train.py", *command)
    assert done.returncode == 0, done.stderr
    found = ranking(tmp_path / "runs/digits_edm_sweep")
    assert len(found) == 3
    for name, _ in found:
        match = re.fullmatch(r"optimizer\.lr=([\d.e-]+),seed=([345]),ema=(halflife|power)", name)
        assert match is not None
        assert 1e-5 <= float(match[1]) <= 1e-1
    again = call("train.py", *command)
    assert again.stdout.count("is finished at 32 images") == 3
    assert ranking(tmp_path / "runs/digits_edm_sweep") == found


def test_optuna_learns_from_the_runs_before(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Told the distance to 1e-3 or its opposite, it begins alike, and comes near or goes away."""
    distances: dict[int, list[float]] = {1: [], -1: []}
    monkeypatch.setattr(sweeps, "_place", lambda overrides, _: overrides)  # composing takes time
    monkeypatch.setattr(
        sweeps, "_compose", lambda settings: OmegaConf.from_dotlist([*settings, "dry=false", "run_dir=x"])
    )
    for sign, tried in distances.items():

        def attempt(cfg: DictConfig, sign: int = sign, tried: list[float] = tried) -> Outcome:
            tried.append(abs(log10(cfg.optimizer.lr) + 3))
            return Outcome(f"{tmp_path}/{len(tried)}", {"loss": sign * tried[-1]} if len(tried) % 7 else {})

        monkeypatch.setattr(sweeps, "_attempt", attempt)
        assert sweeps.sweep([LR], 40, None) == 2  # every seventh fails
    near, far = distances[1], distances[-1]
    assert near[:10] == far[:10]
    assert mean(near[10:]) < 0.75 < 1.25 < mean(far[10:])
    assert min(near) < 0.05


def test_a_run_that_fails_does_not_end_the_sweep(call: Run, tmp_path: Path) -> None:
    done = call(
        "train.py", "-m", "optimizer.lr=1e30,1e-3", "trainer.max_skipped=1", *SMALL, "trainer.total=96"
    )
    assert done.returncode == 2
    assert "steps in a row" in done.stderr
    assert "failed  runs/digits_edm_sweep/optimizer.lr=1e30" in done.stdout
    content = json.loads((tmp_path / "runs/digits_edm_sweep/sweep.json").read_text())
    assert [bool(run["last"]) for run in content["runs"]] == [True, False]


def test_an_interrupted_sweep_stops_and_the_same_command_goes_on(
    call: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("scoregen.parallel.Parallel.any", lambda *_: True)  # as if Ctrl-C had come
        assert call("train.py", *PAIR, "trainer.total=64").returncode == 130
    started = list((tmp_path / "runs/digits_edm_sweep").iterdir())
    assert [path.name for path in started] == ["seed=0"]
    again = call("train.py", *PAIR, "trainer.total=64")
    assert again.returncode == 0, again.stderr
    assert f"resuming {started[0].relative_to(tmp_path)} at 32 images" in again.stdout


REFUSED = [
    (["-m", "--trials", "0", LR], "--trials: at least 1"),
    (["-m", "--trials", "3", "seed=1"], "--trials: at least 1, of settings such as"),
    (["-m", "--trials", "3", "optimizer.lr=log(0,1)"], "optimizer.lr=log(0,1)"),
    (["-m", "--trials", "3", "optimizer.lr=uniform(2,1)"], "optimizer.lr=uniform(2,1)"),
    (["-m", "--trials", "3", "seed=int(a,b)"], "seed=int(a,b)"),
    (["-m", "--trials", "3", "optimizer.lrr=log(1e-3,1)"], "did you mean lr?"),
    (["-m", "--trials", "3", LR, "launcher=slurm"], "drop launcher="),
    (["-m", "--trials", "3", LR, "run_dir=x"], "leave run_dir out"),
    (["-m", "--trials", "3", LR, "dry=true"], "and dry="),
    (["-m", "seed=0,1", "--cfg", "job"], "leave -m out"),
    (["-m", LR], "say how many runs, --trials"),
    (["--trials", "3", LR], "add -m"),
    (["-m", "seed=0,1", "trainer.batch=0"], "trainer.batch=0"),
    (["-m", "seed=0,0"], "of two of these runs"),
]


@pytest.mark.parametrize(("args", "said"), REFUSED, ids=lambda value: " ".join(value)[:40])
def test_mistakes_are_told_before_anything_is_trained(
    call: Run, tmp_path: Path, args: list[str], said: str
) -> None:
    assert_refused(call("train.py", *args), said)
    assert list(tmp_path.iterdir()) == []


def test_a_dry_sweep_plans_every_run_and_trains_none(call: Run, tmp_path: Path) -> None:
    done = call("train.py", *PAIR, "dry=true")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("FLOPs an image") == 2
    assert list(tmp_path.iterdir()) == []


def test_a_criterion_that_no_run_has_is_told_with_those_they_have(call: Run) -> None:
    assert_refused(call("train.py", "-m", "seed=0,1", "--minimize", "los", *SMALL), "did you mean loss?")


def test_without_optuna_the_extra_is_named(call: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert_refused(call("train.py", "-m", "--trials", "2", LR), "pip install 'scoregen[sweep]'")


def test_train_returns_what_its_log_ends_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    last = train([*SMALL, "run_dir=x"])
    rows = [json.loads(line) for line in (tmp_path / "x/log.jsonl").read_text().splitlines()]
    assert last["loss"] == rows[-1]["loss"]
    assert train([*SMALL, "run_dir=x"]) == last
    with pytest.raises(UserError, match="did you mean seed"):
        train([*SMALL, "sed=1"])
    monkeypatch.setattr("scoregen.parallel.Parallel.any", lambda *_: True)
    with pytest.raises(KeyboardInterrupt):
        train([*SMALL, "trainer.total=96", "run_dir=x"])
