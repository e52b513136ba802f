"""What every sampler is: hyper-parameters, and `iterate`, which walks a grid of noise levels."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from scoregen.denoisers.base import Cond, Denoiser, denoiser_for_trajectory
from scoregen.diffusion.grids import KarrasGrid, SigmaGrid
from scoregen.ranges import PositiveInt
from scoregen.rng import Rng


@dataclass(frozen=True)
class Step:
    """The state after one step."""

    index: int  # of the step, from 0
    sigma: float  # the noise level that x has now; 0 after the last step
    x: Tensor  # [B, *shape] in the state's dtype
    denoised: Tensor  # the latest E[x0 | x] that the step computed, [B, *shape]


@dataclass(frozen=True)
class Sampler(ABC):
    """Carries noise at the grid's first level to a sample, step by step.

    Args:
        steps: solver steps N.
        grid: the noise levels; its ends are clamped to the denoiser's range, and every level is rounded to
            one that the denoiser was trained on where it says which (an attribute `round_sigma`).
        state_dtype: of the trajectory; coefficients are float64 scalars always.
    """

    steps: PositiveInt = 18
    grid: SigmaGrid = KarrasGrid()  # noqa: RUF009 - frozen
    state_dtype: Literal["float32", "float64"] = "float32"

    order: ClassVar[float | None]  # of convergence on a smooth denoiser; None where noise is added
    reference: ClassVar[str] = ""  # authors, year, arXiv id

    @abstractmethod
    def integrate(
        self,
        denoiser: Denoiser,
        x: Tensor,
        sigmas: Sequence[float],
        cond: Cond = None,
        rng: Rng | None = None,
    ) -> Iterator[Step]:
        """Step from the state x [B, *shape] at sigmas[0] through the decreasing levels; the last may be 0."""

    @abstractmethod
    def nfe(self, steps: int | None = None) -> int:
        """Evaluations of the denoiser per sample in N = steps steps, by default its own."""

    @property
    def deterministic(self) -> bool:
        """Whether the initial noise alone determines the sample."""
        return self.order is not None

    def sigmas(self, denoiser: Denoiser) -> list[float]:
        """The levels sigma_0 > ... > sigma_N = 0 for a denoiser; UserError where its range is elsewhere."""
        grid = self.grid.within(denoiser.sigma_min, denoiser.sigma_max)
        return round_sigmas(denoiser, grid(self.steps).tolist())

    def iterate(
        self, denoiser: Denoiser, noise: Tensor, cond: Cond = None, rng: Rng | None = None
    ) -> Iterator[Step]:
        """Step from noise [B, *shape] ~ N(0, I), made the first state by `begin`, to a sample.

        Args:
            denoiser: any denoiser, on the device of the noise.
            noise: the initial noise, of unit variance.
            cond: class ids [B].
            rng: further noise, for samplers that add some.
        """
        sigmas = self.sigmas(denoiser)
        x = self.begin(denoiser, noise.to(getattr(torch, self.state_dtype)), sigmas, cond, rng)
        settled = denoiser_for_trajectory(denoiser, rng)
        return self.prepared(denoiser, x).integrate(settled, x, sigmas, cond, rng)

    def prepared(self, denoiser: Denoiser, x: Tensor) -> Self:
        """The sampler with what it estimates of a denoiser before it begins, for states like x [B, ...]."""
        return self

    def begin(
        self, denoiser: Denoiser, noise: Tensor, sigmas: Sequence[float], cond: Cond, rng: Rng | None
    ) -> Tensor:
        """The state at sigmas[0], [B, *shape], from noise [B, *shape] ~ N(0, I) in the state's dtype."""
        return noise * sigmas[0]

    def __call__(
        self, denoiser: Denoiser, noise: Tensor, cond: Cond = None, rng: Rng | None = None
    ) -> Tensor:
        """The samples [B, *shape] at the end of `iterate`, in the state's dtype."""
        for step in self.iterate(denoiser, noise, cond, rng):
            x = step.x
        return x


def round_sigmas(denoiser: Denoiser, sigmas: Sequence[float]) -> list[float]:
    """The nearest noise levels that the denoiser was trained on, where it has `round_sigma`; 0 stays 0."""
    round_sigma = getattr(denoiser, "round_sigma", None)
    if round_sigma is None:
        return list(sigmas)
    rounded: list[float] = round_sigma(torch.tensor(sigmas, dtype=torch.float64)).tolist()
    return [after if before > 0 else 0.0 for before, after in zip(sigmas, rounded, strict=True)]


def level_tensor(sigmas: Sequence[float], x: Tensor) -> Tensor:
    """The levels [N + 1] in the dtype and on the device of x: one transfer for a whole trajectory."""
    return torch.tensor(sigmas, dtype=x.dtype, device=x.device)


def draw_like(x: Tensor, rng: Rng | None) -> Tensor:
    """Standard normals for each sample of x [B, ...]; ValueError where there is nothing to draw from."""
    if rng is None:
        raise ValueError("this sampler adds noise: give it an rng")
    return rng.randn_like(x)


def combine(decay: float, x: Tensor, weights: Sequence[float], terms: Iterable[Tensor]) -> Tensor:
    """decay x + sum_j weights[j] terms[j], as a new tensor; weights may be fewer than terms."""
    pairs = zip(weights, terms, strict=False)
    if decay == 1:
        weight, term = next(pairs)
        out = torch.add(x, term, alpha=weight)
    else:
        out = x * decay
    for weight, term in pairs:
        out.add_(term, alpha=weight)
    return out


def count_usable(sigmas: Sequence[float], i: int, most: int) -> int:
    """How many of the levels i, i - 1, ... are distinct, at most `most`: what a multistep rule may look at.

    A denoiser with a table of levels may round two neighbours to one.
    """
    count = 1
    while count < min(most, i + 1) and sigmas[i - count] > sigmas[i - count + 1]:
        count += 1
    return count
