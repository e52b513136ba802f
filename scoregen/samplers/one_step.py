"""Sampling from a distilled student: one evaluation."""

from dataclasses import dataclass
from typing import ClassVar

from scoregen.denoisers.base import Denoiser
from scoregen.errors import UserError
from scoregen.ranges import PositiveInt
from scoregen.samplers.base import round_sigmas
from scoregen.samplers.edm import EulerSampler


@dataclass(frozen=True)
class OneStepSampler(EulerSampler):
    """x = D(sigma_max n; sigma_max): what one-step students are trained for.

    sigma_max is the lower of the grid's and the denoiser's; a student's is the level it was distilled at.
    Raises UserError for any number of steps but 1.

    Source: Luo et al., Diff-Instruct: A Universal Approach for Transferring Knowledge From Pre-trained
    Diffusion Models, 2023, arXiv 2305.18455.
    """

    steps: PositiveInt = 1

    order: ClassVar[float | None] = None
    reference: ClassVar[str] = "Luo et al. 2023, arXiv 2305.18455"

    def __post_init__(self) -> None:
        if self.steps != 1:
            raise UserError(f"one_step takes 1 step, got steps={self.steps}; choose another sampler for more")

    def sigmas(self, denoiser: Denoiser) -> list[float]:
        """sigma_max, free of the rounding of the grid's curve, and 0."""
        return round_sigmas(
            denoiser, [self.grid.within(denoiser.sigma_min, denoiser.sigma_max).sigma_max, 0.0]
        )

    @property
    def deterministic(self) -> bool:
        """Always."""
        return True
