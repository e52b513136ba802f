"""docs/results.md from the records of real runs: every number there is one of a record.

usage: python -m benchmarks.ledger                     # write the page anew
       python -m benchmarks.ledger add RUN OVERRIDES   # a record of a finished run, then the page
           --method NAME --device NAME --difference SENTENCE [--grid FOLDER] [--name NAME] [--commit HASH]
           [--evaluated-on NAME] [--others-on NAME] [--published TEXT]

`python train.py OVERRIDES` is the command that made RUN, a folder with config.yaml, log.jsonl, summary.json
and, where evaluate.py has scored it, metrics.json; FOLDER is what sample.py wrote. Records lie in
benchmarks/records/, pictures in docs/images/results/.
"""

import argparse
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks import measured
from benchmarks.measured import Measured, number
from benchmarks.measurements import MEASUREMENTS
from benchmarks.record import Record, load, save
from benchmarks.recorder import Told, from_run
from scoregen.errors import UserError
from scoregen.evaluation.result import protocol

RECORDS = Path("benchmarks/records")
PAGE = Path("docs/results.md")
PREAMBLE = """\
# Results

Written by `python -m benchmarks.ledger` from [benchmarks/records](../benchmarks/records). Each number is
one of a record, which `python -m benchmarks.ledger add` makes from a finished run, after it has checked
that the run's configuration is what the command shown here composes to. What was measured of models
besides is in [benchmarks/measured](../benchmarks/measured), where `python -m benchmarks.measurements` puts
what its commands wrote. Only the names of methods and devices, the commits of sources that did not know
their own, and the sentences about the numbers are written by hand.

- **fd_scatter** is this project's own distance ([evaluation](evaluation.md)), not FID; smaller is
  better. Mean ± standard deviation over disjoint ranges of seeds; without ±, one range. Values compare
  at equal n and data only. **Floor**: about what n real images would score.
- **NFE**: network evaluations an image. **Images**: seen in training. **Minutes**: of training steps, by
  the log; where runs shared a device they do not tell its speed.
- **Published**: the authors' number by the same protocol, else *none comparable*. For images that
  protocol is FID of 50,000 samples against the named statistics, and no run here has been measured so;
  `fid_<n>` under some runs is FID of n samples, larger than that of 50,000, and compares at equal n only.
- Every run has one training seed: ± is the spread of sampling, not of training anew.
- **Commit**: of the sources; *before X* where they did not know their own, but are older than X.

Measurements with pages of their own, written by their scripts: [FID of real images](fid_bias.md),
[solvers on trained models](trained_solvers.md), [one-step students compared](distiller_results.md),
[where distillers come to rest](distiller_fixed_points.md), [errors of learned scores](score_matching.md),
[speed](performance.md).
"""
HEADS = ("run", "data", "method", "fd_scatter", "n", "floor", "NFE", "images", "minutes", "published")


def load_all(folder: Path = RECORDS) -> dict[str, Record]:
    """Every record by its name."""
    return {path.stem: load(path) for path in sorted(folder.glob("*.json"))}


def render(records: Mapping[str, Record], measurements: Mapping[str, Measured]) -> str:
    """The page of these records and measurements."""
    trained = {name: record for name, record in records.items() if not record.training.teacher}
    distilled = {name: record for name, record in records.items() if record.training.teacher}
    parts = [PREAMBLE, *section("Trained models", trained), *section("One-step students", distilled)]
    ordered = [(name, measurements[name]) for name in MEASUREMENTS if name in measurements]
    return "\n".join([*parts, "## Measured beside training\n", *(measurement(*each) for each in ordered)])


def section(title: str, records: Mapping[str, Record]) -> list[str]:
    """A table, best first within a data set, and under it every run."""
    if not records:
        return []
    names = sorted(records, key=lambda name: (records[name].data, records[name].result["value"]))
    lines = [f"| {' | '.join(HEADS)} |", f"|---|---|---|{'--:|' * (len(HEADS) - 4)}---|"]
    lines += [row(name, records[name]) for name in names]
    rows = "\n".join(lines)
    return [f"## {title}\n\n{rows}\n", *(details(name, records[name]) for name in names)]


def row(name: str, record: Record) -> str:
    """One line of a table."""
    result, training = record.result, record.training
    floor = "" if result["floor"] is None else f"{result['floor']:.2g}"
    cells = [f"[{name}](#{name})", record.data, record.method, number(result), f"{result['n']:,}", floor]
    cells += [f"{result['nfe']}", f"{training.images:,}", f"{training.seconds / 60:.1f}"]
    return f"| {' | '.join([*cells, record.published or 'none comparable'])} |"


def details(name: str, record: Record) -> str:
    """How one number was made, what it means, and samples."""
    training, result, picture = record.training, record.result, record.picture
    parts = [f"### {name}", record.difference]
    if result["curve"]:
        curve = ", ".join(f"{value:.3g} at {nimg:,}" for nimg, value in result["curve"])
        parts.append(f"During training: {curve} images.")
    commands = [training.command, result["command"], *joined(other["command"] for other in record.others)]
    commands.append(picture.command if picture else "")
    parts.append(fenced(filter(None, commands)))
    parts.append("\n".join(f"- {line}" for line in provenance(name, record)))
    if picture:
        alt = f"samples of {name}, seeds {picture.seeds}"
        parts.append(f'<img src="{Path(picture.file).relative_to(PAGE.parent)}" alt="{alt}">')
    return "\n\n".join(parts) + "\n"


