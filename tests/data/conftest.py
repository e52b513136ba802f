"""Small image files and arrays."""

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from scoregen.data.base import ArrayDataset
from tests.data.containers import Files, png_files

Pixels = np.ndarray  # uint8 [H, W, C]


@pytest.fixture
def photos() -> list[Pixels]:
    """Twelve different noise images, 6 x 6 RGB."""
    return list(np.random.default_rng(0).integers(0, 256, (12, 6, 6, 3), np.uint8))


@pytest.fixture
def save() -> Callable[[Path, Pixels], None]:
    """Write an image losslessly, making its folder."""

    def write(path: Path, image: Pixels) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.squeeze()).save(path)

    return write


@pytest.fixture
def save_zip() -> Callable[..., Path]:
    """Write a zip of images, with a dataset.json if one is given."""

    def write(path: Path, images: dict[str, Pixels | bytes], labels: object = None) -> Path:
        with zipfile.ZipFile(path, "w") as archive:
            for name, image in images.items():
                data = io.BytesIO()
                if isinstance(image, bytes):
                    data.write(image)
                else:
                    Image.fromarray(image.squeeze()).save(data, "PNG")
                archive.writestr(name, data.getvalue())
            if labels is not None:
                archive.writestr("dataset.json", json.dumps(labels))
        return path

    return write


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Caches of our own; the hub is out of reach."""
    import datasets

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache" / "datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    return tmp_path / "cache"


@pytest.fixture
def files(photos: list) -> Files:
    """Twelve PNG files in folders of their classes."""
    return png_files(photos)


@pytest.fixture
def expected(photos: list) -> ArrayDataset:
    x = torch.from_numpy(np.stack(photos)).permute(0, 3, 1, 2).contiguous()
    return ArrayDataset("set", x, torch.arange(12) // 4)
