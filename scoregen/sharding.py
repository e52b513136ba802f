"""Tensors of which every process holds a part (FSDP2): how modules come to have them, and how to read them.

torch's modules for it take half a second to import, so they wait until something is sharded.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, TypeGuard

from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)


def shard(module: nn.Module, processes: int) -> nn.Module:
    """Leave each process a part of every parameter; the whole of a block is there only while it computes.

    Gradients are averaged over the processes and parted alike. Blocks are what stands in lists and dicts of
    modules; whatever else has parameters is whole from the forward of `module` to the end of its backward.

    Source: PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel, Y. Zhao et al., 2023, arXiv
    2304.11277; per-parameter parts as in torch's `fully_shard`.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(next(module.parameters()).device.type, (processes,))
    for block in [*blocks(module), module]:
        fully_shard(block, mesh=mesh)
    return module


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The outermost modules with parameters that stand in containers."""
    for child in module.children():
        if isinstance(module, CONTAINERS) and not isinstance(child, CONTAINERS):
            if next(child.parameters(), None) is not None:
                yield child
        else:
            yield from blocks(child)


def is_parted(tensor: Tensor) -> "TypeGuard[DTensor]":
    """Whether this process holds a part only."""
    return hasattr(tensor, "full_tensor")


def local(tensor: Tensor) -> Tensor:
    """This process's part, in the same memory; the tensor itself where it is not parted."""
    return tensor.to_local() if is_parted(tensor) else tensor


def local_parameter(p: nn.Parameter) -> nn.Parameter:
    """This process's part of a parameter, for an optimizer, which then need not know of parts."""
    return nn.Parameter(local(p.detach())) if is_parted(p) else p


def gathered(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors by name, on the host where they were parted; every process calls it."""
    return {name: value.full_tensor().cpu() if is_parted(value) else value for name, value in tensors.items()}


def parted(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, which every process has, parted as `like` is."""
    if not is_parted(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    on_device = tensor.to(like.device)
    return distribute_tensor(on_device, like.device_mesh, like.placements, src_data_rank=None)


def as_part(part: Tensor, like: Tensor) -> Tensor:
    """The tensor of which `part`, in the same memory, is this process's, where `like` is parted."""
    if not is_parted(like):
        return part
    from torch.distributed.tensor import DTensor

    mesh, placements = like.device_mesh, like.placements
    return DTensor.from_local(part, mesh, placements, run_check=False, shape=like.shape, stride=like.stride())
