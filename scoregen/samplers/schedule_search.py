"""Search of short noise schedules, as WaveGrad's of 6 steps was found."""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice, pairwise

import torch
from torch import Tensor

from scoregen.ranges import PositiveInt

Score = Callable[[tuple[float, ...]], float]  # of a schedule beta_1, ..., beta_N; lower is better


def schedules(steps: PositiveInt, mantissas: Sequence[float], order: Tensor) -> Iterator[tuple[float, ...]]:
    """Increasing schedules beta_n = m_n 10^(e_n), m_n among the mantissas, e_n equally spaced in [-6, -1].

    `order` are indices of the len(mantissas)^steps choices, read as numbers whose digits choose the m_n.
    """
    powers = (10 ** torch.linspace(-6, -1, steps, dtype=torch.float64)).tolist()
    for index in order.tolist():
        digits = [index // len(mantissas) ** n % len(mantissas) for n in range(steps)]
        betas = tuple(mantissas[digit] * power for digit, power in zip(digits, powers, strict=True))
        if all(a < b for a, b in pairwise(betas)) and betas[-1] < 1:
            yield betas


def search_schedule(
    score: Score,
    steps: PositiveInt,
    *,
    trials: PositiveInt,
    rng: torch.Generator,
    mantissas: Sequence[float] = (1, 2, 3, 4, 5, 6, 7, 8, 9),
) -> tuple[tuple[float, ...], float]:
    """The best of `trials` schedules, drawn without repetition, and its score; of all, where they are fewer.

    After two implementations of Chen et al., WaveGrad, 2020, arXiv 2009.00713: one tries all choices of
    three mantissas that it draws, the other a share of those of the nine digits, as here.
    """
    total = len(mantissas) ** steps
    # Of more choices than a permutation can hold, draws repeat too rarely to matter.
    order = (
        torch.randperm(total, generator=rng)
        if total <= 10**7
        else torch.randint(total, (100 * trials,), generator=rng)
    )
    tried = ((betas, score(betas)) for betas in islice(schedules(steps, mantissas, order), trials))
    return min(tried, key=lambda pair: pair[1])
