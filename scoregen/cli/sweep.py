"""Several runs by one command: all combinations of values, or trials chosen by Optuna; then a table."""

import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from scoregen import config
from scoregen.cli.entry import DONE, INTERRUPTED, WRONG_INPUT
from scoregen.cli.train import check, run
from scoregen.errors import UserError
from scoregen.files import write_whole
from scoregen.parallel import world_size
from scoregen.training.loggers import flatten
from scoregen.training.summary import read_summary

if TYPE_CHECKING:
    from scoregen.launch import SlurmLauncher

SEED = 0  # of Optuna's sampler: the same command chooses the same trials, and so goes on with them
RANGE = re.compile(r"(?P<key>[^=]+)=(?P<kind>uniform|log|int)\((?P<low>[^,()]+),(?P<high>[^,()]+)\)")


@dataclass(frozen=True)
class Outcome:
    """A run of a sweep, and what its log ended with; nothing where it failed."""

    run_dir: str
    last: dict[str, float]

    def value(self, name: str) -> float | None:
        """One of its numbers; None where it has none, or no finite one."""
        value = self.last.get(name)
        return value if value is not None and isfinite(value) else None


def sweep(overrides: Sequence[str], trials: int | None, minimize: str | None) -> int:
    """Train or submit all the runs that the overrides stand for, and compare them; the exit code.

    Raises UserError, before anything begins, for wrong settings of any run.
    """
    if trials is not None:
        return _search(overrides, trials, minimize)
    if ranges := [text for text in overrides if RANGE.fullmatch(text)]:
        raise UserError(
            f"{ranges[0]}: values from a range are chosen by Optuna; say how many runs, --trials 20"
        )
    runs = config.sweep(overrides)
    differs = [len(set(values)) > 1 for values in zip(*runs, strict=True)]
    placed = [_place(run, differs) for run in runs]
    cfgs = [_compose(run) for run in placed]
    _check_folders(cfgs)
    if cfgs[0].dry:
        from scoregen.plan import plan

        print(*(f"{cfg.run_dir}\n{plan(cfg)}\n" for cfg in cfgs), sep="\n")
        return DONE
    launcher: SlurmLauncher | None = config.instantiate(cfgs[0].get("launcher"))
    if launcher is None:
        outcomes: list[Outcome] = []
        for cfg in cfgs:
            outcomes.append(_attempt(cfg))
            _criterion(outcomes, minimize)  # what no run has is told after the first
        return _report(outcomes, minimize)
    for cfg in cfgs:
        check(cfg, [], launcher.processes)
    jobs = launcher.submit([config.without("launcher", run) for run in placed])
    for cfg, job in zip(cfgs, jobs, strict=True):
        print(f"{cfg.run_dir}: job {job.job_id}, output in {job.paths.stdout}")
    return DONE


def _place(overrides: Sequence[str], differs: Sequence[bool]) -> list[str]:
    """The overrides with a folder named after those that differ, where they name none themselves."""
    name = ",".join(text.lstrip("+") for text, other in zip(overrides, differs, strict=True) if other)
    if not name or any(text.lstrip("+").startswith("run_dir=") for text in overrides):
        return list(overrides)
    base = config.compose(overrides)[0].run_dir
    name = re.sub(r"[^\w.,=+-]", "_", name)
    return [*overrides, f"run_dir={base}_sweep/{name}"]


def _compose(overrides: Sequence[str]) -> DictConfig:
    """The configuration of a run, checked."""
    cfg, problems = config.compose(overrides)
    if cfg.get("launcher") is None and world_size() > 1:
        problems.append(config.Problem("-m", "several processes train one run; leave it out"))
    check(cfg, problems, processes=1)
    return cfg


def _check_folders(cfgs: Sequence[DictConfig]) -> None:
    """Two runs may not share a folder."""
    for i, cfg in enumerate(cfgs):
        if cfg.run_dir in [other.run_dir for other in cfgs[:i]]:
            advice = "of two of these runs; name what differs: run_dir='runs/x${seed}'"
            config.refuse([config.Problem(f"run_dir={cfg.run_dir}", advice)])


