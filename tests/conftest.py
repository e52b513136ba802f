"""Oracles that several rooms test against."""

import os

# Before torch is imported: spinning threads slow small work on shared cores; pytest-xdist fills them.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ["OMP_NUM_THREADS"] = "1"

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from scoregen.denoisers.base import Cond, Denoise, expand
from scoregen.denoisers.mixture import GaussianMixtureDenoiser
from scoregen.diffusion.precond import Precond


@pytest.fixture(autouse=True)
def _same_numbers_every_time() -> None:
    """Seed torch's global generator, so that a test which passes once passes always."""
    torch.manual_seed(0)


@pytest.fixture
def mixture() -> GaussianMixtureDenoiser:
    """Three Gaussians of two classes in the plane, float64."""
    return GaussianMixtureDenoiser(
        torch.tensor([[-1.0, 0.3], [0.5, 0.9], [0.8, -1.0]], dtype=torch.float64),
        torch.tensor([0.04, 0.09, 0.16], dtype=torch.float64),
        weights=torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64),
        labels=torch.tensor([0, 1, 1]),
    )


@pytest.fixture
def precondition() -> Callable[[Callable[[Tensor, Tensor], Tensor], Precond], Denoise]:
    """(F, precond) -> D, written out from the definition, for a function F(x, c_noise)."""

    def build(f: Callable[[Tensor, Tensor], Tensor], precond: Precond) -> Denoise:
        def denoiser(x: Tensor, sigma: Tensor, cond: Cond = None) -> Tensor:
            c = precond(sigma)
            return expand(c.skip, x) * x + expand(c.out, x) * f(expand(c.input, x) * x, c.noise)

        return denoiser

    return build
