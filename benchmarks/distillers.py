"""One-step students of one teacher by every method, with the same budget of images.

usage: python -m benchmarks.distillers runs/digits_edm [--data digits] [--methods sim sid ...] [--total 64000]
           [--jobs 4] [--device cuda] [--seed 0] [--num 2000] [--repeats 3] [--out runs/distillers]
           [--write docs/distiller_results.md] [--score-only [--trained-on NAME]] [--set key=value ...]

Runs `train.py experiment=<data>_<method>` for each method, --jobs at a time, each of which resumes where it
was; then scores all students and the teacher on the same seeds. What evaluate.py has put into a run's
metrics.json of FID and KID goes into the table too. benchmarks.distiller_curves plots the runs.
"""

import argparse
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor

from benchmarks.pages import write_section
from scoregen import config
from scoregen.cli.records import read_records
from scoregen.cli.source import Source, load_source
from scoregen.data.base import Dataset
from scoregen.distillers import DISTILLERS
from scoregen.evaluation.evaluator import Evaluator
from scoregen.evaluation.features import build_extractor
from scoregen.evaluation.prdc import compare_manifolds
from scoregen.evaluation.store import Sample
from scoregen.images import picture, save_png
from scoregen.machine import machine_name
from scoregen.parallel import Parallel
from scoregen.report.run import training_seconds
from scoregen.samplers.base import Sampler
from scoregen.samplers.edm import HeunSampler
from scoregen.samplers.generate import generate
from scoregen.training.loggers import read_log

PICTURED = 12  # samples of each method
SECTION = """\
From one teacher ({teacher_nimg:,} images, sha256 {teacher_sha256}); seed {seed}, trained on
{trained_on}, with the averaged weights. fd_scatter is {measure} {num:,}
samples; recall and coverage are on the same features, of the first range of seeds; the class of each
sample is drawn. Seconds are those of training steps.

```
{command}
```

{table}

<img src="images/distillers_{data}.png" alt="{pictured} samples of each method, in the order of the table">
"""
PUBLISHED = ("fid", "kid")  # families of metrics that are taken from metrics.json


@dataclass(frozen=True)
class Row:
    """What the table says of one model, and some of its samples, uint8 [B, C, H, W]."""

    cells: dict[str, str]
    samples: Tensor


def train(method: str, run_dir: Path, args: argparse.Namespace) -> str:
    """Run train.py; its last words where it fails."""
    total = [] if args.total is None else [f"trainer.total={args.total}"]
    where = [f"teacher={args.teacher}", f"run_dir={run_dir}", f"device={args.device}", f"seed={args.seed}"]
    command = [sys.executable, "train.py", f"experiment={args.data}_{method}", *where, *total, *args.set]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    print(f"{method}: {'trained' if done.returncode == 0 else 'failed'}", flush=True)
    return "" if done.returncode == 0 else done.stderr.strip().splitlines()[-1]


class Judge:
    """Scores models on the same seeds against the data."""

    def __init__(self, data: Dataset, cache: Path, device: torch.device, num: int, repeats: int) -> None:
        self.evaluator = Evaluator(["fd_scatter"], data, device=device, cache=cache)
        self.device, self.num, self.repeats = device, num, repeats
        self.scatter = build_extractor("scatter", None, device)
        self.real = self._features(data.fetch(torch.arange(min(len(data), num))).x)

    def __call__(self, source: Source, sampler: Sampler) -> tuple[dict[str, str], Tensor]:
        """fd_scatter, recall and coverage, and the first samples."""
        ranges = [range(k * self.num, (k + 1) * self.num) for k in range(self.repeats)]
        drawn = [torch.cat(list(self._draw(source, sampler, seeds))) for seeds in ranges]
        distances = [self.evaluator([images])["fd_scatter"].value for images in drawn]
        manifolds = compare_manifolds(self._features(drawn[0]), self.real)
        spread = f" ± {stdev(distances):.2f}" if len(distances) > 1 else ""
        scores = {
            "fd_scatter": f"{mean(distances):.2f}{spread}",
            "recall": f"{manifolds.recall.value:.2f}",
            "coverage": f"{manifolds.coverage.value:.2f}",
        }
        return scores, drawn[0][:PICTURED]

    def _draw(self, source: Source, sampler: Sampler, seeds: range) -> Iterator[Tensor]:
        for samples in generate(source.denoiser, sampler, seeds, batch=250, device=self.device):
            yield samples.images.cpu()

    def _features(self, images: Tensor) -> Sample:
        (layer,) = self.scatter.layers
        features = torch.cat([self.scatter.features(part)[layer] for part in images.split(250)])
        return Sample(features, len(features))


