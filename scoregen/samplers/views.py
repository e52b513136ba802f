"""Pictures of how a sampler works: the way from noise to a sample, and the path between two seeds."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from scoregen.data.codec import codec_of
from scoregen.denoisers.base import Cond, Denoiser
from scoregen.rng import Rng, SampleRng
from scoregen.samplers.base import Sampler, Step


@torch.no_grad()
def trajectory(
    denoiser: Denoiser, sampler: Sampler, noise: Tensor, cond: Tensor | None, rng: SampleRng, *, columns: int
) -> Tensor:
    """The denoiser's estimates along the way, [B, columns, *shape], evenly spaced over the steps.

    What E[x0 | x] looks like at each noise level shows how a sample takes shape; the last one is the sample.
    """
    steps = list(sampler.iterate(denoiser, noise, cond, rng))
    return estimates(denoiser, evenly(steps, columns))


def evenly(steps: Sequence[Step], most: int) -> list[Step]:
    """At most so many of the steps, evenly spaced, the first and the last among them."""
    chosen = torch.linspace(0, len(steps) - 1, min(most, len(steps))).round().long().tolist()
    return [steps[i] for i in chosen]


def estimates(denoiser: Denoiser, steps: Sequence[Step]) -> Tensor:
    """E[x0 | x] of each step, and of the last one the sample itself: [B, len(steps), *shape]."""
    decode = codec_of(denoiser).decode
    views = [*(step.denoised for step in steps[:-1]), steps[-1].x]
    return torch.stack([decode(view.float()) for view in views], 1)


def states(denoiser: Denoiser, steps: Sequence[Step]) -> Tensor:
    """x / sqrt(1 + sigma^2) of each step, in which noise of any level can be looked at: like `estimates`."""
    decode = codec_of(denoiser).decode
    return torch.stack([decode((step.x / (1 + step.sigma**2) ** 0.5).float()) for step in steps], 1)


class Recorder:
    """Call a sampler, and keep the steps of the first `rows` samples that it draws."""

    def __init__(self, sampler: Sampler, rows: int) -> None:
        self.sampler, self.rows = sampler, rows
        self.steps: list[Step] = []

    def __call__(
        self, denoiser: Denoiser, noise: Tensor, cond: Cond = None, rng: Rng | None = None
    ) -> Tensor:
        """The samples [B, *shape], bit for bit those of the sampler."""
        first = not self.steps
        for step in self.sampler.iterate(denoiser, noise, cond, rng):
            if first:
                x, denoised = (state[: self.rows].clone() for state in (step.x, step.denoised))
                self.steps.append(replace(step, x=x, denoised=denoised))
        return step.x


def interpolate_noise(start: Tensor, end: Tensor, frames: int) -> Tensor:
    """Noises on the great circle from `start` to `end` [*shape], both included: [frames, *shape].

    slerp(t) = (sin((1 - t) a) start + sin(t a) end) / sin(a), a the angle between the two. Every frame
    keeps about the norm of noise, which one on the straight line would not.
    """
    a, b = start.double().flatten(), end.double().flatten()
    cosine = (a @ b / (a.norm() * b.norm())).clamp(-1, 1)
    angle = torch.arccos(cosine)
    t = torch.linspace(0, 1, frames, dtype=torch.float64, device=start.device)[:, None]
    if torch.sin(angle) < 1e-6:  # the same direction: the circle is not defined, and the line is as good
        mixed = (1 - t) * a + t * b
    else:
        mixed = (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / torch.sin(angle)
    return mixed.to(start.dtype).reshape(frames, *start.shape)
