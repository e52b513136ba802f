"""Where a run's numbers go: log.jsonl always; Weights & Biases and TensorBoard by configuration.

One process builds, starts and calls loggers.
"""

import json
import logging
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Literal, Protocol

import numpy as np

from scoregen.errors import UserError
from scoregen.ranges import Positive

log = logging.getLogger(__name__)

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

    def close(self) -> None:
        """Finish what is pending; also where nothing was started."""
        ...


def flatten(scalars: Scalars, prefix: str = "") -> Iterator[tuple[str, float]]:
    """Nested scalars as pairs of "outer/inner" and number; items of a list count from 0, None is left out."""
    for key, value in scalars.items():
        if isinstance(value, list | tuple):
            value = {str(i): item for i, item in enumerate(value)}
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}/")
        elif value is not None:
            yield f"{prefix}{key}", float(value)


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


class WandbLogger:
    """Log to Weights & Biases; offline and disabled need neither account nor network.

    The run's id stays in `run_dir/wandb_id`, so that a resumed run goes on in the same one, where repeated
    rows fall on those logged before: the axis is `nimg`. Where the server cannot be reached, the run is
    logged offline, with one warning.

    Args:
        run_dir: the run's folder; wandb's own files go to `run_dir/wandb`.
        mode: offline (send later with `wandb sync`), online or disabled.
        project: name of the project on the server.
        entity: user or team; null takes the account's own.
        timeout: seconds to wait for the server at the start.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        mode: Literal["offline", "online", "disabled"] = "offline",
        project: str = "scoregen",
        entity: str | None = None,
        timeout: Positive = 30.0,
    ) -> None:
        self.run_dir, self.mode, self.project = Path(run_dir), mode, project
        self.entity, self.timeout = entity, timeout
        self._run: Any = None

    def start(self, nimg: int) -> None:
        """Begin, or go on in the run whose id the folder keeps."""
        try:
            self._init(self.mode)
        except Exception as error:
            if self.mode != "online":
                raise
            log.warning("wandb cannot go online (%s); logging offline, for `wandb sync` later", error)
            self._init("offline")
        self._run.define_metric("*", step_metric="nimg")

    def _init(self, mode: Literal["offline", "online", "disabled"]) -> None:
        import wandb

        self._run = wandb.init(
            mode=mode,
            project=self.project,
            entity=self.entity,
            name=self.run_dir.name,
            id=_run_id(self.run_dir),
            resume="allow",
            dir=str(self.run_dir),
            settings=wandb.Settings(init_timeout=self.timeout),
        )

    def log(self, nimg: int, scalars: Scalars) -> None:
        """Record named numbers at `nimg` images."""
        self._run.log({"nimg": nimg, **dict(flatten(scalars))})

    def image(self, nimg: int, name: str, image: np.ndarray) -> None:
        """Record a picture, uint8 [H, W, C]."""
        import wandb

        self._run.log({"nimg": nimg, name: wandb.Image(image)})

    def close(self) -> None:
        """Finish what is pending."""
        if self._run is not None:
            self._run.finish()


def _run_id(run_dir: Path) -> str:
    """The id of this run, made once and kept in the run folder."""
    path = run_dir / "wandb_id"
    if not path.exists():
        run_dir.mkdir(parents=True, exist_ok=True)
        path.write_text(os.urandom(4).hex())
    return path.read_text().strip()


class TensorBoardLogger:
    """Log to TensorBoard event files in `run_dir/tensorboard`.

    Raises UserError where the package is missing.
    """

    def __init__(self, run_dir: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError(
                "logger=tensorboard needs the package tensorboard: pip install 'scoregen[tensorboard]'"
            ) from error
        self._make = SummaryWriter
        self.run_dir = Path(run_dir)
        self._writer: Any = None

    def start(self, nimg: int) -> None:
        """Begin, or make TensorBoard drop what an earlier process recorded after `nimg`."""
        purge = nimg + 1 if nimg else None
        self._writer = self._make(str(self.run_dir / "tensorboard"), purge_step=purge)

    def log(self, nimg: int, scalars: Scalars) -> None:
        """Record named numbers at `nimg` images."""
        for name, value in flatten(scalars):
            self._writer.add_scalar(name, value, nimg)
        self._writer.flush()

    def image(self, nimg: int, name: str, image: np.ndarray) -> None:
        """Record a picture, uint8 [H, W, C]."""
        self._writer.add_image(name, image, nimg, dataformats="HWC")

    def close(self) -> None:
        """Finish what is pending."""
        if self._writer is not None:
            self._writer.close()
