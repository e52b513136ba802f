"""Score a run or images: python evaluate.py --run RUN --metrics NAMES ...; --help says more."""

import sys

from scoregen.cli.evaluate import main

if __name__ == "__main__":
    sys.exit(main())
