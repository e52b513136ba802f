"""DPM-Solver-v3: a multistep solver in variables that make the model's right-hand side nearly constant."""

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from math import ceil, log
from typing import ClassVar, Literal, NamedTuple, Self
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from scoregen.denoisers.base import Cond, Denoiser, denoiser_for_step
from scoregen.errors import UserError
from scoregen.rng import Rng
from scoregen.samplers.base import Sampler, Step, count_usable, level_tensor
from scoregen.samplers.model_statistics import ModelStatistics, estimate_statistics

logger = logging.getLogger(__name__)

_FINEST = 0.02  # of lambda between the nodes of an integral
_ESTIMATED: WeakKeyDictionary[Denoiser, dict[tuple[float, ...], ModelStatistics]] = WeakKeyDictionary()


class _Rule(NamedTuple):
    """x' = decay x - sum_j weights[j] f_j - offset, each [*shape]."""

    decay: Tensor
    weights: list[Tensor]
    offset: Tensor


@dataclass(frozen=True)
class DPMv3Sampler(Sampler):
    """With f = sigma eps - l x and g = e^{-S} f - B, x' = e^{-L'} (x - int e^{L + S} (g + B) dlambda).

    L = int l, S = int s and B = int e^{-S} b start at lambda_i, per coordinate, with the statistics of
    `ModelStatistics`; g, which these make as constant as they can, is the polynomial through its last values.
    l = 1, s = b = 0 is DPM-Solver++; exact statistics solve axis-aligned Gaussian data in one step.
    A step to 0 returns D. The authors' optional corrector is left out.

    Args:
        solver_order: points of the polynomial; the first steps have fewer.
        statistics: these, or a file of `ModelStatistics.save`; None estimates them once for each denoiser, at
            a cost that `nfe` does not count.

    Source: Zheng et al., DPM-Solver-v3: Improved Diffusion ODE Solver with Empirical Model Statistics, 2023,
    arXiv 2310.13268.
    """

    solver_order: Literal[1, 2, 3] = 3
    statistics: ModelStatistics | str | None = None

    order: ClassVar[float | None] = 3.0
    reference: ClassVar[str] = "Zheng et al. 2023, arXiv 2310.13268"

    def nfe(self, steps: int | None = None) -> int:
        """N."""
        return self.steps if steps is None else steps

    def prepared(self, denoiser: Denoiser, x: Tensor) -> Self:
        """The same with the statistics of the denoiser, before it is settled for some trajectories."""
        return replace(self, statistics=self.statistics_of(denoiser, x))

    def integrate(
        self,
        denoiser: Denoiser,
        x: Tensor,
        sigmas: Sequence[float],
        cond: Cond = None,
        rng: Rng | None = None,
    ) -> Iterator[Step]:
        """Step from the state x [B, *shape] at sigmas[0] through the decreasing levels."""
        statistics = self.statistics_of(denoiser, x)
        levels, memory = level_tensor(sigmas, x), deque[Tensor](maxlen=self.solver_order)
        keep, rules = _rules(statistics, tuple(sigmas), self.solver_order, x.dtype, x.device)
        for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
            denoised = denoiser_for_step(denoiser, sigma)(x, levels[i], cond).to(x.dtype)
            memory.appendleft(torch.addcmul(-denoised, keep[i], x))
            if sigma_next == 0:
                x = denoised
            elif sigma_next < sigma:
                decay, weights, offset = rules[i]
                x = torch.addcmul(-offset, decay, x)
                for weight, f in zip(weights, memory, strict=False):
                    x = x.addcmul_(weight, f, value=-1)
            yield Step(i, sigma_next, x, denoised)

    def statistics_of(self, denoiser: Denoiser, x: Tensor) -> ModelStatistics:
        """Those given, or those estimated for the denoiser on the device of x, now or before."""
        found = self.statistics or self._estimated(denoiser, x.device)
        found = _load(found) if isinstance(found, str) else found
        if found.values.shape[2:] != x.shape[1:]:
            raise UserError(
                f"dpm_v3: the statistics are of samples of shape {tuple(found.values.shape[2:])}, "
                f"the model's have shape {tuple(x.shape[1:])}"
            )
        return found

    def _estimated(self, denoiser: Denoiser, device: torch.device) -> ModelStatistics:
        grid = self.grid.within(denoiser.sigma_min, denoiser.sigma_max)
        weights: Iterator[Tensor] = getattr(denoiser, "parameters", lambda: iter(()))()
        key = (grid.sigma_min, grid.sigma_max, sum(weight._version for weight in weights))
        known = _ESTIMATED.setdefault(denoiser, {})
        if key not in known:
            logger.info("dpm_v3: estimating the model's statistics; `statistics=FILE` keeps them for later")
            known.clear()
            known[key] = estimate_statistics(denoiser, grid.sigma_min, grid.sigma_max, device=device)
        return known[key]


