"""Checkpoints that are whole or absent: written beside, fsynced, checksummed, renamed.

run_dir/checkpoints/000000020480/
    ema.safetensors, model.safetensors, ema_<name>.safetensors: weights
    optimizer.pt: tensors in plain containers, read with `weights_only=True`
    parts/: all but the averages, where processes hold parts of them (`scoregen.training.parts`)
    state.json: written last, with the size and SHA-256 of the others and a checksum of itself
"""

import errno
import hashlib
import io
import json
import logging
import math
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from scoregen.errors import UserError
from scoregen.files import file_facts, fsync_folder, full_disk_told, sha256, write_file
from scoregen.training.weights import (
    Weights,
    count_bytes,
    load_weights,
    provenance,
    read_weights,
    serialise,
    weights_hash,
)

__all__ = [
    "Checkpoint",
    "DamagedError",
    "latest_checkpoint",
    "load_weights",
    "provenance",
    "read_weights",
    "save_checkpoint",
    "weights_hash",
]

log = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"  # folder in a run folder
PARTS = "parts"  # folder in a checkpoint


class DamagedError(Exception):
    """A checkpoint folder does not hold what was saved; the message names the file and the damage."""


@dataclass(frozen=True)
class Checkpoint:
    """One whole checkpoint: every file has the size and SHA-256 that its state.json records."""

    path: Path
    nimg: int
    state: dict[str, Any]
    skipped: tuple[str, ...] = ()  # newer ones that were passed over, and why

    def weights(self, stem: str) -> dict[str, torch.Tensor]:
        """Read `<stem>.safetensors` to the CPU; UserError names the stems there are."""
        file = self.path / f"{stem}.safetensors"
        if not file.exists():
            stems = ", ".join(sorted(other.stem for other in self.path.glob("*.safetensors")))
            raise UserError(
                f"{self.path} holds no weights '{stem}', only {stems}. "
                "Resume with the `ema` and `objective` that the run was started with."
            )
        return read_weights(file)[0]

    @property
    def parts(self) -> Path | None:
        """The folder of what processes have written of what each held, if they did."""
        return self.path / PARTS if (self.path / PARTS).is_dir() else None

    def metadata(self, stem: str) -> dict[str, str]:
        """Read the metadata of `<stem>.safetensors`."""
        return read_weights(self.path / f"{stem}.safetensors")[1]

    def training(self) -> dict[str, Any]:
        """Read optimizer.pt to the CPU; only tensors and plain containers can come out of it."""
        file = self.path / "optimizer.pt"
        content: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        return content


def save_checkpoint(
    folder: Path,
    nimg: int,
    *,
    weights: Mapping[str, Weights],
    training: dict[str, Any],
    state: dict[str, Any],
    metadata: Mapping[str, str],
    parts: Path | None = None,
    keep: int = 2,
    keep_best: str | None = None,
) -> Path:
    """Save to `folder/<nimg>`, there whole or not at all, then prune; one process calls it.

    A whole checkpoint at the same nimg stays as it is, since a run is a function of its config and nimg; a
    damaged one is set aside as `<nimg>.damaged`. Each file passes once through host memory.

    Args:
        weights: file stems to tensors by name.
        training: what only a resume needs: tensors in nested plain containers.
        state: further plain JSON, read back bit for bit.
        metadata: goes into each weights file, with nimg added.
        parts: a folder of further files, already on the disk, that is moved into the checkpoint.
        keep: how many of the last checkpoints up to this one stay.
        keep_best: key of a number in `state`; the checkpoint where it is lowest stays too.

    Raises UserError where the disk is full, with the bytes needed and free; other checkpoints are untouched.
    """
    final = folder / f"{nimg:012d}"
    folder.mkdir(parents=True, exist_ok=True)
    _clean(folder)
    if final.exists():
        if _is_whole(final):
            if parts is not None:
                shutil.rmtree(parts)
            return final
        _set_aside(final)
    needed = count_bytes(weights, "weights") + count_bytes(training, "training")
    with full_disk_told(folder, needed):
        if shutil.disk_usage(folder).free < needed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        temp = folder / f".tmp-{final.name}"
        try:
            temp.mkdir()
            _fill(temp, nimg, weights, training, state, metadata, parts)
            os.rename(temp, final)
        except BaseException:
            shutil.rmtree(temp, ignore_errors=True)
            raise
        fsync_folder(folder)
    _prune(folder, nimg, keep, keep_best)
    return final


def latest_checkpoint(folder: Path) -> Checkpoint | None:
    """Find the newest whole checkpoint, or None where none was ever saved; every process calls it.

    Damaged ones are passed over with a warning that names the damage, and never deleted. Raises UserError
    where all are damaged, because to start again from nothing is the user's decision.
    """
    skipped: list[str] = []
    for path in reversed(_saved(folder)):
        try:
            state = _verified(path)
        except DamagedError as damage:
            skipped.append(f"{path}: {damage}")
            log.warning("Passing over a damaged checkpoint, %s", skipped[-1])
        else:
            return Checkpoint(path, int(path.name), state, tuple(skipped))
    if skipped:
        raise UserError(
            f"No checkpoint in {folder} is whole:\n  " + "\n  ".join(skipped) + "\n"
            "Restore one from a copy, or move the folder away to start from the beginning."
        )
    return None


