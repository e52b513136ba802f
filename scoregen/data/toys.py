"""Two-dimensional toys, scaled so that sigma_data = 0.5 (EDM's default).

The distributions, not the draws, have mean 0 and variance 0.25, averaged over the two coordinates.
"""

from math import pi, sqrt
from typing import Annotated, Literal

import torch
from torch import Tensor

from scoregen.data.base import ArrayDataset, Split
from scoregen.ranges import NonNegative, PositiveInt, Range
from scoregen.rng import generator

SIGMA_DATA = 0.5


def load_checkerboard(
    *, split: Split = "train", size: PositiveInt = 100_000, cells: Literal[2, 4, 6, 8] = 4, seed: int = 0
) -> ArrayDataset:
    """Draw uniformly from the dark cells (column + row even) of a board on [-a, a]^2, a = sqrt(3) / 2.

    Each coordinate is uniform, with variance a^2 / 3 = 0.25.
    """
    g = generator("checkerboard", seed, split)
    column = torch.randint(cells, (size,), generator=g)
    row = 2 * torch.randint(cells // 2, (size,), generator=g) + column % 2
    unit = (torch.stack([column, row], 1) + torch.rand(size, 2, generator=g)) / cells
    return ArrayDataset("checkerboard", (2 * unit - 1) * (sqrt(3) * SIGMA_DATA))


def load_moons(
    *,
    split: Split = "train",
    size: PositiveInt = 100_000,
    noise: NonNegative = 0.05,
    conditional: bool = False,
    seed: int = 0,
) -> ArrayDataset:
    """Draw from two interleaved half circles of radius 1 with Gaussian noise, then scaled; class = moon.

    Before scaling: (cos t, sin t) and (1 - cos t, 1/2 - sin t), t ~ U(0, pi), whose mean is (1/2, 1/4) and
    whose variances are 3/4 + noise^2 and 1/2 - 4/pi^2 + (2/pi - 1/4)^2 + noise^2.
    """
    g = generator("moons", seed, split)
    moon = torch.randint(2, (size,), generator=g)
    t = torch.rand(size, generator=g) * pi
    outer = torch.stack([t.cos(), t.sin()], 1)
    inner = torch.stack([1 - t.cos(), 0.5 - t.sin()], 1)
    x = torch.where(moon[:, None] == 0, outer, inner) + noise * torch.randn(size, 2, generator=g)
    variance = (3 / 4 + 1 / 2 - 4 / pi**2 + (2 / pi - 1 / 4) ** 2) / 2 + noise**2
    x = (x - torch.tensor([0.5, 0.25])) * (SIGMA_DATA / sqrt(variance))
    return ArrayDataset("moons", x, moon if conditional else None, class_names=("outer", "inner"))


def ring_means(components: int, std: float) -> Tensor:
    """Means [components, 2] on a circle of radius sqrt(2 (0.25 - std^2)): the mixture has variance 0.25."""
    angle = torch.arange(components, dtype=torch.float64) * (2 * pi / components)
    return sqrt(2 * (SIGMA_DATA**2 - std**2)) * torch.stack([angle.cos(), angle.sin()], 1)


def load_mixture(
    *,
    split: Split = "train",
    size: PositiveInt = 100_000,
    components: Annotated[int, Range(2)] = 8,
    std: Annotated[float, Range(0.0, SIGMA_DATA)] = 0.05,
    conditional: bool = False,
    seed: int = 0,
) -> ArrayDataset:
    """Draw from an even mixture of Gaussians N(ring_means, std^2 I) on a circle; class = component."""
    g = generator("mixture", seed, split)
    label = torch.randint(components, (size,), generator=g)
    means = ring_means(components, std).float()
    x = means[label] + std * torch.randn(size, 2, generator=g)
    return ArrayDataset("mixture", x, label if conditional else None, num_classes=components)
