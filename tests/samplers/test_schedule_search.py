"""Laws of the search of short schedules: it finds the best, draws without repetition, and is repeatable."""

from itertools import product
from math import log

import pytest
import torch

from scoregen.rng import generator
from scoregen.samplers.schedule_search import search_schedule

TARGET = (2e-6, 3e-4, 5e-2)


def distance(betas: tuple[float, ...]) -> float:
    return sum(log(a / b) ** 2 for a, b in zip(betas, TARGET, strict=True))


def test_with_trials_for_all_it_finds_the_best_of_all() -> None:
    mantissas = (1.0, 2.0, 4.0, 7.0)
    powers = [10 ** float(e) for e in torch.linspace(-6, -1, 3, dtype=torch.float64)]
    every = [tuple(m * p for m, p in zip(ms, powers, strict=True)) for ms in product(mantissas, repeat=3)]
    best, score = search_schedule(distance, 3, trials=64, rng=generator("all"), mantissas=mantissas)
    assert best == pytest.approx(min(every, key=distance))
    assert score == distance(best)


def test_schedules_are_increasing_tried_once_and_the_same_for_a_seed() -> None:
    def tried(seed: int) -> list[tuple[float, ...]]:
        seen: list[tuple[float, ...]] = []

        def score(betas: tuple[float, ...]) -> float:
            seen.append(betas)
            return 0.0

        search_schedule(score, 12, trials=50, rng=generator("s", seed))
        return seen

    first = tried(0)
    assert len(set(first)) == 50
    assert all(betas == tuple(sorted(set(betas))) and betas[-1] < 1 for betas in first)
    assert tried(0) == first
    assert tried(1) != first
