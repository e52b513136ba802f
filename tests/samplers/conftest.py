"""Smooth problems with known flows."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from scoregen.denoisers.base import Denoiser
from scoregen.denoisers.gaussian import GaussianDenoiser
from scoregen.denoisers.mixture import GaussianMixtureDenoiser
from scoregen.rng import generator

Flow = Callable[[Denoiser, Tensor, float, float], Tensor]


def _exact_flow(denoiser: Denoiser, x: Tensor, sigma: float, sigma_end: float) -> Tensor:
    """The probability flow dx / dlog(sigma) = x - D(x; sigma) by an adaptive solver of order 8."""
    from scipy.integrate import solve_ivp

    def slope(log_sigma: float, flat: np.ndarray) -> np.ndarray:
        x_now = torch.from_numpy(flat).reshape(x.shape)
        return (x_now - denoiser(x_now, torch.tensor(log_sigma, dtype=torch.float64).exp())).flatten().numpy()

    span = (np.log(sigma), np.log(sigma_end))
    solution = solve_ivp(slope, span, x.flatten().numpy(), method="DOP853", rtol=1e-11, atol=1e-12)
    return torch.from_numpy(solution.y[:, -1]).reshape(x.shape)


@pytest.fixture(scope="session")
def exact_flow() -> Flow:
    """(denoiser, x, sigma, sigma_end) -> where the probability flow carries x."""
    return _exact_flow


@pytest.fixture(scope="session")
def flows() -> dict[str, tuple[Denoiser, Tensor]]:
    """Smooth problems in the plane with their exact flow from 80 noise to sigma = 0.05."""
    one, three = torch.tensor([0.3, -0.5]).double(), torch.tensor([[-1.0, 0.3], [0.5, 0.9], [0.8, -1.0]])
    denoisers = {
        "gaussian": GaussianDenoiser(one, torch.tensor([0.09, 1.0]).double()),
        "mixture": GaussianMixtureDenoiser(three.double(), torch.tensor([0.16, 0.25, 0.36]).double()),
    }
    noise = torch.randn(8, 2, generator=generator("noise"), dtype=torch.float64)
    return {name: (d, _exact_flow(d, 80 * noise, 80.0, 0.05)) for name, d in denoisers.items()}
