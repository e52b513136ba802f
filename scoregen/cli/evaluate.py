"""The body of evaluate.py: metrics of a model, straight from its generator, or of any set of images."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scoregen.cli.entry import DONE, check_writable, run_entry
from scoregen.cli.sampler import add_sampler_flags
from scoregen.errors import UserError

if TYPE_CHECKING:
    from scoregen.cli.candidate import Candidate
    from scoregen.evaluation.result import Result
    from scoregen.parallel import Parallel

DEFAULT_METRICS = "fd_scatter"  # needs no weights file

EPILOG = """\
examples:
  python evaluate.py --run runs/digits_edm --num 1617       against its own training data
  python evaluate.py --run runs/cifar_edm --metrics fid,kid,precision,recall --num 50000 --repeats 3
  python evaluate.py --run runs/x --metrics fid --reference cifar10-32x32.npz --inception-weights FILE
  python evaluate.py --images FOLDER_ZIP_OR_NPZ --reference cifar10 --metrics fid
  python evaluate.py --compare cifar10:test cifar10:train --metrics fid
  python evaluate.py --compare runs/a runs/b runs/c         what was measured of them, and whether it compares
  python evaluate.py --run runs/x --report                  runs/x/report.html, with what is measured already
  torchrun --nproc_per_node 8 -- evaluate.py --run runs/cifar_edm --metrics fid      (mind the --)

prints a table and adds to metrics.json of the run, each value with its n, extractor and reference hashes,
sampler, steps, evaluations and seeds.

metrics (docs/evaluation.md):
  fid, fid_inf, sfid, kid, precision, recall, density, coverage       Inception; --inception-weights FILE
  is, is_inf, am                                                      and its output layer
  fd_dinov2; cmmd, fd_clip                                            pip install 'scoregen[dino]'; [clip]
  fd_scatter                                                          no weights needed
  nll, memorization; ls_mae                                           of the model itself, --run; of sound