def measured(run_dir: Path, weights_sha256: str) -> dict[str, str]:
    """What the run's metrics.json says of these weights, by the names of the metrics: of the most samples."""
    found: dict[str, Mapping[str, Any]] = {}
    for record in read_records(run_dir / "metrics.json"):
        family = record["name"].split("_")[0]
        known = family in PUBLISHED and record["weights_sha256"] == weights_sha256
        if known and (family not in found or record["n"] >= found[family]["n"]):
            found[family] = record
    return {record["name"]: f"{record['value']:.3g}" for record in found.values()}


def cost(run_dir: Path) -> dict[str, str]:
    """Images seen, seconds in training steps, and the peak of memory, from a run's log."""
    rows = [row for row in read_log(run_dir) if "time" in row]
    memory = max(row["time"]["memory_gb"] for row in rows)
    return {"seconds": f"{training_seconds(rows):,.0f}", "GB": f"{memory:.1f}"}


def score(method: str, path: Path, judge: Judge, sampler: Sampler | None = None) -> Row:
    """A line of the table; the sampler is the run's own where None is given."""
    source = load_source(path, judge.device)
    sampler = sampler or config.instantiate(source.cfg.sampler)
    scores, samples = judge(source, sampler)
    images = f"{source.manifest['nimg']:,}"
    cells = {"method": method, "images": images, "evaluations": str(sampler.nfe()), **scores}
    return Row({**cells, **measured(path, source.manifest["weights_sha256"]), **cost(path)}, samples)


def table(rows: Sequence[Row]) -> str:
    """Markdown, in the order of the rows; a column that a row does not have is empty there."""
    heads = dict.fromkeys(head for row in sorted(rows, key=lambda row: -len(row.cells)) for head in row.cells)
    lines = [list(heads), ["---", *["--:"] * (len(heads) - 1)]]
    lines += [[row.cells.get(head, "") for head in heads] for row in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main() -> None:
    """Train, score, print the table; write section and picture where asked."""
    args = parse()
    folders = {method: args.out / f"{args.data}_{method}" for method in args.methods}
    failures = dict.fromkeys(folders, "")
    if not args.score_only:
        with ThreadPoolExecutor(args.jobs) as pool:
            ends = pool.map(lambda method: train(method, folders[method], args), folders)
            failures = dict(zip(folders, ends, strict=True))
    device = Parallel(args.device).device
    teacher = load_source(args.teacher, device)
    judge = Judge(teacher.data(), args.out / "references", device, args.num, args.repeats)
    rows = [score("teacher", args.teacher, judge, HeunSampler(steps=18))]
    blank = torch.zeros_like(rows[0].samples)
    for method, run_dir in folders.items():
        failure = failures[method]
        rows.append(
            Row({"method": method, "images": failure}, blank) if failure else score(method, run_dir, judge)
        )
    print(table(rows))
    if args.write:
        write(args, teacher, rows)


def write(args: argparse.Namespace, teacher: Source, rows: Sequence[Row]) -> None:
    """The section of the page, and its picture."""
    facts = {
        **vars(args),
        "trained_on": args.trained_on or machine_name(Parallel(args.device).device),
        "teacher_nimg": teacher.manifest["nimg"],
        "teacher_sha256": teacher.manifest["weights_sha256"],
        "command": shlex.join(["python", "-m", "benchmarks.distillers", *sys.argv[1:]]),
        "table": table(rows),
        "pictured": PICTURED,
        "measure": "of" if args.repeats == 1 else f"mean ± deviation over {args.repeats} seed ranges of",
    }
    write_section(args.write, f"distillers {args.data}", SECTION.format(**facts).rstrip())
    image = picture(torch.cat([row.samples for row in rows]).float() / 127.5 - 1, PICTURED)
    save_png(image, args.write.parent / "images" / f"distillers_{args.data}.png")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("teacher", type=Path)
    parser.add_argument("--data", default="digits", help="the experiments' first half")
    parser.add_argument("--methods", nargs="+", default=list(DISTILLERS), choices=list(DISTILLERS))
    parser.add_argument("--total", type=int, help="images each (default: the experiments')")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num", type=int, default=2000, help="samples of each repeat")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/distillers"))
    parser.add_argument("--write", type=Path, help="page whose section is written")
    parser.add_argument("--score-only", action="store_true", help="of runs that are there; train nothing")
    parser.add_argument("--trained-on", default="", help="what trained them (default: this machine)")
    parser.add_argument("--set", nargs="+", default=[], metavar="key=value", help="for every run")
    return parser.parse_args()


if __name__ == "__main__":
    main()
