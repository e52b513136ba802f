"""Integrals of interpolation polynomials, in float64: the coefficients of multistep solvers."""

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

_POINTS = 20  # exact to 1e-14 for a polynomial of degree 3 times exp(u) on intervals up to 11 long

Kernel = Callable[[NDArray[np.float64]], NDArray[np.float64]]


@cache
def _unit_rule() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Gauss-Legendre nodes and weights on [0, 1]."""
    nodes, weights = np.polynomial.legendre.leggauss(_POINTS)
    return (nodes + 1) / 2, weights / 2


def lagrange_integrals(nodes: Sequence[float], start: float, end: float, kernel: Kernel) -> list[float]:
    """c_j = int_start^end kernel(u) prod_{m != j} (u - u_m) / (u_j - u_m) du, one for each distinct node.

    sum_j c_j y_j integrates kernel times the polynomial through the points (u_j, y_j).
    """
    unit, weights = _unit_rule()
    u = start + (end - start) * unit
    density = kernel(u) * weights * (end - start)
    integrals = []
    for j, node in enumerate(nodes):
        basis = np.ones_like(u)
        for m, other in enumerate(nodes):
            if m != j:
                basis = basis * (u - other) / (node - other)
        integrals.append(float(density @ basis))
    return integrals


def phi_integral(j: int, z: float) -> float:
    """int_0^1 e^{(1 - s) z} s^j ds = j! phi_{j+1}(z), without the cancellation of its recursion."""
    unit, weights = _unit_rule()
    return float(weights @ (np.exp((1 - unit) * z) * unit**j))
