"""What the three entries share: environment, exit codes, and how an error reaches the reader."""

import errno
import logging
import os
import sys
from collections.abc import Callable, Sequence

from scoregen.errors import UserError

DONE, DEFECT, WRONG_INPUT, INTERRUPTED = 0, 1, 2, 130


def run_entry(body: Callable[[Sequence[str]], int], argv: Sequence[str] | None = None) -> int:
    """Run an entry's body on the command line and turn what it raises into the documented exit codes.

    0 done; 2 the user's input is wrong (one message, no traceback); 130 interrupted, resumable; any other
    exception is a defect and passes through with its traceback (exit code 1).
    """
    # Waiting threads must sleep: spinning makes small networks many times slower on shared cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        return body(sys.argv[1:] if argv is None else argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return WRONG_INPUT
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return INTERRUPTED
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = error.filename or "the run folder"
        print(f"error: no space left to write {where}; free some and run again", file=sys.stderr)
        return WRONG_INPUT
