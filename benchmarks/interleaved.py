"""Time pieces of work side by side, so that all see the same load of the machine."""

import time
from collections.abc import Callable, Mapping
from statistics import median

import torch

from scoregen.machine import synchronize

CPU = torch.device("cpu")


def median_seconds(
    works: Mapping[str, Callable[[], object]], rounds: int, device: torch.device = CPU
) -> dict[str, float]:
    """The median seconds of each over rounds in which every one has a turn; a first round does not count.

    On a CPU these are CPU seconds of this process, which other programs lengthen little; on a GPU wall time.
    """
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for counts in (False, *[True] * rounds):
        for name, work in works.items():
            synchronize(device)
            start = clock()
            work()
            synchronize(device)
            if counts:
                seconds[name].append(clock() - start)
    return {name: median(values) for name, values in seconds.items()}
