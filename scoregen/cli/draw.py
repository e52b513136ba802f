"""Draw samples on all processes, and write them and pictures of them."""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from scoregen import __version__
from scoregen.cli.dump import ImageDump
from scoregen.cli.sampler import describe_sampler, guide, sampler_manifest
from scoregen.cli.sound import load_conditions
from scoregen.cli.source import Source
from scoregen.data.codec import codec_of
from scoregen.data.conditions import Conditions
from scoregen.denoisers.base import Denoiser
from scoregen.denoisers.empirical import EmpiricalDenoiser
from scoregen.denoisers.smoothed import training_set
from scoregen.errors import UserError
from scoregen.files import write_whole
from scoregen.images import make_grid, picture, to_png, to_uint8
from scoregen.parallel import Parallel
from scoregen.rng import SampleRng
from scoregen.samplers.base import Sampler
from scoregen.samplers.generate import Samples, generate
from scoregen.samplers.views import interpolate_noise, trajectory

VIEW_COLUMNS = 10
COPY_DISTANCE = 1 / 127.5  # root mean square, one level of uint8: what the eye takes for the same image


@dataclass(frozen=True)
class Draw:
    """One sample per seed from a denoiser and a sampler; each process draws its share."""

    denoiser: Denoiser
    sampler: Sampler
    label: int | None
    batch: int
    parallel: Parallel
    conditions: Conditions | None = None

    def __call__(self, seeds: Sequence[int], dump: ImageDump | None = None) -> Samples | None:
        """Samples for all seeds, in their order; None in all processes but the main one.

        With a dump, images that it holds already are taken from there, and new ones are added as they come.
        """
        missing = seeds if dump is None else [seed for seed in seeds if not dump.has(seed)]
        self.parallel.barrier()
        share = []
        for batch in self._batches(missing[self.parallel.rank :: self.parallel.world]):
            if dump is None:
                share.append(batch)
            else:
                dump.write(batch)
        shares = self.parallel.gather(share)
        if not self.parallel.is_main:
            return None
        return join([part for share in shares for part in share], seeds) if dump is None else dump.read(seeds)

    def _batches(self, seeds: Sequence[int]) -> Iterator[Samples]:
        """This process's samples, on the CPU, with a progress bar on a terminal."""
        from tqdm import tqdm

        hidden = not (self.parallel.is_main and sys.stderr.isatty())
        device = self.parallel.device
        drawn = generate(
            self.denoiser,
            self.sampler,
            seeds,
            batch=self.batch,
            device=device,
            label=self.label,
            conditions=self.conditions,
        )
        with tqdm(total=len(seeds), unit="img", disable=hidden, leave=False) as bar:
            for samples in drawn:
                labels = None if samples.labels is None else samples.labels.cpu()
                yield replace(samples, x=samples.x.cpu(), labels=labels)
                bar.update(len(samples.seeds))


class Order(NamedTuple):
    """What the flags of sample.py ask for, ready to be drawn, and what it is for people and for manifests."""

    draw: Draw
    description: str
    manifest: dict[str, Any]


def prepare(source: Source, sampler: Sampler, args: argparse.Namespace, parallel: Parallel) -> Order:
    """A model and a sampler under the other flags of the command line; UserError where they do not fit."""
    denoiser = guide(source, args, parallel.device)
    check_views(denoiser, args)
    draw = Draw(denoiser, sampler, args.label, args.batch, parallel, load_conditions(source))
    description = f"{source.description}\n{describe_sampler(sampler, denoiser)}"
    return Order(draw, description, {**source.manifest, **sampler_manifest(sampler, denoiser, args)})


def join(parts: Sequence[Samples], seeds: Sequence[int]) -> Samples:
    """One batch with the samples of these seeds, in their order."""
    drawn = {seed: i for i, seed in enumerate(seed for part in parts for seed in part.seeds)}
    order = [drawn[seed] for seed in seeds]
    labels = [part.labels for part in parts if part.labels is not None]
    x = torch.cat([part.x for part in parts])[order]
    return Samples(x, tuple(seeds), torch.cat(labels)[order] if labels else None)


def nearest_training_samples(
    denoiser: Denoiser, samples: Samples, device: torch.device | str
) -> dict[str, Any]:
    """For a model made of training data: how far each sample is from the nearest, so that copies show."""
    if not isinstance(denoiser, EmpiricalDenoiser) and not hasattr(denoiser, "training_set"):
        return {}
    distances, indices = training_set(denoiser).nearest(samples.x.to(device))
    return {
        "training_copies": int((distances < COPY_DISTANCE * samples.x[0].numel() ** 0.5).sum()),
        "nearest_training_distance": distances.tolist(),
        "nearest_training_index": indices.tolist(),
    }


