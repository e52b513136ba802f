"""Sampling grids: the decreasing noise levels that a sampler steps through.

Source: Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models, 2022,
arXiv 2206.00364, table 1.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from math import log1p
from typing import Self

import torch
from torch import Tensor

from scoregen.diffusion import schedules
from scoregen.errors import UserError
from scoregen.ranges import Positive


@dataclass(frozen=True)
class SigmaGrid(ABC):
    """A curve of noise levels from sigma_max at ramp 0 to sigma_min at ramp 1, read at equal intervals.

    Raises UserError unless sigma_min < sigma_max.
    """

    sigma_min: Positive = 0.002
    sigma_max: Positive = 80.0

    def __post_init__(self) -> None:
        if not self.sigma_min < self.sigma_max:
            raise UserError(
                f"{type(self).__name__}: sigma_min={self.sigma_min:g} must be below "
                f"sigma_max={self.sigma_max:g}"
            )

    @abstractmethod
    def curve(self, ramp: Tensor) -> Tensor:
        """The noise levels [n] at increasing ramp values [n] in [0, 1]."""

    def __call__(self, steps: int) -> Tensor:
        """The levels sigma_0 > ... > sigma_{N-1} > sigma_N = 0 of N = steps, [steps + 1] float64.

        They span [sigma_min, sigma_max]; one step goes from sigma_max to 0.
        """
        if steps < 1:
            raise UserError(f"a sampler needs at least 1 step, got steps={steps}")
        ramp = torch.arange(steps, dtype=torch.float64) / max(steps - 1, 1)
        return torch.cat([self.curve(ramp), ramp.new_zeros(1)])

    def within(self, low: float, high: float) -> Self:
        """The same grid with its ends clamped to [low, high], the range that a denoiser is good for."""
        return replace(self, sigma_min=max(self.sigma_min, low), sigma_max=min(self.sigma_max, high))


@dataclass(frozen=True)
class KarrasGrid(SigmaGrid):
    """sigma = (sigma_max^(1/rho) + ramp (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho: EDM's grid."""

    rho: Positive = 7.0

    def curve(self, ramp: Tensor) -> Tensor:
        """The noise levels [n] at ramp [n]."""
        first: float = self.sigma_max ** (1 / self.rho)
        last: float = self.sigma_min ** (1 / self.rho)
        return (first + ramp * (last - first)) ** self.rho


@dataclass(frozen=True)
class LogSNRGrid(SigmaGrid):
    """sigma = sigma_max (sigma_min / sigma_max)^ramp: equal steps of the log signal-to-noise ratio."""

    def curve(self, ramp: Tensor) -> Tensor:
        """The noise levels [n] at ramp [n]."""
        return self.sigma_max * (self.sigma_min / self.sigma_max) ** ramp


@dataclass(frozen=True)
class FlowGrid(SigmaGrid):
    """sigma = (1 - u) / u with equal steps of the clock u from 1 / (1 + sigma_max) to 1, where sigma is 0.

    1 - u is the time of a flow, z = u x0 + (1 - u) n, which its papers step evenly. The last level above 0 is
    the one that this gives, or sigma_min where that is higher.
    """

    sigma_min: Positive = 1e-6
    sigma_max: Positive = 1 / 19

    def __call__(self, steps: int) -> Tensor:
        """The levels [steps + 1], float64, the last 0."""
        start = 1 / (1 + self.sigma_max)
        last = 1 - (1 - start) / max(steps, 2)
        return SigmaGrid.__call__(replace(self, sigma_min=max(self.sigma_min, (1 - last) / last)), steps)

    def curve(self, ramp: Tensor) -> Tensor:
        """The noise levels [n] at ramp [n]."""
        first, last = 1 / (1 + self.sigma_max), 1 / (1 + self.sigma_min)
        t = first + ramp * (last - first)
        return (1 - t) / t


@dataclass(frozen=True)
class VEGrid(LogSNRGrid):
    """The grid of the variance-exploding process: `LogSNRGrid` over its own range."""

    sigma_min: Positive = 0.02
    sigma_max: Positive = 100.0


@dataclass(frozen=True)
class BrownianGrid(SigmaGrid):
    """sigma = sigma_max sqrt(1 - i / N), i = 0, ..., N - 1: equal steps of the time of Brownian motion.

    Levels below sigma_min are raised to it, so that with N = (sigma_max / sigma_min)^2 steps none is.
    """

    def curve(self, ramp: Tensor) -> Tensor:
        """The noise levels [n]; the time left after the last of them is one step as well."""
        left = 1 - ramp * (len(ramp) - 1) / len(ramp)
        return (self.sigma_max * left.sqrt()).clamp(min=self.sigma_min)


@dataclass(frozen=True)
class ExpConstGrid(SigmaGrid):
    """Steps g_k = c min(1, t_{k+1}) of t = ln(1 + sigma^2), the c that leads from sigma_max to sigma_min.

    Constant while t > 1, then t shrinks by 1 / (1 + c) a step: almost equal steps of ln sigma throughout.

    Source: Chen, Lee and Lu, Improved Analysis of Score-Based Generative Modeling: User-Friendly Bounds under
    Minimal Smoothness Assumptions, 2022, arXiv 2211.01916 (constants remembered).
    """

    def curve(self, ramp: Tensor) -> Tensor:
        """The noise levels [n]; of the ramp only its length counts."""
        first, last = log1p(self.sigma_max**2), log1p(self.sigma_min**2)
        low, high = 0.0, max(first, first / last)  # of c: one step of `high` goes all the way
        for _ in range(200):
            c = (low + high) / 2
            low, high = (c, high) if _exponential_times(first, c, len(ramp))[-1] > last else (low, c)
        times = torch.tensor(_exponential_times(first, high, len(ramp)), dtype=torch.float64)
        levels = torch.expm1(times).sqrt()
        levels[-1:], levels[:1] = self.sigma_min, self.sigma_max
        return levels


def _exponential_times(t: float, c: float, count: int) -> list[float]:
    """t_0 = t and t_{k+1} = t_k - c min(1, t_{k+1}), `count` in all."""
    times = [t]
    for _ in range(count - 1):
        t = t - c if t - c >= 1 else t / (1 + c)
        times.append(t)
    return times


_VP_SIGMA_MIN, _VP_SIGMA_MAX = schedules.vp_level(1e-3), schedules.vp_level(1.0)


@dataclass(frozen=True)
class VPGrid(SigmaGrid):
    """sigma(t) of the variance-preserving process at t = 1 + ramp (epsilon_s - 1).

    beta_d and beta_min are those that put sigma(1) at sigma_max and sigma(epsilon_s) at sigma_min; the
    default ends are those of beta_d = 19.9, beta_min = 0.1.
    """

    sigma_min: Positive = _VP_SIGMA_MIN
    sigma_max: Positive = _VP_SIGMA_MAX
    epsilon_s: Positive = 1e-3

    def curve(self, ramp: Tensor) -> Tensor:
        """The noise levels [n] at ramp [n]."""
        low, high = log1p(self.sigma_min**2), log1p(self.sigma_max**2)
        beta_d = 2 * (low / self.epsilon_s - high) / (self.epsilon_s - 1)
        beta_min = high - beta_d / 2
        return schedules.vp_sigma(1 + ramp * (self.epsilon_s - 1), beta_d=beta_d, beta_min=beta_min)


@dataclass(frozen=True)
class IDDPMGrid(SigmaGrid):
    """Equally spaced picks from the discrete iDDPM levels u_j that lie in [sigma_min, sigma_max].

    Raises UserError where more steps are asked for than there are levels.
    """

    sigma_max: Positive = 81.0
    c1: Positive = schedules.IDDPM_C1
    c2: Positive = schedules.IDDPM_C2

    def curve(self, ramp: Tensor) -> Tensor:
        """The noise levels [n] at ramp [n]."""
        table = schedules.iddpm_sigmas(c1=self.c1, c2=self.c2)
        levels = table[(self.sigma_min <= table) & (table <= self.sigma_max)]
        if len(ramp) > len(levels):
            raise UserError(
                f"steps={len(ramp)}: the iDDPM grid has only {len(levels)} levels in "
                f"[{self.sigma_min:g}, {self.sigma_max:g}]"
            )
        return levels[((len(levels) - 1) * ramp).round().long()]
