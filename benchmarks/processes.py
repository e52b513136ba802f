"""Training by one process and by two, on the same cores: what gradients on their way cost.

usage: python -m benchmarks.processes [--rounds 3] [--steps 20] [--set key=value ...]

`train.py` with each division of the cores, in turn, in every round; images a second of wall time over the
second half of the steps, as log.jsonl has them, medians. On a machine that others use these are wrong: the
load average at the start of each round is printed, and rounds that begin above --load are waited for.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
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
HOOKS = ("hooks.heldout.every=null", "hooks.grid.every=null", "hooks.checkpoint.every=null")


def images_per_second(way: str, overrides: Sequence[str], steps: int) -> float:
    """Of one run's second half."""
    processes, threads, own = WAYS[way]
    half = BATCH * (steps // 2)
    run = [f"trainer.batch={BATCH}", f"trainer.total={2 * half}", f"hooks.status.every={half}", "device=cpu"]
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "--"]
    env = {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    with tempfile.TemporaryDirectory() as folder:
        command = [*(launcher if processes > 1 else []), "train.py", f"run_dir={folder}", *run, *HOOKS]
        subprocess.run([sys.executable, *command, *overrides, *own], env=env, check=True, capture_output=True)
        last = (Path(folder) / "log.jsonl").read_text().splitlines()[-1]
    return float(json.loads(last)["time"]["img_per_s"])


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
        rates: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(args.rounds):
            loads.append(wait_for_quiet(args.load))
            for way, found in rates.items():
                found.append(images_per_second(way, [*overrides, *args.set], args.steps))
        told = ", ".join(f"{load:.1f}" for load in loads)
        print(f"{size}, batch {BATCH}; load average at the start of each round {told}\n")
        print("| how | img/s | x 1 thread | efficiency |\n|---|--:|--:|--:|")
        one = median(rates["1 process, 1 thread"])
        for way, found in rates.items():
            cores = WAYS[way][0] * WAYS[way][1]
            rate = median(found)
            print(f"| {way} | {rate:,.0f} | {rate / one:.2f} | {rate / one / cores:.0%} |")
        print()


if __name__ == "__main__":
    main()
