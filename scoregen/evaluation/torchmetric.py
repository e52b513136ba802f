"""The Frechet distance as a torchmetrics `Metric`. Imports torchmetrics, so import this module late."""

import torch
from torch import Tensor
from torchmetrics import Metric

from scoregen.evaluation.features import Extractor
from scoregen.evaluation.frechet import Gaussian, Moments, frechet_distance


class FrechetDistance(Metric):
    """Accumulate generated images and compute their Frechet distance to a reference.

    The states are the float64 sums of `Moments`, so that torchmetrics adds them over processes before
    `compute`.

    Args:
        extractor: turns uint8 images into features.
        reference: the real images' moments, for example `read_reference(...).gaussian`.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    n: Tensor
    sum: Tensor
    outer: Tensor

    def __init__(self, extractor: Extractor, reference: Gaussian) -> None:
        super().__init__()
        self.extractor, self.reference = extractor, reference
        for name, state in zip(("n", "sum", "outer"), Moments(extractor.dim).state(), strict=True):
            self.add_state(name, state, dist_reduce_fx="sum")

    def update(self, images: Tensor) -> None:
        """Add images uint8 [B, 1 or 3, H, W]; grey ones are repeated to RGB where the extractor needs it."""
        moments = Moments.of_state((self.n, self.sum, self.outer))
        moments.update(self.extractor(images))
        self.n, self.sum, self.outer = moments.state()

    def compute(self) -> Tensor:
        """The distance [], float64.

        Raises:
            UserError: fewer than two images.
        """
        moments = Moments.of_state((self.n, self.sum, self.outer))
        return torch.tensor(frechet_distance(moments.summary(), self.reference), dtype=torch.float64)
