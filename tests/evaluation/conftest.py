"""Small data sets that several tests of this room judge."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from scoregen.data.digits import load_digits
from scoregen.errors import UserError
from scoregen.evaluation.inception_weights import find_weights


class Rows(NamedTuple):
    """A batch as data sets give it."""

    x: Tensor
    label: Tensor | None


@dataclass
class Held:
    """Images in memory, as the statistics see a data set."""

    x: Tensor
    name: str = "held"
    fingerprint: str = "f" * 64

    def __len__(self) -> int:
        return len(self.x)

    def fetch(self, indices: Tensor) -> Rows:
        """The rows asked for."""
        return Rows(self.x[indices], None)


@pytest.fixture
def digits() -> Tensor:
    """The embedded digits, uint8 [N, 1, 8, 8], in a fixed random order."""
    data = load_digits()
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    return data.fetch(order).x


@pytest.fixture
def weights() -> Path:
    """The published Inception weights, where this machine has them."""
    try:
        return find_weights()
    except UserError as error:
        pytest.skip(str(error))
