"""Functions with kinks, of which the derivative of a score knows nothing."""

from collections.abc import Iterator
from re import sub

import torch
from torch import Tensor

from scoregen.denoisers.network import NetworkDenoiser

# Parts of the names that autograd gives the backward of functions with kinks.
_KINKED = ("relu", "threshold", "hardtanh", "hardswish", "hardsigmoid", "clamp", "abs", "maxpool")


def find_kinks(denoiser: NetworkDenoiser) -> list[str]:
    """The piecewise linear functions between the denoiser's input and its output, by autograd's names."""
    weight = next(denoiser.parameters())
    x = torch.zeros(1, *denoiser.shape, device=weight.device, dtype=weight.dtype, requires_grad=True)
    told = x.new_zeros(1, *denoiser.cond_shape) if denoiser.cond_shape else None
    denoised = denoiser(x, torch.ones(1, device=weight.device, dtype=weight.dtype), told)
    names = {name for name in _graph(denoised) if any(kink in name.lower() for kink in _KINKED)}
    return sorted({sub(r"(Backward)?\d*$", "", name) for name in names})


def _graph(value: Tensor) -> Iterator[str]:
    """The names of all nodes of a value's graph."""
    queue, seen = [value.grad_fn], set()
    while queue:
        node = queue.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node.name()
            queue += [parent for parent, _ in node.next_functions]
