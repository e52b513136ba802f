"""The body of sample.py: a run or weights file -> denoiser -> sampler -> one image per seed."""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from scoregen.cli.entry import DONE, check_writable, run_entry
from scoregen.cli.sampler import add_sampler_flags, choose_sampler, choose_source
from scoregen.errors import UserError

MOST_SEEDS = 10_000_000  # the samples of one call are held in memory

EPILOG = """\
examples:
  python sample.py --steps 35                            the latest finished run under runs/
  python sample.py --run runs/x --seeds 0-63 --out out/  64 images of a run, with its own sampler
  python sample.py --run runs/x --nfe 35 s_churn=40      a budget of network evaluations; a sampler's setting
  python sample.py --run ema.safetensors --class 3       a weights file; one class of a conditional model
  python sample.py --data mnist --sigma-s 5              a data set as a model, with no training at all
  python sample.py --sampler unipc --nfe 11              another solver; --list shows them all
  python sample.py --guidance 2 --guidance-interval 0.2,5   classifier-free guidance between two noise levels

writes grid.png, samples.npz (images uint8 NHWC, seeds, labels) and manifest.json into --out. Image i depends
on the weights, the sampler and seed i only. exit codes: 0 done, 2 wrong input, 1 a defect, 130 interrupted
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the entry; the exit code."""
    return run_entry(_sample, argv)


def build_parser(kind: type[argparse.ArgumentParser] = argparse.ArgumentParser) -> argparse.ArgumentParser:
    """What sample.py takes; `kind` decides what a mistake does."""
    parser = kind(
        prog="sample.py",
        description="Draw images from a trained model.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_sampler_flags(parser)
    parser.add_argument("--list", action="store_true", help="print a table of the samplers and exit")
    parser.add_argument("--seeds", default="0-63", help="ranges and lists: 0-63 or 5,17,30 (default 0-63)")
    parser.add_argument("--out", default="out", metavar="DIR", help="folder for the results (default out/)")
    parser.add_argument("--png", action="store_true", help="also images/, a PNG a seed; a next call goes on")
    views = parser.add_argument_group("pictures besides the grid")
    views.add_argument("--trajectory", action="store_true", help="trajectory.png: how the first 8 take shape")
    views.add_argument(
        "--interpolate", nargs=2, type=int, metavar="SEED", help="interpolation.png between them"
    )
    views.add_argument("--class-grid", action="store_true", help="classes.png: a row of 10 for every class")
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


def _sample(argv: Sequence[str]) -> int:
    args = build_parser().parse_intermixed_args(argv)
    if args.list:
        from scoregen.samplers.table import format_table, sampler_table

        print(format_table(sampler_table(args.steps or 18)))
        return DONE
    seeds = parse_seeds(args.seeds)
    from scoregen.cli.draw import (
        describe_copies,
        nearest_training_samples,
        prepare,
        write_samples,
        write_views,
    )
    from scoregen.cli.dump import ImageDump
    from scoregen.cli.sound import write_sounds
    from scoregen.parallel import Parallel

    parallel = Parallel(args.device or "auto")
    source, out = choose_source(args, parallel.device), Path(args.out)
    order = prepare(source, choose_sampler(source, args), args, parallel)
    draw, manifest = order.draw, order.manifest
    check_writable(out / "samples.npz")
    if parallel.is_main:
        print(order.description, flush=True)
    samples = draw(seeds, ImageDump(out / "images", manifest) if args.png else None)
    if samples is not None:
        manifest |= nearest_training_samples(source.denoiser, samples, parallel.device)
        for line in describe_copies(manifest):
            print(line)
        written = [*write_samples(out, manifest, samples), *write_views(out, draw, seeds, args)]
        written += write_sounds(out, samples, draw.conditions)
        print(f"wrote {', '.join(str(out / name) for name in written)}")
    parallel.close()
    return DONE


if __name__ == "__main__":
    sys.exit(main())
