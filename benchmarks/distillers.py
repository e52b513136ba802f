"""One-step students of one teacher by every method, with the same budget of images.

usage: python -m benchmarks.distillers runs/digits_edm [--data digits] [--methods sim sid ...] [--total 64000]
           [--jobs 4] [--device cuda] [--seed 0] [--num 2000] [--repeats 3] [--out runs/distillers]
           [--write docs/distillers_digits.md] [--set key=value ...]

Runs `train.py experiment=<data>_<method>` for each method, --jobs at a time, each of which resumes where it
was; then scores all students and the teacher on the same seeds. benchmarks.distiller_curves plots the runs.
"""

import argparse
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

import torch
from torch import Tensor

from scoregen import config
from scoregen.cli.source import Source, load_source
from scoregen.data.base import Dataset
from scoregen.distillers import DISTILLERS
from scoregen.evaluation.evaluator import Evaluator
from scoregen.evaluation.features import build_extractor
from scoregen.evaluation.prdc import compare_manifolds
from scoregen.evaluation.store import Sample
from scoregen.images import picture, save_png
from scoregen.parallel import Parallel
from scoregen.samplers.base import Sampler
from scoregen.samplers.edm import HeunSampler
from scoregen.samplers.generate import generate
from scoregen.training.loggers import read_log

PICTURED = 12  # samples of each method
PAGE = """\
# One-step students of {data} by every method

Each student saw {total:,} images in training, from the same teacher ({teacher_nimg:,} images, sha256
{teacher_sha256}); seed {seed}, {device}. fd_scatter, mean ± standard deviation over {repeats} seed ranges of
{num:,} samples, recall and coverage on the same features, of the averaged weights; the class of each sample
is drawn. Seconds are those of training steps, with {jobs} run(s) at a time.

```
{command}
```

{table}

![a row of samples of each method, in the order of the table](images/distillers_{data}.png)
"""


@dataclass(frozen=True)
class Row:
    """What the table says of one model, and some of its samples, uint8 [B, C, H, W]."""

    cells: list[str]
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

    def __call__(self, source: Source, sampler: Sampler) -> tuple[list[str], Tensor]:
        """fd_scatter, recall and coverage, and the first samples."""
        ranges = [range(k * self.num, (k + 1) * self.num) for k in range(self.repeats)]
        drawn = [torch.cat(list(self._draw(source, sampler, seeds))) for seeds in ranges]
        distances = [self.evaluator([images])["fd_scatter"].value for images in drawn]
        manifolds = compare_manifolds(self._features(drawn[0]), self.real)
        spread = f" ± {stdev(distances):.1f}" if len(distances) > 1 else ""
        shares = [f"{manifolds.recall.value:.2f}", f"{manifolds.coverage.value:.2f}"]
        return [f"{mean(distances):.1f}{spread}", *shares], drawn[0][:PICTURED]

    def _draw(self, source: Source, sampler: Sampler, seeds: range) -> Iterator[Tensor]:
        for samples in generate(source.denoiser, sampler, seeds, batch=250, device=self.device):
            yield samples.images.cpu()

    def _features(self, images: Tensor) -> Sample:
        (layer,) = self.scatter.layers
        features = torch.cat([self.scatter.features(part)[layer] for part in images.split(250)])
        return Sample(features, len(features))


def cost(run_dir: Path) -> list[str]:
    """Seconds in training steps, and the peak of memory, from a run's log."""
    rows = [row for row in read_log(run_dir) if "time" in row]
    starts = [0, *(row["nimg"] for row in rows)]
    parts = zip(rows, starts, strict=False)
    seconds = sum((row["nimg"] - start) / max(row["time"]["img_per_s"], 1e-9) for row, start in parts)
    return [f"{seconds:,.0f}", f"{max(row['time']['memory_gb'] for row in rows):.1f}"]


def main() -> None:
    """Train, score, print the table; write page and picture where asked."""
    args = parse()
    with ThreadPoolExecutor(args.jobs) as pool:
        folders = {method: args.out / f"{args.data}_{method}" for method in args.methods}
        failures = dict(zip(folders, pool.map(lambda m: train(m, folders[m], args), folders), strict=True))
    parallel = Parallel(args.device)
    teacher = load_source(args.teacher, parallel.device)
    judge = Judge(teacher.data(), args.out / "references", parallel.device, args.num, args.repeats)
    scores, samples = judge(teacher, HeunSampler(steps=18))
    rows = [Row(["teacher", "35", *scores, "", ""], samples)]
    for method, run_dir in folders.items():
        if failures[method]:
            rows.append(
                Row([method, "1", failures[method], "", "", "", ""], samples.new_zeros(samples.shape))
            )
            continue
        student = load_source(run_dir, parallel.device)
        sampler = config.instantiate(student.cfg.sampler)
        scores, drawn = judge(student, sampler)
        rows.append(Row([method, str(sampler.nfe()), *scores, *cost(run_dir)], drawn))
    heads = ["method", "evaluations", "fd_scatter", "recall", "coverage", "seconds", "GB"]
    lines = [heads, ["---", *["--:"] * (len(heads) - 1)], *(row.cells for row in rows)]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    print(table)
    if args.write:
        write(args, teacher, table, torch.cat([row.samples for row in rows]), parallel)


def write(args: argparse.Namespace, teacher: Source, table: str, samples: Tensor, parallel: Parallel) -> None:
    """The page and its picture."""
    gpu = parallel.device.type == "cuda"
    name = torch.cuda.get_device_name() if gpu else f"CPU, {torch.get_num_threads()} thread(s)"
    total = args.total or config.compose([f"experiment={args.data}_sim"])[0].trainer.total
    facts = {**vars(args), "device": name, "total": total, "table": table}
    facts |= {f"teacher_{key}": teacher.manifest[key] for key in ("nimg",)}
    facts["teacher_sha256"] = teacher.manifest["weights_sha256"]
    facts["command"] = f"python -m benchmarks.distillers {' '.join(sys.argv[1:])}"
    args.write.write_text(PAGE.format(**facts))
    image = picture(samples.float() / 127.5 - 1, PICTURED)
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
    parser.add_argument("--write", type=Path)
    parser.add_argument("--set", nargs="+", default=[], metavar="key=value", help="for every run")
    return parser.parse_args()


if __name__ == "__main__":
    main()
