"""CIFAR-10 test images scored against the training images, and how FID depends on the number of images.

    python -m benchmarks.fid_bias --data DIR --inception-weights FILE --device cuda --write docs/fid_bias.md

DIR is data.root, else SCOREGEN_DATA; the weights are looked for as docs/evaluation.md says. Every image's
features are computed once; `--train` and `--test` take a fixed random choice of fewer images. On two CPU
cores all 60,000 images take two hours.
"""

import argparse
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import torch
from torch import Tensor

from scoregen.data.base import Dataset
from scoregen.data.cifar10 import load_cifar10
from scoregen.errors import UserError
from scoregen.evaluation.fid import frechet_score
from scoregen.evaluation.frechet import Gaussian, Moments, finite_sample_bias
from scoregen.evaluation.inception import InceptionExtractor
from scoregen.evaluation.metrics import METRICS
from scoregen.evaluation.result import Score
from scoregen.rng import generator

PUBLISHED = 3.15  # FID of the 10,000 test images against the 50,000 training images
SIZES = (500, 1000, 2000, 5000, 10_000, 25_000)
REPEATS = 5  # disjoint subsets of each size, where there are so many
SCORES = ("fid", "fid_inf", "sfid", "kid", "precision", "recall", "density", "coverage")
Features = dict[str, Tensor]


def features_of(extractor: InceptionExtractor, data: Dataset, limit: int, label: str) -> Features:
    """Features by layer of `limit` images, in a fixed random order that does not depend on the limit."""
    order = torch.randperm(len(data), generator=generator("fid_bias", label))[:limit]
    start, parts = time.perf_counter(), []
    for batch in order.split(4 * extractor.batch):
        parts.append(extractor.features(data.fetch(batch).x))
    layers = {name: torch.cat([part[name] for part in parts]) for name in extractor.layers}
    for layer in layers.values():
        layer.sum().item()  # wait for the device before reading the clock
    seconds = time.perf_counter() - start
    print(f"{label}: {len(order):,} images, {len(order) / seconds:.1f} a second", flush=True)
    return layers


def score(name: str, drawn: Features, real: Features) -> Score:
    """A registered metric of features that are at hand."""
    metric = METRICS[name]
    sides = []
    for start, features in ((metric.drawn, drawn), (metric.real, real)):
        assert start is not None, "all of SCORES compare with real images"
        layer = features[metric.layer or "pool"]
        accumulator = start(layer.shape[1], layer.device)
        accumulator.update(layer, np.arange(len(layer)))
        sides.append(accumulator.summary())
    return metric.read(metric.compare(*sides))


def told(name: str, drawn: Features, real: Features) -> str:
    """The value with its spread, or why there is none."""
    try:
        one = score(name, drawn, real)
    except UserError as error:
        return str(error)
    return f"{one.value:.5g}" + ("" if one.spread is None else f" ± {one.spread:.2g}")


def gaussian_of(features: Tensor) -> Gaussian:
    """The moments of features [n, d]."""
    moments = Moments(features.shape[1], features.device)
    moments.update(features)
    return moments.summary()


def cells(pool: Tensor, n: int, reference: Gaussian) -> str:
    """FID of disjoint subsets of n images: `mean ± standard deviation`, or one value, or nothing."""
    subsets = [part for part in pool.split(n) if len(part) == n][:REPEATS]
    values = [frechet_score(gaussian_of(part), reference).value for part in subsets]
    if not values:
        return ""
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


@dataclass(frozen=True)
class Report:
    """The tables of the page."""

    scores: Sequence[str]
    sizes: Sequence[str]


def measure(train: Features, test: Features) -> Report:
    """Score test against training images, and subsets of both against reference sets without them."""
    scores = []
    for name in SCORES:
        title = METRICS[name].name(name, len(test["pool"]))
        scores.append(f"| {title} | {told(name, test, train)} |")
        print(scores[-1], flush=True)
    whole = gaussian_of(train["pool"])
    half = len(train["pool"]) // 2
    first, second = train["pool"][:half], gaussian_of(train["pool"][half:])
    sizes = []
    for n in SIZES:
        measured = cells(test["pool"], n, whole), cells(first, n, second)
        if any(measured):
            floor = finite_sample_bias(whole, n)
            sizes.append(f"| {n:,} | {measured[0]} | {measured[1]} | {floor:.2f} |")
            print(sizes[-1], flush=True)
    return Report(scores, sizes)


PAGE = """\
# FID of real images

What CIFAR-10 images score against other CIFAR-10 images: at equal n no model can be expected to do better.

```
python -m benchmarks.fid_bias --data DIR{limits} --write docs/fid_bias.md
```

Inception of 2015-12-05 (extractor sha256 {sha256:.8}), {device}, torch {torch}. Orders and subsets are
fixed random choices.

## Test images against training images

{test:,} test images against {train:,} training images{published}.

| metric | value |
|---|--:|
{scores}

## FID by the number of images

Mean ± standard deviation over up to {repeats} disjoint subsets of n images:

- *test*: test images against all {train:,} training images,
- *halves*: images of one half of the training images against the other half,
- *floor*: what `evaluate.py` predicts for n images of the reference's own distribution, the leading term in
  1/n from the spectrum of the training images' features; below 2,048 images it is too small by up to a third.

| n | test | halves | floor |
|--:|--:|--:|--:|
{sizes}

An FID of a few thousand images is mostly bias. So `fid` is kept for exactly 50,000 images; another n is in
the name.
"""


def main() -> None:
    """Print the tables, and write the page where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", metavar="DIR", help="data.root")
    parser.add_argument("--inception-weights", type=Path, metavar="FILE")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, default=256, help="images per pass of the network")
    parser.add_argument("--train", type=int, default=50_000)
    parser.add_argument("--test", type=int, default=10_000)
    parser.add_argument("--write", type=Path)
    args = parser.parse_args()
    extractor = InceptionExtractor(args.inception_weights, args.device, args.batch)
    train, test = (
        features_of(extractor, load_cifar10(split=split, root=args.data), limit, split)
        for split, limit in (("train", args.train), ("test", args.test))
    )
    report = measure(train, test)
    if args.write:
        whole = (args.train, args.test) == (50_000, 10_000)
        cuda = torch.device(args.device).type == "cuda"
        facts = {
            "limits": "" if whole else f" --train {args.train} --test {args.test}",
            "sha256": extractor.sha256,
            "device": torch.cuda.get_device_name() if cuda else f"{platform.machine()} CPU",
            "torch": torch.__version__,
            "test": len(test["pool"]),
            "train": len(train["pool"]),
            "published": f"; others found an FID of about {PUBLISHED}" if whole else "",
            "scores": "\n".join(report.scores),
            "sizes": "\n".join(report.sizes),
            "repeats": REPEATS,
        }
        args.write.write_text(PAGE.format(**facts))


if __name__ == "__main__":
    main()
