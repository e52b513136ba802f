"""Training in the latent space of an autoencoder: encode the data once, keep the latents, whiten them."""

import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import IO, Self

import numpy as np
import torch
from torch import Tensor

from scoregen.data.autoencoder import Autoencoder
from scoregen.data.base import ArrayDataset, Batch, Dataset, labels_of, to_model_range
from scoregen.data.cache import cache_folder, one_at_a_time
from scoregen.data.stream import Stream
from scoregen.errors import UserError
from scoregen.files import written_whole
from scoregen.rng import BatchRng, Rng, SampleRng

VERSION = 1  # of the form of kept latents
AHEAD = 4  # batches decoded at a time while the data are encoded


@dataclass(frozen=True)
class LatentStats:
    """What is known of the latents of a training set; kept in the metadata of a model's weights."""

    sha256: str  # of the autoencoder
    mean: tuple[float, ...]  # of each channel
    std: tuple[float, ...]

    @classmethod
    def of(cls, sha256: str, mean: Sequence[float], std: Sequence[float]) -> Self:
        """From what JSON gives back."""
        return cls(sha256, tuple(mean), tuple(std))


@dataclass(frozen=True)
class LatentCodec:
    """Between images and whitened latents z = std (y - mean_c) / std_c, y ~ q(y | x) of an autoencoder.

    mean_c and std_c are of channel c over the training set, so that z has mean 0 and standard deviation
    `autoencoder.std` in every channel. `encode` takes the posterior's mean for y.
    """

    autoencoder: Autoencoder
    stats: LatentStats

    def __str__(self) -> str:
        return f"latents of the autoencoder {self.stats.sha256[:16]}"

    def encode(self, x: Tensor) -> Tensor:
        """Whitened latents [B, c, h, w] of images [B, C, H, W] in [-1, 1]."""
        return self.whiten(self.autoencoder.encode(x)[0])

    def decode(self, z: Tensor) -> Tensor:
        """Images of whitened latents."""
        mean, scale = _affine(self, z.device)
        return self.autoencoder.decode(z / scale + mean)

    def whiten(self, y: Tensor) -> Tensor:
        """Latents [B, c, h, w] as the model sees them."""
        mean, scale = _affine(self, y.device)
        return (y - mean) * scale

    def draw(self, moments: Tensor, rng: Rng) -> Tensor:
        """Whitened latents from kept moments [B, c or 2 c, h, w]: m + s n where s was kept, else m."""
        if moments.shape[1] == len(self.stats.mean):
            return self.whiten(moments)
        mean, std = moments.chunk(2, 1)
        return self.whiten(mean + std * rng.randn_like(std))

    def encoded(self, data: Dataset, device: torch.device | str = "cpu") -> "Latents":
        """A whole data set, from the kept latents, or encoded on the device and kept."""
        return Latents(data, self, kept_moments(data, self.autoencoder, device)[0])

    def check(self) -> None:
        """UserError where the autoencoder is missing, or is not the one of the training."""
        found, known = self.autoencoder.sha256, self.stats.sha256
        if found != known:
            raise UserError(
                f"the autoencoder codec.path={self.autoencoder.path} has sha256 {found[:16]}, the model was "
                f"trained with {known[:16]}: put that one back"
            )


@cache
def _affine(codec: LatentCodec, device: torch.device) -> tuple[Tensor, Tensor]:
    """mean_c and std / std_c, [c, 1, 1] each; remembered, so that no step waits for a copy to the GPU."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (codec.stats.mean, codec.stats.std))
    return mean.to(device), (codec.autoencoder.std / std).to(device)


class Latents:
    """A data set as a model of its latents sees it.

    Args:
        data: the images.
        codec: their encoder, with the whitening.
        moments: what it gives of each, [N, c or 2 c, h, w], not whitened.
    """

    on_demand = False

    def __init__(self, data: Dataset, codec: LatentCodec, moments: Tensor) -> None:
        self.name, self.codec = f"latents of {data.name}", codec
        label = labels_of(data) if data.num_classes else None
        self.moments = ArrayDataset(self.name, moments, label, num_classes=data.num_classes or None)
        self.shape, self.num_classes = (len(codec.stats.mean), *moments.shape[2:]), data.num_classes
        self._images = data

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the whitening and the images' own."""
        settings = (self.codec.stats, self.codec.autoencoder.std, self.codec.autoencoder.posterior)
        return hashlib.sha256(f"{settings} {self._images.fingerprint}".encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.moments)

    def fetch(self, indices: Tensor) -> Batch:
        """Whitened latents at indices (int64, on the CPU), the draw of each its own, and the class ids."""
        moments, label = self.moments.fetch(indices)
        return Batch(self.codec.draw(moments, SampleRng(indices.tolist(), moments.device)), label)


