"""Data of which guidance has two models."""

import pytest
import torch

from scoregen.denoisers.mixture import GaussianMixtureDenoiser


@pytest.fixture
def other() -> GaussianMixtureDenoiser:
    """A mixture near that of the fixture `mixture`, of the same classes."""
    return GaussianMixtureDenoiser(
        torch.tensor([[-0.8, 0.0], [0.5, 0.6], [0.6, -0.7]], dtype=torch.float64),
        torch.tensor([0.09, 0.16, 0.25], dtype=torch.float64),
        weights=torch.full((3,), 1 / 3, dtype=torch.float64),
        labels=torch.tensor([0, 1, 1]),
    )
