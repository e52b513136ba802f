"""Records are made from the files of a finished run, and refused where these do not agree."""

import json
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from benchmarks.record import Picture, Record, Training
from scoregen import config
from scoregen.build import build_data
from scoregen.cli.records import read_records
from scoregen.errors import UserError
from scoregen.evaluation.features import build_extractor
from scoregen.files import sha256
from scoregen.report.run import training_seconds
from scoregen.training.loggers import read_log
from scoregen.training.summary import SUMMARY
from scoregen.training.weights import weights_hash

METRIC = "fd_scatter"
PICTURES = Path("docs/images/results")
PICTURE_BYTES = 300_000
# What a command may leave out: it changes where a run is and what computes it, not what is computed.
PLACES = ("run_dir", "device", "data.root", "parallel", "deterministic", "trainer.checkpointing")
OPTIONS = ("latents", "guidance", "autoguidance", "classifier", "discriminator", "label")  # of evaluate.py

Summary = Mapping[str, Any]


@dataclass(frozen=True)
class Told:
    """What no file of a run says, and who adds it must."""

    method: str
    device: str
    commit: str
    evaluated_on: str
    published: str
    difference: str
    others_on: str = ""  # what drew the samples of the other metrics; empty: the same


def from_run(run: Path, overrides: Sequence[str], grid: Path | None, name: str, told: Told) -> Record:
    """The record of a finished run that `python train.py OVERRIDES` makes; `grid` is a folder of sample.py.

    UserError where the run is not finished, the command makes another run, the sources are not known, nothing
    was measured, or it or the samples are of another model.
    """
    summary = _json(run / SUMMARY, "only finished runs are recorded")
    cfg = config.from_yaml((run / "config.yaml").read_text(), f"{run}/config.yaml")
    where = _check_command(cfg, overrides)
    training = _training(run, cfg, summary, overrides, told)
    evaluated = _evaluated(run, cfg, summary, where)
    measured = evaluated.pop(METRIC, None) or _logged(run, cfg, summary)
    return Record(
        method=told.method,
        data=measured["reference"],
        training=training,
        result={**measured, "device": told.evaluated_on},
        picture=_picture(grid, name, training, where) if grid else None,
        published=told.published,
        difference=told.difference,
        others=[{**result, "device": told.others_on or told.evaluated_on} for result in evaluated.values()],
    )


def _json(path: Path, advice: str) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"there is no {path}: {advice}")
    fields = json.loads(path.read_bytes())
    assert isinstance(fields, dict)
    return fields


def _check_command(cfg: Any, overrides: Sequence[str]) -> str:
    """The folder of the command's run; UserError where it makes another one.

    Network and preconditioning are those of a teacher.
    """
    composed, problems = config.compose(overrides)
    config.refuse(problems)
    planned = ("network", "precond") if cfg.teacher else ()
    differing = config.diff(composed, cfg, ignore=(*PLACES, *planned))
    if differing:
        raise UserError("the command makes another run; command -> run:\n  " + "\n  ".join(differing))
    return str(composed.run_dir)


def _training(run: Path, cfg: Any, summary: Summary, overrides: Sequence[str], told: Told) -> Training:
    """What the run's files say of its training."""
    origin = _origin(run / summary["weights"], summary["weights_sha256"])
    commit = told.commit or origin.get("git", "")
    if not commit or commit.endswith("-dirty"):
        found = commit or "unknown"
        raise UserError(f"{run} was made by sources of commit {found}: give --commit, or run it anew")
    return Training(
        command=shlex.join(["python", "train.py", *overrides]),
        commit=commit,
        device=told.device,
        seed=cfg.seed,
        precision=cfg.precision,
        images=summary["nimg"],
        seconds=round(training_seconds(read_log(run)), 1),
        versions={key: origin[key] for key in ("python", "torch", "scoregen") if key in origin},
        teacher=cfg.teacher or "",
        teacher_sha256=_teacher_sha256(run, cfg) if cfg.teacher else "",
        weights_sha256=summary["weights_sha256"],
        config_sha256=sha256(run / "config.yaml"),
        log_sha256=sha256(run / "log.jsonl"),
    )


def _origin(weights: Path, digest: str) -> dict[str, str]:
    """What a weights file says of itself; nothing where only the rest of the run was kept."""
    if not weights.is_file():
        return {}
    if weights_hash(weights) != digest:
        raise UserError(f"{weights} is not the file that its run's {SUMMARY} names: the run has been changed")
    return dict(safe_open(weights, "pt").metadata())