def _attempt(cfg: DictConfig) -> Outcome:
    """Train a run; one that cannot go on is a failure of its own, not of the sweep."""
    print(f"\n{cfg.run_dir}", flush=True)
    try:
        if run(cfg) == INTERRUPTED:
            raise KeyboardInterrupt
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return Outcome(cfg.run_dir, {})
    return Outcome(cfg.run_dir, dict(flatten(read_summary(Path(cfg.run_dir))["last"])))


def _search(overrides: Sequence[str], trials: int, minimize: str | None) -> int:
    """Train as many runs as there are trials, each chosen by Optuna after the values of those before it."""
    searched = [RANGE.fullmatch(text) is not None or len(config.sweep([text])) > 1 for text in overrides]
    if any(text.lstrip("+").startswith("run_dir=") for text in overrides):
        raise UserError("--trials: leave run_dir out, each has a folder of its own; name= names the sweep")
    if trials < 1 or not any(searched):
        raise UserError("--trials: at least 1, of settings such as 'optimizer.lr=log(1e-4,1e-2)' or seed=0,1")
    try:
        import optuna
    except ImportError as error:
        raise UserError("--trials needs optuna: pip install 'scoregen[sweep]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=SEED))
    outcomes: list[Outcome] = []
    for _ in range(trials):
        trial = study.ask()
        cfg = _compose(_place([_suggest(trial, text) for text in overrides], searched))
        if cfg.get("launcher") is not None or cfg.dry:
            raise UserError(
                "--trials: each is chosen after those before it, so they run here; drop launcher= and dry="
            )
        outcomes.append(_attempt(cfg))
        value = outcomes[-1].value(_criterion(outcomes, minimize))
        study.tell(trial, value, state=optuna.trial.TrialState.FAIL if value is None else None)
    return _report(list({outcome.run_dir: outcome for outcome in outcomes}.values()), minimize)


def _suggest(trial: Any, override: str) -> str:
    """The override with a value for this trial, where it has several; UserError for no range."""
    found = RANGE.fullmatch(override)
    if found is None:
        choices = [run[0] for run in config.sweep([override])]
        return str(trial.suggest_categorical(override, choices)) if len(choices) > 1 else override
    key, kind = found["key"], found["kind"]
    try:
        if kind == "int":
            return f"{key}={trial.suggest_int(key, int(found['low']), int(found['high']))}"
        value = trial.suggest_float(key, float(found["low"]), float(found["high"]), log=kind == "log")
        return f"{key}={value:.3g}"
    except ValueError as error:
        raise UserError(f"{override}: {error}") from error


def _criterion(outcomes: Sequence[Outcome], minimize: str | None) -> str:
    """By what runs are compared; UserError where those that are done have no such number."""
    names = {name for outcome in outcomes for name in outcome.last}
    if minimize is None:
        return "heldout_loss" if "heldout_loss" in names else "loss"
    if names and minimize not in names:
        raise UserError(
            f"--minimize {minimize}: not in the log of these runs; {config.suggest(minimize, sorted(names))}"
        )
    return minimize


def _report(outcomes: Sequence[Outcome], minimize: str | None) -> int:
    """Print the table, the best run first, and write it beside the runs; the exit code."""
    criterion = _criterion(outcomes, minimize)
    ranked = sorted(
        outcomes, key=lambda outcome: inf if (value := outcome.value(criterion)) is None else value
    )
    print(f"\n{criterion:>14}  run")
    for outcome in ranked:
        value = outcome.value(criterion)
        print(f"{'failed' if value is None else format(value, '.6g'):>14}  {outcome.run_dir}")
    file = Path(os.path.commonpath([Path(outcome.run_dir).parent for outcome in outcomes])) / "sweep.json"
    records = [{"run_dir": outcome.run_dir, "last": outcome.last} for outcome in ranked]
    write_whole(file, (json.dumps({"minimize": criterion, "runs": records}, indent=1) + "\n").encode())
    print(f"wrote {file}")
    return DONE if all(outcome.last for outcome in outcomes) else WRONG_INPUT
