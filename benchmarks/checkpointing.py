"""What `trainer.checkpointing=true` saves and costs.

usage: python -m benchmarks.checkpointing [--rounds 3] [--device cpu] [--batch 8] [--set key=value ...]

The training step of `network=ddpmpp_small` on images of CIFAR-10's size, or of whatever --set says, with and
without, interleaved. Memory is what a step needs beyond weights and optimizer: on a GPU the allocator's peak,
on a CPU the bytes that autograd keeps for the backward, without those of the one block being recomputed.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.distillation_step import trainer_of
from benchmarks.interleaved import median_seconds
from scoregen.machine import machine_name
from scoregen.training.trainer import Trainer


def megabytes(trainer: Trainer) -> float:
    """What a step needs beyond what is there between two."""
    if trainer.parallel.device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        trainer.train_step()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        trainer.train_step()
    return sum(kept.values()) / 1e6


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        trainers = {
            name: trainer_of(
                "cifar_edm", Path(folder) / name, args.batch, args.device,
                "network=ddpmpp_small", f"trainer.checkpointing={value}", "trainer.compile=false", *args.set,
            )
            for name, value in {"kept": "false", "recomputed": "true"}.items()
        }  # fmt: skip
        device = trainers["kept"].parallel.device
        steps = {name: trainer.train_step for name, trainer in trainers.items()}
        seconds = median_seconds(steps, args.rounds, device)
        memory = {name: megabytes(trainer) for name, trainer in trainers.items()}
        count = sum(p.numel() for p in trainers["kept"].denoiser.parameters())
        for trainer in trainers.values():
            trainer.close()
    print(f"{count / 1e6:.1f} M parameters, batch {args.batch}, {machine_name(device)}\n")
    print("| activations | MB | of kept | ms a step | x kept |\n|---|--:|--:|--:|--:|")
    for name in trainers:
        share, ratio = memory[name] / memory["kept"], seconds[name] / seconds["kept"]
        print(f"| {name} | {memory[name]:,.0f} | {share:.0%} | {1e3 * seconds[name]:,.0f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
