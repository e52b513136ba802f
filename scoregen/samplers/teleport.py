"""Analytical teleportation: a jump to a lower noise level that costs no evaluation, then any sampler."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, Literal, Protocol, Self

import torch
from torch import Tensor

from scoregen.denoisers.base import Cond, Denoiser
from scoregen.denoisers.moments import Gaussian, load_gaussian
from scoregen.errors import UserError
from scoregen.ranges import Positive
from scoregen.rng import Rng
from scoregen.samplers.base import Sampler, Step, round_sigmas
from scoregen.samplers.edm import HeunSampler

LOWEST = {32: 10.0, 64: 20.0}  # resolution: the least sigma_skip at which the published tables improve
_EVIDENCE = {
    32: "FID of Heun with 25 evaluations on CIFAR-10: 2.13 without, 2.01 from 20, 1.98 from 10, 2.22 from 5,"
    " 4.72 from 2.5; use 10 to 20",
    64: "FID of Heun with 40 evaluations on AFHQv2 at 64 x 64: 2.04 without, 1.97 from 40, 1.98 from 20,"
    " 2.15 from 10, 3.51 from 5; use 20 to 40",
}


class Flow(Protocol):
    """Whose probability flow is known in closed form: the Gaussian denoisers."""

    shape: tuple[int, ...]

    def flow(self, x: Tensor, sigma: Tensor, sigma_next: Tensor, cond: Cond = None) -> Tensor:
        """Carry x [B, *shape] from sigma to sigma_next, [] or [B]."""
        ...


@dataclass(frozen=True)
class TeleportSampler(Sampler):
    """Jumps from the grid's sigma_max to sigma_skip along the flow of Gaussian data, then samples as usual.

    x(sigma) = mu + sum_k sqrt((lambda_k + sigma^2) / (lambda_k + sigma_max^2)) u_k u_k^T (x - mu)

    At high noise any data look Gaussian: the error of the jump falls with sigma_skip^-2. With `drop` the
    levels above sigma_skip are left out of the grid, which saves their evaluations; with `regrid` all steps
    are spread over the rest, which costs as much as before and is more accurate (the second is inferred from
    the labels of the authors' benchmark). What lies above the denoiser's own sigma_max can be jumped over.

    Args:
        steps: of the whole grid; churn is shared among as many.
        moments: the Gaussian of the training data, or the file that holds it
            (`scoregen.denoisers.moments`). By class for a denoiser that is given classes.
        sigma_skip: where the inner sampler takes over; the first level of the grid that is not above it.
        protocol: drop or regrid.
        inner: the sampler from there on; its steps, grid and state_dtype are those given here.

    Raises:
        UserError: sigma_skip outside the grid or above the denoiser's range; moments that are missing or of
            other data; too few steps to have a level at or below sigma_skip.

    Source: Wang and Vastola, The Unreasonable Effectiveness of Gaussian Score Approximation for Diffusion
    Models and its Applications, 2024, arXiv 2412.09726, and its repository's benchmark.
    """

    moments: Flow | str | None = None
    sigma_skip: Positive = 20.0
    protocol: Literal["drop", "regrid"] = "drop"
    inner: Sampler = HeunSampler()  # noqa: RUF009 - frozen

    order: ClassVar[float | None] = None  # the jump's error does not fall with the number of steps
    reference: ClassVar[str] = "Wang and Vastola 2024, arXiv 2412.09726"

    def __post_init__(self) -> None:
        low, high = self.grid.sigma_min, self.grid.sigma_max
        if not low < self.sigma_skip <= high:
            raise UserError(
                f"teleport: sigma_skip={self.sigma_skip:g} must lie above the grid's sigma_min={low:g} and "
                f"not above its sigma_max={high:g}; for 32 x 32 images use 10 to 20, for 64 x 64 use 20 to 40"
            )

    @property
    def deterministic(self) -> bool:
        """As the inner sampler."""
        return self.inner.deterministic

    @property
    def continuation(self) -> Sampler:
        """The inner sampler with the steps, grid and state of this one."""
        grid = self.grid
        if self.protocol == "regrid":
            grid = replace(grid, sigma_max=self.sigma_skip)
        return replace(self.inner, steps=self.steps, grid=grid, state_dtype=self.state_dtype)

    @property
    def nfe_saved(self) -> int:
        """The evaluations per sample that the inner sampler alone would need more."""
        return self.inner.nfe(self.steps) - self.nfe()

    def nfe(self, steps: int | None = None) -> int:
        """The inner sampler's cost of the steps that are left, at least one."""
        steps = self.steps if steps is None else steps
        return self.inner.nfe(steps if self.protocol == "regrid" else max(1, len(self._kept(steps)) - 1))

    def sigmas(self, denoiser: Denoiser) -> list[float]:
        """The levels after the jump, from about sigma_skip down to 0."""
        if self.sigma_skip > denoiser.sigma_max:
            raise UserError(
                f"teleport: sigma_skip={self.sigma_skip:g} is above the model's sigma_max="
                f"{denoiser.sigma_max:g}; nothing would be there to go on with"
            )
        if self.protocol == "regrid":
            return self.continuation.sigmas(denoiser)
        kept = self._kept(self.steps, denoiser.sigma_min)
        if len(kept) < 2:
            raise UserError(
                f"teleport: with steps={self.steps} no level of the grid lies between 0 and sigma_skip="
                f"{self.sigma_skip:g}; take more steps, a higher sigma_skip or protocol=regrid"
            )
        return round_sigmas(denoiser, kept)

    def begin(
        self, denoiser: Denoiser, noise: Tensor, sigmas: Sequence[float], cond: Cond, rng: Rng | None
    ) -> Tensor:
        """Noise of the grid's sigma_max, carried along the flow to the first level: [B, *shape]."""
        if sigmas[0] < denoiser.sigma_max * (1 - 1e-9):  # else it has no higher level to go on from
            warn_of_low_skip(sigmas[0], denoiser.shape)
        start, end = (noise.new_tensor(sigma) for sigma in (self.grid.sigma_max, sigmas[0]))
        return self._gaussian(denoiser, noise.device).flow(noise * self.grid.sigma_max, start, end, cond)

    def prepared(self, denoiser: Denoiser, x: Tensor) -> Self:
        """The same with an inner sampler that knows the denoiser."""
        return replace(self, inner=self.continuation.prepared(denoiser, x))

    def integrate(
        self,
        denoiser: Denoiser,
        x: Tensor,
        sigmas: Sequence[float],
        cond: Cond = None,
        rng: Rng | None = None,
    ) -> Iterator[Step]:
        """Step from the state x [B, *shape] at sigmas[0] through the decreasing levels: the inner sampler."""
        return self.continuation.integrate(denoiser, x, sigmas, cond, rng)

    def _kept(self, steps: int, sigma_min: float = 0.0) -> list[float]:
        """The levels of the grid that are not above sigma_skip."""
        levels = self.grid.within(sigma_min, self.grid.sigma_max)(steps).tolist()
        return [sigma for sigma in levels if sigma <= self.sigma_skip * (1 + 1e-9)]  # the grid's own rounding

    def _gaussian(self, denoiser: Denoiser, device: torch.device) -> Flow:
        if self.moments is None:
            raise UserError(
                "teleport needs the mean and covariance of the training data: set moments to the file that "
                "scoregen.denoisers.moments.cached_gaussian writes"
            )
        gaussian = load_on(self.moments, device) if isinstance(self.moments, str) else self.moments
        check_moments(gaussian, denoiser)
        return gaussian


def check_moments(gaussian: Flow, denoiser: Denoiser) -> None:
    """UserError for moments of other samples than the model's."""
    if tuple(gaussian.shape) != tuple(denoiser.shape):
        raise UserError(
            f"the moments are of samples of shape {tuple(gaussian.shape)}, the model's have shape "
            f"{tuple(denoiser.shape)}"
        )


@lru_cache(maxsize=4)
def load_on(path: str, device: torch.device) -> Gaussian:
    """The moments in a file, on a device; read once."""
    return load_gaussian(Path(path)).to(device)


def warn_of_low_skip(sigma_skip: float, shape: Sequence[int]) -> None:
    """Warn, with the published numbers, of a jump to below the range in which they improve; images only."""
    if len(shape) != 3:
        return
    size = 32 if shape[-1] <= 32 else 64
    if sigma_skip < LOWEST[size]:
        warnings.warn(
            f"teleport goes on from sigma={sigma_skip:.3g}, below the {LOWEST[size]:g} down to which the "
            f"published tables improve for images of this size: {_EVIDENCE[size]}",
            stacklevel=4,
        )
