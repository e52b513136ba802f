"""Where image files come from: a folder or a zip, with labels from dataset.json or from sub-folder names."""

import json
import os
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from scoregen.errors import UserError

LABEL_FILE = "dataset.json"
# The choice of conf/data that reads a file of such a name.
KINDS = {".npz": "npz", ".npy": "npz", ".parquet": "hf", ".arrow": "hf", ".tar": "webdataset"}
MOST_CLASSES = 100_000  # where they have no names
SPLITS = {"train", "test"}


class Source(Protocol):
    """Named files."""

    path: Path

    def names(self) -> list[str]:
        """All files, as sorted relative names with forward slashes."""
        ...

    def read(self, name: str) -> bytes:
        """The bytes of one file; UserError if it cannot be read."""
        ...

    def stamp(self, name: str) -> str:
        """What is known of a file's content without reading it."""
        ...


class FolderSource:
    """Reads the files below a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def names(self) -> list[str]:
        """All files but hidden ones, as sorted relative names."""
        found = (
            Path(where) / file for where, _, files in os.walk(self.path, followlinks=True) for file in files
        )
        return sorted(path.relative_to(self.path).as_posix() for path in found)

    def read(self, name: str) -> bytes:
        """The bytes of one file; UserError if it cannot be read."""
        try:
            return (self.path / name).read_bytes()
        except OSError as error:
            raise UserError(f"{self.path / name} cannot be read: {error}") from error

    def stamp(self, name: str) -> str:
        """The size in bytes."""
        return str((self.path / name).stat().st_size)


class ZipSource:
    """Reads the members of a zip; threads may share it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile) as error:
            raise UserError(f"{path} is not a readable zip ({error}): fetch or make it again") from error

    def names(self) -> list[str]:
        """All members, sorted; UserError if a name occurs twice."""
        names = sorted(entry.filename for entry in self._zip.infolist() if not entry.is_dir())
        _refuse_duplicates(names, f"{self.path} holds")
        return names

    def read(self, name: str) -> bytes:
        """The bytes of one member; UserError if it is missing or fails its checksum."""
        try:
            return self._zip.read(name)
        except (OSError, KeyError, EOFError, RuntimeError, zlib.error, zipfile.BadZipFile) as error:
            raise UserError(f"{self.path}: {name} cannot be read ({error}): make the zip again") from error

    def stamp(self, name: str) -> str:
        """Size and CRC-32."""
        entry = self._zip.getinfo(name)
        return f"{entry.file_size} {entry.CRC:08x}"


def open_source(path: Path) -> Source:
    """A folder or a zip file; UserError for anything else."""
    if path.is_dir():
        return FolderSource(path)
    if kind := KINDS.get(path.suffix):
        raise UserError(f"{path} is no folder or zip of images: train.py reads it with data={kind}")
    if path.is_file():
        return ZipSource(path)
    raise UserError(f"{path} does not exist: give a folder of images or a zip")


@dataclass(frozen=True)
class Listing:
    """The images of a source in their order, with class ids where there are any."""

    names: tuple[str, ...]
    labels: tuple[int, ...] | None = None
    class_names: tuple[str, ...] = ()

    def select(self, indices: Sequence[int]) -> "Listing":
        """The sub-list at indices."""
        labels = None if self.labels is None else tuple(self.labels[i] for i in indices)
        return Listing(tuple(self.names[i] for i in indices), labels, self.class_names)


def list_images(source: Source) -> Listing:
    """List the images of a source.

    `dataset.json` at the top, if there, gives order and labels: {"labels": [[file, class], ...] or null,
    "class_names": [...] (optional)}. Else the order is alphabetical and the first sub-folder names the class;
    images that all lie at the top have no labels.
    Raises UserError where there are no images or the labels do not fit the files.
    """
    names = source.names()
    images = [name for name in names if is_image(name)]
    if not images:
        raise UserError(f"{source.path} holds no images: expected files such as .png, .jpg or .webp")
    if LABEL_FILE in names:
        return _from_json(source, images)
    return _from_folders(images, str(source.path))


