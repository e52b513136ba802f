"""What the three entries share: environment, exit codes, and how an error reaches the reader."""

import errno
import logging
import os
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

from scoregen.errors import UserError
from scoregen.slurm import adopt_slurm
from scoregen.training.signals import on_stop_signals

DONE, DEFECT, WRONG_INPUT, INTERRUPTED = 0, 1, 2, 130

RECENT = 60.0  # seconds in which all processes of a run notice that one is lost

# What a folder or file of the user's can do to a program that works.
PLACES = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOENT,
    errno.ENAMETOOLONG,
)  # fmt: skip


def run_entry(body: Callable[[Sequence[str]], int], argv: Sequence[str] | None = None) -> int:
    """Run an entry's body on the command line and turn what it raises into the documented exit codes.

    0 done; 2 the user's input is wrong (one message, no traceback); 130 interrupted, by a signal or by the
    loss of another process, and resumable; any other exception is a defect and passes through with its
    traceback (exit code 1).
    """
    # Waiting threads must sleep: spinning makes small networks many times slower on shared cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    adopt_slurm(os.environ)
    warnings.formatwarning = lambda message, *_: f"WARNING: {message}\n"  # the reader needs no line of ours
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        with on_stop_signals(_interrupt):
            code = body(sys.argv[1:] if argv is None else argv)
            sys.stdout.flush()
            return code
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return WRONG_INPUT
    except KeyboardInterrupt:
        return _interrupted("interrupted")
    except RuntimeError as error:
        if (reason := _lost_process(error)) is None:
            raise
        return _interrupted(f"another process of this run has ended or does not answer ({reason})")
    except BrokenPipeError:
        if _is_read():
            raise
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


def _is_read() -> bool:
    """Whether somebody reads our output; else, as behind `| head`, it goes nowhere from here on."""
    try:
        os.write(sys.stdout.fileno(), b"\n")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    except (OSError, ValueError):  # it is no file
        pass
    return True


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Interrupt; where a module is being imported leave at once, as some swallow it and are broken then."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            sys.stdout.flush()
            os._exit(_interrupted("interrupted"))
        frame = frame.f_back
    raise KeyboardInterrupt


def _interrupted(what: str) -> int:
    """Tell it undisturbed: of several processes all stop at once, and their launcher may signal them, too."""
    with on_stop_signals(signal.SIG_IGN):
        if os.environ.get("WORLD_SIZE", "1") == "1" or _first_to_stop():
            print(f"{what}; give the same command again", file=sys.stderr, flush=True)
    return INTERRUPTED


def _first_to_stop() -> bool:
    """Whether no other process of this run on this machine has stopped in the last minute.

    Asked by way of a file, because the process that other ways of asking need may be the one that is lost;
    the launcher has started all that are here.
    """
    file = Path(tempfile.gettempdir()) / f"scoregen-stop-{os.getppid()}-{os.environ.get('MASTER_PORT')}"
    with suppress(OSError):
        if time.time() - file.stat().st_mtime > RECENT:
            file.unlink()
    try:
        file.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _lost_process(error: RuntimeError) -> str | None:
    """How torch says that another process is lost, or None where the error says something else."""
    if "torch" not in sys.modules:
        return None
    from scoregen.parallel import lost_process

    return lost_process(error)


def check_writable(file: Path) -> None:
    """UserError where `file` cannot be written; to be asked before any work is done for it."""
    there = next(path for path in (file, *file.absolute().parents) if path.exists())
    if not (there.is_file() if there == file else there.is_dir()):
        raise UserError(f"{file} cannot be written: {there} is in the way; choose another place")
    if not os.access(there, os.W_OK):
        raise UserError(f"{file} cannot be written: {there} is not writable; choose another place")
