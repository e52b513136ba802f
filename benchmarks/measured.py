"""What the commands of a measurement wrote, as one small JSON file, and the table of it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import stdev
from typing import Any

from scoregen.errors import UserError
from scoregen.evaluation.examine import OF_SCORES
from scoregen.evaluation.result import protocol

FOLDER = Path("benchmarks/measured")
SHOWN = ("median_levels", "authentic_pixels", "c_t_pixels", "standard_error")  # of a metric's details


@dataclass(frozen=True)
class Outcome:
    """What one command came to.

    Args:
        name: of the case, as a reader knows it: its row in the table.
        column: where its first number stands; empty where each of its numbers has a column of its own.
        results: what the command wrote: the list of evaluate.py, or the table of a detection command.
    """

    name: str
    column: str
    command: str
    seconds: float
    results: Any


@dataclass(frozen=True)
class Measured:
    """The outcomes of a measurement, and what they are a function of besides the models.

    Args:
        device: what ran the commands.
        origin: commit of the sources, and versions of Python, torch and scoregen.
    """

    device: str
    origin: Mapping[str, str]
    outcomes: Sequence[Outcome]


def load(path: Path) -> Measured:
    """What a file holds; UserError for anything else."""
    try:
        fields = json.loads(path.read_bytes())
        outcomes = [Outcome(**outcome) for outcome in fields["outcomes"]]
        return Measured(**{**fields, "outcomes": outcomes})
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no measurement: {error}; make it anew") from error


def load_all(folder: Path = FOLDER) -> dict[str, Measured]:
    """Every measurement that was made, by its name."""
    return {path.stem: load(path) for path in sorted(folder.glob("*.json"))}


def save(path: Path, measured: Measured) -> None:
    """Write a measurement."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(asdict(measured), indent=1) + "\n")


def kept(written: Any) -> Any:
    """Of what a command wrote, all but the scores of single images."""
    return {k: v for k, v in written.items() if k != "scores"} if isinstance(written, dict) else written


def table(measured: Measured) -> str:
    """A row for each name, in the order of the cases; a column for each metric, detector or budget."""
    rows: dict[str, dict[str, str]] = {}
    for outcome in measured.outcomes:
        for name, cells in _rows(outcome):
            rows.setdefault(name, {}).update(cells)
    columns = list(dict.fromkeys(column for cells in rows.values() for column in cells))
    lines = [f"| | {' | '.join(columns)} |", f"|---|{'--:|' * len(columns)}"]
    for name, cells in rows.items():
        lines.append(f"| {name} | {' | '.join(cells.get(column, '') for column in columns)} |")
    return "\n".join(lines)


def weights_of(outcome: Outcome) -> set[str]:
    """The hashes of the weights that were measured."""
    results = outcome.results if isinstance(outcome.results, list) else [outcome.results["model"]]
    return {result["weights_sha256"] for result in results if "weights_sha256" in result}


def protocols(outcome: Outcome) -> list[str]:
    """How the numbers of evaluate.py were measured, without what the table says: sampler and evaluations."""
    if not isinstance(outcome.results, list):
        return []
    plain = [{key: value for key, value in result.items() if key != "sampler"} for result in outcome.results]
    return [f"{result['name']}: {protocol(result)}" for result in plain]


def _rows(outcome: Outcome) -> Iterator[tuple[str, dict[str, str]]]:
    results = outcome.results
    if outcome.column:
        yield outcome.name, {outcome.column: number(results[0])}
    elif isinstance(results, list):
        yield outcome.name, _metrics(results)
    elif "separation" in results:
        for name, detectors in results["separation"].items():
            cells = {f"{key}: AUROC / FPR@95 (%)": _separation(value) for key, value in detectors.items()}
            yield f"{outcome.name}: {name}", cells
    else:
        for attack, row in results["table"].items():
            yield f"{outcome.name}: {attack}", _attack(row)


def _metrics(results: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    cells = {result["name"]: number(result) for result in results}
    details = ((key, value) for result in results for key, value in result["details"].items())
    cells |= {key: f"{value:.3g}" for key, value in details if key in SHOWN}
    first = results[0]
    drawn = "nfe" in first and first["name"] not in OF_SCORES
    return cells | {"n": f"{first['n']:,}", **({"NFE": f"{first['nfe']}"} if drawn else {})}


def _separation(value: Mapping[str, float]) -> str:
    return f"{100 * value['auroc']:.2f} / {100 * value['fpr95']:.2f}"


def _attack(row: Mapping[str, Any]) -> dict[str, str]:
    changed = {"changed answers (%)": f"{100 * row['changed']:.1f}"}
    return changed | {
        f"{name}: AUROC / TPR@1% (%)": f"{100 * value['auroc']:.2f} / {100 * value['tpr'][0]:.1f}"
        for name, value in row.items()
        if name != "changed"
    }


def number(result: Mapping[str, Any]) -> str:
    """The value to the second digit of its spread over the repeats; to three digits where there is one."""
    values = result["values"]
    if len(values) == 1:
        return f"{values[0]:#.3g}".rstrip(".")
    spread = stdev(values)
    digits = max(0, 1 - int(f"{spread:e}".partition("e")[2]))
    return f"{result['value']:.{digits}f} ± {spread:.{digits}f}"
