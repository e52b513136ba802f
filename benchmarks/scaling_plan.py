"""What the published runs cost on 1 to 64 GPUs, by a model of DDP: no measurement, a calculation.

usage: python -m benchmarks.scaling_plan [--rate 242] [--write docs/performance.md]

Parameters P and FLOPs F of a training image are counted on the networks; --rate is the TFLOP/s that one GPU
sustains in a training step. With n GPUs a step computes for t = batch F / (n rate) and moves
v = 2 x 4 P (n - 1) / n bytes out of each GPU (a ring all-reduce of float32 gradients), assumed at 300 GB/s
within a node of 8 and at 25 GB/s between nodes. It overlaps with the backward, two thirds of the step: a step
takes t + max(0, v / bandwidth - 2 t / 3).
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.pages import write_section
from scoregen import config
from scoregen.model import ModelSpec
from scoregen.plan import BACKWARD, measure

GPUS, NODE = (1, 2, 4, 8, 16, 32, 64), 8
NODE_BANDWIDTH, NETWORK_BANDWIDTH = 300e9, 25e9  # bytes a second and GPU, assumed
OVERLAP = 2 / 3  # of a step, in which gradients travel while the backward goes on


@dataclass(frozen=True)
class Run:
    """A published run; `overrides` and `spec` give its network."""

    name: str
    overrides: tuple[str, ...]
    spec: ModelSpec
    batch: int
    images: float


RUNS = (
    Run("CIFAR-10, DDPM++", ("experiment=cifar_edm",), ModelSpec((3, 32, 32), augment_dim=9), 512, 200e6),
    Run(
        "ImageNet-64, ADM",
        ("network=adm", "augment=none"),
        ModelSpec((3, 64, 64), num_classes=1000),
        4096,
        2500e6,
    ),
)


def volume(parameters: int, gpus: int) -> float:
    """Bytes that each GPU sends in a ring all-reduce of float32 gradients."""
    return 2 * 4 * parameters * (gpus - 1) / gpus


def step_seconds(compute: float, moved: float, gpus: int) -> float:
    """A step that computes for `compute` seconds and sends so many bytes."""
    bandwidth = NODE_BANDWIDTH if gpus <= NODE else NETWORK_BANDWIDTH
    return compute + max(0.0, moved / bandwidth - OVERLAP * compute)


def table(run: Run, rate: float) -> str:
    """A row for each number of GPUs."""
    cfg, problems = config.compose(run.overrides)
    config.refuse(problems)
    cost = measure(cfg, run.spec)
    flops = cost.forward_flops * (1 + BACKWARD)
    lines = [
        f"{run.name}: {cost.parameters / 1e6:.1f} M parameters, {flops / 1e9:.0f} GFLOP a training image, "
        f"batch {run.batch:,}, {run.images / 1e6:,.0f} Mimg = {flops * run.images / 1e18:,.1f} EFLOP, at "
        f"{rate / 1e12:.0f} TFLOP/s a GPU.\n",
        "| GPUs | images a GPU | computing | sent by a GPU | step | whole run | GPU hours | efficiency |",
        "|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for gpus in GPUS:
        compute, moved = run.batch * flops / (gpus * rate), volume(cost.parameters, gpus)
        step = step_seconds(compute, moved, gpus)
        hours = step * run.images / run.batch / 3600
        lines.append(
            f"| {gpus} | {run.batch // gpus} | {1e3 * compute:.1f} ms | {moved / 1e6:,.0f} MB "
            f"| {1e3 * step:.1f} ms | {hours:,.1f} h | {gpus * hours:,.0f} | {compute / step:.0%} |"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the tables, and write them where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rate", type=float, default=242, help="TFLOP/s that a GPU sustains in training")
    parser.add_argument("--write", type=Path, metavar="PAGE")
    args = parser.parse_args(argv)
    text = "\n\n".join(table(run, args.rate * 1e12) for run in RUNS)
    print(text)
    if args.write:
        write_section(args.write, "plan", text)


if __name__ == "__main__":
    main()
