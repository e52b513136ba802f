"""Closed-form diffusion: Euler steps over the training set, evenly in its own clock, from noised data on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from scoregen.denoisers.base import Cond, Denoiser
from scoregen.denoisers.smoothed import training_set
from scoregen.diffusion.grids import FlowGrid, SigmaGrid
from scoregen.ranges import PositiveInt
from scoregen.rng import Rng
from scoregen.samplers.edm import EulerSampler


@dataclass(frozen=True)
class ClosedFormSampler(EulerSampler):
    """Euler's method on the paper's own grid, for denoisers that are made of the training data.

    In the clock t = 1 / (1 + sigma) of z = t x the paper steps z' = z + h v(z, t); that is the EDM Euler step
    on sigma = S / n - 1. It starts late, at T: the marginal there is known, so that x = x_i + sigma_T n with
    a training sample x_i drawn at random is exact (an approximation where the denoiser is smoothed). The
    paper's S = 100, T = 0.95 are steps = 5 and sigma_max = 1 / T - 1 = 1 / 19.

    Args:
        steps: from T to 1; S (1 - T).
        grid: FlowGrid for the paper's; sigma_max sets T.
        start: from noised training data, or from noise alone.

    Raises:
        UserError: where `start` is data and the denoiser holds none.

    Source: Scarvelis, Saez de Ocariz Borde and Solomon, Closed-Form Diffusion Models, 2023, arXiv 2310.12395;
    T as secondary sources report it.
    """

    steps: PositiveInt = 5
    grid: SigmaGrid = FlowGrid()  # noqa: RUF009 - frozen
    start: Literal["data", "noise"] = "data"

    reference: ClassVar[str] = "Scarvelis et al. 2023, arXiv 2310.12395"

    @property
    def deterministic(self) -> bool:
        """From noise; from data a training sample is drawn."""
        return self.start == "noise"

    def begin(
        self, denoiser: Denoiser, noise: Tensor, sigmas: Sequence[float], cond: Cond, rng: Rng | None
    ) -> Tensor:
        """Noise of the first level, added to training data or alone: [B, *shape]."""
        x = noise * sigmas[0]
        if self.start == "noise":
            return x
        if rng is None:
            raise ValueError("a start from training data draws them: give the sampler an rng, or start=noise")
        return x + training_set(denoiser).draw(rng, cond).to(x)
