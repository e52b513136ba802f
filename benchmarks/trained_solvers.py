"""fd_scatter of a trained model by solver, network evaluations and teleportation, with its spread over seeds.

usage: python -m benchmarks.trained_solvers RUN [--num 600] [--repeats 3] [--batch 256] [--device auto]
           [--write docs/trained_solvers.md]

All cells share the seeds, so that differences within a repeat are paired; the spread is the standard
deviation over repeats. --write puts the table, and what it is of, into the run's section of a page.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

import torch

from benchmarks.pages import write_section
from scoregen.cli.source import load_source
from scoregen.evaluation.evaluator import Evaluator
from scoregen.evaluation.model import evaluate_model
from scoregen.parallel import Parallel
from scoregen.samplers.adams import DEISSampler
from scoregen.samplers.base import Sampler
from scoregen.samplers.edm import HeunSampler
from scoregen.samplers.fit import fit_sampler
from scoregen.samplers.generate import steps_for_nfe
from scoregen.samplers.teleport import TeleportSampler

SOLVERS: dict[str, Sampler] = {"heun": HeunSampler(), "deis (`auto`)": DEISSampler()}
BUDGETS = (9, 13, 19, 35)
SKIPS = (None, 20.0, 10.0)


def with_budget(sampler: Sampler, nfe: int) -> Sampler:
    """The sampler with the most steps that the budget allows."""
    return replace(sampler, steps=steps_for_nfe(sampler, nfe))


SECTION = """\
## {name}

fd_scatter of {num:,} samples of {name} ({nimg:,} images, sha256 {weights_sha256}) against its training data,
drawn on {where}.

```
python -m benchmarks.trained_solvers runs/{name} --num {num} --write docs/trained_solvers.md
```

{table}"""


def device_name(device: torch.device) -> str:
    """What the samples are drawn on, for the page."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "a CPU"


def main() -> None:
    """Print the table, and write it where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--num", type=int, default=600)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--write", type=Path)
    args = parser.parse_args()
    parallel = Parallel(args.device)
    source = load_source(args.run, parallel.device)
    evaluator = Evaluator(["fd_scatter"], source.data(), device=parallel.device, cache=source.cache)

    def score(sampler: Sampler) -> str:
        values = []
        for k in range(args.repeats):
            seeds = range(k * args.num, (k + 1) * args.num)
            results = evaluate_model(
                evaluator, source.denoiser, sampler, seeds, batch=args.batch, parallel=parallel
            )
            values.append(results["fd_scatter"].value)
        return f"{mean(values):.2f} ± {stdev(values):.2f}"

    lines = [
        "| solver | sigma_skip | " + " | ".join(map(str, BUDGETS)) + " |",
        "|---|--:|" + "--:|" * len(BUDGETS),
    ]
    print("\n".join(lines), flush=True)
    for name, solver in SOLVERS.items():
        for skip in SKIPS:
            cells = []
            for nfe in BUDGETS:
                sampler = solver
                if skip is not None:
                    sampler = TeleportSampler(inner=solver, sigma_skip=skip, protocol="regrid")
                    sampler = fit_sampler(sampler, source.denoiser, source.data, source.cache)
                cells.append(score(with_budget(sampler, nfe)))
            lines.append(
                f"| {name} | {'none' if skip is None else f'{skip:g}'} | " + " | ".join(cells) + " |"
            )
            print(lines[-1], flush=True)
    if args.write:
        facts = {"name": source.cfg.name, "table": "\n".join(lines), **source.manifest, **vars(args)}
        section = SECTION.format(where=device_name(parallel.device), **facts)
        write_section(args.write, source.cfg.name, section)


if __name__ == "__main__":
    main()