class LatentStream:
    """Serves latents in the order of `Stream`, drawn from the posterior by a function of (seed, nimg).

    Args:
        dataset: the images, with which hooks compare.
        latents: theirs.
    """

    def __init__(
        self, dataset: Dataset, latents: Latents, *, seed: int, device: torch.device | str = "cpu"
    ) -> None:
        self.dataset, self.codec, self.seed = dataset, latents.codec, seed
        self._moments = Stream(latents.moments, seed=seed, device=device)

    def batch(self, nimg: int, size: int, rows: slice = slice(None)) -> Batch:
        """Whitened latents and class ids of `rows` of the global batch that starts at image number `nimg`."""
        moments, label = self._moments.batch(nimg, size, rows)
        rng = BatchRng(self.seed, "latents", nimg, size=size, rows=rows, device=self._moments.device)
        return Batch(self.codec.draw(moments, rng), label)


def kept_moments(
    data: Dataset, autoencoder: Autoencoder, device: torch.device | str
) -> tuple[Tensor, LatentStats]:
    """What the autoencoder gives of each image, [N, c or 2 c, h, w], and the statistics of the latents.

    They are kept in a file, from which they are mapped: its name tells the fingerprints of data and
    autoencoder, so that others are never taken for these. Where there is none the images are encoded.
    """
    settings = (autoencoder.sha256, autoencoder.posterior, autoencoder.pixels)
    key = (VERSION, data.fingerprint, *settings)
    folder, digest = cache_folder("latents"), hashlib.sha256(repr(key).encode()).hexdigest()[:32]
    stats_file, file = (folder / f"{digest}.{kind}" for kind in ("json", "npy"))
    with one_at_a_time(folder):
        kept = _read(file, stats_file, len(data))
        if kept is None:
            print(f"encoding {len(data):,} images of {data.name} by {autoencoder.path}: {file}", flush=True)
            with written_whole(file) as out:
                stats = _encode(out, data, autoencoder, device)
            with written_whole(stats_file) as out:
                out.write(json.dumps(vars(stats)).encode())
            kept = _read(file, stats_file, len(data))
            assert kept is not None, "it was just written"
    return kept


def _read(file: Path, stats_file: Path, count: int) -> tuple[Tensor, LatentStats] | None:
    """Kept moments and statistics; None where they are not there, or not whole."""
    try:
        stats = json.loads(stats_file.read_bytes())
        moments = np.load(file, mmap_mode="c", allow_pickle=False)
        known = LatentStats.of(**stats)
    except (OSError, ValueError, TypeError):
        return None
    return (torch.from_numpy(moments), known) if len(moments) == count else None


def _encode(
    out: IO[bytes], data: Dataset, autoencoder: Autoencoder, device: torch.device | str
) -> LatentStats:
    """Write the moments of all images as an .npy file, a batch at a time; the statistics of the latents.

    Those of y ~ q have var y = var m + E[s^2], which of posterior=mean lacks the second part.
    """
    channels, *size = autoencoder.code_shape(data.shape)
    sample = autoencoder.posterior == "sample"
    shape = (len(data), (1 + sample) * channels, *size)
    np.lib.format.write_array_header_2_0(out, {"descr": "<f4", "fortran_order": False, "shape": shape})
    total, squares = torch.zeros(2, channels, dtype=torch.float64)
    for x in _images(data, autoencoder.batch):
        mean, std = (part.cpu() for part in autoencoder.encode(to_model_range(x.to(device))))
        moments = torch.cat([mean, std], 1) if sample else mean
        if not moments.isfinite().all():
            raise UserError(f"codec.path={autoencoder.path}: the latents of {data.name} are not all finite")
        out.write(np.ascontiguousarray(moments.numpy(), "<f4").tobytes())
        total += mean.double().sum((0, 2, 3))
        squares += (mean.double().square() + sample * std.double().square()).sum((0, 2, 3))
    count = len(data) * size[0] * size[1]
    deviation = (squares / count - (total / count).square()).clamp(min=0).sqrt()
    if not deviation.all():
        raise UserError(f"codec.path={autoencoder.path}: a channel of the latents of {data.name} is constant")
    return LatentStats(autoencoder.sha256, tuple((total / count).tolist()), tuple(deviation.tolist()))


def _images(data: Dataset, batch: int) -> Iterator[Tensor]:
    """All images in order, some batches decoded ahead by threads, with a progress bar on a terminal."""
    from tqdm import tqdm

    bar = tqdm(total=len(data), unit="img", disable=not sys.stderr.isatty(), leave=False)
    with bar, ThreadPoolExecutor(AHEAD) as pool:
        for window in torch.arange(len(data)).split(AHEAD * batch):
            for part in pool.map(data.fetch, window.split(batch)):
                yield part.x
                bar.update(len(part.x))
