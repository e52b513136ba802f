"""WaveGrad's noise: amplitudes l of a discrete schedule beta, training between them, short schedules.

In its coordinates y = l y0 + sqrt(1 - l^2) n, l_s^2 = prod_{i <= s} (1 - beta_i), l_0 = 1; in ours x = y / l,
sigma = sqrt(1 - l^2) / l.

Source: Chen et al., WaveGrad: Estimating Gradients for Waveform Generation, 2020, arXiv 2009.00713. The
abstract and two independent implementations were read; what only the paper says is marked as remembered.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from scoregen.diffusion.grids import SigmaGrid
from scoregen.diffusion.precond import Coefficients, Continuous, wide
from scoregen.errors import UserError
from scoregen.ranges import Positive, PositiveInt, Range

Beta = Annotated[float, Range(0.0, 1.0, open_low=True)]
BETA_MIN, BETA_MAX, LEVELS = 1e-6, 0.01, 1000  # of training


def linear_betas(beta_min: float, beta_max: float, levels: int) -> Tensor:
    """beta_1, ..., beta_S equally spaced, [levels] float64."""
    return torch.linspace(beta_min, beta_max, levels, dtype=torch.float64, device="cpu")


def beta_sigmas(betas: Tensor) -> Tensor:
    """sigma_0 = 0 < sigma_1 < ... < sigma_S of a schedule beta [S], [S + 1] float64."""
    log_l2 = torch.cat([betas.new_zeros(1), (-betas.double()).log1p().cumsum(0)])
    return (-log_l2).expm1().sqrt()


@dataclass(frozen=True)
class WaveGradPrecond(Continuous):
    """Reads F as the noise prediction e(y, l), told the amplitude l itself.

    c_skip = 1,  c_out = -sigma,  c_in = c_noise = l = 1 / sqrt(1 + sigma^2): D = x - sigma e(l x, l).
    """

    beta_min: Beta = BETA_MIN
    beta_max: Beta = BETA_MAX
    levels: PositiveInt = LEVELS

    sigma_min = 0.0

    @property
    def sigma_max(self) -> float:
        """sigma_S, of the lowest amplitude in training."""
        return float(beta_sigmas(linear_betas(self.beta_min, self.beta_max, self.levels))[-1])

    def __call__(self, sigma: Tensor) -> Coefficients:
        """The coefficients at noise levels sigma [] or [B]."""
        sigma = wide(sigma)
        amplitude = (sigma.square() + 1).rsqrt()
        return Coefficients(skip=torch.ones_like(sigma), out=-sigma, input=amplitude, noise=amplitude)


@dataclass(frozen=True)
class HierarchicalSigma:
    """sigma of an amplitude l ~ U(l_s, l_{s-1}), s ~ U{1, ..., S}: levels first, then between two of them.

    So the network learns every l, and one training serves schedules of any length.
    """

    beta_min: Beta = BETA_MIN
    beta_max: Beta = BETA_MAX
    levels: PositiveInt = LEVELS

    def quantile(self, u: Tensor) -> Tensor:
        """sigma at l = l_{s-1} + f (l_s - l_{s-1}), s - 1 + f = u S."""
        sigmas = beta_sigmas(linear_betas(self.beta_min, self.beta_max, self.levels))
        loss = 1 - (sigmas.square() + 1).rsqrt()  # 1 - l: small differences of l would cancel
        loss[1:] = sigmas[1:].square() / (1 + sigmas[1:].square() + (1 + sigmas[1:].square()).sqrt())
        table, place = loss.to(u), u * self.levels
        below = place.floor().long().clamp(max=self.levels - 1)
        lost = torch.lerp(table[below], table[below + 1], place - below)
        return (lost * (2 - lost)).sqrt() / (1 - lost)


@dataclass(frozen=True)
class BetaGrid(SigmaGrid):
    """The levels of a schedule beta_1, ..., beta_N given in full, found by hand or by search.

    Levels outside [sigma_min, sigma_max] are moved to its ends. Raises UserError for another number of steps.
    """

    sigma_min: Positive = 1e-4
    sigma_max: Positive = 100.0
    betas: Sequence[Beta] = (1e-6, 1.89287e-5, 1.19432e-4, 1.00475e-3, 1.10943e-2, 6e-2)

    def schedule(self, steps: int) -> Tensor:
        """beta_1, ..., beta_N of N = steps, [steps] float64."""
        if steps != len(self.betas):
            raise UserError(
                f"steps={steps}, but the schedule has {len(self.betas)} values of beta: set "
                f"steps={len(self.betas)}, or give other betas"
            )
        return torch.tensor(tuple(self.betas), dtype=torch.float64)

    def curve(self, ramp: Tensor) -> Tensor:
        """The noise levels [n]; of the ramp only its length counts."""
        sigmas = beta_sigmas(self.schedule(len(ramp)))
        return sigmas[1:].flip(0).clamp(self.sigma_min, self.sigma_max)


@dataclass(frozen=True)
class FibonacciBetaGrid(BetaGrid):
    """beta_n = beta_{n-1} + beta_{n-2}: with 25 steps from 1e-6 and 2e-6 the published schedule."""

    betas: Sequence[Beta] = (1e-6, 2e-6)  # the first two

    def schedule(self, steps: int) -> Tensor:
        """beta_1, ..., beta_N of N = steps, [steps] float64; UserError where they reach 1."""
        betas = list(self.betas[:2])
        while len(betas) < steps:
            betas.append(betas[-1] + betas[-2])
        if betas[-1] >= 1:
            raise UserError(
                f"steps={steps}: the Fibonacci schedule from {self.betas[0]:g} exceeds 1; lower it"
            )
        return torch.tensor(betas[:steps], dtype=torch.float64)


@dataclass(frozen=True)
class LinearBetaGrid(SigmaGrid):
    """N of the `levels` of beta equally spaced in [beta_min, beta_max], their indices equally spaced.

    With N = levels it is that schedule. The two ports use 1e-6 to 0.01 with 1000 levels, also to train; the
    paper's are remembered as 1e-4 to 0.005 with 1000 and 1e-4 to 0.05 with 50.
    """

    sigma_min: Positive = 1e-4
    sigma_max: Positive = 100.0
    beta_min: Beta = BETA_MIN
    beta_max: Beta = BETA_MAX
    levels: PositiveInt = LEVELS

    def curve(self, ramp: Tensor) -> Tensor:
        """The noise levels [n] at ramp [n]; UserError for more steps than there are levels."""
        if len(ramp) > self.levels:
            raise UserError(
                f"steps={len(ramp)}: the schedule has only {self.levels} levels; raise grid.levels"
            )
        sigmas = beta_sigmas(linear_betas(self.beta_min, self.beta_max, self.levels))
        index = (self.levels - ramp * (self.levels - 1)).round().long()
        return sigmas[index].clamp(self.sigma_min, self.sigma_max)
