"""metrics.json: the records that evaluate.py adds, the table it prints, and the comparison of two records."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from scoregen.config import CONFIG
from scoregen.errors import UserError
from scoregen.evaluation.result import Record, Result, differences, obstacles, protocol

RESULTS = "metrics.json"  # in a run folder: what evaluate.py found


def read_records(file: Path) -> list[Record]:
    """The results that the file holds already; UserError where it holds something else."""
    try:
        records = json.loads(file.read_bytes()) if file.exists() else []
    except ValueError:
        records = None
    if not isinstance(records, list):
        raise UserError(f"{file} holds no list of results: move it away, or choose another --out")
    return records


def add_records(file: Path, records: Sequence[Record]) -> None:
    """Add records to a file, whole or not at all."""
    from scoregen.files import write_whole

    everything = [*read_records(file), *records]
    write_whole(file, (json.dumps(everything, indent=1) + "\n").encode())


def make_records(repeats: Sequence[Mapping[str, Result]], manifest: Mapping[str, Any]) -> list[Record]:
    """One record a metric: its mean over the repeats, every value, and all that it is a function of."""
    records: list[Record] = []
    for name, first in repeats[0].items():
        values = [results[name].value for results in repeats]
        several = {"repeats_spread": stdev(values)} if len(values) > 1 else {}
        records.append({**asdict(first), "value": mean(values), "values": values, **several, **manifest})
    return records


def print_records(records: Sequence[Record]) -> None:
    """The table, and under each number how it was measured.

    The spread is the standard deviation over repeats, or of one repeat over the metric's own subsets.
    """
    print(f"\n{'metric':<16}{'mean':>12}{'min':>12}{'max':>12}{'spread':>12}{'n':>10}  repeats")
    for record in records:
        values = record["values"]
        spread = record.get("repeats_spread", record["spread"])
        columns = "".join(f"{number:>12.5g}" for number in (record["value"], min(values), max(values)))
        told = f"{'' if spread is None else format(spread, '.2g'):>12}"
        print(f"{record['name']:<16}{columns}{told}{record['n']:>10,}  {len(values)}")
        print(f"  {protocol(record)}")
        details = ", ".join(f"{key} {value:.5g}" for key, value in record["details"].items())
        if details:
            print(f"  {details}")
        if record["note"]:
            print(f"  WARNING: {record['note']}")


def holds_results(path: Path) -> bool:
    """Whether a path is of results of evaluate.py, not of images: such a file, or a run folder."""
    return path.suffix == ".json" or (path / CONFIG).is_file()


def compare_results(paths: Sequence[Path]) -> None:
    """Print, for every metric that all of some results have, the numbers, and whether they may be compared.

    Each path is a run folder or its metrics.json; of several results of one metric the last counts. The first
    is what the others are compared with.
    """
    files = [path / RESULTS if path.is_dir() else path for path in paths]
    sides: list[dict[str, Record]] = []
    for path, file in zip(paths, files, strict=True):
        if not file.exists():
            made = f": python evaluate.py --run {path} makes it" if path.is_dir() else ""
            raise UserError(f"{file}: there is no such file of results{made}")
        sides.append({_family(record): record for record in read_records(file)})
    shared = [name for name in sides[0] if all(name in side for side in sides)]
    if not shared:
        has = (f"{path} has {', '.join(side) or 'nothing'}" for path, side in zip(paths, sides, strict=True))
        raise UserError(f"{', '.join(has)}: no metric in common")
    for name in shared:
        records = [side[name] for side in sides]
        print(f"\n{name}: {' against '.join(format(record['value'], '.5g') for record in records)}")
        for path, record in zip(paths, records, strict=True):
            print(f"  {path}: {record['name']} {record['value']:.5g}: {protocol(record)}")
        for path, record in zip(paths[1:], records[1:], strict=True):
            _print_comparison(f"{path}: " if len(paths) > 2 else "", records[0], record)


def _print_comparison(whose: str, first: Record, other: Record) -> None:
    reasons, differ = obstacles(first, other), differences(first, other)
    print(f"  {whose}{'NOT comparable: ' + '; '.join(reasons) if reasons else 'comparable'}")
    if differ:
        print(f"    differing in {'; '.join(differ)}")


def _family(record: Record) -> str:
    """The metric's registered name: `fid` of `fid_2000`."""
    name, suffix = str(record["name"]), f"_{record['n']}"
    return name.removesuffix(suffix)