def official_split(listing: Listing, split: str) -> Listing | None:
    """The part under train/ or test/ if the images lie in exactly these two folders, else None."""
    if {name.split("/")[0] for name in listing.names} != SPLITS or not all("/" in n for n in listing.names):
        return None
    places = [i for i, name in enumerate(listing.names) if name.startswith(f"{split}/")]
    if set(listing.class_names) != SPLITS:  # labels came from dataset.json
        return listing.select(places)
    names = [listing.names[i] for i in places]
    inner = _from_folders([name.partition("/")[2] for name in names], f"{split}/")
    return Listing(tuple(names), inner.labels, inner.class_names)


def is_image(name: str) -> bool:
    """Whether the extension is one that Pillow reads, of a file that is not hidden."""
    parts = name.split("/")
    hidden = any(part.startswith(".") for part in parts) or parts[0] == "__MACOSX"
    return not hidden and os.path.splitext(name)[1].lower() in _extensions()


@cache
def _extensions() -> frozenset[str]:
    from PIL import Image

    return frozenset(ext for ext, kind in Image.registered_extensions().items() if kind in Image.OPEN)


def _from_folders(names: Sequence[str], where: str) -> Listing:
    tops = [name.split("/")[0] if "/" in name else None for name in names]
    if all(top is None for top in tops):
        return Listing(tuple(names))
    if None in tops:
        raise UserError(
            f"{where}: {names[tops.index(None)]} lies beside sub-folders, so its class is unclear; "
            f"move it into one, or list all images in {LABEL_FILE}"
        )
    classes = sorted({top for top in tops if top is not None})
    ids = {name: i for i, name in enumerate(classes)}
    return Listing(tuple(names), tuple(ids[top] for top in tops if top is not None), tuple(classes))


def _from_json(source: Source, images: Sequence[str]) -> Listing:
    where = f"{source.path}: {LABEL_FILE}"
    try:
        content = json.loads(source.read(LABEL_FILE))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{where} is not valid JSON: {error}") from error
    return parse_labels(content, where, images)


def parse_labels(content: Any, where: str, images: Sequence[str]) -> Listing:
    """A listing from the content of a dataset.json; UserError for a wrong form, file or label."""
    if not isinstance(content, dict) or "labels" not in content:
        raise UserError(f'{where} must be {{"labels": [[file, class], ...], "class_names": [...]}}')
    if content["labels"] is None:
        return Listing(tuple(images))
    for key, value in (("labels", content["labels"]), ("class_names", content.get("class_names") or [])):
        if not isinstance(value, list | tuple):
            raise UserError(f"{where}: {key} must be a list, got {value!r}")
    class_names = tuple(map(str, content.get("class_names") or ()))
    known, names, labels = set(images), [], []
    for row in content["labels"]:
        if not (isinstance(row, list | tuple) and len(row) == 2 and type(row[1]) is int):
            raise UserError(f"{where}: expected [file, class number], got {row!r}")
        name, label = str(row[0]), row[1]
        if name not in known:
            raise UserError(f"{where} lists {name}, which is not there")
        if not 0 <= label < (len(class_names) or MOST_CLASSES):
            allowed = f"0 to {(len(class_names) or MOST_CLASSES) - 1}"
            raise UserError(f"{where}: {name} has label {label}, allowed are {allowed}")
        names.append(name)
        labels.append(label)
    if not names:
        raise UserError(f'{where} lists no images; for a set without labels write "labels": null')
    _refuse_duplicates(names, f"{where} lists")
    return Listing(tuple(names), tuple(labels), class_names or numbered_classes(labels, where))


def numbered_classes(labels: Sequence[int], where: str) -> tuple[str, ...]:
    """The names "0", "1", ... of classes that have numbers only; UserError for a number out of range."""
    for sample, label in enumerate(labels):
        if not 0 <= label < MOST_CLASSES:
            raise UserError(
                f"{where}: sample {sample} has class {label}, allowed are 0 to {MOST_CLASSES - 1}"
            )
    return tuple(map(str, range(max(labels) + 1)))


def _refuse_duplicates(names: Sequence[str], what: str) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise UserError(f"{what} {name} twice")
        seen.add(name)