def describe_copies(manifest: Mapping[str, Any]) -> list[str]:
    """A line on how many samples copy training samples, where `nearest_training_samples` has looked."""
    if "training_copies" not in manifest:
        return []
    copies, among = manifest["training_copies"], len(manifest["nearest_training_index"])
    return [f"{copies} of {among} samples copy training samples (fewer with a higher --sigma-s)"]


def write_samples(out: Path, manifest: dict[str, Any], samples: Samples) -> list[str]:
    """Write samples.npz, manifest.json and grid.png; their names."""
    arrays: dict[str, Any] = {"seeds": np.array(samples.seeds)}
    if samples.x.ndim == 3:
        arrays["audio"] = samples.x[:, 0].numpy()
    elif samples.x.ndim == 4:
        arrays["images"] = samples.images.permute(0, 2, 3, 1).numpy()
    else:
        arrays["points"] = samples.x.numpy()
    if samples.labels is not None:
        arrays["labels"] = samples.labels.numpy()
    packed = BytesIO()
    np.savez(packed, **arrays)
    manifest = {**manifest, "seeds": list(samples.seeds), "scoregen": __version__}
    write_whole(out / "samples.npz", packed.getbuffer())
    write_whole(out / "manifest.json", (json.dumps(manifest, indent=1) + "\n").encode())
    write_whole(out / "grid.png", to_png(picture(samples.x)))
    return ["grid.png", "samples.npz", "manifest.json"]


def check_views(denoiser: Denoiser, args: argparse.Namespace) -> None:
    """UserError for pictures that this model cannot give."""
    asked = [name for name in ("png", "trajectory", "interpolate", "class_grid") if getattr(args, name)]
    if asked and len(denoiser.shape) != 3:
        raise UserError(
            f"--{asked[0].replace('_', '-')} is for images; this model draws points {denoiser.shape}"
        )
    if args.class_grid and not denoiser.num_classes:
        raise UserError("--class-grid: the model is unconditional; train one with data.conditional=true")
    if args.interpolate and min(args.interpolate) < 0:
        raise UserError(f"--interpolate {args.interpolate[0]} {args.interpolate[1]}: seeds are 0 or more")


def write_views(out: Path, draw: Draw, seeds: Sequence[int], args: argparse.Namespace) -> list[str]:
    """Write the pictures asked for besides the grid; their names."""
    views = {
        "trajectory.png": args.trajectory and (lambda: _trajectory(draw, seeds[:8])),
        "interpolation.png": args.interpolate and (lambda: _interpolation(draw, *args.interpolate)),
        "classes.png": args.class_grid and (lambda: _class_grid(draw, seeds[:VIEW_COLUMNS])),
    }
    for name, view in views.items():
        if view:
            images = view().cpu()  # [rows, columns, C, H, W]
            grid = make_grid(to_uint8(images.flatten(0, 1)), columns=images.shape[1])
            write_whole(out / name, to_png(grid))
    return [name for name, view in views.items() if view]


def _start(draw: Draw, seeds: Sequence[int]) -> tuple[SampleRng, Tensor, Tensor | None]:
    """What `generate` draws first for these seeds: their generators, noise and classes."""
    rng = SampleRng(seeds, draw.parallel.device)
    noise = rng.randn(*draw.denoiser.shape)
    classes = rng.randint(draw.denoiser.num_classes) if draw.denoiser.num_classes else None
    if classes is not None and draw.label is not None:
        classes = torch.full_like(classes, draw.label)
    return rng, noise, classes


def _trajectory(draw: Draw, seeds: Sequence[int]) -> Tensor:
    """A row a seed, from noise to sample."""
    rng, noise, cond = _start(draw, seeds)
    return trajectory(draw.denoiser, draw.sampler, noise, cond, rng, columns=VIEW_COLUMNS)


@torch.no_grad()
def _interpolation(draw: Draw, first: int, second: int) -> Tensor:
    """Samples along the great circle between the noises of two seeds, all of the first seed's class."""
    _, noise, cond = _start(draw, [first, second])
    frames = interpolate_noise(noise[0], noise[1], VIEW_COLUMNS)
    cond = None if cond is None else cond[:1].expand(VIEW_COLUMNS)
    rng = SampleRng([first] * VIEW_COLUMNS, draw.parallel.device)
    return codec_of(draw.denoiser).decode(draw.sampler(draw.denoiser, frames, cond, rng))[None]


def _class_grid(draw: Draw, seeds: Sequence[int]) -> Tensor:
    """A row a class, a column a seed."""
    rows = []
    for label in range(draw.denoiser.num_classes):
        drawn = generate(
            draw.denoiser, draw.sampler, seeds, batch=draw.batch, device=draw.parallel.device, label=label
        )
        rows.append(torch.cat([samples.x for samples in drawn]))
    return torch.stack(rows)
