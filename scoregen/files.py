"""Files that are there whole or not at all, and what identifies them."""

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from uuid import uuid4

from scoregen.errors import UserError


def write_whole(path: Path, data: bytes | memoryview) -> None:
    """Write one file, there whole or not at all, in place of an older one of the same name; make its folder.

    Raises UserError where the disk is full.
    """
    temp = path.with_name(f".tmp-{path.name}")
    with full_disk_told(path.parent, len(data)):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write_file(temp, data)
            os.replace(temp, path)
        finally:
            temp.unlink(missing_ok=True)
        fsync_folder(path.parent)


@contextmanager
def written_whole(path: Path) -> Iterator[IO[bytes]]:
    """A file to write, which takes the name `path` when it is whole; several processes may do so at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        with beside.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def write_file(path: Path, data: bytes | memoryview) -> dict[str, int | str]:
    """Write and fsync one file, its mode by the umask; its size and SHA-256."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def sha256(path: Path) -> str:
    """The SHA-256 of a file in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_facts(path: Path) -> dict[str, int | str]:
    """The size and SHA-256 of a file that is there."""
    return {"size": path.stat().st_size, "sha256": sha256(path)}


def fsync_folder(path: Path) -> None:
    """Make the names in a folder survive a power failure."""
    if os.name == "nt":  # which cannot open folders
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def full_disk_told(folder: Path, needed: int) -> Iterator[None]:
    """Turn "no space left" and "quota exceeded" into a UserError with the bytes needed and free."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        free = shutil.disk_usage(there).free
        raise UserError(
            f"The disk is full: writing to {folder} needs {needed / 1e6:,.1f} MB, {free / 1e6:,.1f} MB "
            "are free. What was saved before is untouched; make room and give the same command again."
        ) from error
