"""What a step costs, counted in floating-point operations: no network runs that need not, and no gradient of
frozen weights is formed."""

from collections.abc import Callable

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from scoregen.training.trainer import Trainer

# Forwards of one network an image: a backward is 2, or 1 where the weights are frozen.
UNITS = {
    "diff_instruct": 9.0,  # fake step: student 1, fake 3; student step: student 3, teacher 1, fake 1
    "sid": 11.0,  # teacher and fake are passed through: 1 more each
    "sim": 11.0,
    "disback": 9.0,
    "smm": 14.0,  # student 1, network 3 on real and on generated; student 3, network 2 on each of two draws
    "ect": 4.0,  # student 3, target 1
}


def count(work: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


@pytest.mark.parametrize("method", UNITS)
def test_a_step_costs_the_forwards_that_the_method_needs(distil: Callable[..., Trainer], method: str) -> None:
    trainer = distil(method, "distiller.backtracking.record=1" if method == "disback" else "seed=0")
    trainer.train_step()
    if method == "disback":
        trainer.method.targets.index.fill_(0)
    x, sigma = torch.zeros(8, *trainer.denoiser.shape), torch.ones(8)
    with torch.no_grad():
        forward = count(lambda: trainer.denoiser(x, sigma, torch.zeros(8, dtype=torch.long)))
    assert count(trainer.train_step) / forward == pytest.approx(UNITS[method], rel=0.1)


def test_checkpointing_runs_teacher_and_fake_score_once_more(distil: Callable[..., Trainer]) -> None:
    costs = []
    for flag in ("false", "true"):
        trainer = distil("sim", f"distiller.checkpointing={flag}", run=flag)
        costs.append(count(trainer.train_step))
    assert costs[1] / costs[0] == pytest.approx(13 / 11, rel=0.03)
