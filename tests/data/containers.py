"""Twelve image files in every container that data are kept in."""

import io
import tarfile
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from scoregen.data.base import ArrayDataset
from scoregen.data.folder import ImageFiles, load_images
from scoregen.data.hub import load_hub
from scoregen.data.webdataset import load_shards

CLASSES = ("cat", "dog", "eel")
Loader = Callable[..., ArrayDataset | ImageFiles]
Files = list[tuple[str, bytes, int]]  # path, content, class, in the order of the paths


def png_files(images: Iterable[np.ndarray]) -> Files:
    """Twelve images as PNG files in folders of their classes."""
    found = []
    for i, pixels in enumerate(images):
        data = io.BytesIO()
        Image.fromarray(pixels).save(data, "PNG")
        found.append((f"{CLASSES[i // 4]}/{i:02d}.png", data.getvalue(), i // 4))
    return found


def write_folder(root: Path, files: Files) -> None:
    for name, content, _ in files:
        path = root / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def write_zip(root: Path, files: Files) -> None:
    with zipfile.ZipFile(root / "set", "w") as archive:
        for name, content, _ in files:
            archive.writestr(name, content)


def table(files: Files):  # type: ignore[no-untyped-def]
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as ImageFeature

    rows = {
        "label": [label for *_, label in files],
        "picture": [{"bytes": content, "path": None} for _, content, _ in files],
    }
    features = {"label": ClassLabel(names=list(CLASSES)), "picture": ImageFeature()}
    return Dataset.from_dict(rows, Features(features))


def write_parquet(root: Path, files: Files) -> None:
    table(files).to_parquet(root / "set.parquet")


def write_saved(root: Path, files: Files) -> None:
    table(files).save_to_disk(root / "set")


def write_parquets(root: Path, files: Files) -> None:
    (root / "set").mkdir()
    for shard in range(2):
        table(files[6 * shard : 6 * shard + 6]).to_parquet(root / f"set/train-{shard:05d}-of-00002.parquet")


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def members(files: Files) -> dict[str, bytes]:
    """Two members a sample, the class first in every other one."""
    found = {}
    for i, (name, content, label) in enumerate(files):
        pair = [(name, content), (name.replace(".png", ".cls"), str(label).encode())]
        found.update(reversed(pair) if i % 2 else pair)
    return found


def write_shards(root: Path, files: Files) -> None:
    for shard in range(3):
        write_tar(root / f"set/part-{shard:02d}.tar", members(files[4 * shard : 4 * shard + 4]))


CONTAINERS: dict[str, tuple[Callable[[Path, Files], None], Loader, str]] = {
    "folder": (write_folder, load_images, "set"),
    "zip": (write_zip, load_images, "set"),
    "parquet": (write_parquet, load_hub, "set.parquet"),
    "parquets": (write_parquets, load_hub, "set"),
    "saved": (write_saved, load_hub, "set"),
    "shards": (write_shards, load_shards, "set/part-{00..02}.tar"),
}
