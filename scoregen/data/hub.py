"""Images from a Hugging Face data set: on the hub, or a local folder, parquet file or saved data set."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from scoregen.data.base import ArrayDataset, Split, split_off
from scoregen.data.decode import Crop, Fit, Mode
from scoregen.data.folder import ImageFiles, hold
from scoregen.data.locate import find_here_or_on_hub, hub_refusal
from scoregen.data.sources import Listing, numbered_classes
from scoregen.errors import UserError
from scoregen.ranges import Fraction, NonNegative, PositiveInt

SAVED = ("dataset_dict.json", "state.json")  # what `save_to_disk` writes
FORMATS = {".parquet": "parquet", ".arrow": "arrow"}
BINARY = ("binary", "large_binary")

Table = Any  # a datasets.Dataset: rows of named columns, mapped from disk


class TableSource:
    """Reads the encoded images of one column of a table; threads may share it.

    Args:
        path: where the table comes from, for messages.
        split: its name in it; row 7 is the file `split`/7.
        table: whose images are given as they are stored.
        column: of the images.
    """

    def __init__(self, path: Path, split: str, table: Table, column: str) -> None:
        self.path, self.split, self._table, self._column = path, split, table, column

    def names(self) -> list[str]:
        """One for each row, in their order."""
        return [f"{self.split}/{row}" for row in range(len(self._table))]

    def read(self, name: str) -> bytes:
        """The bytes of the image in one row; UserError where there are none."""
        image = self._table[_row(name)][self._column] or {"bytes": None, "path": None}
        if image["bytes"] is not None:
            return bytes(image["bytes"])
        try:
            return Path(image["path"] or "").read_bytes()
        except OSError as error:
            what = f"refers to {image['path']}, which cannot be read" if image["path"] else "has no image"
            raise UserError(f"{self.path}/{name} {what}: remove the row, or repair it") from error

    def stamp(self, name: str) -> str:
        """The size in bytes; of an image in a file of its own, its name."""
        return self._stamps[_row(name)]

    @cached_property
    def _stamps(self) -> list[str]:
        import pyarrow.compute as pc

        images = self._table.data.column(self._column)
        sizes = pc.binary_length(pc.struct_field(images, "bytes")).to_pylist()
        paths = pc.struct_field(images, "path").to_pylist()
        pairs = zip(sizes, paths, strict=True)
        return [Path(path or "").name if size is None else str(size) for size, path in pairs]


def _row(name: str) -> int:
    return int(name.rpartition("/")[2])


def load_hub(
    *,
    split: Split = "train",
    root: str | None = None,
    path: str | None = None,
    config: str | None = None,
    revision: str | None = None,
    train_split: str = "train",
    test_split: str | None = None,
    image_column: str | None = None,
    label_column: str = "label",
    conditional: bool = False,
    test_fraction: Fraction = 0.1,
    cache_gb: NonNegative = 4.0,
    resolution: PositiveInt | None = None,
    crop: Crop | None = None,
    mode: Mode | None = None,
) -> ArrayDataset | ImageFiles:
    """Read the images of a Hugging Face data set, uint8 [N, C, H, W], in the order of its rows.

    `path` is a folder or file, as given or below the root, or else owner/name of a data set on the hub, which
    the package `datasets` downloads to its own cache; no code of a data set is run. Classes are names, whole
    numbers or text of `label_column`. Without `test_split` the split "test" is it where there is one, else
    `test_fraction` of the training split is held out. The rest is as for `load_images`.

    Raises UserError for a missing package, data set, split or column, a column without images or classes, and
    bad images, naming the row.
    """
    where, tables = _open(path, root, config, revision)
    name = where.stem or where.resolve().stem
    test_split = test_split or ("test" if "test" in tables and train_split != "test" else None)
    _need_splits(tables, where, train_split=train_split, test_split=test_split)
    own = test_split if split == "test" and test_split is not None else train_split
    table = tables[own]
    column = _image_column(table, image_column, where)
    source = TableSource(where, own, _encoded(table, column), column)
    listing = Listing(tuple(source.names()))
    if conditional:
        listing = Listing(listing.names, *_classes(tables[train_split], table, label_column, where))
    if test_split is None:
        listing = listing.select(split_off(name, len(listing.names), split, test_fraction).tolist())
    return hold(ImageFiles(name, source, listing, Fit(resolution, crop, mode)), cache_gb)


def _open(
    path: str | None, root: str | None, config: str | None, revision: str | None
) -> tuple[Path, Mapping[str, Table]]:
    """Where the data set lies, and its splits by name."""
    try:
        import datasets
        from datasets.exceptions import DatasetsError
    except ImportError as error:
        raise UserError("data=hf needs the package datasets: pip install 'scoregen[hub]'") from error
    place, is_local = find_here_or_on_hub("the Hugging Face data set", path, root)
    try:
        return place, _load(datasets, place, is_local, config, revision)
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        if is_local:
            raise UserError(f"{place} cannot be read as a Hugging Face data set: {error}") from error
        raise hub_refusal(f"data.path={path}", error) from error


def _load(
    datasets: Any, place: Path, is_local: bool, config: str | None, revision: str | None
) -> Mapping[str, Table]:
    if place.is_file() and place.suffix not in FORMATS:
        raise ValueError(f"a file is expected to be one of {', '.join(FORMATS)}")
    if is_local and place.suffix in FORMATS:
        found = datasets.load_dataset(FORMATS[place.suffix], data_files=str(place))
    elif is_local and any((place / file).exists() for file in SAVED):
        found = datasets.load_from_disk(str(place))
    else:
        found = datasets.load_dataset(place.as_posix(), config, revision=revision)
    return found if isinstance(found, Mapping) else {"train": found}


def _need_splits(tables: Mapping[str, Table], where: Path, **wanted: str | None) -> None:
    for key, split in wanted.items():
        if split is not None and split not in tables:
            raise UserError(f"data.{key}={split}: {where} has the splits {', '.join(tables)}")


def _image_column(table: Table, column: str | None, where: Path) -> str:
    """The column asked for, else the only one of images."""
    images = [name for name, feature in table.features.items() if _holds_images(feature)]
    if column in images:
        return str(column)
    columns = ", ".join(f"{name} ({_describe(feature)})" for name, feature in table.features.items())
    if column is None and len(images) == 1:
        return str(images[0])
    if not images:
        problem = f"{where} has no column of encoded images (PNG, JPEG, ...)"
    elif column is None:
        problem = f"{where} has {len(images)} columns of images: say which with data.image_column"
    elif column in table.features:
        problem = f"data.image_column={column} holds no encoded images (PNG, JPEG, ...)"
    else:
        problem = f"data.image_column={column}: {where} has no such column"
    raise UserError(f"{problem}. Columns: {columns}")


def _holds_images(feature: Any) -> bool:
    """Whether it is the type of images, of bytes, or of {"bytes", "path"} as other writers store images."""
    if isinstance(feature, Mapping):
        return {"bytes", "path"} == set(feature)
    return type(feature).__name__ == "Image" or getattr(feature, "dtype", "") in BINARY


def _describe(feature: Any) -> str:
    return str(getattr(feature, "dtype", type(feature).__name__))


def _encoded(table: Table, column: str) -> Table:
    """The table with that column alone, as {"bytes", "path"}."""
    from datasets import Image

    return table.select_columns([column]).cast_column(column, Image(decode=False)).with_format(None)


def _classes(train: Table, table: Table, column: str, where: Path) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The class of each row of `table`, and the names of the classes, which are those of `train`."""
    if column not in table.features or column not in train.features:
        raise UserError(
            f"data.label_column={column}: {where} has no such column; columns: {', '.join(table.features)}. "
            "For a model without classes set data.conditional=false"
        )
    feature = train.features[column]
    values, known = (np.asarray(rows.with_format(None)[column][:]) for rows in (table, train))
    if {values.dtype.kind, known.dtype.kind} not in ({"i"}, {"U"}):
        raise UserError(
            f"data.label_column={column} is of type {_describe(feature)}: class names, whole numbers or text "
            "without gaps are expected"
        )
    if hasattr(feature, "names"):
        return tuple(values.tolist()), tuple(feature.names)
    if known.dtype.kind == "i":
        return tuple(values.tolist()), numbered_classes(known.tolist(), f"data.label_column={column}")
    names = sorted(set(known.tolist()))
    ids = {name: i for i, name in enumerate(names)}
    if strange := sorted(set(values.tolist()) - set(names)):
        raise UserError(f"data.label_column={column}: {strange[0]} is the class of no training image")
    return tuple(ids[value] for value in values.tolist()), tuple(names)
