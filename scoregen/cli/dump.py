"""A folder with one PNG a seed, which a later call with the same settings goes on with."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from scoregen.data.base import to_model_range
from scoregen.errors import UserError
from scoregen.files import write_whole
from scoregen.images import to_png
from scoregen.samplers.generate import Samples


class ImageDump:
    """The images of a model and a sampler by seed: `<seed>.png`, the class in its text, and a manifest.

    Raises UserError where the folder holds images of other weights or of another sampler.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder = folder
        text = json.dumps(manifest, indent=1, sort_keys=True) + "\n"
        note = folder / "manifest.json"
        if note.exists() and note.read_text() != text:
            raise UserError(
                f"{folder} holds images of other weights or settings, see {note.name}; choose another --out"
            )
        write_whole(note, text.encode())

    def has(self, seed: int) -> bool:
        """Whether the image of this seed is there."""
        return self._path(seed).exists()

    def write(self, samples: Samples) -> None:
        """Add a batch, each file whole or not at all."""
        labels = [None] * len(samples.seeds) if samples.labels is None else samples.labels.tolist()
        for seed, image, label in zip(samples.seeds, samples.images.cpu(), labels, strict=True):
            write_whole(self._path(seed), to_png(image, text={} if label is None else {"class": str(label)}))

    def read(self, seeds: Sequence[int]) -> Samples:
        """The samples of these seeds, from their files."""
        images, labels = zip(*map(self._read, seeds), strict=True)
        classes = None if None in labels else torch.tensor(labels)
        return Samples(to_model_range(torch.stack(images)), tuple(seeds), classes)

    def _read(self, seed: int) -> tuple[Tensor, int | None]:
        with Image.open(self._path(seed)) as image:
            pixels = torch.from_numpy(np.array(image))
            label = getattr(image, "text", {}).get("class")
        return pixels.reshape(*pixels.shape[:2], -1).permute(2, 0, 1), None if label is None else int(label)

    def _path(self, seed: int) -> Path:
        return self.folder / f"{seed - seed % 1000:06d}" / f"{seed:06d}.png"
