"""Where files of data are looked for. Nothing is downloaded: a missing file's message says how to get it."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scoregen.errors import UserError

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")  # owner/name of a repository on the Hugging Face hub


@dataclass(frozen=True)
class Wanted:
    """A published data set as a user finds it."""

    title: str
    folders: tuple[str, ...]  # sub-folders of the root in which its files usually lie
    official: str  # official name, size and checksum, and where to get it
    system: tuple[str, ...] = ()  # absolute folders of distribution packages, looked at last


def resolve_root(root: str | None) -> Path:
    """`data.root` if given, else the environment variable SCOREGEN_DATA, else data/."""
    return Path(root or os.environ.get("SCOREGEN_DATA") or "data").expanduser()


def find(wanted: Wanted, names: Sequence[str], root: str | None) -> Path:
    """The first of `names` that exists in root/<folder>/, in root or in a system folder.

    The root may also be the file itself.
    Raises UserError with all places, the official name and checksum, and what to do.
    """
    base = resolve_root(root)
    places = [base / folder for folder in wanted.folders] + [base] + [Path(p) for p in wanted.system]
    if base.name in names:
        places.insert(0, base.parent)
    for place in places:
        for name in names:
            if (place / name).exists():
                return place / name
    raise UserError(
        f"{wanted.title} was not found.\n"
        f"  looked for: {', '.join(names)}\n"
        f"  in:         {', '.join(str(place) for place in places)}\n"
        f"  official:   {wanted.official}\n"
        f"Nothing is downloaded for you: put the file into one of these folders, or say where it is with "
        f"data.root=FOLDER or the environment variable SCOREGEN_DATA."
    )


def find_path(what: str, path: str | None, root: str | None) -> Path:
    """A user's own file or folder: `path` as given or under the root; without a path the root itself.

    Raises UserError with all places.
    """
    base = resolve_root(root)
    places = [base] if path is None else [Path(path).expanduser(), base / path]
    for place in places:
        if place.exists():
            return place
    raise UserError(
        f"{what} not found: looked for {' and '.join(str(p) for p in places)}. Say where with data.path=... "
        "(below data.root or SCOREGEN_DATA, or absolute) or with data.root=..."
    )


def find_here_or_on_hub(what: str, path: str | None, root: str | None) -> tuple[Path, bool]:
    """The place of `path` and whether it is on this machine; else it has the form of a name on the hub.

    Raises UserError, as `find_path` does, for what is neither.
    """
    if path and HUB_NAME.fullmatch(path) and Path(path).suffix not in (".parquet", ".arrow"):
        here = any(place.exists() for place in (Path(path), resolve_root(root) / path))
        if not here:
            return Path(path), False
    return find_path(what, path, root), True


def hub_refusal(what: str, error: Exception) -> UserError:
    """That something which is not here cannot be had from the hub either."""
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    hint = " (HF_HUB_OFFLINE is set: only what is cached is found)" if offline else ""
    return UserError(f"{what} is no folder or file here, and the hub does not give it{hint}: {error}")
