"""The distance to the k-th nearest inlier."""

from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor

from scoregen.detection.base import Detector, check_features

_BLOCK = 256  # rows a time


class NeighbourDetector(Detector):
    """Scores a feature vector by its Euclidean distance to the k-th nearest of the inliers', unscaled.

    Args:
        features: of the inliers, [n, L]. neighbours: k.

    Source: Mahmood, Oliva and Styner, Multiscale Score Matching for Out-of-Distribution Detection, 2021,
    arXiv 2010.13132 (its code: k = 5, raw features).
    """

    features: Tensor
    neighbours: Tensor

    def __init__(self, features: Tensor, neighbours: int = 5) -> None:
        super().__init__()
        check_features(features, neighbours)
        self.register_buffer("features", features.double())
        self.register_buffer("neighbours", torch.tensor(neighbours))

    @classmethod
    def fit(cls, features: Tensor, *, seed: int = 0) -> Self:
        """Keep the inliers; nothing is random."""
        return cls(features)

    @classmethod
    def restore(cls, tensors: Mapping[str, Tensor]) -> Self:
        """The detector whose `state_dict` this is."""
        return cls(tensors["features"], int(tensors["neighbours"]))

    def forward(self, features: Tensor) -> Tensor:
        """Distances [m] of features [m, L]."""
        k = int(self.neighbours)
        # Direct differences: the expanded square loses the small distances.
        blocks = [
            torch.cdist(block, self.features, compute_mode="donot_use_mm_for_euclid_dist")
            .topk(k, largest=False)
            .values[:, -1]
            for block in features.double().split(_BLOCK)
        ]
        return torch.cat(blocks) if blocks else features.new_zeros(0).double()
