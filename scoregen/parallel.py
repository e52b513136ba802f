"""A thin face of accelerate: the device, this process among the others, wrapping, and sums over processes.

Order of data, randomness and checkpoints stay ours, because accelerate's own do not give an exact resume.
"""

import os
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import torch
from torch import Tensor, nn

from scoregen.errors import UserError
from scoregen.sharding import shard

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule

T = TypeVar("T")
Strategy = Literal["ddp", "fsdp"]

PATIENCE = timedelta(minutes=30)  # with a process that does not answer; the main one may work alone for long
# In the words of gloo, of NCCL, and of the store where processes meet.
LOST = r"gloo/transport\S* (.*)|(remote process exit|watchdog.* timeout|wait timeout|failed to recv|reset by)"


class Parallel:
    """The processes of one run: `rank` of `world`, each with its `device`.

    Started plainly there is one process and no process group; under `torchrun` or `accelerate launch` there
    are WORLD_SIZE, joined by NCCL on GPUs and by gloo on CPUs.

    Args:
        device: auto, cpu, cuda or mps; auto takes CUDA where there is one, else the CPU. MPS lacks the
            float64 that closed forms and metrics compute in, so it must be asked for.
        deterministic: whether `repeatable` work repeats bit for bit on CUDA, too.
        patience: how long to wait for a process that neither answers nor ends; one that ends, however it
            does, is noticed at the next exchange with it.
        strategy: how several processes train. ddp: each has all weights; fsdp: each has a part of them, of
            their gradients, averages and optimizer.
    """

    def __init__(
        self,
        device: str = "auto",
        *,
        deterministic: bool = True,
        patience: timedelta = PATIENCE,
        strategy: Strategy = "ddp",
    ) -> None:
        self.deterministic = deterministic
        self.world = world_size()
        self.sharded = strategy == "fsdp" and self.world > 1
        self.rank = int(os.environ.get("RANK", "0"))
        kind = _resolve_device(device)
        if kind == "cuda":
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it products may not repeat
        if self.world == 1:
            self.device = torch.device(kind)
            return
        from accelerate import Accelerator, InitProcessGroupKwargs

        # Precision and compilation are the network denoiser's business, whatever `accelerate config` says.
        self._accelerator = Accelerator(
            cpu=kind == "cpu",
            mixed_precision="no",
            dynamo_backend="no",
            kwargs_handlers=[InitProcessGroupKwargs(timeout=patience)],
        )
        self.device = self._accelerator.device
        # Host-side agreement goes over gloo, so that it never waits for the GPU.
        self._host_group = torch.distributed.new_group(backend="gloo", timeout=patience)
        assert self._accelerator.num_processes == self.world, (
            "the launcher started another number of processes"
        )

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and talks to the user."""
        return self.rank == 0

    def rows(self, batch: int) -> range:
        """The rows of a global batch that this process holds."""
        share = batch // self.world
        return range(self.rank * share, (self.rank + 1) * share)

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module on this device, averaging its gradients over the processes in backward.

        Where it is sharded, its parameters are others afterwards.
        """
        if self.world == 1:
            return module.to(self.device)
        if self.sharded:
            return shard(module.to(self.device), self.world)
        # Kernels of 1 x 1 have two strides that mean the same; torch takes that for a loss of speed, once.
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        wrapped: nn.Module = self._accelerator.prepare_model(module)
        return wrapped

    def accumulate(self, wrapped: nn.Module, *, last: bool) -> AbstractContextManager[None]:
        """Within it, backward adds to local gradients; the last one averages them over the processes."""
        if self.sharded:
            cast("FSDPModule", wrapped).set_requires_gradient_sync(last)
        if self.world == 1 or self.sharded or last:
            return nullcontext()
        context: AbstractContextManager[None] = self._accelerator.no_sync(wrapped)
        return context

    @contextmanager
    def repeatable(self) -> Iterator[None]:
        """Within it CUDA takes kernels that sum in a fixed order, if that was asked for; CPUs always do.

        Raises UserError where an operation has no such kernel.
        """
        if self.device.type != "cuda" or not self.deterministic:
            yield
            return
        # Nothing here reads memory unwritten.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.use_deterministic_algorithms(True)
        try:
            yield
        except RuntimeError as error:
            if "deterministic implementation" not in str(error):
                raise
            first = str(error).partition(".")[0]
            raise UserError(
                f"{first} on CUDA, so a resumed run could not be bit for bit the uninterrupted one; "
                "set deterministic=false to train all the same"
            ) from error
        finally:
            torch.use_deterministic_algorithms(False)

    def norm(self, tensors: Sequence[Tensor]) -> Tensor:
        """The norm of all of them together, which may be this process's parts of gradients."""
        norm = torch.nn.utils.get_total_norm(tensors)
        return self.sum(norm.square()).sqrt() if self.sharded else norm

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over the processes, in place; a tensor on the CPU goes over gloo."""
        if self.world > 1:
            on_host = tensor.device.type == "cpu"
            torch.distributed.all_reduce(tensor, group=self._host_group if on_host else None)
        return tensor

    def gather(self, value: T) -> list[T]:
        """The values of all processes, in the main one; the others get their own."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        torch.distributed.gather_object(value, values if self.is_main else None, group=self._host_group)
        return values if self.is_main else [value]

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process; no device is waited for."""
        if self.world == 1:
            return flag
        seen = torch.tensor(float(flag))
        torch.distributed.all_reduce(seen, group=self._host_group)
        return bool(seen.item())

    def barrier(self) -> None:
        """Wait for every process."""
        if self.world > 1:
            torch.distributed.barrier(group=self._host_group)

    def close(self) -> None:
        """Leave the process group."""
        if self.world > 1:
            torch.distributed.destroy_process_group()


def world_size() -> int:
    """The number of processes that the launcher started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def lost_process(error: RuntimeError) -> str | None:
    """How torch says that another process has ended or does not answer; None where it says something else."""
    found = re.search(LOST, str(error), re.IGNORECASE)
    return found and next(filter(None, found.groups())).partition(". ")[0]


def _resolve_device(device: str) -> str:
    """The kind of device that is meant; a UserError for one that this machine lacks."""
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if device == "auto":
        return "cuda" if available["cuda"] else "cpu"
    if device not in available:
        raise UserError(f"device={device} is not known; allowed: auto, {', '.join(available)}")
    if not available[device]:
        found = ", ".join(kind for kind, there in available.items() if there)
        raise UserError(f"device={device}: torch finds none on this machine; found: {found}")
    return device


def send(tensor: Tensor, device: torch.device | str) -> Tensor:
    """The tensor on `device`; to a GPU by way of pinned memory, so that the host need not wait for it."""
    if torch.device(device).type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
