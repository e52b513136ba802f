"""The one noun of the framework: a denoiser D(x, sigma) = E[x0 | x0 + sigma n = x]."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from scoregen.rng import Rng

# What a model is told: class ids [B], int64, where num_classes is the null class; None is unconditional.
# A model with an attribute cond_shape is told tensors [B, *cond_shape] instead, which its data set yields and
# its network takes; everything between passes them on untouched.
Cond = Tensor | None

Denoise = Callable[
    ..., Tensor
]  # (x, sigma, cond=None) -> E[x0 | x]: all that a sampler's step or an objective calls


SIGMA_TINY = 1e-12  # below it closed forms are their limit


class Denoiser(Protocol):
    """The posterior mean of clean data given x = x0 + sigma n, n ~ N(0, I), learned or closed form.

    It is asked at sigma > 0; where sigma_min is 0, closed forms give the limit at 0, networks need not.
    """

    shape: tuple[int, ...]  # of one sample
    sigma_min: float  # the range it is good for; samplers clamp their grids to it
    sigma_max: float
    num_classes: int  # 0 = unconditional

    def __call__(self, x: Tensor, sigma: Tensor, cond: Cond = None) -> Tensor:
        """E[x0 | x] for x [B, *shape] and sigma [] or [B]; the shape of x, at least float32."""
        ...


def denoiser_for_step(denoiser: Denoiser, sigma: float) -> Denoiser:
    """The denoiser for all evaluations of the step that starts at noise level sigma.

    A denoiser that varies with the noise level by more than its argument, such as guidance on an interval,
    has a method `for_step(sigma) -> Denoiser`; a sampler asks it once at the start of each step, because a
    change between two evaluations of one step would cost the step its order.
    """
    choose: Callable[[float], Denoiser] | None = getattr(denoiser, "for_step", None)
    return denoiser if choose is None else choose(sigma)


def denoiser_for_trajectory(denoiser: Denoiser, rng: Rng | None) -> Denoiser:
    """The denoiser for a batch of whole trajectories, the rows of the rng.

    A denoiser that is random, such as an estimate over the training set, has a method
    `for_trajectory(rng) -> Denoiser`; a sampler asks it once, so that each sample has random numbers of its
    own and its solver sees one smooth field.
    """
    settle: Callable[[Rng], Denoiser] | None = getattr(denoiser, "for_trajectory", None)
    return denoiser if rng is None or settle is None else settle(rng)


def settled_rows(settled: Tensor, count: int) -> Tensor:
    """The random numbers [1 or B, ...] of some trajectories for a call of `count` rows: [count, ...].

    Row i is of trajectory i mod B: a call may stack a batch upon itself, as classifier-free guidance does.
    """
    if len(settled) in (1, count):
        return settled.expand(count, *settled.shape[1:])
    return settled[torch.arange(count, device=settled.device) % len(settled)]


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
