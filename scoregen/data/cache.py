"""Where what is dear to make again is kept between runs."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_folder(kind: str) -> Path:
    """The folder for one kind of file: $XDG_CACHE_HOME/scoregen/`kind`, else below ~/.cache.

    All that lies there can be deleted at any time; it is made again.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "scoregen" / kind


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Within it is no other process, the others wait; on Windows, which has no `flock`, they do not."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "a") as file:
        if os.name != "nt":
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield
