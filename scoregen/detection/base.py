"""What a detector is: fitted to the features of inliers, it scores how unlike them others are."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor, nn

from scoregen.errors import UserError


class Detector(nn.Module, ABC):
    """Scores features by a density of inliers or a distance to them; all it learned is in its tensors."""

    @classmethod
    @abstractmethod
    def fit(cls, features: Tensor, *, seed: int = 0) -> Self:
        """A detector of the inliers whose features [n, L] are given; float64."""

    @classmethod
    @abstractmethod
    def restore(cls, tensors: Mapping[str, Tensor]) -> Self:
        """The detector whose `state_dict` this is."""

    @abstractmethod
    def forward(self, features: Tensor) -> Tensor:
        """Scores [m] float64 of features [m, L], higher where they are less like the inliers'."""


class Standard(nn.Module):
    """Shifts and scales features to mean 0 and standard deviation 1 of those of the inliers [n, L].

    A feature that does not vary is only shifted.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        std = features.std(0)
        self.register_buffer("mean", features.mean(0))
        self.register_buffer("std", torch.where(std > 0, std, 1.0))

    def forward(self, features: Tensor) -> Tensor:
        """Standardised features [m, L], float64."""
        return (features.double() - self.mean) / self.std


def check_features(features: Tensor, least: int) -> None:
    """UserError unless there are `least` rows at least, all finite."""
    if len(features) < least:
        raise UserError(f"{len(features)} inliers are too few to fit a detector to: give at least {least}")
    if not features.isfinite().all():
        raise UserError(
            "features of the inliers are not finite: the model has diverged, or its range is left"
        )
