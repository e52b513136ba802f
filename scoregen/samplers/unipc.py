"""UniPC: a multistep predictor whose next evaluation also corrects the step before, at no extra cost."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import expm1, log
from typing import ClassVar, Literal

import numpy as np
from torch import Tensor

from scoregen.denoisers.base import Cond, Denoiser, denoiser_for_step
from scoregen.rng import Rng
from scoregen.samplers.base import Sampler, Step, combine, count_usable, level_tensor
from scoregen.samplers.quadrature import phi_integral

Variant = Literal["bh1", "bh2"]


@dataclass(frozen=True)
class UniPCSampler(Sampler):
    """UniPC-p for data prediction; converges with order p + 1, thanks to the corrector.

    With z = -h, B = z (bh1) or e^z - 1 (bh2), r_k = (lambda_{i-k} - lambda_i) / h,
    x' = (sigma'/sigma) x - (e^z - 1) D_i - B sum_k rho_k (D_{i-k} - D_i) / r_k,
    sum_k r_k^{j-1} rho_k = (z / B) int_0^1 e^{(1-s) z} s^j ds for j = 1, 2, ...
    The predictor sums over k = 1 .. p - 1. The corrector repeats the step from the corrected x with
    D(x'; sigma') as a further point, r = 1. A rule with one k has rho = 1/2. The first steps have fewer
    points; a step to 0 returns D and is not corrected. The states that are yielded are the predictions.

    Args:
        solver_order: p; 3 is the authors' advice for unconditional models, 2 with guidance (remembered).
        variant: of B; bh1 for very few steps (remembered).

    Source: Zhao et al., UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion Models,
    2023, arXiv 2302.04867.
    """

    solver_order: Literal[1, 2, 3] = 3
    variant: Variant = "bh2"

    order: ClassVar[float | None] = 4.0
    reference: ClassVar[str] = "Zhao et al. 2023, arXiv 2302.04867"

    def nfe(self, steps: int | None = None) -> int:
        """N."""
        return self.steps if steps is None else steps

    def integrate(
        self,
        denoiser: Denoiser,
        x: Tensor,
        sigmas: Sequence[float],
        cond: Cond = None,
        rng: Rng | None = None,
    ) -> Iterator[Step]:
        """Step from the state x [B, *shape] at sigmas[0] through the decreasing levels."""
        levels, memory, corrected = level_tensor(sigmas, x), deque[Tensor](maxlen=self.solver_order), x
        for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
            denoised = denoiser_for_step(denoiser, sigma)(x, levels[i], cond).to(x.dtype)
            if i > 0 and sigma < sigmas[i - 1]:
                weights = self._weights(sigmas, i - 1, corrector=True)
                corrected = combine(sigma / sigmas[i - 1], corrected, weights, [denoised, *memory])
            memory.appendleft(denoised)
            if sigma_next == 0:
                x = denoised
            elif sigma_next < sigma:
                x = combine(sigma_next / sigma, corrected, self._weights(sigmas, i), memory)
            yield Step(i, sigma_next, x, denoised)

    def _weights(self, sigmas: Sequence[float], i: int, corrector: bool = False) -> list[float]:
        """The weights of [D_{i+1} if corrector,] D_i, D_{i-1}, ... in the step from level i to i + 1."""
        count = count_usable(sigmas, i, self.solver_order)
        z = log(sigmas[i + 1] / sigmas[i])
        ratios = [log(sigmas[i - k] / sigmas[i]) / z for k in range(1, count)]
        ratios = [1.0, *ratios] if corrector else ratios
        scale = z if self.variant == "bh1" else expm1(z)
        slopes = [-scale * rho / r for rho, r in zip(_solve(ratios, z, scale), ratios, strict=True)]
        own = -expm1(z) - sum(slopes)
        return [slopes[0], own, *slopes[1:]] if corrector else [own, *slopes]


def _solve(ratios: Sequence[float], z: float, scale: float) -> list[float]:
    """rho_k for the ratios r_k."""
    if len(ratios) <= 1:
        return [0.5] * len(ratios)
    powers = range(len(ratios))
    matrix = np.array([[r**j for r in ratios] for j in powers])
    target = np.array([z / scale * phi_integral(j + 1, z) for j in powers])
    solution: list[float] = np.linalg.solve(matrix, target).tolist()
    return solution
