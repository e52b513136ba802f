"""How long a command takes until it answers, beside the imports that it avoids or needs.

    python -m benchmarks.startup [--rounds 5]

Fresh interpreters, interleaved; medians of their CPU seconds, user and system.
"""

import argparse
import resource
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from statistics import median

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "train.py --help": ["train.py", "--help"],
    "train.py --cfg job": ["train.py", "--cfg", "job"],
    "sample.py --help": ["sample.py", "--help"],
    "evaluate.py --help": ["evaluate.py", "--help"],
    "import torch": ["-c", "import torch"],
    "import diffusers": ["-c", "from diffusers import UNet2DModel"],
    "import accelerate": ["-c", "import accelerate"],
    "import torchmetrics": ["-c", "import torchmetrics"],
}


def cpu_seconds(arguments: Sequence[str]) -> float:
    """Of one interpreter that must succeed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    commands = {
        name: command
        for name, command in COMMANDS.items()
        if not name.startswith("import") or find_spec(name.split()[1])
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(args.rounds):
        for name, command in commands.items():
            seconds[name].append(cpu_seconds(command))
    print("| start of | CPU seconds |\n|---|--:|")
    for name, values in seconds.items():
        print(f"| `{name}` | {median(values):.2f} |")


if __name__ == "__main__":
    main()