def fenced(lines: Iterable[str]) -> str:
    """Lines of a shell."""
    return "\n".join(["```", *lines, "```"])


def joined(commands: Iterable[str]) -> list[str]:
    """Commands of evaluate.py, those that differ in the metric only as one that asks for all of them."""
    several: dict[tuple[str, ...], list[str]] = {}
    for command in commands:
        before, metric, after = re.split(r"(?<=--metrics )(\S+)", command)
        several.setdefault((before, after), []).append(metric)
    return [f"{before}{','.join(metrics)}{after}" for (before, after), metrics in several.items()]


def provenance(name: str, record: Record) -> list[str]:
    """What the number is a function of, and where each part of it is kept."""
    training, result = record.training, record.result
    versions = "".join(f", {key} {value}" for key, value in training.versions.items())
    teacher = f", teacher {training.teacher} {training.teacher_sha256}" if training.teacher else ""
    where = f"{training.device}, {training.precision}, seed {training.seed}{versions}{teacher}"
    when = "" if result["command"] else " in training, by `hooks.evaluate`"
    return [
        f"trained on {where}",
        f"scored on {result['device']}{when}: {protocol(result)}",
        *beside(record.others),
        f"commit {training.commit}; weights {training.weights_sha256}, config {training.config_sha256[:16]}, "
        f"log {training.log_sha256[:16]}; [record](../{RECORDS}/{name}.json)",
    ]


def beside(others: Sequence[Mapping[str, Any]]) -> list[str]:
    """Other metrics of the same weights, those measured in the same way in one line."""
    lines = groupby(others, key=lambda other: f"{other['device']}, {protocol(other)}")
    told = ((", ".join(f"{one['name']} {number(one)}" for one in same), how) for how, same in lines)
    return [f"{numbers}: {how}" for numbers, how in told]


def measurement(name: str, made: Measured) -> str:
    """A table, what it says, and the commands."""
    plan, origin = MEASUREMENTS[name], made.origin
    versions = ", ".join(f"{key} {origin[key]}" for key in ("python", "torch", "scoregen"))
    minutes = sum(outcome.seconds for outcome in made.outcomes) / 60
    commands = [*(command for command, _ in plan.before), *(outcome.command for outcome in made.outcomes)]
    protocols = dict.fromkeys(
        protocol for outcome in made.outcomes for protocol in measured.protocols(outcome)
    )
    lines = [
        f"`python -m benchmarks.measurements {name}`: {minutes:.0f} minutes on {made.device}",
        *protocols,
        f"commit {origin['git']}; {versions}; [record](../{measured.FOLDER}/{name}.json)",
    ]
    parts = [
        f"### {plan.title}",
        plan.finding,
        measured.table(made),
        "\n".join(f"- {line}" for line in lines),
    ]
    parts.append(f"<details><summary>The commands</summary>\n\n{fenced(commands)}\n\n</details>")
    return "\n\n".join(parts) + "\n"


def add(args: argparse.Namespace) -> None:
    """Record one run."""
    name = args.name or args.run.name
    told = Told(
        method=args.method,
        device=args.device,
        commit=args.commit,
        evaluated_on=args.evaluated_on or args.device,
        published=args.published,
        difference=args.difference,
        others_on=args.others_on,
    )
    RECORDS.mkdir(exist_ok=True)
    save(RECORDS / f"{name}.json", from_run(args.run, args.overrides, args.grid, name, told))


def parse() -> argparse.Namespace:
    """The command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    commands = parser.add_subparsers(dest="command")
    adding = commands.add_parser("add", help="record a finished run")
    adding.add_argument("run", type=Path)
    adding.add_argument("overrides", nargs="*", help="those of the command that made it")
    adding.add_argument("--method", required=True, help="as a reader knows it")
    adding.add_argument("--device", required=True, help="what trained it")
    adding.add_argument("--difference", required=True, help="a plain sentence, without numbers of ours")
    adding.add_argument("--grid", type=Path, help="folder with the run's grid.png and manifest.json")
    adding.add_argument("--name", help="of the record (default: the run's)")
    adding.add_argument("--commit", default="", help="of the sources (default: what the weights say)")
    adding.add_argument("--evaluated-on", default="", help="what drew the samples (default: --device)")
    adding.add_argument("--others-on", default="", help="the same of metrics beside fd_scatter")
    adding.add_argument(
        "--published", default="", help="a number by the same protocol, its budget, its source"
    )
    return parser.parse_args()


def main() -> None:
    """Record a run where asked, and write the page."""
    args = parse()
    try:
        if args.command == "add":
            add(args)
        PAGE.write_text(render(load_all(), measured.load_all()))
    except UserError as error:
        sys.exit(f"error: {error}")
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
