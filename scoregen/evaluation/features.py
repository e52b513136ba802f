"""What turns images into the features that metrics compare, and the table of those that are known by name."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path

import torch
from torch import Tensor

from scoregen.errors import UserError


class Extractor(ABC):
    """A fixed map from images to features: it has no state, so equal images have equal features.

    One pass gives the features of several layers; the first is what is meant where none is named.
    """

    name: str
    layers: Mapping[str, int]  # the number of features of each
    sha256: str  # of its weights and configuration: statistics of another extractor are refused
    resize: str  # what happens to the pixels before the first layer, as a sentence
    device: torch.device  # where features come out
    source: str = ""  # the file of its weights, for messages

    @property
    def layer(self) -> str:
        """The first layer."""
        return next(iter(self.layers))

    @property
    def dim(self) -> int:
        """How many features the first layer has."""
        return self.layers[self.layer]

    @abstractmethod
    def features(self, images: Tensor) -> dict[str, Tensor]:
        """Features [B, d] of each layer, float32, of images uint8 [B, 1 or 3, H, W]."""

    def __call__(self, images: Tensor) -> Tensor:
        """Features [B, dim] of the first layer."""
        return self.features(images)[self.layer]


Build = Callable[[Path | None, torch.device | str], Extractor]  # (weights file, device)


def _inception(weights: Path | None, device: torch.device | str) -> Extractor:
    from scoregen.evaluation.inception import InceptionExtractor

    return InceptionExtractor(weights, device)


def _scatter(weights: Path | None, device: torch.device | str) -> Extractor:
    from scoregen.evaluation.scatter import ScatterExtractor

    return ScatterExtractor(device)


def _dinov2(weights: Path | None, device: torch.device | str) -> Extractor:
    from scoregen.evaluation.vit import DINOV2, TransformerExtractor

    return TransformerExtractor(DINOV2, weights, device)


def _clip(weights: Path | None, device: torch.device | str) -> Extractor:
    from scoregen.evaluation.vit import CLIP, TransformerExtractor

    return TransformerExtractor(CLIP, weights, device)


EXTRACTORS: dict[str, Build] = {
    "inception": _inception,
    "scatter": _scatter,
    "dinov2": _dinov2,
    "clip": _clip,
}


def check_images(images: Tensor, smallest: int = 1) -> None:
    """Check that a batch is what an extractor takes.

    Raises:
        UserError: it is not uint8 [B, 1 or 3, H, W] with at least `smallest` pixels a side.
    """
    image = images.dtype == torch.uint8 and images.ndim == 4 and images.shape[1] in (1, 3)
    if image and min(images.shape[2:]) >= smallest:
        return
    raise UserError(
        f"images of shape {tuple(images.shape[1:])}, {images.dtype}: features are taken from uint8 images "
        f"with 1 or 3 channels and at least {smallest} x {smallest} pixels"
    )


def build_extractor(name: str, weights: Path | None = None, device: torch.device | str = "cpu") -> Extractor:
    """Build the extractor `name` on `device`; `weights` is the file of one that needs weights.

    Raises:
        UserError: no extractor has this name, or its weights are missing.
    """
    if name not in EXTRACTORS:
        near = get_close_matches(name, EXTRACTORS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"extractor {name!r} is not known; allowed: {', '.join(EXTRACTORS)}{hint}")
    return EXTRACTORS[name](weights, device)
