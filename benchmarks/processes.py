"""Training by one process and by two, on the same cores: what gradients on their way cost.

usage: python -m benchmarks.processes [--rounds 3] [--steps 20] [--set key=value ...]

`train.py` with each division of the cores, in turn, in every round. Images a second are of wall time, over
the last --steps steps, as log.jsonl has them; CPU seconds, of all processes of a run, are what so many steps
more add. Medians. On a machine that others use the former are wrong, the latter little longer: the load
average at the start of each round is printed, and a round waits for one below --load, ten minutes at most.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

BATCH = 64
WAYS: dict[str, tuple[int, int, tuple[str, ...]]] = {  # processes, threads of each, settings
    "1 process, 1 thread": (1, 1, ()),
    "1 process, 2 threads": (1, 2, ()),
    "2 processes, 1 thread each": (2, 1, ()),
    "2 processes, 1 thread each, fsdp": (2, 1, ("parallel=fsdp",)),
}
SIZES = {
    "ddpmpp_tiny, 8 x 8": ("data=digits", "network=ddpmpp_tiny"),
    "ddpmpp_small, 8 x 8": ("data=digits", "network=ddpmpp_small"),
}
HOOKS = ("device=cpu", "hooks.heldout.every=null", "hooks.grid.every=null", "hooks.checkpoint.every=null")


@dataclass(frozen=True)
class Speed:
    """Of a run: images a second of wall time at its end, and CPU seconds of the whole of it."""

    rate: float
    cpu_seconds: float


def measure(way: str, overrides: Sequence[str], steps: int, parts: int) -> Speed:
    """Train for `parts` times so many steps."""
    processes, threads, own = WAYS[way]
    images = BATCH * steps
    run = [f"trainer.total={parts * images}", f"hooks.status.every={images}", f"trainer.batch={BATCH}"]
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "--"]
    env = {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    with tempfile.TemporaryDirectory() as folder:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [*(launcher if processes > 1 else []), "train.py", f"run_dir={folder}", *run]
        subprocess.run(
            [sys.executable, *command, *HOOKS, *overrides, *own], env=env, check=True, capture_output=True
        )
        last = (Path(folder) / "log.jsonl").read_text().splitlines()[-1]
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Speed(float(json.loads(last)["time"]["img_per_s"]), cpu)


def wait_for_quiet(load: float, patience: float = 600.0) -> float:
    """The load average once it is below `load`, or after some minutes whatever it is."""
    end = time.monotonic() + patience
    while os.getloadavg()[0] > load and time.monotonic() < end:
        time.sleep(10)
    return os.getloadavg()[0]


def main() -> None:
    """Print a table for each size."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--load", type=float, default=1.0)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="of every run")
    args = parser.parse_args()
    for size, overrides in SIZES.items():
        loads: list[float] = []
        found: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
        for _ in range(args.rounds):
            loads.append(wait_for_quiet(args.load))
            for way in WAYS:
                short, long = (measure(way, [*overrides, *args.set], args.steps, parts) for parts in (1, 2))
                cpu = (long.cpu_seconds - short.cpu_seconds) / (BATCH * args.steps)
                found[way].append((long.rate, cpu))
        print(f"{size}, batch {BATCH}; load average at the start of each round {_listed(loads)}\n")
        print(table({way: (median(r for r, _ in of), median(c for _, c in of)) for way, of in found.items()}))


def table(found: dict[str, tuple[float, float]]) -> str:
    """A row for each way: images a second, and CPU seconds an image, beside one process with one thread."""
    lines = ["| how | img/s | x 1 thread | CPU ms an image | x 1 thread |", "|---|--:|--:|--:|--:|"]
    rate_1, cpu_1 = next(iter(found.values()))
    for way, (rate, cpu) in found.items():
        lines.append(f"| {way} | {rate:,.0f} | {rate / rate_1:.2f} | {1e3 * cpu:.2f} | {cpu / cpu_1:.2f} |")
    return "\n".join(lines) + "\n"


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.1f}" for value in values)


if __name__ == "__main__":
    main()
