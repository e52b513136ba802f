"""metrics.json: the records that evaluate.py adds, the table it prints, and the comparison of two records."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from scoregen.errors import UserError
from scoregen.evaluation.result import Record, Result, differences, obstacles, protocol


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


def compare_files(first: Path, second: Path) -> None:
    """Print, for every metric that two files of results have, both numbers and whether they may be compared.

    Of several results of one metric the last counts.
    """
    sides = []
    for file in (first, second):
        if not file.exists():
            raise UserError(f"{file}: there is no such file of results")
        sides.append({_family(record): record for record in read_records(file)})
    shared = [name for name in sides[0] if name in sides[1]]
    if not shared:
        ours, theirs = (", ".join(side) or "nothing" for side in sides)
        raise UserError(f"{first} has {ours}, {second} has {theirs}: no metric in common")
    for name in shared:
        a, b = (side[name] for side in sides)
        print(f"\n{name}: {a['value']:.5g} against {b['value']:.5g}")
        for record in (a, b):
            print(f"  {record['name']} {record['value']:.5g}: {protocol(record)}")
        reasons = obstacles(a, b)
        print("  comparable" if not reasons else "  NOT comparable: " + "; ".join(reasons))
        others = differences(a, b)
        if others:
            print("  they differ in " + "; ".join(others))


def _family(record: Record) -> str:
    """The metric's registered name: `fid` of `fid_2000`."""
    name, suffix = str(record["name"]), f"_{record['n']}"
    return name.removesuffix(suffix)