def _teacher_sha256(run: Path, cfg: Any) -> str:
    """Of the weights of a teacher that is a run: its path is relative to where the student was trained."""
    root = run.resolve().parents[len(Path(cfg.run_dir).parts) - 1]
    return str(_json(root / cfg.teacher / SUMMARY, "keep a student beside its teacher")["weights_sha256"])


def _evaluated(run: Path, cfg: Any, summary: Summary, where: str) -> dict[str, dict[str, Any]]:
    """The latest result of each metric in metrics.json, and the command that gives it."""
    results = {record["name"]: record for record in read_records(run / "metrics.json")}
    return {name: _traced(run, cfg, summary, result, where) for name, result in results.items()}


def _traced(run: Path, cfg: Any, summary: Summary, result: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A result with the command that gives it for a run in `where`; UserError if that would be another."""
    if result["weights_sha256"] != summary["weights_sha256"]:
        raise UserError(f"{run}/metrics.json is of other weights: evaluate the run anew")
    n, repeats = result["n"], len(result["values"])
    command = f"python evaluate.py --run {where} --num {n} --repeats {repeats}"
    command += f" --metrics {result['name'].removesuffix(f'_{n}')}"
    command += _reference(cfg, result)
    otherwise = _deviations(result, cfg)
    if otherwise:
        raise UserError(
            f"{run} was scored with another {', '.join(otherwise)}; what is recorded is {command}"
        )
    return {**result, "command": command, "curve": []}


def _reference(cfg: Any, result: Mapping[str, Any]) -> str:
    """The option that names the real images of a result; nothing for the training data."""
    fingerprint = result.get("reference_fingerprint")
    if fingerprint in (None, build_data(cfg, "train").fingerprint):
        return ""
    if fingerprint != build_data(cfg, "test").fingerprint:
        raise UserError(
            f"{result['name']} compares with {result['reference']}, of which the run has no split"
        )
    return f" --reference {result['reference']}:test"


def _deviations(result: Mapping[str, Any], cfg: Any) -> list[str]:
    """In what a result is not that of the run's own sampler on the first seeds."""
    settings = config.to_container(cfg.sampler)
    settings["class"] = settings.pop("_target_").rpartition(".")[2]
    plain = {key: str(value) for key, value in settings.items() if isinstance(value, str | int | float)}
    found = [key for key, value in plain.items() if str(result["sampler"].get(key)) != value]
    found += [key for key in OPTIONS if result.get(key)]
    return found if result["seeds"].startswith("0-") else [*found, "range of seeds"]


def _logged(run: Path, cfg: Any, summary: Summary) -> dict[str, Any]:
    """What `hooks.evaluate` has logged; the extractor and the data are those of this package's."""
    rows = [row for row in read_log(run) if METRIC in row]
    if not rows or rows[-1]["nimg"] != summary["nimg"]:
        raise UserError(f"{run} was not scored at its end: python evaluate.py --run {cfg.run_dir}")
    extractor, data = build_extractor("scatter"), build_data(cfg, "train")
    sampler = config.instantiate(cfg.sampler)
    value, n = rows[-1][METRIC], rows[-1]["evaluated"]
    return {
        "name": METRIC,
        "value": value,
        "values": [value],
        "n": n,
        "seeds": f"0-{n - 1}",
        "floor": None,
        "extractor": extractor.name,
        "extractor_sha256": extractor.sha256,
        "resize": extractor.resize,
        "reference": data.name,
        "reference_fingerprint": data.fingerprint,
        "reference_n": len(data),
        "sampler": {"class": type(sampler).__name__},
        "nfe": sampler.nfe(),
        "weights_sha256": summary["weights_sha256"],
        "nimg": summary["nimg"],
        "command": "",
        "curve": [[row["nimg"], row[METRIC]] for row in rows],
    }


def _picture(grid: Path, name: str, training: Training, run_dir: str) -> Picture:
    """Keep the grid in a folder of sample.py among the pictures of the docs."""
    manifest = _json(grid / "manifest.json", "give the folder that sample.py wrote")
    if manifest["weights_sha256"] != training.weights_sha256:
        raise UserError(f"{grid} has samples of other weights ({manifest['weights_sha256']})")
    source, target = grid / "grid.png", PICTURES / f"{name}.png"
    if source.stat().st_size >= PICTURE_BYTES:
        raise UserError(f"{source} is too large: at most {PICTURE_BYTES:,} bytes; draw fewer")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    seeds = f"{manifest['seeds'][0]}-{manifest['seeds'][-1]}"
    command = f"python sample.py --run {run_dir} --seeds {seeds}"
    return Picture(str(target), sha256(target), seeds, command)
