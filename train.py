"""Train a score model: python train.py [experiment=NAME] [group=choice] [key=value] ...; --help says more."""

import sys

from scoregen.cli.train import main

if __name__ == "__main__":
    sys.exit(main())
