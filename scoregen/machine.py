"""What this machine is and what it can do, for figures that mean something elsewhere."""

import os
import platform
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

SIZE = {"cuda": 8192, "cpu": 2048}  # of the square matrices that are multiplied


def machine_name(device: torch.device) -> str:
    """The GPU's name, or the processor's with its cores and torch's threads; with torch's version."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        threads = torch.get_num_threads()
        name = f"{_processor()}, {cores} cores, {threads} thread{'s' * (threads > 1)}"
    return f"{name}, torch {torch.__version__}"


def _processor() -> str:
    """The name of the processor's model, where the system tells it, else of its architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next((name for name in named if name != "unknown"), platform.processor() or platform.machine())


def peak_memory_gb(device: torch.device) -> float:
    """Peak memory: of the GPU's allocator, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def synchronize(device: torch.device) -> float:
    """Wait until the device has done what it was given; the seconds that this took."""
    start = time.perf_counter()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter() - start


@cache
def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the fastest of a few large square matrix products: the peak that a program can reach.

    Products of float32 use TF32 where convolutions may, since it is those that are compared with it.
    """
    n = SIZE.get(device.type, 2048)
    a = torch.linspace(-1, 1, n * n, device=device).reshape(n, n).to(dtype)
    b = torch.empty_like(a)
    allowed, torch.backends.cuda.matmul.allow_tf32 = (
        torch.backends.cuda.matmul.allow_tf32,
        torch.backends.cudnn.allow_tf32,
    )
    try:
        seconds = min(_seconds(lambda: torch.mm(a, a, out=b), device) for _ in range(5))
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed
    return 2 * n**3 / seconds


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start
