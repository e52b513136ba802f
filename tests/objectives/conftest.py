"""A fixed nonlinear field, and Gaussians whose score matching losses are known."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from scoregen.rng import generator

Field = nn.Sequential


@pytest.fixture
def field() -> Field:
    """R^3 -> R^3 with a Jacobian that is neither symmetric nor diagonal, float64."""
    network = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    g = generator("field")
    with torch.no_grad():
        for p in network.parameters():
            p.copy_(torch.randn(p.shape, generator=g, dtype=p.dtype) * 0.6)
    return network


@pytest.fixture
def normal() -> Callable[..., Tensor]:
    """normal(*shape, key=0): standard normals, float64."""

    def draw(*shape: int, key: int = 0) -> Tensor:
        return torch.randn(*shape, generator=generator("normal", key), dtype=torch.float64)

    return draw
