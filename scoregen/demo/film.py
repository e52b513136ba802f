"""How the first images of an answer came about: recorded while they are drawn, as frames and as a strip."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from scoregen.cli.draw import VIEW_COLUMNS, Draw, join
from scoregen.images import make_grid, picture, to_png, to_uint8
from scoregen.samplers.generate import Samples, generate
from scoregen.samplers.views import Recorder, estimates, evenly, states

FRAMES = 32
SHOWN = 8  # samples


class Frame(NamedTuple):
    """A moment of the trajectory."""

    caption: str
    png: bytes  # above the states x, below the estimates E[x0 | x]


def record(draw: Draw, seeds: Sequence[int]) -> tuple[Samples, Recorder]:
    """The samples as `draw` draws them, and how the first ones came about."""
    recorder = Recorder(draw.sampler, SHOWN)
    parts = generate(
        draw.denoiser,
        recorder,
        seeds,
        batch=draw.batch,
        device=draw.parallel.device,
        label=draw.label,
        conditions=draw.conditions,
    )
    samples = join(list(parts), seeds)
    labels = None if samples.labels is None else samples.labels.cpu()
    return Samples(samples.x.cpu(), samples.seeds, labels), recorder


def write_strip(out: Path, draw: Draw, recorder: Recorder) -> list[str]:
    """Write trajectory.png, as --trajectory does, for images."""
    if len(draw.denoiser.shape) != 3:
        return []
    views = estimates(draw.denoiser, evenly(recorder.steps, VIEW_COLUMNS)).cpu()
    strip = make_grid(to_uint8(views.flatten(0, 1)), columns=views.shape[1])
    (out / "trajectory.png").write_bytes(to_png(strip))
    return ["trajectory.png"]


def film(draw: Draw, recorder: Recorder) -> list[Frame]:
    """The trajectory, moment by moment."""
    steps = evenly(recorder.steps, FRAMES)
    last = recorder.steps[-1].index + 1
    above, below = (view(draw.denoiser, steps).cpu().unbind(1) for view in (states, estimates))
    captions = [f"step {step.index + 1} of {last}, noise level {step.sigma:.3g}" for step in steps]
    return [Frame(*pair) for pair in zip(captions, map(_frame, above, below), strict=True)]


def _frame(state: Tensor, estimate: Tensor) -> bytes:
    return to_png(picture(torch.cat([state, estimate]), columns=len(state)))
