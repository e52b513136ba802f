"""Time Inception features against the published graph, TorchScript as it is distributed, and compare them.

    python -m benchmarks.features [--inception-weights FILE] [--device cpu] [--size 32] [--threads 1]

FILE must be one of the TorchScript archives (`default_1.pt`, `inception-2015-12-05.pt`), whose code is run
here. Both get the same resized images, interleaved; images a second by the median time, CPU seconds on CPUs.
"""

import argparse
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from scoregen.evaluation.inception import InceptionExtractor, resize_tf1
from scoregen.evaluation.inception_weights import find_weights


def published(file: Path, device: str) -> Callable[[Tensor], Tensor]:
    """The graph in the archive, with the framework's resize before it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of TorchScript itself
        graph = torch.jit.load(file, map_location=device)

    @torch.no_grad()
    def features(images: Tensor) -> Tensor:
        out: Tensor = graph((resize_tf1(images.to(device).float(), 299) - 128) / 128)
        return out

    return features


def main() -> None:
    """Print images a second of both, their ratio, and how far the features are apart."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inception-weights", type=Path, metavar="FILE")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", type=int, default=32, help="pixels a side")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    file = find_weights(args.inception_weights)
    g = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (args.batch, 3, args.size, args.size), generator=g, dtype=torch.uint8)
    routes = {
        "published": published(file, args.device),
        "scoregen": InceptionExtractor(file, args.device, args.batch),
    }
    on_gpu = torch.device(args.device).type == "cuda"
    clock = time.perf_counter if on_gpu else time.process_time
    found = {name: route(images).cpu() for name, route in routes.items()}  # and warms up
    times: dict[str, list[float]] = {name: [] for name in routes}
    for _ in range(args.repeats):
        for name, route in routes.items():
            start = clock()
            route(images).sum().item()
            times[name].append(clock() - start)
    rates = {name: args.batch / median(seconds) for name, seconds in times.items()}
    for name, rate in rates.items():
        print(f"{name:<10} {rate:10.1f} images/s")
    error = (found["scoregen"] - found["published"]).norm() / found["published"].norm()
    print(f"ratio {rates['scoregen'] / rates['published']:.2f}, relative difference {float(error):.1e}")


if __name__ == "__main__":
    main()