def check_undamaged(file: Path) -> None:
    """UserError for a damaged file of a checkpoint; of one that lies elsewhere nothing is known."""
    file = file.absolute()
    if file.parent not in _saved(file.parent.parent) or not (file.parent / "state.json").exists():
        return
    try:
        facts = _read_state(file.parent)["files"].get(file.name)
        if facts is not None:
            _verify(file.parent, file.name, facts)
    except DamagedError as damage:
        raise UserError(f"{file} is damaged: {damage}; restore it, or give another checkpoint") from damage


def _fill(
    temp: Path,
    nimg: int,
    weights: Mapping[str, Weights],
    training: dict[str, Any],
    state: dict[str, Any],
    metadata: Mapping[str, str],
    parts: Path | None,
) -> None:
    """Write and fsync all files of a checkpoint, state.json last."""
    content: dict[str, Callable[[], bytes | memoryview]] = {
        f"{stem}.safetensors": partial(serialise, tensors, {**metadata, "nimg": str(nimg)})
        for stem, tensors in weights.items()
    }
    content["optimizer.pt"] = partial(_torch_saved, training)
    files = {name: write_file(temp / name, make()) for name, make in content.items()}
    if parts is not None:
        os.rename(parts, temp / PARTS)
        fsync_folder(temp / PARTS)
        files |= {f"{PARTS}/{file.name}": file_facts(file) for file in (temp / PARTS).iterdir()}
    body = json.loads(json.dumps({"nimg": nimg, "state": state, "files": files}))
    write_file(temp / "state.json", _state_text(body).encode())
    fsync_folder(temp)


def _torch_saved(content: dict[str, Any]) -> memoryview:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getbuffer()


def _state_text(body: Mapping[str, Any]) -> str:
    """The text of state.json: one text for one content, so that a flip which JSON forgives is seen too."""
    checksum = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return json.dumps({**body, "checksum": checksum}, indent=1, sort_keys=True) + "\n"


def _saved(folder: Path) -> list[Path]:
    """The checkpoint folders, oldest first, whole or not."""
    names = folder.iterdir() if folder.is_dir() else ()
    return sorted((p for p in names if re.fullmatch(r"\d{12,}", p.name)), key=lambda p: int(p.name))


def _verified(path: Path) -> dict[str, Any]:
    """The `state` of a whole checkpoint; DamagedError for any other."""
    body = _read_state(path)
    for name, facts in body["files"].items():
        _verify(path, name, facts)
    state: dict[str, Any] = body["state"]
    return state


def _verify(path: Path, name: str, facts: Mapping[str, Any]) -> None:
    """DamagedError unless a file of a checkpoint has the size and content that its state.json records."""
    try:
        size = (path / name).stat().st_size
        if size != facts["size"]:
            raise DamagedError(f"{name} has {size} bytes instead of {facts['size']}")
        if sha256(path / name) != facts["sha256"]:
            raise DamagedError(f"the content of {name} does not match its SHA-256")
    except OSError as error:
        raise DamagedError(f"{name} cannot be read ({error.strerror})") from error


def _read_state(path: Path) -> dict[str, Any]:
    """The content of state.json if it is what was written for this folder; DamagedError otherwise."""
    try:
        text = (path / "state.json").read_bytes().decode()
        body: dict[str, Any] = json.loads(text)
        del body["checksum"]
    except OSError as error:
        raise DamagedError(f"state.json cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedError("state.json is torn") from error
    if text != _state_text(body):
        raise DamagedError("state.json does not match its checksum")
    if body["nimg"] != int(path.name):
        raise DamagedError(f"state.json is of nimg {body['nimg']}")
    return body


def _is_whole(path: Path) -> bool:
    try:
        _verified(path)
    except DamagedError:
        return False
    return True


def _clean(folder: Path) -> None:
    """Remove what a killed save or prune left behind."""
    for leftover in folder.glob(".tmp-*"):
        shutil.rmtree(leftover)


def _set_aside(path: Path) -> None:
    count = sum(1 for _ in path.parent.glob(f"{path.name}.damaged*"))
    os.rename(path, path.with_name(f"{path.name}.damaged{count or ''}"))


def _prune(folder: Path, nimg: int, keep: int, keep_best: str | None) -> None:
    """Delete the checkpoints up to nimg but the last `keep` and the best.

    Later ones stay: they were passed over as damaged when the run fell back to this one's past.
    """
    saved = [path for path in _saved(folder) if int(path.name) <= nimg]
    best = _best(saved, keep_best) if keep_best else None
    for path in saved[:-keep]:
        if path != best:
            doomed = folder / f".tmp-pruned-{path.name}"
            os.rename(path, doomed)  # first out of sight, so that a kill leaves no torn one
            shutil.rmtree(doomed)


def _best(saved: Sequence[Path], score: str) -> Path | None:
    """The checkpoint whose state has the lowest finite `score`, the latest among equals."""
    scores: dict[Path, float] = {}
    for path in reversed(saved):
        try:
            value = _read_state(path)["state"].get(score)
        except DamagedError:
            continue
        if value is not None and math.isfinite(value):
            scores[path] = value
    return min(scores, key=scores.__getitem__, default=None)
