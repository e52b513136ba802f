"""A local web page to draw from models and watch the images take shape: python -m scoregen.demo."""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from scoregen.cli.entry import DONE, run_entry
from scoregen.cli.source import RUNS
from scoregen.errors import UserError

LOOPBACK = "127.0.0.1"

EPILOG = """\
examples:
  python -m scoregen.demo                       runs found under runs/, and what needs no training
  python -m scoregen.demo ema.safetensors       a weights file or a run elsewhere as well
  python -m scoregen.demo --port 8080 --images 16 --evaluations 100

Only this machine reaches the page, unless --host says otherwise; it has no password, so whoever reaches it
may use the models offered. Nothing is sent or fetched anywhere. Needs: pip install 'scoregen[demo]'
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the entry; the exit code."""
    return run_entry(_demo, argv)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scoregen.demo",
        description="Serve a page on which to draw from models.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("paths", nargs="*", type=Path, metavar="PATH", help="run folders or weights files")
    parser.add_argument(
        "--runs", type=Path, default=RUNS, metavar="DIR", help="where runs are (default runs)"
    )
    parser.add_argument("--host", default=LOOPBACK, help=f"address to listen at (default {LOOPBACK})")
    parser.add_argument("--port", type=int, default=7860, help="port to listen at (default 7860)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps (default auto)")
    parser.add_argument("--images", type=int, default=64, help="most images of a request (default 64)")
    parser.add_argument("--evaluations", type=int, default=512, help="most an image costs (default 512)")
    parser.add_argument("--waiting", type=int, default=16, help="most requests in the queue (default 16)")
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    return parser


def _demo(argv: Sequence[str]) -> int:
    args = _parser().parse_args(argv)
    for flag in ("images", "evaluations", "waiting"):
        if getattr(args, flag) < 1:
            raise UserError(f"--{flag} {getattr(args, flag)}: at least 1")
    from scoregen.demo.request import Limits
    from scoregen.demo.studio import Studio
    from scoregen.model import find_model

    for path in args.paths:
        if find_model(path) is None:  # raises where nothing can be read there
            raise UserError(f"{path}: no such run folder or weights file")
    limits = Limits(args.images, args.evaluations, args.waiting)
    studio = Studio(args.runs, args.paths, args.device, limits)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C, and cleans up
    # Read when gradio is imported: it says nothing to anyone, and its copies of the answers go with them.
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": str(studio.folder / "page")}
    try:
        from scoregen.demo.page import serve

        serve(studio, args.host, args.port, open_browser=args.open)
    except ModuleNotFoundError as error:
        raise UserError(f"the demo needs the package {error.name}: pip install 'scoregen[demo]'") from error
    finally:
        studio.close()
    return DONE


if __name__ == "__main__":
    sys.exit(main())
