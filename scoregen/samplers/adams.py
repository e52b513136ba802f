"""Adams-Bashforth solvers: the noise prediction is extrapolated by a polynomial in sigma or in ln sigma."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from typing import ClassVar, Literal

import numpy as np
from torch import Tensor

from scoregen.samplers.base import count_usable
from scoregen.samplers.multistep import MultistepSampler
from scoregen.samplers.quadrature import lagrange_integrals


@dataclass(frozen=True)
class NoiseMultistepSampler(MultistepSampler):
    """x' = x + sum_j c_j eps_{i-j}, eps = (x - D(x; sigma)) / sigma, along dx = eps dsigma."""

    def prediction(self, x: Tensor, denoised: Tensor, sigma: float) -> Tensor:
        """sigma eps; the weights divide by sigma, which saves a pass over memory."""
        return x - denoised


@dataclass(frozen=True)
class LMSSampler(NoiseMultistepSampler):
    """Adams-Bashforth in sigma: c_j integrates the Lagrange polynomial of level i - j over [sigma, sigma'].

    The first steps have fewer points; solver_order 1 is Euler's method.

    Args:
        solver_order: points k of the polynomial.

    Source: Liu et al., Pseudo Numerical Methods for Diffusion Models on Manifolds, 2022, arXiv 2202.09778,
    for constant steps; with the exact integrals on any grid it is rhoAB-DEIS of arXiv 2204.13902.
    """

    solver_order: Literal[1, 2, 3, 4] = 4

    order: ClassVar[float | None] = 4.0
    reference: ClassVar[str] = "Liu et al. 2022, arXiv 2202.09778"

    def rule(self, sigmas: Sequence[float], i: int) -> tuple[float, list[float]]:
        """1 and c_j / sigma_{i-j}."""
        used = [sigmas[i - j] for j in range(count_usable(sigmas, i, self.solver_order))]
        integrals = lagrange_integrals(used, sigmas[i], sigmas[i + 1], np.ones_like)
        return 1.0, [c / sigma for c, sigma in zip(integrals, used, strict=True)]


@dataclass(frozen=True)
class DEISSampler(NoiseMultistepSampler):
    """Adams-Bashforth in u = ln sigma: c_j = int e^u L_j(u) du over [ln sigma, ln sigma'].

    Args:
        solver_order: points k of the polynomial; the first steps have fewer.

    Source: Zhang and Chen, Fast Sampling of Diffusion Models with Exponential Integrator, 2022, arXiv
    2204.13902; the variable ln sigma is that of diffusers' DEIS.
    """

    solver_order: Literal[1, 2, 3, 4] = 3

    order: ClassVar[float | None] = 3.0
    reference: ClassVar[str] = "Zhang and Chen 2022, arXiv 2204.13902"

    def rule(self, sigmas: Sequence[float], i: int) -> tuple[float, list[float]]:
        """1 and c_j / sigma_{i-j}."""
        used = [sigmas[i - j] for j in range(count_usable(sigmas, i, self.solver_order))]
        nodes = [log(sigma) for sigma in used]
        integrals = lagrange_integrals(nodes, nodes[0], log(sigmas[i + 1]), np.exp)
        return 1.0, [c / sigma for c, sigma in zip(integrals, used, strict=True)]
