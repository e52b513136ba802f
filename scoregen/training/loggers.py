"""Where a run's numbers go: log.jsonl always, and one of `trackers` by configuration.

One process builds, starts and calls loggers, in this order.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from scoregen.objectives.base import SIGMA_BINS, describe_bin

# 0_below_0.01, 1_0.01-0.0316, ..., in an order that survives sorting.
BIN_NAMES = [f"{i}_{describe_bin(i).replace(' to ', '-').replace(' ', '_')}" for i in range(SIGMA_BINS)]

Scalars = Mapping[str, Any]  # name -> int, float, None for an absent value, or nested: a mapping or a list


class Logger(Protocol):
    """What the trainer calls."""

    def start(self, nimg: int) -> None:
        """Begin (0), or go on from the checkpoint at `nimg`: later records belong to steps taken again."""
        ...

    def log(self, nimg: int, scalars: Scalars) -> None:
        """Record named numbers at `nimg` images."""
        ...

    def image(self, nimg: int, name: str, image: np.ndarray) -> None:
        """Record a picture, uint8 [H, W, C]."""
        ...

    def results(self, nimg: int, scalars: Scalars) -> None:
        """Record what was measured later of the model at `nimg`; without `start`, and while nobody trains."""
        ...

    def close(self) -> None:
        """Finish what is pending; also where nothing was started."""
        ...


def flatten(scalars: Scalars, prefix: str = "") -> Iterator[tuple[str, float]]:
    """Nested scalars as pairs of "outer/inner" and number; None is left out.

    Items of a list count from 0; those of the training loss by noise level are named by their range of sigma.
    """
    for key, value in scalars.items():
        if isinstance(value, list | tuple):
            names = BIN_NAMES if is_by_sigma(key, value) else map(str, range(len(value)))
            value = dict(zip(names, value, strict=True))
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}/")
        elif value is not None:
            yield f"{prefix}{key}", float(value)


def is_by_sigma(key: str, value: Any) -> bool:
    """Whether this is a list with an item for each bin of noise levels of the training loss."""
    return key.endswith("_by_sigma") and isinstance(value, list | tuple) and len(value) == SIGMA_BINS


class JSONLLogger:
    """One JSON object a line in `run_dir/log.jsonl`, `nimg` first, flushed line by line.

    NaN and infinities are written as null, because JSON has no words for them. On a resume, rows after the
    checkpoint, rows of an earlier end of the run and a torn last line are cut: the log of a killed and
    resumed run equals an uninterrupted one.
    """

    def __init__(self, run_dir: Path) -> None:
        self.path = Path(run_dir) / "log.jsonl"
        self._file: IO[str] | None = None

    def start(self, nimg: int) -> None:
        """Cut what comes after `nimg`, and open the file to append."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _cut(self.path, nimg)
        self._file = self.path.open("a", encoding="utf-8", buffering=1)

    def log(self, nimg: int, scalars: Scalars) -> None:
        """Append one line."""
        assert self._file is not None, "start the logger first"
        self._file.write(json.dumps(_plain({"nimg": nimg, **scalars}), allow_nan=False) + "\n")

    def image(self, nimg: int, name: str, image: np.ndarray) -> None:
        """Nothing: lines hold no pictures, which the run folder keeps as files."""

    def results(self, nimg: int, scalars: Scalars) -> None:
        """Nothing: they stand in metrics.json."""

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def _plain(value: Any) -> Any:
    """A value as JSON has it: numbers of any library as int or float, those that are not finite as None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    number = float(value)
    return number if math.isfinite(number) else None


def _cut(path: Path, nimg: int) -> None:
    """Keep the whole rows up to `nimg`; the file is replaced at once, and only where something goes."""
    if not path.exists():
        return
    content = path.read_bytes()
    kept = b"".join(line + b"\n" for line in content.splitlines() if _belongs(line, nimg))
    if kept != content:
        temp = path.with_name(f".tmp-{path.name}")
        temp.write_bytes(kept)
        os.replace(temp, path)


def _belongs(line: bytes, nimg: int) -> bool:
    """Whether a row is whole, of a step up to `nimg`, and not of an end that was not the end."""
    row = _row(line)
    return row is not None and row["nimg"] <= nimg and not row.get("end")


def _row(line: bytes) -> dict[str, Any] | None:
    """A row of the log, None for one that is torn."""
    try:
        row: dict[str, Any] = json.loads(line)
        return row | {"nimg": int(row["nimg"])}
    except (ValueError, KeyError, TypeError):
        return None


def read_log(run_dir: Path) -> list[dict[str, Any]]:
    """The whole rows of `run_dir/log.jsonl`, none where there is no log."""
    path = run_dir / "log.jsonl"
    rows = map(_row, path.read_bytes().splitlines()) if path.is_file() else ()
    return [row for row in rows if row is not None]
