"""From a run folder to its report: what is on disk, and what a few samples drawn now look like."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from scoregen import config
from scoregen.data.base import Dataset
from scoregen.data.conditions import Conditions
from scoregen.denoisers.base import Denoiser
from scoregen.errors import UserError
from scoregen.evaluation.copies import LARGEST
from scoregen.evaluation.memorization import TrainingSet, closest_pairs
from scoregen.files import write_whole
from scoregen.images import picture, to_png
from scoregen.report.page import Content, Picture, render
from scoregen.samplers.base import Sampler
from scoregen.samplers.generate import Samples, generate
from scoregen.training.loggers import read_log

if TYPE_CHECKING:
    from scoregen.cli.source import Source

REPORT = "report.html"
DRAWN, PAIRS = 64, 8


def write_report(
    source: "Source",
    sampler: Sampler,
    description: str,
    *,
    batch: int,
    device: torch.device | str,
    conditions: Conditions | None = None,
) -> Path:
    """Write `report.html` into the folder of a run; where it is.

    Args:
        source: the run. sampler: what its samples are drawn with; `description` says which and at what cost.
        batch, device, conditions: for drawing, as in `generate`.

    Raises:
        UserError: the source is no run folder.
    """
    if source.run_dir is None:
        raise UserError("--report is of a run folder: give one with --run")
    seeds = range(DRAWN)
    drawn = list(generate(source.denoiser, sampler, seeds, batch=batch, device=device, conditions=conditions))
    samples = Samples(torch.cat([part.x.cpu() for part in drawn]), tuple(seeds), None)
    rows = read_log(source.run_dir)
    content = Content(
        name=source.run_dir.name,
        about=source.description,
        facts=facts(source.manifest, rows, source.denoiser),
        rows=rows,
        samples=[
            Picture(to_png(picture(samples.x, 8)), f"{DRAWN} samples, seeds 0 to {DRAWN - 1}; {description}"),
            *earlier_samples(source.run_dir, before=source.manifest["nimg"]),
        ],
        neighbours=nearest_images(samples, source.data()),
        records=_records(source.run_dir / "metrics.json"),
        config=config.to_yaml(source.cfg),
    )
    out = source.run_dir / REPORT
    write_whole(out, render(content).encode())
    return out


def facts(
    manifest: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], denoiser: Denoiser
) -> dict[str, str]:
    """Size and cost of the run, from its weights and its log."""
    found = {"images seen": f"{manifest['nimg']:,}"}
    if isinstance(denoiser, torch.nn.Module):
        found["parameters"] = f"{sum(p.numel() for p in denoiser.parameters()):,}"
    timed = [row for row in rows if row.get("time")]
    if timed:
        found["training time"] = _duration(training_seconds(timed))
        found["speed, last"] = f"{timed[-1]['time']['img_per_s']:,.0f} img/s"
        found["peak memory"] = f"{max(row['time']['memory_gb'] for row in timed):.2f} GB"
        found["skipped steps"] = f"{sum(row.get('skipped', 0) for row in timed):,}"
    for key, title in (("loss", "loss, last"), ("heldout_loss", "held-out loss, last")):
        values = [row[key] for row in rows if row.get(key) is not None]
        if values:
            found[title] = f"{values[-1]:.4g}"
    return found


def training_seconds(rows: Sequence[Mapping[str, Any]]) -> float:
    """Seconds of training steps, from the speed of each interval; hooks and evaluations do not count."""
    seconds, before = 0.0, 0
    for row in rows:
        if row["nimg"] > before:
            seconds += (row["nimg"] - before) / max(row["time"]["img_per_s"], 1e-9)
            before = row["nimg"]
    return seconds


def earlier_samples(run_dir: Path, *, before: int, most: int = 2) -> list[Picture]:
    """The last grids that training has left of fewer images than these, the newest first."""
    found = {int(file.stem): file for file in (run_dir / "samples").glob("*.png") if file.stem.isdigit()}
    return [
        Picture(found[nimg].read_bytes(), f"drawn in training, after {nimg:,} images")
        for nimg in sorted(found, reverse=True)
        if nimg < before
    ][:most]


def nearest_images(samples: Samples, data: Dataset) -> Picture | None:
    """The samples closest to training images, in pixels, above those; None where data are no images."""
    train = data.fetch(torch.arange(min(len(data), LARGEST))).x.cpu()
    if train.dtype != torch.uint8 or train.shape[1:] != samples.x.shape[1:]:
        return None
    images = samples.images
    copies = TrainingSet(train)(images.float() / 127.5 - 1)
    closest = copies.distances.min() / samples.x[0].numel() ** 0.5
    caption = (
        f"the {PAIRS} of {len(images)} samples closest to training images, above their nearest of "
        f"{len(train):,}; the closest is {127.5 * closest:.1f} of 255 levels away (root mean square), "
        f"{copies.ratio:.0%} are three times closer to one image than to any other, {copies.authentic:.0%} "
        "are farther from their nearest image than that is from its own (about 50 % for new draws of the "
        "same distribution)"
    )
    return Picture(to_png(closest_pairs(images, copies, train, PAIRS)), caption)


def _records(file: Path) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = json.loads(file.read_bytes()) if file.exists() else []
    return records


def _duration(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{seconds / 60:.1f} min"