def solver_rule(statistics: ModelStatistics, sigmas: Sequence[float], i: int, order: int) -> _Rule:
    """The step from level i to i + 1; where that is 0 or level i itself, the rule is not used and trivial."""
    start, none = -log(sigmas[i]), statistics.values[0, 0]
    if sigmas[i + 1] in (0, sigmas[i]):
        return _Rule(torch.ones_like(none), [], torch.zeros_like(none))
    nodes = [-log(sigmas[i - j]) for j in range(count_usable(sigmas, i, order))]
    at, growth, shift, drift = _integrals(statistics, start, -log(sigmas[i + 1]))
    decay, offset, weights = (-growth[-1]).exp(), torch.zeros_like(none), []
    density = (growth + shift).exp()
    offset = _cumulative(density * drift, at)[-1]
    for j, node in enumerate(nodes):
        basis = torch.ones_like(at)
        for m, other in enumerate(nodes):
            if m != j:
                basis = basis * (at - other) / (node - other)
        weight = _cumulative(density * basis.reshape(-1, *(1,) * none.ndim), at)[-1]
        if j > 0:
            _, _, shift_j, drift_j = _integrals(statistics, start, node)
            offset = offset - weight * drift_j[-1]
            weight = weight * (-shift_j[-1]).exp()
        weights.append(decay * weight)
    return _Rule(decay, weights, decay * offset)


def _integrals(
    statistics: ModelStatistics, start: float, end: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Nodes [m] from start to end and L, S, B [m, *shape] there."""
    count = max(9, ceil(abs(end - start) / _FINEST) + 1)
    at = torch.linspace(start, end, count, dtype=torch.float64)
    slope, s, b = statistics(at)
    shift = _cumulative(s, at)
    return at, _cumulative(slope, at), shift, _cumulative((-shift).exp() * b, at)


def _cumulative(values: Tensor, at: Tensor) -> Tensor:
    """int values [m, ...] from the first of equidistant nodes [m] to each, with an error of fourth order."""
    width = float(at[1] - at[0])
    (slopes,) = torch.gradient(values, spacing=width, dim=0, edge_order=2)
    parts = width / 2 * (values[1:] + values[:-1]) - width**2 / 12 * slopes.diff(dim=0)
    return torch.cat([torch.zeros_like(values[:1]), parts.cumsum(0)])


@lru_cache(maxsize=4)
def _rules(
    statistics: ModelStatistics,
    sigmas: tuple[float, ...],
    order: int,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[Tensor, list[_Rule]]:
    """1 - l at the levels [N, *shape] and the rule of each step: the same for every batch."""
    keep = 1 - statistics(-torch.tensor([s for s in sigmas if s > 0], dtype=torch.float64).log())[0]
    rules = []
    for i in range(len(sigmas) - 1):
        decay, weights, offset = solver_rule(statistics, sigmas, i, order)
        cast = [tensor.to(device, dtype) for tensor in (decay, offset, *weights)]
        rules.append(_Rule(cast[0], cast[2:], cast[1]))
    return keep.to(device, dtype), rules


@lru_cache(maxsize=4)
def _load(path: str) -> ModelStatistics:
    return ModelStatistics.load(path)
