"""Records of finished runs: a number, and all that it is a function of, as one small JSON file each."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from scoregen.errors import UserError


@dataclass(frozen=True)
class Training:
    """What was trained, and what identifies it.

    Args:
        command: of train.py; the run's config.yaml is exactly what it composes to.
        commit: of the sources; `before <commit>` where the copy that ran did not know its own.
        device: what it was trained on, and whether other runs shared it.
        seconds: of training steps, from the log.
        versions: of Python, torch and scoregen, from the weights' metadata; empty where they are not at hand.
        teacher: path of a distillation's teacher, as the run was told, with `teacher_sha256` of its weights.
        config_sha256, log_sha256: of config.yaml and log.jsonl.
    """

    command: str
    commit: str
    device: str
    seed: int
    precision: str
    images: int
    seconds: float
    versions: dict[str, str]
    teacher: str
    teacher_sha256: str
    weights_sha256: str
    config_sha256: str
    log_sha256: str


@dataclass(frozen=True)
class Picture:
    """Uncurated samples of the run: a file under docs/, its SHA-256, the seeds, and the command."""

    file: str
    sha256: str
    seeds: str
    command: str


@dataclass(frozen=True)
class Record:
    """One line of the ledger.

    Args:
        method: as a reader knows it.
        data: name of the data set that the samples are compared with.
        result: as metrics.json has it; the `device` that drew the samples; the `command` that measured it,
            empty where that was the training's `hooks.evaluate`, whose `curve` of [images, value] is kept.
        published: a number of the authors by the same protocol and its budget; empty: none is comparable.
        difference: a sentence on what the number says, itself without numbers of this project.
        others: what evaluate.py has measured of the same weights besides, each with the `command`.
    """

    method: str
    data: str
    training: Training
    result: dict[str, Any]
    picture: Picture | None
    published: str
    difference: str
    others: list[dict[str, Any]] = field(default_factory=list)


def load(path: Path) -> Record:
    """The record in a file; UserError for anything else."""
    try:
        fields = json.loads(path.read_bytes())
        picture = fields["picture"] and Picture(**fields["picture"])
        return Record(**{**fields, "training": Training(**fields["training"]), "picture": picture})
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no record: {error}; make it anew with `add`") from error


def save(path: Path, record: Record) -> None:
    """Write a record."""
    path.write_text(json.dumps(asdict(record), indent=1) + "\n")
