"""Whole distillations of a Gaussian in 16 dimensions end at the data, of score mismatching beside it."""

from collections.abc import Callable

import pytest
import torch

from benchmarks.distiller_fixed_points import INNER, METHODS, Mixture, by_mismatch, by_scores, distil
from scoregen.diffusion.noise import LevelsSigma
from scoregen.distillers.generator import SampleWeight
from scoregen.distillers.score_divergence import DiffInstructLoss

MU, S = 0.7, 0.5
STARTS = [(1.2, -0.4), (0.15, 0.2)]
RULES = {
    **{name: rule for name, rule in METHODS.items() if name != "score mismatching"},
    "DMD": by_scores(DiffInstructLoss(INNER, SampleWeight())),
}
FAST = (
    "Diff-Instruct",
    "SiD, alpha = 1",
    "SIM, pseudo-Huber",
    "f-distill, jensen_shannon",
    "MeanFlow from a teacher",
)


def gaussian(a: float, b: float, dimensions: int = 16) -> Mixture:
    """N(b, a^2) in every direction."""
    return Mixture(torch.full((1, dimensions), b), torch.tensor([a]))


def end(rule: Callable, start: tuple[float, float], iterations: int) -> tuple[float, float]:
    """The scale, and the distance of the mean over all directions from the data's.

    The reference has one mean for all directions. Here each has its own, among which pseudo-Huber wanders.
    """
    student = distil(rule, gaussian(S, MU), gaussian(*start), iterations=iterations)
    return float(student.scales.detach().abs()), float((student.means.detach() - MU).mean().abs())


@pytest.mark.parametrize("name", FAST)
def test_a_near_start_ends_at_the_data(name: str) -> None:
    a, off = end(RULES[name], STARTS[1], 400)
    assert a == pytest.approx(S, abs=0.03)
    assert off < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("name", RULES)
def test_every_method_ends_at_the_data_from_both_starts(name: str, start: tuple[float, float]) -> None:
    a, off = end(RULES[name], start, 3000)
    assert a == pytest.approx(S, abs=0.02)
    assert off < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize(("sigma", "ratio"), [(0.1, 0.712), (0.3103, 0.586)])
def test_score_mismatching_ends_at_its_biased_equilibrium(
    sigma: float, ratio: float, start: tuple[float, float]
) -> None:
    student = distil(
        by_mismatch(LevelsSigma((sigma,))), gaussian(S, MU, 1), gaussian(*start, 1), iterations=3000
    )
    assert float(student.scales.detach().abs()) == pytest.approx(ratio * S, abs=0.02)
    assert float(student.means.detach()) == pytest.approx(MU, abs=0.02)
