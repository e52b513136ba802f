"""Any of the schedulers of diffusers that follow a list of noise levels, on our grids and denoisers."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import sqrt
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from scoregen.denoisers.base import Cond, Denoiser, denoiser_for_step
from scoregen.errors import UserError
from scoregen.rng import Rng
from scoregen.samplers.base import Sampler, Step, draw_like, level_tensor


class _Kind(NamedTuple):
    """How a scheduler is to be fed."""

    coordinates: Literal["ve", "vp"]  # x with noise prediction, or x / sqrt(1 + sigma^2) with D
    evaluations: int = 1  # a step
    adds_noise: bool = False
    arguments: Mapping[str, Any] = {}


_DATA = {
    "prediction_type": "sample",
    "final_sigmas_type": "sigma_min",
}  # no lower order for a last level of 0
_KINDS = {
    "EulerDiscreteScheduler": _Kind("ve"),
    "EulerAncestralDiscreteScheduler": _Kind("ve", adds_noise=True),
    "HeunDiscreteScheduler": _Kind("ve", evaluations=2),
    "LMSDiscreteScheduler": _Kind("ve"),
    "DPMSolverMultistepScheduler": _Kind("vp", arguments=_DATA),
    "DPMSolverSinglestepScheduler": _Kind("vp", arguments=_DATA),
    "DEISMultistepScheduler": _Kind("vp", arguments={"prediction_type": "sample"}),
    "UniPCMultistepScheduler": _Kind("vp", arguments=_DATA),
}


@dataclass(frozen=True)
class SchedulerSampler(Sampler):
    """Steps with a scheduler of diffusers, whose noise levels are replaced by those of the grid.

    The variance-exploding ones see x and eps = (x - D) / sigma, the variance-preserving ones
    x / sqrt(1 + sigma^2) and D. A step to 0 returns D, whatever the scheduler would do. Schedulers that add
    noise get it from the samples' own streams. Several compute in float32.

    Args:
        scheduler: the class name in diffusers.
        arguments: further arguments of its constructor, such as {solver_order: 3, lower_order_final: false}.

    Raises:
        UserError: for a scheduler that is not known to follow a replaced list of noise levels.
    """

    scheduler: str = "DPMSolverMultistepScheduler"
    arguments: Mapping[str, Any] = field(default_factory=dict)

    order: ClassVar[float | None] = None  # that of the scheduler
    reference: ClassVar[str] = "Hugging Face diffusers"

    def __post_init__(self) -> None:
        if self.scheduler not in _KINDS:
            raise UserError(f"scheduler={self.scheduler}: known are {', '.join(_KINDS)}")

    @property
    def deterministic(self) -> bool:
        """Whether the scheduler adds no noise."""
        return not (self._kind.adds_noise or "sde" in str(self.arguments.get("algorithm_type")))

    def nfe(self, steps: int | None = None) -> int:
        """N, or 2 N - 1 for Heun's."""
        steps = self.steps if steps is None else steps
        return steps if self._kind.evaluations == 1 else 2 * steps - 1

    def integrate(
        self,
        denoiser: Denoiser,
        x: Tensor,
        sigmas: Sequence[float],
        cond: Cond = None,
        rng: Rng | None = None,
    ) -> Iterator[Step]:
        """Step from the state x [B, *shape] at sigmas[0] through the decreasing levels."""
        times, levels = self._levels(sigmas), level_tensor(sigmas, x)
        scheduler, noise = self._build(times), self._noise(x, rng)
        call = 0
        for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
            denoise = denoiser_for_step(denoiser, sigma)
            for j in range(self._kind.evaluations if sigma_next > 0 else 1):
                now, after = times[call], times[call + 1]
                denoised = denoise(x, levels[i + j], cond).to(x.dtype)
                x = self._step(scheduler, x, denoised, now, after, noise) if after > 0 else denoised
                call += 1
            yield Step(i, sigma_next, x, denoised)

    @property
    def _kind(self) -> _Kind:
        return _KINDS[self.scheduler]

    def _levels(self, sigmas: Sequence[float]) -> list[float]:
        """The level before and after each evaluation: Heun's sees the inner ones twice."""
        inner = [sigma for sigma in sigmas[1:] if sigma > 0 for _ in range(self._kind.evaluations)]
        return [sigmas[0], *inner, *([0.0] if sigmas[-1] == 0 else [])]

    def _build(self, levels: Sequence[float]) -> Any:
        import diffusers

        scheduler = getattr(diffusers, self.scheduler)(**{**self._kind.arguments, **dict(self.arguments)})
        scheduler.set_timesteps(len(levels) - 1)
        scheduler.sigmas = torch.tensor(levels, dtype=torch.float64)
        scheduler.timesteps = torch.arange(
            len(levels) - 1, dtype=torch.float64
        )  # unique: the first is looked up
        scheduler.is_scale_input_called = True  # x is scaled here
        return scheduler

    def _noise(self, x: Tensor, rng: Rng | None) -> dict[str, Any]:
        """The argument of `step` that makes each sample's noise a function of its own stream."""
        if self.deterministic:
            return {}
        seeds = draw_like(x.new_empty(len(x), dtype=torch.float64), rng).cpu().view(torch.int64).tolist()
        return {"generator": [torch.Generator().manual_seed(seed) for seed in seeds]}

    def _step(
        self,
        scheduler: Any,
        x: Tensor,
        denoised: Tensor,
        now: float,
        after: float,
        noise: Mapping[str, Any],
    ) -> Tensor:
        vp = self._kind.coordinates == "vp"
        scale, scale_after = (1 / sqrt(1 + s * s) if vp else 1.0 for s in (now, after))
        output = denoised if vp else (x - denoised) / now
        step = scheduler.step(output, scheduler.timesteps[0], x * scale, **noise)
        stepped: Tensor = step.prev_sample
        return stepped.to(x.dtype) / scale_after
