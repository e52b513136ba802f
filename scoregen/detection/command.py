"""What the detection commands share: their model, their images, their tables."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from scoregen.data.base import Dataset, to_model_range
from scoregen.errors import UserError
from scoregen.rng import generator

if TYPE_CHECKING:
    from scoregen.cli.source import Source
    from scoregen.detection.roc import Separation

NOISES = ("uniform", "gaussian")  # as names of sets
_LUMINANCE = (0.299, 0.587, 0.114)


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that name a model and where it runs."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--run", metavar="PATH", help="a run folder or .safetensors file (default: latest run)"
    )
    which.add_argument("--gaussian", metavar="DATA", help="instead: the Gaussian with a data set's moments")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda (default auto)")
    parser.add_argument("--batch", type=int, default=250, help="images at a time (default 250)")


def choose_model(run: str | None, gaussian: str | None, device: torch.device) -> "Source":
    """The trained model of a run, or the Gaussian of a data set, which needs no training.

    Raises UserError for a model that is no score of images as they are.
    """
    from scoregen.build import build_data
    from scoregen.cli.source import Source, data_config, find_source, need_score
    from scoregen.denoisers.moments import measure_gaussian

    if gaussian is None:
        source = find_source(run, device)
        need_score(source, "detection")
        return source
    cfg = data_config(gaussian)
    data = build_data(cfg, "train")
    return Source(
        measure_gaussian(data).to(device),
        cfg,
        f"Gaussian with the moments of {len(data):,} samples of {data.name}",
        {"gaussian": gaussian, "data_sha256": data.fingerprint},
        lambda: data,
    )


def held_out(source: "Source") -> Dataset:
    """The test images of the model's own data set."""
    from scoregen.build import build_data

    return build_data(source.cfg, "test")


def draw_images(data: Dataset, count: int) -> Tensor:
    """At most `count` samples of a data set, by a fixed random order, in the model's range: [n, *shape]."""
    order = torch.randperm(len(data), generator=generator("detection", len(data)))
    return to_model_range(data.fetch(order[:count]).x.cpu())


def load_set(name: str, shape: tuple[int, ...], count: int) -> Tensor:
    """At most `count` test images of the set of this name, as a model of `shape` sees them: [n, *shape].

    A name of conf/data, a folder or zip of images, or noise: `uniform` levels, or `gaussian` ones of mean and
    standard deviation 127.5, clipped.
    """
    from scoregen.build import build_data
    from scoregen.cli.source import data_config

    if name not in NOISES:
        return fit_shape(draw_images(build_data(data_config(name), "test"), count), shape)
    g = generator("detection", name)
    if name == "uniform":
        return to_model_range(torch.randint(256, (count, *shape), generator=g, dtype=torch.uint8))
    return torch.randn(count, *shape, generator=g).clamp(-1, 1)


def fit_shape(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Images [n, C, H, W] as [n, *shape]: grey ones repeated, colours weighed, sizes interpolated linearly.

    Raises UserError for samples that are no images where something must be done.
    """
    if x.shape[1:] == shape:
        return x
    if x.ndim != 4 or len(shape) != 3:
        raise UserError(f"samples of shape {tuple(x.shape[1:])} cannot be shown to a model of {shape}")
    if shape[0] == 1 and x.shape[1] == 3:
        x = (x * x.new_tensor(_LUMINANCE).view(1, 3, 1, 1)).sum(1, keepdim=True)
    if x.shape[2:] != shape[1:]:
        x = F.interpolate(x, shape[1:], mode="bilinear", antialias=True)
    return x.expand(-1, shape[0], -1, -1)


def print_table(rows: Mapping[str, Mapping[str, "Separation"]], head: str) -> None:
    """One row a set, and AUROC, FPR@95 and detection error of each detector, in per cent."""
    names = list(next(iter(rows.values())))
    width = max(len(head), *map(len, rows))
    print(f"\n{head:<{width}}" + "".join(f"  {name:>8} AUROC  FPR@95   error" for name in names))
    for name, separations in rows.items():
        cells = (
            f"  {100 * s.auroc:>14.2f}  {100 * s.fpr95:>6.2f}  {100 * s.error:>6.2f}"
            for s in separations.values()
        )
        print(f"{name:<{width}}" + "".join(cells))


def check_sets(names: Sequence[str]) -> None:
    """UserError for a set of images that does not exist, before anything is computed."""
    from scoregen import config

    known = (*NOISES, *config.groups()["data"])
    for name in names:
        if name not in known and not Path(name).exists():
            raise UserError(
                f"{name}: no such file or folder, and no set of that name; known: {', '.join(known)}"
            )


def check_same_model(given: Mapping[str, Any], fitted: Mapping[str, Any]) -> None:
    """UserError where a detector was fitted with another model, whose scores mean something else."""
    for key in ("weights_sha256", "data_sha256"):
        if given.get(key) != fitted.get(key):
            raise UserError(
                f"the detector was fitted with {dict(fitted)}, not with {dict(given)}; give that model, "
                "or fit again"
            )
