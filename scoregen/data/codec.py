"""Between samples as data sets hold them and the space that a model works in."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from scoregen.data.base import ArrayDataset, Batch, Dataset, to_model_range
from scoregen.errors import UserError
from scoregen.ranges import NonNegative, Positive

CHUNK = 1024  # samples encoded at a time


class Codec(Protocol):
    """An encoder and its decoder."""

    def encode(self, x: Tensor) -> Tensor:
        """Samples [B, *shape] in the model's range as codes [B, *code shape]."""
        ...

    def decode(self, z: Tensor) -> Tensor:
        """Codes as samples."""
        ...


@dataclass(frozen=True)
class Identity:
    """Samples are their own codes."""

    def encode(self, x: Tensor) -> Tensor:
        """x itself."""
        return x

    def decode(self, z: Tensor) -> Tensor:
        """z itself."""
        return z


IDENTITY = Identity()


@dataclass(frozen=True)
class LogCodec:
    """Logarithms of positive values: u = ln y, y = scale x + offset.

    The default makes images x in [-1, 1] the values y = 1 + pixel in [1, 2] of the paper; scale 1 and offset
    0 take data that are positive already.

    Args:
        scale: of the samples, before the offset.
        offset: what makes them positive.

    Source: Shetty, Prasath and Seelamantula, Dale meets Langevin, 2025, arXiv 2510.02730 (its code).
    """

    scale: Positive = 0.5
    offset: NonNegative = 1.5

    def encode(self, x: Tensor) -> Tensor:
        """ln y of samples [B, *shape]; NaN or -inf where y is not positive."""
        return (self.scale * x + self.offset).log()

    def decode(self, z: Tensor) -> Tensor:
        """x of logarithms [B, *shape]."""
        return (z.exp() - self.offset) / self.scale

    def check(self, data: Dataset) -> None:
        """UserError for data with a value that is not positive; of 8-bit images the range alone tells."""
        for indices in torch.arange(len(data)).split(CHUNK):
            x = data.fetch(indices).x
            is_levels = x.dtype == torch.uint8
            x = torch.tensor([[-1.0]]) if is_levels else x
            lowest, where = x.flatten(1).amin(1).min(0)
            if self.scale * float(lowest) + self.offset <= 0:
                which = "8-bit images reach down to" if is_levels else f"sample {int(indices[where])} holds"
                raise UserError(
                    f"{data.name}: {which} {float(lowest):g}, and the multiplicative model takes the "
                    f"logarithm of scale * x + offset = {self.scale * float(lowest) + self.offset:g}, which "
                    f"must be positive (scale={self.scale:g}, offset={self.offset:g}): set "
                    f"precond.codec.offset above {-self.scale * float(lowest):g}, or repair the data"
                )
            if is_levels:
                return


def codec_of(model: object) -> Codec:
    """The codec of a model whose samples are codes (an attribute `codec`); the identity for all others."""
    codec: Codec = getattr(model, "codec", IDENTITY)
    return codec


class Encoded:
    """A data set as a model sees it: encoded when fetched."""

    def __init__(self, data: Dataset, codec: Codec) -> None:
        self.data, self.codec = data, codec
        self.name, self.shape, self.num_classes = data.name, data.shape, data.num_classes
        self.on_demand = data.on_demand

    @property
    def fingerprint(self) -> str:
        """sha256 of the codec's settings and the data's own fingerprint."""
        return hashlib.sha256(f"{self.codec} {self.data.fingerprint}".encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.data)

    def fetch(self, indices: Tensor) -> Batch:
        """The codes of the samples at indices (int64, on the CPU), and their class ids."""
        x, label = self.data.fetch(indices)
        return Batch(self.codec.encode(to_model_range(x)), label)


def encoded(data: Dataset, codec: Codec) -> Dataset:
    """A data set as a model with that codec sees it; one that keeps its codes has a method for it."""
    if codec is IDENTITY:
        return data
    own: Callable[[Dataset], Dataset] = getattr(codec, "encoded", lambda data: Encoded(data, codec))
    return own(data)


@torch.no_grad()
def encode_dataset(data: Dataset, codec: Codec) -> ArrayDataset:
    """The codes of a whole data set at once, with its class ids, for encoders that are dear."""
    batches = [Encoded(data, codec).fetch(indices) for indices in torch.arange(len(data)).split(CHUNK)]
    labels = [batch.label for batch in batches if batch.label is not None]
    codes, label = torch.cat([batch.x for batch in batches]), torch.cat(labels) if labels else None
    return ArrayDataset(f"latents of {data.name}", codes, label, num_classes=data.num_classes or None)
