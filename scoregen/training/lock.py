"""One run folder, one trainer: two at once would overwrite each other's checkpoints."""

import os
from pathlib import Path
from typing import IO

from scoregen.errors import UserError


class FolderLock:
    """Holds a folder until closed or until the process ends, however it ends.

    Makes the folder. Raises UserError where another process holds it. Windows has no `flock` and so no lock.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file: IO[str] = open(folder / ".lock", "a")  # noqa: SIM115 - held beyond this call
        if os.name == "nt":
            return
        import fcntl

        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.close()
            raise UserError(
                f"another process is training in {folder}; wait for it, stop it, or choose another run_dir"
            ) from error

    def close(self) -> None:
        """Let the folder go."""
        self._file.close()
