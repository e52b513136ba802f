"""WebDataset shards on a local disk: tar files, read at random by an index of their members.

A tar file says of each member where it begins. One pass over the headers gives an index, which is kept, and
from then on any image is one read: order and resumption are exact, as for every other data set, where readers
of a stream must shuffle in a buffer and lose their place.
"""

import hashlib
import json
import os
import re
import tarfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from glob import glob
from itertools import product
from pathlib import Path

from scoregen.data.base import ArrayDataset, Split, split_off
from scoregen.data.cache import cache_folder
from scoregen.data.decode import Crop, Fit, Mode
from scoregen.data.folder import ImageFiles, hold
from scoregen.data.locate import find_path, resolve_root
from scoregen.data.sources import Listing, is_image, numbered_classes
from scoregen.errors import UserError
from scoregen.files import written_whole
from scoregen.ranges import Fraction, NonNegative, PositiveInt

BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}")
INDEX_VERSION = 1  # of the form of a kept index


@dataclass(frozen=True)
class Shard:
    """The samples of one tar file, in their order: the member that is the image, its place, and the class."""

    names: list[str]
    offsets: list[int]
    sizes: list[int]
    labels: list[int]  # empty where nothing asks for classes


class ShardSource:
    """Reads images from tar files; threads may share it. The shards are indexed when first asked for.

    Args:
        paths: of the shards, in their order.
        image_key: extension of the images; None takes the only one of a sample that Pillow knows.
        class_key: extension of the members that hold a class number as text; None reads no classes.
    """

    def __init__(self, paths: Sequence[Path], image_key: str | None, class_key: str | None) -> None:
        self.paths, self.image_key, self.class_key = paths, image_key, class_key
        self.path = Path(os.path.commonpath([path.parent for path in paths]))

    def names(self) -> list[str]:
        """All images, shard by shard, as shard/member."""
        return list(self._places)

    def read(self, name: str) -> bytes:
        """The bytes of one image; UserError where the shard is no longer there or shorter than it was."""
        path, offset, size = self._places[name]
        try:
            with path.open("rb") as file:
                file.seek(offset)
                content = file.read(size)
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error}") from error
        if len(content) < size:
            raise UserError(f"{path} ends within {name}: fetch it again")
        return content

    def stamp(self, name: str) -> str:
        """The size in bytes."""
        return str(self._places[name][2])

    @property
    def labels(self) -> tuple[int, ...] | None:
        """The class of each image; None where nothing asks for classes."""
        if self.class_key is None:
            return None
        return tuple(label for shard in self._shards for label in shard.labels)

    @cached_property
    def _shards(self) -> list[Shard]:
        return [index_shard(path, self.image_key, self.class_key) for path in self.paths]

    @cached_property
    def _places(self) -> dict[str, tuple[Path, int, int]]:
        return {
            f"{path.relative_to(self.path).as_posix()}/{name}": (path, offset, size)
            for path, shard in zip(self.paths, self._shards, strict=True)
            for name, offset, size in zip(shard.names, shard.offsets, shard.sizes, strict=True)
        }


def index_shard(path: Path, image_key: str | None, class_key: str | None) -> Shard:
    """The samples of a tar file, from the kept index where the file is as it was, else from its headers.

    Raises UserError for a file that is no plain tar, or a sample without one image or with a bad class.
    """
    try:
        file = path.stat()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    key = (INDEX_VERSION, str(path.resolve()), file.st_size, file.st_mtime_ns, image_key, class_key)
    kept = cache_folder("shards") / f"{hashlib.sha256(repr(key).encode()).hexdigest()[:32]}.json"
    try:
        return Shard(**json.loads(kept.read_bytes()))
    except (OSError, ValueError, TypeError):  # not there, or not whole
        shard = _index(path, image_key, class_key)
    try:
        with written_whole(kept) as out:
            out.write(json.dumps(asdict(shard)).encode())
    except OSError as error:
        warnings.warn(f"the index of {path} cannot be kept in {kept.parent}: {error}", stacklevel=2)
    return shard


def _index(path: Path, image_key: str | None, class_key: str | None) -> Shard:
    shard = Shard([], [], [], [])
    try:
        with tarfile.open(path, "r:") as archive:
            samples = _samples(archive, path)
            _need_end(path, archive.offset)
            for sample, members in samples.items():
                image = members[_image_of(members, image_key, f"{path}: sample {sample}")]
                shard.names.append(image.name)
                shard.offsets.append(image.offset_data)
                shard.sizes.append(image.size)
                if class_key is not None:
                    shard.labels.append(_class_of(archive, members, class_key, f"{path}: sample {sample}"))
    except (OSError, tarfile.TarError) as error:
        raise UserError(
            f"{path} is not a readable tar file ({error}): fetch it again; a compressed one must be unpacked "
            "to a plain .tar first"
        ) from error
    if not shard.names:
        raise UserError(f"{path} holds no samples")
    return shard


def _need_end(path: Path, offset: int) -> None:
    """UserError where the file stops at `offset`, at which every tar file has a block of zeros.

    One that was cut off between two members is readable otherwise, and would lack samples unnoticed.
    """
    with path.open("rb") as file:
        file.seek(offset)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise UserError(f"{path} has no end, as if it were cut off: fetch it again")


def _samples(archive: tarfile.TarFile, path: Path) -> dict[str, dict[str, tarfile.TarInfo]]:
    """The members by sample and extension: of a/b.seg.png the sample is a/b, the extension seg.png."""
    samples: dict[str, dict[str, tarfile.TarInfo]] = {}
    for member in archive:
        folder, slash, file = member.name.rpartition("/")
        stem, dot, extension = file.partition(".")
        if not member.isreg() or not stem or not dot:
            continue
        members = samples.setdefault(folder + slash + stem, {})
        if extension.lower() in members:
            raise UserError(f"{path} holds {member.name} twice")
        members[extension.lower()] = member
    return samples


def _image_of(members: dict[str, tarfile.TarInfo], key: str | None, where: str) -> str:
    images = [extension for extension in members if is_image(f"x.{extension}")]
    if key is None and len(images) == 1:
        return images[0]
    if key is not None and key.lower() in members:
        return key.lower()
    wanted = "one image; say which with data.image_key" if key is None else f"data.image_key={key}"
    raise UserError(f"{where} has {', '.join(members)}, not {wanted}")


def _class_of(archive: tarfile.TarFile, members: dict[str, tarfile.TarInfo], key: str, where: str) -> int:
    if key.lower() not in members:
        raise UserError(
            f"{where} has {', '.join(members)}, no data.class_key={key}; for a model without classes set "
            "data.conditional=false"
        )
    content = archive.extractfile(members[key.lower()])
    assert content is not None, "it is a regular file"
    text = content.read(32)
    try:
        return int(text)
    except ValueError as error:
        raise UserError(f"{where}: the class is {text!r}, expected a whole number") from error


def load_shards(
    *,
    split: Split = "train",
    root: str | None = None,
    path: str | None = None,
    test_path: str | None = None,
    image_key: str | None = None,
    class_key: str = "cls",
    conditional: bool = False,
    test_fraction: Fraction = 0.1,
    cache_gb: NonNegative = 4.0,
    resolution: PositiveInt | None = None,
    crop: Crop | None = None,
    mode: Mode | None = None,
) -> ArrayDataset | ImageFiles:
    """Read WebDataset shards on a local disk, uint8 [N, C, H, W], shard by shard, in the order of members.

    `path` names tar files or a folder of such, as given or below the root, with * and ranges in braces:
    train-{000000..000099}.tar; without it the root itself is meant. Without `test_path` a part of the samples
    is held out. The rest is as for `load_images`; the classes are 0 to the largest of training.

    Raises UserError for a URL, a missing or damaged shard, a sample without one image or class, and bad
    images, naming shard and member.
    """
    key = class_key if conditional else None
    own = test_path if split == "test" and test_path is not None else path
    source = ShardSource(find_shards(own, root), image_key, key)
    trained = source if own == path else ShardSource(find_shards(path, root), image_key, key)
    class_names = numbered_classes(trained.labels, f"{trained.path}: {class_key}") if trained.labels else ()
    name = source.path.resolve().name if len(source.paths) > 1 else source.paths[0].stem
    listing = Listing(tuple(source.names()), source.labels, class_names)
    if test_path is None:
        listing = listing.select(split_off(name, len(listing.names), split, test_fraction).tolist())
    return hold(ImageFiles(name, source, listing, Fit(resolution, crop, mode)), cache_gb)


def find_shards(pattern: str | None, root: str | None) -> list[Path]:
    """The files that a pattern names, in its order, those of a * sorted; without one those at the root.

    A folder stands for the tar files in it. Raises UserError where nothing is found for a name.
    """
    if pattern is None:
        return _of_place(str(find_path("the shards", None, root)))
    if re.match(r"[a-z0-9]+://|pipe:", pattern):
        raise UserError(
            f"data.path={pattern}: shards are read at random, from a local disk; download them first, for "
            "example with `hf download`, `aws s3 sync` or wget"
        )
    return [path for name in _expand(pattern) for path in _find(name, resolve_root(root))]


def _find(name: str, base: Path) -> list[Path]:
    """The files of one name, as given or below the root."""
    given = sorted(glob(str(Path(name).expanduser())))
    for found in (given, [str(base / hit) for hit in sorted(glob(name, root_dir=base))]):
        if found:
            return [path for place in found for path in _of_place(place)]
    raise UserError(
        f"there is no shard {name}: looked for it as given and below {base}. Say where with data.path=... "
        "(below data.root or SCOREGEN_DATA, or absolute)"
    )


def _of_place(place: str) -> list[Path]:
    path = Path(place)
    if not path.is_dir():
        return [path]
    found = sorted(path.glob("*.tar"))
    if not found:
        raise UserError(f"{path} holds no .tar files")
    return found


def _expand(pattern: str) -> Iterator[str]:
    """What braces stand for, as in a shell: a{0..2}b, with the zeros of the first number, and a{x,y}b."""
    pieces, end = [], 0
    for match in BRACES.finditer(pattern):
        pieces.append([pattern[end : match.start()]])
        first, last, words = match.groups()
        pieces.append(_numbers(first, last) if first else words.split(","))
        end = match.end()
    yield from map("".join, product(*pieces, [pattern[end:]]))


def _numbers(first: str, last: str) -> list[str]:
    """From the first to the last, up or down."""
    step = 1 if int(first) <= int(last) else -1
    return [f"{n:0{len(first)}d}" for n in range(int(first), int(last) + step, step)]
