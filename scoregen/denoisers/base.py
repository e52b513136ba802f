"""The one noun of the framework: a denoiser D(x, sigma) = E[x0 | x0 + sigma n = x]."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

# What a model is told: class ids [B], int64, where num_classes is the null class; None is unconditional.
# A model with an attribute cond_shape is told tensors [B, *cond_shape] instead, which its data set yields and
# its network takes; everything between passes them on untouched.
Cond = Tensor | None

Denoise = Callable[
    ..., Tensor
]  # (x, sigma, cond=None) -> E[x0 | x]: all that a sampler's step or an objective calls


class Denoiser(Protocol):
    """The posterior mean of clean data given x = x0 + sigma n, n ~ N(0, I), learned or closed form."""

    shape: tuple[int, ...]  # of one sample
    sigma_min: float  # the range it is good for; samplers clamp their grids to it
    sigma_max: float
    num_classes: int  # 0 = unconditional

    def __call__(self, x: Tensor, sigma: Tensor, cond: Cond = None) -> Tensor:
        """E[x0 | x] for x [B, *shape] and sigma [] or [B]; the shape of x, at least float32."""
        ...


def expand(sigma: Tensor, x: Tensor) -> Tensor:
    """sigma [] or [B] as a view that broadcasts against x [B, ...]."""
    return sigma.reshape(-1, *(1,) * (x.ndim - 1))


def score(denoiser: Denoise, x: Tensor, sigma: Tensor, cond: Cond = None) -> Tensor:
    """grad log p(x; sigma) = (D(x; sigma) - x) / sigma^2, [B, *shape] (Tweedie's formula)."""
    return (denoiser(x, sigma, cond) - x) / expand(sigma, x) ** 2


def as_sigma(value: float | Tensor, x: Tensor) -> Tensor:
    """A noise level as a float32 (float64 for float64 x) tensor on the device of x, ready for a denoiser."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return torch.as_tensor(value, dtype=dtype, device=x.device)


def is_traced(x: Tensor) -> bool:
    """Whether what is computed of x will be differentiated."""
    return torch.is_grad_enabled() and x.requires_grad
