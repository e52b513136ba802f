"""Draw images: python sample.py [--run RUN] [--steps N] ...; --help says more."""

import sys

from scoregen.cli.sample import main

if __name__ == "__main__":
    sys.exit(main())
