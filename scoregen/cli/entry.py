"""What the three entries share: environment, exit codes, and how an error reaches the reader."""

import errno
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from scoregen.errors import UserError
from scoregen.slurm import adopt_slurm

DONE, DEFECT, WRONG_INPUT, INTERRUPTED = 0, 1, 2, 130

# What a folder or file of the user's can do to a program that works.
PLACES = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOENT,
    errno.ENAMETOOLONG,
)  # fmt: skip


def run_entry(body: Callable[[Sequence[str]], int], argv: Sequence[str] | None = None) -> int:
    """Run an entry's body on the command line and turn what it raises into the documented exit codes.

    0 done; 2 the user's input is wrong (one message, no traceback); 130 interrupted, resumable; any other
    exception is a defect and passes through with its traceback (exit code 1).
    """
    # Waiting threads must sleep: spinning makes small networks many times slower on shared cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    adopt_slurm(os.environ)
    warnings.formatwarning = lambda message, *_: f"WARNING: {message}\n"  # the reader needs no line of ours
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        return body(sys.argv[1:] if argv is None else argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return WRONG_INPUT
    except KeyboardInterrupt:
        print("interrupted; give the same command again", file=sys.stderr)
        return INTERRUPTED
    except OSError as error:
        where = error.filename or "a file"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            message = f"no space left to write {where}; free some and run again"
        elif error.errno in PLACES and error.filename:
            message = f"{where}: {error.strerror}; choose another place, or repair this one, and run again"
        else:
            raise
        print(f"error: {message}", file=sys.stderr)
        return WRONG_INPUT


def check_writable(file: Path) -> None:
    """UserError where `file` cannot be written; to be asked before any work is done for it."""
    there = next(path for path in (file, *file.absolute().parents) if path.exists())
    if not (there.is_file() if there == file else there.is_dir()):
        raise UserError(f"{file} cannot be written: {there} is in the way; choose another place")
    if not os.access(there, os.W_OK):
        raise UserError(f"{file} cannot be written: {there} is not writable; choose another place")
