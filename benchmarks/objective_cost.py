"""What a training step costs with each score matching objective, relative to denoising on the same network.

    OMP_NUM_THREADS=1 python -m benchmarks.objective_cost [--device cuda] [--batch 128] [--write PAGE]

A step is forward, backward and Adam on one batch of noise images of MNIST's size (network `ddpmpp_small`), or
of sixteen times as many points (`mlp`). Steps of all objectives are interleaved; the ratio of each to
denoising's step of the same round is taken, and its median over rounds printed with the range. Memory is the
peak of a step beyond weights and optimizer: of the CUDA allocator, else the growth of a fresh process.
"""

import argparse
import resource
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import torch

from benchmarks.pages import write_section
from scoregen import config
from scoregen.build import ModelSpec, build_denoiser
from scoregen.rng import BatchRng, generator

OBJECTIVES = {
    "denoising": [],
    "lcss": [],
    "lcss, antithetic": ["objective.estimator=antithetic"],
    "fd_ssm": [],
    "ssm": [],
    "ssm_vr": [],
}
NETWORKS = {"ddpmpp_small": (1, 32, 32), "mlp": (2,)}


def build_step(network: str, objective: str, batch: int, device: str) -> Callable[[], None]:
    """One training step of a new network."""
    options = [f"objective={objective.split(',')[0]}", *OBJECTIVES[objective]]
    data = "data=mixture" if network == "mlp" else "data=mnist"
    cfg, problems = config.compose([data, f"network={network}", *options])
    config.refuse(problems)
    shape = NETWORKS[network]
    denoiser, loss = build_denoiser(cfg, ModelSpec(shape)).to(device), config.instantiate(cfg.objective)
    optimizer = torch.optim.Adam(denoiser.parameters(), 1e-4)
    x0 = torch.randn(batch, *shape, generator=generator("data")).to(device) / 2

    def step() -> None:
        rng = BatchRng("cost", size=batch, device=device)
        optimizer.zero_grad(set_to_none=True)
        loss(denoiser, x0, None, rng).value.mean().backward()
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return step


def peak(network: str, objective: str, batch: int, device: str) -> float:
    """Megabytes of a step beyond weights and optimizer."""
    torch.set_num_threads(1)
    build_step(network, objective, 1, device)()  # what any step needs is there before we look
    step = build_step(network, objective, batch, device)
    if device == "cuda":
        step()  # so that the optimizer's state exists
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3


def ratios(network: str, batch: int, rounds: int, device: str) -> dict[str, list[float]]:
    """The seconds of each objective's step over denoising's of the same round; the first does not count."""
    steps = {name: build_step(network, name, batch, device) for name in OBJECTIVES}
    found: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds + 1):
        seconds = {name: _seconds(step, device) for name, step in steps.items()}
        for name, value in seconds.items():
            found[name].append(value / seconds["denoising"])
    return {name: values[1:] for name, values in found.items()}


def _seconds(step: Callable[[], None], device: str) -> float:
    """The CPU time of a step, which other processes disturb least; on a GPU the time that passes."""
    clock = time.perf_counter if device == "cuda" else time.process_time
    start = clock()
    step()
    return clock() - start


def table(network: str, batch: int, rounds: int, device: str) -> str:
    """The table of one network."""
    lines = [
        f"| {network}, batch {batch}, {device} | time / denoising's | least to most | peak memory, MB |",
        "|---|--:|--:|--:|",
    ]
    with get_context("spawn").Pool(1, maxtasksperchild=1) as fresh:
        memory = fresh.starmap(peak, [(network, name, batch, device) for name in OBJECTIVES], 1)
    for (name, values), megabytes in zip(ratios(network, batch, rounds, device).items(), memory, strict=True):
        cells = f"{median(values):.2f} | {min(values):.2f} to {max(values):.2f} | {megabytes:,.0f}"
        lines.append(f"| {name} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--write", type=Path, metavar="PAGE")
    args = parser.parse_args()
    torch.set_num_threads(1)
    batches = {"ddpmpp_small": args.batch, "mlp": 16 * args.batch}
    tables = "\n\n".join(table(name, size, args.rounds, args.device) for name, size in batches.items())
    print(tables)
    if args.write:
        write_section(args.write, f"objective_cost {args.device}", tables)


if __name__ == "__main__":
    main()
