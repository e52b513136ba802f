"""The body of sample.py: a run or weights file -> denoiser -> sampler -> one image per seed."""

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from io import BytesIO
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scoregen import __version__, config
from scoregen.cli.entry import DONE, check_writable, run_entry
from scoregen.errors import UserError

if TYPE_CHECKING:
    from scoregen.cli.source import Source
    from scoregen.parallel import Parallel
    from scoregen.samplers.base import Sampler
    from scoregen.samplers.generate import Samples

MOST_SEEDS = 10_000_000  # the samples of one call are held in memory

EPILOG = """\
examples:
  python sample.py --steps 35                            the latest finished run under runs/
  python sample.py --run runs/x --seeds 0-63 --out out/  64 images of a run, with its own sampler
  python sample.py --run runs/x --nfe 35 s_churn=40      a budget of network evaluations; a sampler's setting
  python sample.py --run ema.safetensors --class 3       a weights file; one class of a conditional model

writes grid.png, samples.npz (images uint8 NHWC, seeds, labels) and manifest.json into --out. Image i depends
on the weights, the sampler and seed i only. exit codes: 0 done, 2 wrong input, 1 a defect, 130 interrupted
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the entry; the exit code."""
    return run_entry(_sample, argv)


def add_sampler_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of sample.py and evaluate.py that choose a model and a sampler."""
    samplers = config.groups()["sampler"]
    parser.add_argument(
        "--run", metavar="PATH", help="a run folder or a .safetensors file (default: the latest run)"
    )
    parser.add_argument("--sampler", metavar="NAME", help=f"{', '.join(samplers)} (default: the run's)")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--steps", type=int, help="solver steps")
    budget.add_argument("--nfe", type=int, help="budget of network evaluations an image, instead of --steps")
    parser.add_argument("--class", type=int, dest="label", metavar="ID", help="class of every image")
    parser.add_argument("--batch", type=int, default=64, help="images drawn at a time (default 64)")
    parser.add_argument("--device", help="auto, cpu, cuda, mps (default auto)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="a setting of the sampler")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sample.py",
        description="Draw images from a trained model.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_sampler_flags(parser)
    parser.add_argument("--seeds", default="0-63", help="ranges and lists: 0-63 or 5,17,30 (default 0-63)")
    parser.add_argument("--out", default="out", metavar="DIR", help="folder for the results (default out/)")
    return parser


def parse_seeds(text: str) -> list[int]:
    """The seeds that a list of numbers and inclusive ranges names, in its order: 0-3,7 is [0, 1, 2, 3, 7]."""
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or (dash and int(last) < int(first)):
            raise UserError(
                f"--seeds {text}: '{part}' is no seed or range; write for example 0-63 or 5,17,30"
            )
        named = range(int(first), int(last if dash else first) + 1)
        if named.stop > 2**63 or len(seeds) + named.stop - named.start > MOST_SEEDS:
            raise UserError(f"--seeds {text}: at most {MOST_SEEDS:,} seeds at once, each below 2^63")
        seeds += named
    if repeated := [seed for seed, times in Counter(seeds).items() if times > 1]:
        raise UserError(f"--seeds {text}: {min(repeated)} is named more than once")
    return seeds


def choose_sampler(source: "Source", args: argparse.Namespace) -> "Sampler":
    """The run's sampler, or the one named, with the settings and the budget of the command line."""
    from scoregen.samplers.generate import steps_for_nfe
    from scoregen.validation import check_choice

    settings = [*args.overrides, *([] if args.steps is None else [f"steps={args.steps}"])]
    if args.sampler:
        cfg, problems = config.choose("sampler", args.sampler, settings)
    else:
        cfg, problems = config.adjust(source.cfg.sampler, settings)
    config.refuse(problems + check_choice(cfg, "sampler"))
    sampler: Sampler = config.instantiate(cfg)
    return sampler if args.nfe is None else replace(sampler, steps=steps_for_nfe(sampler, args.nfe))


def describe_sampler(sampler: "Sampler") -> str:
    """Name, steps and cost: `HeunSampler: 18 steps, 35 network evaluations per image`."""
    return f"{type(sampler).__name__}: {sampler.steps} steps, {sampler.nfe()} network evaluations per image"


def sampler_manifest(sampler: "Sampler") -> dict[str, Any]:
    """What a result file says of its sampler; inf is a word, since JSON has no such number."""
    settings = {key: "inf" if value == inf else value for key, value in asdict(sampler).items()}
    return {"sampler": type(sampler).__name__, **settings, "nfe": sampler.nfe()}


def _sample(argv: Sequence[str]) -> int:
    args = _parser().parse_intermixed_args(argv)
    seeds = parse_seeds(args.seeds)
    from scoregen.cli.source import find_source
    from scoregen.parallel import Parallel

    parallel = Parallel(args.device or "auto")
    source = find_source(args.run, parallel.device)
    sampler = choose_sampler(source, args)
    check_writable(Path(args.out) / "samples.npz")
    if parallel.is_main:
        print(f"{source.description}\n{describe_sampler(sampler)}", flush=True)
    samples = _draw(source, sampler, seeds, args, parallel)
    if samples is not None:
        _write(Path(args.out), source, sampler, samples)
        print(f"wrote {args.out}/grid.png, samples.npz, manifest.json")
    parallel.close()
    return DONE


def _draw(
    source: "Source", sampler: "Sampler", seeds: list[int], args: argparse.Namespace, parallel: "Parallel"
) -> "Samples | None":
    """Samples for all seeds, in their order, drawn by all processes; None in all but the main one."""
    import torch

    from scoregen.samplers.generate import Samples, generate

    mine = seeds[parallel.rank :: parallel.world]
    batches = generate(
        source.denoiser, sampler, mine, batch=args.batch, device=parallel.device, labels=args.label
    )
    shares = parallel.gather([_to_cpu(batch) for batch in batches])
    if not parallel.is_main:
        return None
    parts = [part for share in shares for part in share]
    drawn = {seed: i for i, seed in enumerate(seed for part in parts for seed in part.seeds)}
    order = [drawn[seed] for seed in seeds if seed in drawn]
    labels = [part.labels for part in parts if part.labels is not None]
    return Samples(
        torch.cat([part.x for part in parts])[order],
        tuple(seeds),
        torch.cat(labels)[order] if labels else None,
    )


def _to_cpu(samples: "Samples") -> "Samples":
    labels = None if samples.labels is None else samples.labels.cpu()
    return replace(samples, x=samples.x.cpu(), labels=labels)


def _write(out: Path, source: "Source", sampler: "Sampler", samples: "Samples") -> None:
    """grid.png, samples.npz and manifest.json."""
    import numpy as np

    from scoregen.images import picture, to_png
    from scoregen.training.weights import write_whole

    arrays: dict[str, Any] = {"seeds": np.array(samples.seeds)}
    if samples.x.ndim == 4:
        arrays["images"] = samples.images.permute(0, 2, 3, 1).numpy()
    else:
        arrays["points"] = samples.x.numpy()
    if samples.labels is not None:
        arrays["labels"] = samples.labels.numpy()
    packed = BytesIO()
    np.savez(packed, **arrays)
    manifest = {
        **source.manifest,
        **sampler_manifest(sampler),
        "seeds": list(samples.seeds),
        "scoregen": __version__,
    }
    write_whole(out / "samples.npz", packed.getbuffer())
    write_whole(out / "manifest.json", (json.dumps(manifest, indent=1) + "\n").encode())
    write_whole(out / "grid.png", to_png(picture(samples.x)))
