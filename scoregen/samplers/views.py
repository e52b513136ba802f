"""Pictures of how a sampler works: the way from noise to a sample, and the path between two seeds."""

import torch
from torch import Tensor

from scoregen.data.codec import codec_of
from scoregen.denoisers.base import Denoiser
from scoregen.rng import SampleRng
from scoregen.samplers.base import Sampler


@torch.no_grad()
def trajectory(
    denoiser: Denoiser, sampler: Sampler, noise: Tensor, cond: Tensor | None, rng: SampleRng, *, columns: int
) -> Tensor:
    """The denoiser's estimates along the way, [B, columns, *shape], evenly spaced over the steps.

    What E[x0 | x] looks like at each noise level shows how a sample takes shape; the last one is the sample.
    """
    steps = list(sampler.iterate(denoiser, noise, cond, rng))
    chosen = torch.linspace(0, len(steps) - 1, min(columns, len(steps))).round().long().tolist()
    views = [steps[i].denoised if i < len(steps) - 1 else steps[i].x for i in chosen]
    decode = codec_of(denoiser).decode
    return torch.stack([decode(view.float()) for view in views], 1)


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
