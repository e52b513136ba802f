"""Restart: go back up over a stretch of noise levels with fresh noise, several times, in a Heun sampler."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from scoregen.denoisers.base import Cond, Denoiser
from scoregen.diffusion.grids import KarrasGrid
from scoregen.errors import UserError
from scoregen.ranges import NonNegative, Positive, PositiveInt
from scoregen.rng import Rng
from scoregen.samplers.base import Step, draw_like, round_sigmas
from scoregen.samplers.edm import HeunSampler


class Segment(NamedTuple):
    """A stretch of noise levels that is gone over again."""

    points: PositiveInt  # N_r levels of its own grid, ends included
    repeats: PositiveInt  # K
    t_min: Positive
    t_max: Positive


@dataclass(frozen=True)
class RestartSampler(HeunSampler):
    """Heun's method; at the level nearest t_min of a segment, K times: noise up to t_max, Heun back down.

    x <- x + sqrt(t_max^2 - sigma_j^2) s_noise z, then Heun on a Karras grid of N_r levels from t_max to
    sigma_j. sigma_j is the level of the main grid nearest t_min of those below t_max; only the steps of the
    main grid are yielded. One step (N = 1) has no level to restart at and is Euler's.

    Args:
        segments: (N_r, K, t_min, t_max) each; the default is the authors' for EDM's CIFAR-10 networks.
        s_noise: scale of the noise of restarts and of churn. The authors' commands give 1.003; their
            function's default is 0, which adds no noise at all.

    Raises:
        UserError: for a segment of less than two levels or upside down, or beyond the grid or the denoiser.

    Source: Xu et al., Restart Sampling for Improving Generative Processes, 2023, arXiv 2306.14878.
    """

    segments: tuple[Segment, ...] = (Segment(3, 2, 0.14, 0.30),)
    s_noise: NonNegative = 1.003

    order: ClassVar[float | None] = None
    reference: ClassVar[str] = "Xu et al. 2023, arXiv 2306.14878"

    def __post_init__(self) -> None:
        object.__setattr__(self, "segments", tuple(Segment(*segment) for segment in self.segments))
        for segment in self.segments:
            if segment.points < 2 or not segment.t_min < segment.t_max:
                raise UserError(
                    f"restart: the segment {list(segment)} must be [N_r, K, t_min, t_max] with N_r at least "
                    "2 and t_min below t_max"
                )

    @property
    def deterministic(self) -> bool:
        """Never."""
        return False

    def nfe(self, steps: int | None = None) -> int:
        """2 N - 1, and 2 K (N_r - 1) for each segment; 1 for N = 1."""
        steps = self.steps if steps is None else steps
        extra = sum(2 * segment.repeats * (segment.points - 1) for segment in self.segments)
        return 2 * steps - 1 + (extra if steps > 1 else 0)

    def sigmas(self, denoiser: Denoiser) -> list[float]:
        """The main grid; UserError where a segment has no level on it or is above the denoiser's range."""
        levels = super().sigmas(denoiser)
        for segment in self.segments:
            if segment.t_max > denoiser.sigma_max or (len(levels) > 2 and min(levels[1:-1]) >= segment.t_max):
                raise UserError(
                    f"restart: t_max={segment.t_max:g} must be above the grid's lowest level, "
                    f"{min(levels[:-1]):g}, and within the model's sigma_max={denoiser.sigma_max:g}"
                )
        return levels

    def integrate(
        self,
        denoiser: Denoiser,
        x: Tensor,
        sigmas: Sequence[float],
        cond: Cond = None,
        rng: Rng | None = None,
    ) -> Iterator[Step]:
        """Step from the state x [B, *shape] at sigmas[0]; restart only where t_min is among the levels."""
        stops, start = self._stops(sigmas), 0
        for stop in sorted({*stops, len(sigmas) - 1}):
            for step in super().integrate(denoiser, x, sigmas[start : stop + 1], cond, rng):
                x, denoised, index = step.x, step.denoised, start + step.index
                if index + 1 < stop or stop not in stops:
                    yield Step(index, step.sigma, x, denoised)
            for segment in stops.get(stop, ()):
                x, denoised = self._restart(segment, denoiser, x, sigmas[stop], cond, rng)
            if stop in stops:
                yield Step(stop - 1, sigmas[stop], x, denoised)
            start = stop

    def _stops(self, sigmas: Sequence[float]) -> dict[int, list[Segment]]:
        """The segments to go over when level j is reached."""
        stops: dict[int, list[Segment]] = {}
        for segment in self.segments:
            near = [j for j, sigma in enumerate(sigmas) if j > 0 and 0 < sigma < segment.t_max]
            if near and sigmas[-1] <= segment.t_min < sigmas[0]:
                j = min(near, key=lambda j: abs(sigmas[j] - segment.t_min))
                stops.setdefault(j, []).append(segment)
        return stops

    def _restart(
        self, segment: Segment, denoiser: Denoiser, x: Tensor, sigma: float, cond: Cond, rng: Rng | None
    ) -> tuple[Tensor, Tensor]:
        """The state at sigma after K restarts, and its latest D."""
        ramp = torch.linspace(0, 1, segment.points, dtype=torch.float64)
        levels = round_sigmas(denoiser, KarrasGrid(sigma, segment.t_max).curve(ramp).tolist())
        noise = self.s_noise * sqrt(max(0.0, levels[0] ** 2 - sigma**2))
        for _ in range(segment.repeats):
            x = torch.add(x, draw_like(x, rng), alpha=noise)
            for step in super().integrate(denoiser, x, levels, cond, rng):
                x, denoised = step.x, step.denoised
        return x, denoised
