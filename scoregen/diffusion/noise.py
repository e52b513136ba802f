"""Distributions of the training noise level, as quantile functions, so that stratified draws come for free.

Source: Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models, 2022,
arXiv 2206.00364, table 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from typing import Protocol

import torch
from torch import Tensor

from scoregen.diffusion import schedules
from scoregen.diffusion.grids import KarrasGrid
from scoregen.errors import UserError
from scoregen.ranges import Fraction, Positive, PositiveInt


class SigmaDistribution(Protocol):
    """A distribution of sigma > 0."""

    def quantile(self, u: Tensor) -> Tensor:
        """The sigma below which a fraction u in (0, 1) of the draws falls; as u in shape and dtype."""
        ...


@dataclass(frozen=True)
class LogNormalSigma:
    """ln sigma ~ N(p_mean, p_std^2), the distribution of EDM."""

    p_mean: float = -1.2
    p_std: Positive = 1.2

    def quantile(self, u: Tensor) -> Tensor:
        """exp(p_mean + p_std Phi^-1(u))."""
        log_sigma: Tensor = self.p_mean + self.p_std * torch.special.ndtri(u)
        return log_sigma.exp()


@dataclass(frozen=True)
class LogUniformSigma:
    """ln sigma ~ U(ln sigma_min, ln sigma_max), the distribution of the VE process.

    Raises UserError unless sigma_min < sigma_max.
    """

    sigma_min: Positive = 0.02
    sigma_max: Positive = 100.0

    def __post_init__(self) -> None:
        if not self.sigma_min < self.sigma_max:
            raise UserError(
                f"LogUniformSigma: sigma_min={self.sigma_min:g} must be below sigma_max={self.sigma_max:g}"
            )

    def quantile(self, u: Tensor) -> Tensor:
        """sigma_min (sigma_max / sigma_min)^u."""
        return self.sigma_min * (u * log(self.sigma_max / self.sigma_min)).exp()


@dataclass(frozen=True)
class KarrasSigma:
    """sigma(t) of EDM's sampling grid at t ~ U(low, high), t = 0 at sigma_min and 1 at sigma_max.

    The distribution of the one-step distillers: [0, 0.8] for SiD and SIM, the interior of a table of 1000
    levels for DMD, k / 999 with k in 20 ... 980, and f-distill, 2 ... 998.

    Args:
        grid: the sampling grid.
        low, high: the interval of t.

    Raises UserError unless low < high.
    """

    grid: KarrasGrid = KarrasGrid()  # noqa: RUF009 - frozen
    low: Fraction = 0.0
    high: Fraction = 1.0

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise UserError(f"KarrasSigma: low={self.low:g} must be below high={self.high:g}")

    def quantile(self, u: Tensor) -> Tensor:
        """The grid's curve at the ramp 1 - t, t = low + u (high - low)."""
        return self.grid.curve(1 - (self.low + u * (self.high - self.low)))


@dataclass(frozen=True)
class LevelsSigma:
    """One of a few levels, each as often as the others.

    Raises UserError unless the levels are positive and increase.
    """

    levels: Sequence[Positive]

    def __post_init__(self) -> None:
        if not self.levels or any(a >= b for a, b in zip((0.0, *self.levels), self.levels, strict=False)):
            raise UserError(f"LevelsSigma: levels={list(self.levels)} must be positive and increase")

    def quantile(self, u: Tensor) -> Tensor:
        """The level number floor(u n) of n."""
        levels = torch.tensor(tuple(self.levels), dtype=u.dtype, device=u.device)
        return levels[(u * len(levels)).long()]


@dataclass(frozen=True)
class BrownianSigma:
    """sigma^2 ~ U(sigma_min^2, sigma_max^2): the noise of Brownian motion at a time that is uniform.

    Raises UserError unless sigma_min < sigma_max.
    """

    sigma_min: Positive
    sigma_max: Positive

    def __post_init__(self) -> None:
        if not self.sigma_min < self.sigma_max:
            raise UserError(
                f"BrownianSigma: sigma_min={self.sigma_min:g} must be below sigma_max={self.sigma_max:g}"
            )

    def quantile(self, u: Tensor) -> Tensor:
        """sqrt(sigma_min^2 + u (sigma_max^2 - sigma_min^2))."""
        return torch.lerp(u.new_tensor(self.sigma_min**2), u.new_tensor(self.sigma_max**2), u).sqrt()


@dataclass(frozen=True)
class VPSigma:
    """sigma(t) of the VP process at t ~ U(epsilon_t, 1)."""

    beta_d: Positive = schedules.VP_BETA_D
    beta_min: Positive = schedules.VP_BETA_MIN
    epsilon_t: Positive = 1e-5

    def quantile(self, u: Tensor) -> Tensor:
        """sigma(epsilon_t + u (1 - epsilon_t))."""
        time = self.epsilon_t + u * (1 - self.epsilon_t)
        return schedules.vp_sigma(time, beta_d=self.beta_d, beta_min=self.beta_min)


@dataclass(frozen=True)
class IDDPMSigma:
    """The discrete iDDPM levels u_j at j ~ U{0, ..., M-1}.

    Remembered, not confirmed: the official repository has the preconditioner, but no iDDPM loss.
    """

    levels: PositiveInt = schedules.IDDPM_LEVELS  # M
    c1: Positive = schedules.IDDPM_C1
    c2: Positive = schedules.IDDPM_C2

    def quantile(self, u: Tensor) -> Tensor:
        """u_j at j = M - 1 - floor(u M)."""
        table = schedules.iddpm_sigmas(levels=self.levels, c1=self.c1, c2=self.c2, device=u.device)
        return table[self.levels - 1 - (u * self.levels).long()].to(u.dtype)