exit codes: 0 done, 2 wrong input, 1 a defect, 130 interrupted
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the entry; the exit code."""
    return run_entry(_evaluate, argv)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="evaluate.py",
        description="Score images of a trained model, or of any set, against real ones.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_sampler_flags(parser)
    parser.add_argument("--metrics", metavar="NAMES", help=f"comma-separated (default {DEFAULT_METRICS})")
    parser.add_argument("--num", type=int, help="images for each repeat (default 50,000, or all of --images)")
    parser.add_argument("--repeats", type=int, default=1, help="times, with seeds that follow on (default 1)")
    parser.add_argument("--seed", type=int, default=0, help="the first seed (default 0)")
    parser.add_argument("--images", metavar="SET", help="instead of a model: a folder, zip, npz or data set")
    parser.add_argument(
        "--reference",
        metavar="SET_OR_STATS",
        help="a data set's name, images at a path, or .npz statistics (default: the training data)",
    )
    parser.add_argument(
        "--compare", nargs="+", metavar="A", help="--images A --reference B; or the results of several runs"
    )
    parser.add_argument("--latents", choices=("normal", "sobol"), default="normal", help="initial noise")
    parser.add_argument("--inception-weights", metavar="FILE", help="as --weights inception=FILE")
    parser.add_argument(
        "--weights", metavar="NAME=PATH", action="append", default=[], help="of an extractor: inception, ..."
    )
    parser.add_argument("--cache", metavar="DIR", type=Path, help="where statistics of real images are kept")
    parser.add_argument(
        "--report", action="store_true", help="write the run's report.html; default no metrics"
    )
    parser.add_argument("--out", metavar="FILE", help="the results (default: metrics.json in the run folder)")
    return parser


def _evaluate(argv: Sequence[str]) -> int:
    args = _parser().parse_intermixed_args(argv)
    _check(args)
    if args.compare:
        from scoregen.cli.records import compare_results, holds_results

        paths = [Path(name) for name in args.compare]
        if all(map(holds_results, paths)):
            compare_results(paths)
            return DONE
        if len(paths) > 2 or any(map(holds_results, paths)):
            raise UserError("--compare: run folders and metrics.json among themselves, or two sets of images")
        args.images, args.reference = args.compare
    return _judge(args)


def _check(args: argparse.Namespace) -> None:
    for flag in ("num", "repeats"):
        if getattr(args, flag) is not None and getattr(args, flag) < 1:
            raise UserError(f"--{flag} {getattr(args, flag)}: at least 1")
    if args.seed < 0:
        raise UserError(f"--seed {args.seed}: at least 0")
    chosen = [flag for flag in ("run", "data", "images", "compare") if getattr(args, flag)]
    if len(chosen) > 1:
        raise UserError(f"{' and '.join(f'--{flag}' for flag in chosen)}: give one of them")
    if args.compare and len(args.compare) < 2:
        raise UserError("--compare A B: give two or more")
    if args.report and args.out and args.metrics is None:
        raise UserError("--out names a file of results, and --report alone measures none: leave it out")
    if args.compare and args.reference:
        raise UserError("--compare A B has its reference, B: leave --reference out")


def _judge(args: argparse.Namespace) -> int:
    from scoregen.cli.candidate import choose_candidate
    from scoregen.cli.records import RESULTS, add_records, make_records, print_records, read_records
    from scoregen.evaluation.examine import EXAMINATIONS
    from scoregen.evaluation.metrics import METRICS, check_metrics
    from scoregen.parallel import Parallel

    if args.metrics is None and not args.report:
        args.metrics = DEFAULT_METRICS
    metrics = args.metrics.split(",") if args.metrics is not None else []
    if args.metrics is not None:
        check_metrics(metrics, [*METRICS, *EXAMINATIONS])
    weights = _weights(args)
    parallel = Parallel(args.device or "auto")
    candidate = choose_candidate(args, metrics, parallel)
    out = Path(args.out) if args.out else candidate.folder / RESULTS
    check_writable(out)
    read_records(out)
    if parallel.is_main:
        print(candidate.description, flush=True)
    repeats = _measure(args, metrics, candidate, weights, parallel) if metrics else []
    if parallel.is_main and metrics:
        records = make_records(repeats, candidate.manifest)
        print_records(records)
        add_records(out, records)
        print(f"wrote {out}")
        if args.out is None:
            candidate.tell(records)
    if parallel.is_main and args.report:
        print(f"wrote {candidate.report()}")
    parallel.close()
    return DONE


def _measure(
    args: argparse.Namespace,
    metrics: list[str],
    candidate: "Candidate",
    weights: dict[str, Path],
    parallel: "Parallel",
) -> list[dict[str, "Result"]]:
    """All results of each repeat, the same in every process."""
    from scoregen.cli.candidate import open_reference
    from scoregen.evaluation.evaluator import Evaluator
    from scoregen.evaluation.examine import EXAMINATIONS
    from scoregen.evaluation.metrics import METRICS, check_number

    of_images = [name for name in metrics if name in METRICS]
    check_number(of_images, candidate.num)
    real = any(METRICS[name].real for name in of_images)
    evaluator = Evaluator(
        of_images,
        open_reference(args.reference, candidate) if real else None,
        weights=weights,
        device=parallel.device,
        cache=args.cache or candidate.cache,
        processes=parallel,
    )
    of_models = [EXAMINATIONS[name] for name in metrics if name in EXAMINATIONS]
    repeats = []
    for k in range(args.repeats):
        results = candidate.judge(evaluator, k) if of_images else {}
        examined = [candidate.examine(examination, k) for examination in of_models]
        repeats.append(results | {result.name: result for result in examined})
    return repeats


def _weights(args: argparse.Namespace) -> dict[str, Path]:
    """Files of weights by extractor."""
    from scoregen.evaluation.features import EXTRACTORS

    given = list(args.weights)
    if args.inception_weights:
        given.append(f"inception={args.inception_weights}")
    pairs = [text.partition("=") for text in given]
    for name, _, path in pairs:
        if name not in EXTRACTORS or not path:
            raise UserError(f"--weights {name}: give NAME=PATH, NAME one of {', '.join(EXTRACTORS)}")
    return {name: Path(path) for name, _, path in pairs}


if __name__ == "__main__":
    sys.exit(main())
