"""Run all benchmarks that take minutes, one after the other, and keep what they print.

usage: python -m benchmarks.run [NAME ...] [--rounds 3] [--device cpu] [--threads 1]
           [--out benchmarks/results] [--page docs/performance.md]

Writes <out>/<machine>.json (machine, its load, versions, each command with its output) and a section of the
page of the same content. Each benchmark is a script of its own, `python -m benchmarks.NAME --help`, in a
process of its own. One whose data or package is missing is kept with its message, and the others go on.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby
from pathlib import Path

import torch

from benchmarks.pages import write_section
from scoregen.machine import machine_name

ROUNDS, DEVICE, THREADS = "{rounds}", "{device}", "{threads}"  # filled in from the flags
SUITES: dict[str, tuple[str, list[str]]] = {
    "startup": ("Start-up", ["--rounds", ROUNDS]),
    "network_speed": (
        "Training step and inference beside other libraries",
        ["--rounds", ROUNDS, "--device", DEVICE, "--threads", THREADS],
    ),
    "objective_cost": ("Training step by objective", ["--rounds", ROUNDS, "--device", DEVICE]),
    "distillation_step": ("Training step by distiller", ["--rounds", ROUNDS, "--device", DEVICE]),
    "sampler_overhead": ("A solver's step beyond the denoiser", ["--rounds", ROUNDS, "--threads", THREADS]),
    "features": (
        "Metrics: Inception features",
        ["--repeats", ROUNDS, "--device", DEVICE, "--threads", THREADS],
    ),
    "frechet": (
        "Metrics: Frechet distance of 2,048 features",
        ["--dim", "2048", "--repeats", ROUNDS, "--threads", THREADS],
    ),
    "closed_form": (
        "The training set as a denoiser",
        [
            *("--batch", "64", "--exact", "4", "--repeats", "2", "--sigmas", "0.2", "1", "5"),
            *("--rounds", ROUNDS, "--threads", THREADS),
        ],
    ),
}
PACKAGES = ("numpy", "scipy", "diffusers", "azula", "torchcfm", "denoising-diffusion-pytorch", "torchmetrics")


@dataclass(frozen=True)
class Outcome:
    """What one benchmark printed."""

    title: str
    command: str
    output: list[str]
    returncode: int


def run(name: str, values: dict[str, str]) -> Outcome:
    """Run one benchmark in its own process, showing what it prints."""
    title, arguments = SUITES[name]
    arguments = ["-m", f"benchmarks.{name}", *(argument.format(**values) for argument in arguments)]
    env = {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": values["threads"], **os.environ}
    print(f"\n## {title}\n", flush=True)
    done = subprocess.run([sys.executable, *arguments], env=env, capture_output=True, text=True)
    output = done.stdout.strip().splitlines()
    if done.returncode:
        output += [f"not measured: {(done.stderr.strip().splitlines() or ['no message'])[-1]}"]
    print("\n".join(output), flush=True)
    return Outcome(title, f"python {' '.join(arguments)}", output, done.returncode)


def versions() -> dict[str, str]:
    """Of what is compared, where it is installed."""
    found = {"python": sys.version.split()[0], "torch": torch.__version__}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def section(machine: str, load: float, outcomes: dict[str, Outcome]) -> str:
    """The part of the page about one machine."""
    packages = ", ".join(f"{name} {number}" for name, number in versions().items())
    parts = [f"### {machine}", f"Load average at the start {load:.1f}. {packages}."]
    for outcome in outcomes.values():
        parts += [f"#### {outcome.title}", f"`{outcome.command}`", *_blocks(outcome.output)]
    return "\n\n".join(parts)


def _blocks(lines: list[str]) -> Iterator[str]:
    """Tables as they are, other text between fences."""

    def kind_of(line: str) -> str:
        return "table" if line.startswith("|") else "text" if line.strip() else ""

    for kind, group in groupby(lines, key=kind_of):
        text = "\n".join(group)
        if kind:
            yield text if kind == "table" else f"```\n{text}\n```"


def main() -> None:
    """Run them, write the file and the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: all of {', '.join(SUITES)}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--page", type=Path, default=Path("docs/performance.md"))
    args = parser.parse_args()
    if unknown := set(args.names) - set(SUITES):
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}; allowed: {', '.join(SUITES)}")
    torch.set_num_threads(args.threads)
    machine, load = machine_name(torch.device(args.device)), os.getloadavg()[0]
    values = {key: str(value) for key, value in vars(args).items()}
    outcomes = {name: run(name, values) for name in args.names or SUITES}
    kept = {"machine": machine, "load_average": load, "rounds": args.rounds, "versions": versions()}
    content = {**kept, "benchmarks": {name: asdict(outcome) for name, outcome in outcomes.items()}}
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / f"{re.sub('[^a-z0-9]+', '_', machine.lower()).strip('_')}.json"
    file.write_text(json.dumps(content, indent=1) + "\n")
    write_section(args.page, machine, section(machine, load, outcomes))
    print(f"\nwritten: {file}, {args.page}")


if __name__ == "__main__":
    main()
