"""DPM-Solver++ in its multistep forms: one evaluation a step, earlier ones remembered.

With lambda = -ln sigma the flow is dx / dlambda = D - x, so a step over h = lambda' - lambda is
x' = (sigma' / sigma) x + int e^{u - lambda'} D(u) du over [lambda, lambda']. The solvers differ in how they
extrapolate D from its last values. A step to 0 returns the last D, the limit of all of them.

Source: Lu et al., DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models, 2022,
arXiv 2211.01095.
"""

from abc import abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import expm1, log, sqrt
from typing import ClassVar, Literal

import numpy as np
from torch import Tensor

from scoregen.denoisers.base import Cond, Denoiser, denoiser_for_step
from scoregen.ranges import NonNegative
from scoregen.rng import Rng
from scoregen.samplers.base import Sampler, Step, combine, count_usable, draw_like, level_tensor
from scoregen.samplers.quadrature import lagrange_integrals

_DPMPP = "Lu et al. 2022, arXiv 2211.01095"
_MEMORY = 4  # predictions kept; no rule looks at more


@dataclass(frozen=True)
class MultistepSampler(Sampler):
    """x' = a x + sum_j w_j m_{i-j} of remembered predictions m, one evaluation a step; to 0 it gives D."""

    def nfe(self, steps: int | None = None) -> int:
        """N."""
        return self.steps if steps is None else steps

    @abstractmethod
    def prediction(self, x: Tensor, denoised: Tensor, sigma: float) -> Tensor:
        """m, what is remembered of an evaluation."""

    @abstractmethod
    def rule(self, sigmas: Sequence[float], i: int) -> tuple[float, list[float]]:
        """a and the weights of m_i, m_{i-1}, ... for the step from level i to the lower level i + 1 > 0."""

    def integrate(
        self,
        denoiser: Denoiser,
        x: Tensor,
        sigmas: Sequence[float],
        cond: Cond = None,
        rng: Rng | None = None,
    ) -> Iterator[Step]:
        """Step from the state x [B, *shape] at sigmas[0] through the decreasing levels."""
        levels, memory = level_tensor(sigmas, x), deque[Tensor](maxlen=_MEMORY)
        for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
            denoised = denoiser_for_step(denoiser, sigma)(x, levels[i], cond).to(x.dtype)
            memory.appendleft(self.prediction(x, denoised, sigma))
            if sigma_next == 0:
                x = denoised
            elif sigma_next < sigma:
                x = self.renoise(combine(*self._decayed(x, sigmas, i), memory), sigma, sigma_next, rng)
            yield Step(i, sigma_next, x, denoised)

    def renoise(self, x: Tensor, sigma: float, sigma_next: float, rng: Rng | None) -> Tensor:
        """The state after a step from sigma to sigma_next > 0 with its fresh noise; by default none."""
        return x

    def _decayed(self, x: Tensor, sigmas: Sequence[float], i: int) -> tuple[float, Tensor, list[float]]:
        decay, weights = self.rule(sigmas, i)
        return decay, x, weights


@dataclass(frozen=True)
class DPMpp2MSampler(MultistepSampler):
    """Second order: x' = (sigma'/sigma) x + (1 - e^{-h}) ((1 + 1/(2r)) D_i - D_{i-1} / (2r)), r = h_prev / h.

    The first step has D_i alone. With `variant` heun the extrapolation is integrated exactly instead of
    taken at the middle: (1 - e^{-h}) D_i + (1 + (e^{-h} - 1) / h) (D_i - D_{i-1}) / r.

    Args:
        variant: how the linear extrapolation of D is integrated.
    """

    variant: Literal["midpoint", "heun"] = "midpoint"

    order: ClassVar[float | None] = 2.0
    reference: ClassVar[str] = _DPMPP

    def prediction(self, x: Tensor, denoised: Tensor, sigma: float) -> Tensor:
        """D."""
        return denoised

    def rule(self, sigmas: Sequence[float], i: int) -> tuple[float, list[float]]:
        """The formula above."""
        return sigmas[i + 1] / sigmas[i], data_weights(sigmas, i, self.variant)


@dataclass(frozen=True)
class DPMpp2MSDESampler(DPMpp2MSampler):
    """`DPMpp2MSampler` of the reverse SDE: x' = (sigma'/sigma) e^{-eta h} x + w D + noise.

    The weights are those with h (1 + eta) in place of h in their exponentials, the noise is
    sigma' sqrt(1 - e^{-2 eta h}) z.

    Args:
        eta: the strength of the noise; 0 solves the ODE.
    """

    eta: NonNegative = 1.0

    order: ClassVar[float | None] = None
    reference: ClassVar[str] = _DPMPP

    @property
    def deterministic(self) -> bool:
        """Whether eta = 0."""
        return self.eta == 0

    def rule(self, sigmas: Sequence[float], i: int) -> tuple[float, list[float]]:
        """The formula above."""
        decay = (sigmas[i + 1] / sigmas[i]) ** (1 + self.eta)
        return decay, data_weights(sigmas, i, self.variant, self.eta)

    def renoise(self, x: Tensor, sigma: float, sigma_next: float, rng: Rng | None) -> Tensor:
        """Noise of the standard deviation above."""
        if self.eta == 0:
            return x
        scale = sigma_next * sqrt(-expm1(2 * self.eta * log(sigma_next / sigma)))
        return x.add_(draw_like(x, rng), alpha=scale)


@dataclass(frozen=True)
class DPMpp3MSampler(MultistepSampler):
    """Third order: the parabola through the last three D is integrated exactly.

    x' = (sigma'/sigma) x + (1 - e^{-h}) D + phi_2 h D' - phi_3 h^2 D'', phi_2 = 1 + (e^{-h} - 1) / h,
    phi_3 = phi_2 / h - 1/2, with the derivatives of that parabola at lambda. Published code has the divided
    difference D''/2 where D'' stands and converges with order 2 (measured). The first two steps have one and
    two points, whose error shows only past some 500 steps.
    """

    order: ClassVar[float | None] = 3.0
    reference: ClassVar[str] = _DPMPP

    def prediction(self, x: Tensor, denoised: Tensor, sigma: float) -> Tensor:
        """D."""
        return denoised

    def rule(self, sigmas: Sequence[float], i: int) -> tuple[float, list[float]]:
        """The formula above."""
        count = count_usable(sigmas, i, 3)
        nodes = [-log(sigmas[i - j]) for j in range(count)]
        end = -log(sigmas[i + 1])
        weights = lagrange_integrals(nodes, nodes[0], end, lambda u: np.exp(u - end))
        return sigmas[i + 1] / sigmas[i], weights


def data_weights(sigmas: Sequence[float], i: int, variant: str, eta: float = 0.0) -> list[float]:
    """The weights of D_i and D_{i-1} in a step of DPM-Solver++ 2M, with h (1 + eta) for h."""
    h = log(sigmas[i] / sigmas[i + 1])
    decayed = h * (1 + eta)
    whole = -expm1(-decayed)
    if count_usable(sigmas, i, 2) == 1:
        return [whole]
    r = log(sigmas[i - 1] / sigmas[i]) / h
    slope = (whole / 2 if variant == "midpoint" else 1 - whole / decayed) / r
    return [whole + slope, -slope]
