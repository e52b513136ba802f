"""The body of evaluate.py: metrics of a run or a weights file, straight from its generator."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from scoregen.cli.entry import DONE, check_writable, run_entry
from scoregen.cli.sampler import (
    add_sampler_flags,
    choose_sampler,
    choose_source,
    describe_sampler,
    guide,
    sampler_manifest,
)
from scoregen.errors import UserError

if TYPE_CHECKING:
    from scoregen.cli.source import Source
    from scoregen.data.base import Dataset
    from scoregen.evaluation.result import Result
    from scoregen.parallel import Parallel
    from scoregen.samplers.base import Sampler

DEFAULT_METRICS = "fd_scatter"  # needs no weights file

EPILOG = """\
examples:
  python evaluate.py --run runs/digits_edm --num 1617       against its own training data
  python evaluate.py --run runs/cifar_edm --metrics fid --num 50000 --repeats 3
  python evaluate.py --run runs/x --metrics fid --reference cifar10-32x32.npz --inception-weights FILE
  torchrun --nproc_per_node 8 -- evaluate.py --run runs/cifar_edm --metrics fid      (mind the --)

prints a table and adds to metrics.json of the run, each value with its n, extractor and reference hashes,
sampler, steps, evaluations and seeds. exit codes: 0 done, 2 wrong input, 1 a defect, 130 interrupted
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the entry; the exit code."""
    return run_entry(_evaluate, argv)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="evaluate.py",
        description="Score images of a trained model against real ones.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_sampler_flags(parser)
    parser.add_argument(
        "--metrics", default=DEFAULT_METRICS, metavar="NAMES", help="comma-separated: fid, fd_scatter"
    )
    parser.add_argument("--num", type=int, default=50_000, help="images for each repeat (default 50,000)")
    parser.add_argument("--repeats", type=int, default=1, help="times, with seeds that follow on (default 1)")
    parser.add_argument("--seed", type=int, default=0, help="the first seed (default 0)")
    parser.add_argument(
        "--reference",
        metavar="DATA_OR_STATS",
        help="a data set's name, a folder or zip of images, or .npz statistics (default: the training data)",
    )
    parser.add_argument(
        "--inception-weights", metavar="FILE", type=Path, help="needed for fid; see docs/evaluation.md"
    )
    parser.add_argument("--out", metavar="FILE", help="the results (default: metrics.json in the run folder)")
    return parser


def _evaluate(argv: Sequence[str]) -> int:
    args = _parser().parse_intermixed_args(argv)
    for flag in ("num", "repeats"):
        if getattr(args, flag) < 1:
            raise UserError(f"--{flag} {getattr(args, flag)}: at least 1")
    if args.seed < 0:
        raise UserError(f"--seed {args.seed}: at least 0")
    from scoregen.evaluation.evaluator import Evaluator
    from scoregen.evaluation.metrics import check_metrics
    from scoregen.parallel import Parallel

    metrics = args.metrics.split(",")
    check_metrics(metrics)
    parallel = Parallel(args.device or "auto")
    source = choose_source(args, parallel.device)
    sampler = choose_sampler(source, args)
    source = replace(source, denoiser=guide(source, args, parallel.device))
    out = Path(args.out) if args.out else (source.run_dir or Path()) / "metrics.json"
    check_writable(out)
    _earlier_records(out)
    if parallel.is_main:
        cost = (
            f"{args.repeats} x {args.num:,} images: {args.repeats * args.num * sampler.nfe():,} evaluations"
        )
        print(f"{source.description}\n{describe_sampler(sampler, source.denoiser)}\n{cost}", flush=True)
    evaluator = Evaluator(
        metrics,
        _reference(args.reference, source),
        weights={"inception": args.inception_weights} if args.inception_weights else {},
        device=parallel.device,
        cache=source.cache,
        processes=parallel,
    )
    repeats = [_repeat(evaluator, source, sampler, args, parallel, k) for k in range(args.repeats)]
    if parallel.is_main:
        _report(repeats, source, sampler, args, out)
    parallel.close()
    return DONE


def _reference(name: str | None, source: "Source") -> "Dataset | Path":
    """What --reference means: statistics, a data set by name, images at a path, or the training data."""
    from scoregen.build import build_data
    from scoregen.cli.source import data_config

    if name is None:
        return source.data()
    return Path(name) if Path(name).suffix == ".npz" else build_data(data_config(name), "train")


def _repeat(
    evaluator: Any,
    source: "Source",
    sampler: "Sampler",
    args: argparse.Namespace,
    parallel: "Parallel",
    k: int,
) -> dict[str, "Result"]:
    from scoregen.evaluation.model import evaluate_model

    seeds = range(args.seed + k * args.num, args.seed + (k + 1) * args.num)
    return evaluate_model(
        evaluator,
        source.denoiser,
        sampler,
        seeds,
        batch=args.batch,
        parallel=parallel,
        label=args.label,
    )


def _earlier_records(file: Path) -> list[dict[str, Any]]:
    """The results that the file holds already; UserError where it holds something else."""
    try:
        records = json.loads(file.read_bytes()) if file.exists() else []
    except ValueError:
        records = None
    if not isinstance(records, list):
        raise UserError(f"{file} holds no list of results: move it away, or choose another --out")
    return records


def _report(
    repeats: list[dict[str, "Result"]],
    source: "Source",
    sampler: "Sampler",
    args: argparse.Namespace,
    out: Path,
) -> None:
    """Print the table and add the records to the file of results."""
    from scoregen.training.weights import write_whole

    records = _earlier_records(out)
    print(f"\n{'metric':<16}{'mean':>12}{'min':>12}{'max':>12}{'n':>10}  repeats")
    for name, first in repeats[0].items():
        values = [results[name].value for results in repeats]
        columns = "".join(f"{statistic(values):>12.5g}" for statistic in (mean, min, max))
        print(f"{name:<16}{columns}{first.n:>10,}  {len(values)}")
        if first.note:
            print(f"  note: {first.note}")
        last = args.seed + args.num * args.repeats - 1
        records.append(
            {
                **asdict(first),
                "value": mean(values),
                "values": values,
                "seeds": f"{args.seed}-{last}",
                **source.manifest,
                **sampler_manifest(sampler, source.denoiser, args),
            }
        )
    write_whole(out, (json.dumps(records, indent=1) + "\n").encode())
    print(f"wrote {out}")
