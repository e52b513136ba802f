"""What a training step costs with each distiller, relative to denoising on the same network.

usage: python -m benchmarks.distillation_step [--data digits] [--methods sim sid ...] [--rounds 3]
           [--device cpu] [--batch 32] [--steps 10]

A teacher is trained for one step; then --steps steps of each method, as `train.py` takes them in the
experiment <data>_<method>, have their turn in every round. A step is one batch, for whichever roles have
their turn in it; their mean is taken, its ratio to denoising's of the same round, and its median printed.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch

from scoregen import config
from scoregen.build import build_trainer
from scoregen.distillers import DISTILLERS
from scoregen.machine import machine_name, synchronize
from scoregen.training.trainer import Trainer

QUIET = ("hooks.status.every=null", "hooks.heldout.every=null", "hooks.grid.every=null")


def trainer_of(experiment: str, folder: Path, batch: int, device: str, *overrides: str) -> Trainer:
    """A trainer at its start, in a folder of its own."""
    run = [f"run_dir={folder / experiment}", f"trainer.batch={batch}", f"device={device}", *QUIET, *overrides]
    cfg, problems = config.compose([f"experiment={experiment}", *run])
    config.refuse(problems)
    return build_trainer(cfg)


def trainers(data: str, methods: Sequence[str], folder: Path, batch: int, device: str) -> dict[str, Trainer]:
    """Denoising, and each method with the weights of one step of denoising as its teacher."""
    teacher = trainer_of(f"{data}_edm", folder, batch, device, f"trainer.total={batch}")
    teacher.run()
    teacher.close()
    built = {"denoising": trainer_of(f"{data}_edm", folder / "again", batch, device)}
    for method in methods:
        options = [f"teacher={folder / f'{data}_edm'}", "hooks.evaluate.every=null"]
        built[method] = trainer_of(f"{data}_{method}", folder, batch, device, *options)
    return built


def seconds_of(trainer: Trainer, steps: int) -> float:
    """Of one step, the mean of some; CPU seconds on CPUs, which other programs lengthen little."""
    device = trainer.parallel.device
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    synchronize(device)
    begin = clock()
    for _ in range(steps):
        trainer.train_step()
    synchronize(device)
    return (clock() - begin) / steps


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="digits")
    parser.add_argument("--methods", nargs="*")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=10)
    args = parser.parse_args()
    known = [name for name in DISTILLERS if f"{args.data}_{name}" in config.groups()["experiment"]]
    with tempfile.TemporaryDirectory() as folder:
        built = trainers(args.data, args.methods or known, Path(folder), args.batch, args.device)
        rounds = [
            {name: seconds_of(trainer, args.steps) for name, trainer in built.items()}
            for _ in range(args.rounds + 1)
        ][1:]
        for trainer in built.values():
            trainer.close()
    print(f"{args.data}, batch {args.batch}, {machine_name(torch.device(args.device))}\n")
    print("| a step of | ms | x denoising | img/s |\n|---|--:|--:|--:|")
    for name in built:
        seconds = median(one[name] for one in rounds)
        ratio = median(one[name] / one["denoising"] for one in rounds)
        print(f"| {name} | {1e3 * seconds:.0f} | {ratio:.2f} | {args.batch / seconds:,.0f} |")


if __name__ == "__main__":
    main()
