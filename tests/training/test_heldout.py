"""Laws of the held-out loss: which levels improve, when to stop, and who memorises."""

from math import exp
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from scoregen.data.base import ArrayDataset
from scoregen.denoisers.base import Denoise
from scoregen.denoisers.empirical import EmpiricalDenoiser
from scoregen.denoisers.gaussian import GaussianDenoiser
from scoregen.parallel import Parallel
from scoregen.rng import generator
from scoregen.training.hooks.heldout import HeldoutHook, is_memorised

LEVELS = {"levels": 3, "sigma_min": 0.2, "sigma_max": 2.0}  # .2, .632, 2
COUNT = 64


def data(key: str) -> ArrayDataset:
    """64 points of N(0, I_8)."""
    return ArrayDataset(key, torch.randn(COUNT, 8, generator=generator(key)))


class Run:
    """What the hook needs of a trainer, with a denoiser of our choice."""

    def __init__(self, denoiser: Denoise) -> None:
        self.denoiser, self.rows, self.nimg, self.heldout_loss = denoiser, [], 0, None
        self.parallel, self.heldout = Parallel("cpu"), data("others")
        self.stream = SimpleNamespace(dataset=data("train"))
        self.log = self.rows.append

    def averaged_denoiser(self) -> "Run":
        return self

    def __enter__(self) -> Denoise:
        return self.denoiser

    def __exit__(self, *_: object) -> None: ...


def levels(row: dict[str, Any], key: str) -> list[float]:
    """The values of one key, by noise level."""
    return list(row[f"heldout_{key}_by_sigma"].values())


def test_the_memorising_denoiser_is_told_from_the_one_of_the_population(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of 64 points of N(0, I_8) at sigma .2: training loss .002, held-out 13.4, where the floor is 1."""
    hook = HeldoutHook(images=COUNT, draws=16, sigma_data=1.0, **LEVELS)
    run = Run(EmpiricalDenoiser(data("train").x))
    hook(run)
    row = run.rows[0]
    assert list(row["heldout_loss_by_sigma"]) == ["0_0.2", "1_0.632", "2_2"]
    gap, loss = levels(row, "gap"), levels(row, "loss")
    assert loss[0] == pytest.approx(13.36, rel=0.15)
    assert loss[0] - gap[0] == pytest.approx(0.002, abs=0.01)
    assert loss[2] - gap[2] == pytest.approx(0.938, rel=0.1)
    assert levels(row, "memorised") == [True, True, False]
    assert "memorises at sigma 0.2, 0.63" in capsys.readouterr().out
    run.denoiser = GaussianDenoiser(torch.zeros(8), torch.tensor(1.0))
    hook(run)
    assert levels(run.rows[1], "memorised") == [False, False, False]
    assert levels(run.rows[1], "loss") == pytest.approx([1.0] * 3, rel=0.1)
    assert levels(run.rows[1], "stale")[:2] == [0, 0]
    assert "memorises" not in capsys.readouterr().out


def test_the_floor_is_the_lowest_held_out_loss_so_far() -> None:
    """After the population's denoiser neither memory with its own bad held-out loss goes unnoticed, nor is a
    gap to a training loss over the floor taken for it.
    """
    hook = HeldoutHook(images=COUNT, draws=4, sigma_data=1.0, **LEVELS)
    run, empirical = (
        Run(GaussianDenoiser(torch.zeros(8), torch.tensor(1.0))),
        EmpiricalDenoiser(data("train").x),
    )
    hook(run)
    run.denoiser = empirical
    hook(run)
    assert levels(run.rows[1], "memorised")[:2] == [True, True]
    assert levels(run.rows[1], "stale") == [1, 1, 1]
    assert not run.rows[1]["heldout_improved"]
    run.denoiser = lambda x, sigma, cond: empirical(x, sigma) + 0.24  # at .2, training loss 1.5, held-out 15
    hook(run)
    assert levels(run.rows[2], "gap")[0] > 10
    assert not levels(run.rows[2], "memorised")[0]


def test_chance_is_not_taken_for_memory() -> None:
    draws = torch.rand(2, 100, 2000, generator=generator("chance"), dtype=torch.float64).log().neg()
    assert float(is_memorised(*draws).double().mean()) < 0.004
    assert float(is_memorised(draws[0] - 1, draws[1]).double().mean()) > 0.99


@pytest.mark.filterwarnings("error")
def test_one_image_is_judged_by_the_sign_of_its_gain_and_tells_nothing_of_memory() -> None:
    assert not is_memorised(torch.zeros(9, 3), torch.ones(1, 3)).any()
    hook = HeldoutHook(images=1, **LEVELS)
    for loss in (3.0, 2.0, 2.5):
        hook._judge(torch.full((1, 3), loss, dtype=torch.float64))
        assert hook._stale.tolist() == [int(loss == 2.5)] * 4


def overfitting(step: int, eigenvalue: float, noise: Tensor) -> Tensor:
    """Squared error after gradient descent to time `step` on a feature of signal 1 and one of noise alone.

    Kernel regression learns the direction of eigenvalue 1 at once and then fits the noise of a direction of a
    small eigenvalue, at time 1 / eigenvalue: the held-out curve falls and rises again.
    """
    signal, fitted = exp(-step), 1 - exp(-eigenvalue * step)
    return signal**2 + (fitted * noise).square()


def test_each_level_counts_from_the_bottom_of_its_own_curve() -> None:
    """The noisier level (a smaller sigma) overfits first; patience waits for the mean of all."""
    hook = HeldoutHook(images=200, patience=4, **LEVELS)
    noise = 3 * torch.randn(200, generator=generator("noise"), dtype=torch.float64)
    eigenvalues, stopped = (0.1, 0.01, 0.0), 0
    curves = torch.stack(
        [torch.stack([overfitting(t, value, noise) for value in eigenvalues], 1) for t in range(9)]
    )
    for losses in curves:
        hook._judge(losses)
        if hook.stop_reason is None:
            stopped += 1
    lowest = curves.mean(1).argmin(0)
    assert 0 < lowest[0] < lowest[1] < lowest[2] == 8
    assert hook._stale[:2].tolist() == (8 - lowest[:2]).tolist()
    assert stopped == curves.mean((1, 2)).argmin() + 4
    again = HeldoutHook(images=200, patience=4, **LEVELS)
    again.load(hook.state())
    assert again.state() == hook.state()
