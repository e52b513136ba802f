"""A folder or zip of images: in memory where it fits, else decoded on demand."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from math import prod

import numpy as np
import torch
from torch import Tensor

from scoregen.data.base import ArrayDataset, Batch, Split, check_labels, split_off
from scoregen.data.decode import AS_THEY_ARE, PREPARE, Crop, Fit, Mode, describe, open_image, pixels
from scoregen.data.locate import find_path
from scoregen.data.sources import Listing, Source, list_images, official_split, open_source
from scoregen.errors import UserError
from scoregen.ranges import Fraction, NonNegative, PositiveInt

CHUNK = 64  # images a thread decodes in one go


class ImageFiles:
    """Decodes images when they are asked for: uint8 [C, H, W] of one shape, that of the first image.

    Args:
        name: of the set.
        source: where the bytes of the images come from.
        listing: which images, in which order, of which class.
        fit: how they are made equal.

    Raises:
        UserError: for a label out of range; in fetch, for an unreadable image or one of another shape, naming
            the file.
    """

    on_demand = True

    def __init__(self, name: str, source: Source, listing: Listing, fit: Fit = AS_THEY_ARE) -> None:
        self.name, self.source, self.listing, self.fit = name, source, listing, fit
        self.class_names = listing.class_names
        self.label = None if listing.labels is None else torch.tensor(listing.labels)
        self.num_classes = (
            0 if self.label is None else check_labels(name, len(self), self.label, listing.class_names)
        )
        self.shape: tuple[int, ...] = self._decode(listing.names[0]).shape

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of names, sizes, in a zip the members' CRC-32, and the fit; nothing is decoded."""
        digest = hashlib.sha256(b"" if self.fit == AS_THEY_ARE else f"{self.fit}\n".encode())
        for name in self.listing.names:
            digest.update(f"{name} {self.source.stamp(name)}\n".encode())
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.listing.names)

    def fetch(self, indices: Tensor) -> Batch:
        """Decode the images at indices (int64, on the CPU), in this thread."""
        x = np.empty((len(indices), *self.shape), np.uint8)
        for row, index in enumerate(indices.tolist()):
            x[row] = self._checked(self.listing.names[index])
        return Batch(torch.from_numpy(x), None if self.label is None else self.label[indices])

    def _decode(self, name: str) -> np.ndarray:
        where = f"{self.source.path}/{name}"
        return pixels(self.fit(open_image(self.source.read(name), where), where), where)

    def _checked(self, name: str) -> np.ndarray:
        image = self._decode(name)
        if image.shape != self.shape:
            setting, flag = (
                ("data.resolution=N", "--resolution N")
                if image.shape[0] == self.shape[0]
                else ("data.mode=RGB (or L)", "--rgb (or --grey)")
            )
            raise UserError(
                f"{self.source.path}/{name} is {describe(image.shape)} (channels x height x width), the "
                f"first image, {self.listing.names[0]}, is {describe(self.shape)}. "
                f"Make them equal with {setting}, or once and for all with: {PREPARE} {flag}"
            )
        return image


def load_images(
    *,
    split: Split = "train",
    root: str | None = None,
    path: str | None = None,
    conditional: bool = False,
    test_fraction: Fraction = 0.1,
    cache_gb: NonNegative = 4.0,
    resolution: PositiveInt | None = None,
    crop: Crop | None = None,
    mode: Mode | None = None,
) -> ArrayDataset | ImageFiles:
    """Read a folder or zip of images, uint8 [N, C, H, W], of one size or made so as `Fit` says.

    `path` is looked for as given and below the root; without it the root itself is the folder or zip. Images
    under exactly train/ and test/ keep that split; else `test_fraction` is held out. Up to `cache_gb` (1e9
    bytes, decoded) are kept in memory, more are decoded on demand. Raises UserError for bad input, naming the
    file, and if classes are asked for where there are none.
    """
    source = open_source(find_path("the folder or zip of images", path, root))
    listing = list_images(source)
    name = source.path.stem or source.path.resolve().stem
    part = official_split(listing, split)
    if part is None:
        part = listing.select(split_off(name, len(listing.names), split, test_fraction).tolist())
    if conditional and part.labels is None:
        raise UserError(
            f"{source.path} has no classes: set data.conditional=false, or add sub-folders or dataset.json"
        )
    fit = Fit(resolution, crop, mode)
    return hold(ImageFiles(name, source, part if conditional else Listing(part.names), fit), cache_gb)


def hold(files: ImageFiles, cache_gb: float) -> ArrayDataset | ImageFiles:
    """The images in memory where they take at most `cache_gb` (1e9 bytes, decoded), else as they are."""
    return in_memory(files) if len(files) * prod(files.shape) <= cache_gb * 1e9 else files


def in_memory(files: ImageFiles) -> ArrayDataset:
    """Decode a whole set with a pool of threads."""
    x = torch.empty(len(files), *files.shape, dtype=torch.uint8)

    def decode(indices: Tensor) -> None:
        x[indices] = files.fetch(indices).x

    with ThreadPoolExecutor(min(os.cpu_count() or 1, 16)) as pool:
        try:
            list(pool.map(decode, torch.arange(len(files)).split(CHUNK)))
        except UserError:
            pool.shutdown(cancel_futures=True)
            raise
    return ArrayDataset(files.name, x, files.label, class_names=files.class_names)
