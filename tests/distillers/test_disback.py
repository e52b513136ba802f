"""Laws of backtracking: what is recorded, which target is when, and when the next one comes."""

from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load_file, save_file

from scoregen.distillers.disback import Backtracking, Targets
from scoregen.errors import UserError
from scoregen.training.trainer import Trainer
from tests.training.test_trainer import assert_same

Distil = Callable[..., Trainer]


def test_every_target_but_the_end_of_the_way_is_recorded_once() -> None:
    for record, batch in ((640, 64), (100, 64), (50, 64), (640, 7)):
        plan = Backtracking(record=record, targets=5)
        steps = range(0, record + 3 * batch, batch)
        recorded = [k for nimg in steps for k in plan.recorded(nimg, batch)]
        assert recorded == [1, 2, 3, 4]


def test_the_targets_go_backwards_and_end_at_the_teacher_itself(distil: Distil) -> None:
    trainer = distil("disback", "optimizer.lr=0.01")
    method = trainer.method
    indices, states = [], {}
    while trainer.nimg < 24:
        assert [phase.role for phase in method.phases(0, trainer.nimg)] == ["fake"]
        before = {name: value.clone() for name, value in trainer.denoiser.state_dict().items()}
        trainer.train_step()
        states[trainer.nimg] = {k: v.clone() for k, v in method.networks.fake.denoiser.state_dict().items()}
        assert_same(before, trainer.denoiser.state_dict())  # the student waits
    while trainer.nimg < 80:
        trainer.train_step()
        indices.append(int(method.targets.index))
        if indices[-1]:
            held = dict(method.teacher.state_dict())
            assert_same(held, states[8 * indices[-1]])  # bit for bit the fake score of then
    assert indices == [2, 2, 1, 1, 0, 0, 0]
    assert method.teacher is method.networks.teacher


def test_the_student_is_not_drawn_to_its_own_fake_score(distil: Distil) -> None:
    trainer = distil("disback", "optimizer.lr=0.01")
    while trainer.nimg < 24:
        trainer.train_step()
    method, (batch,) = trainer.method, trainer._micro_batches()
    fake = method.networks.fake.denoiser
    loss = method.loss(fake, fake, method.draw(batch), batch.cond, batch.rng())
    assert loss.value.abs().max() == 0  # so the end of the way is no target
    assert method.student_loss(batch).value.abs().max() > 0


def test_the_adaptive_rule_waits_for_half_the_difference() -> None:
    targets = Targets(None, torch.nn.Linear(1, 1), None, first=3)  # type: ignore[arg-type]
    seen = []
    for difference in (8.0, 6.0, 4.0, 2.0, 1.0, 1.0, 9.0, 4.0, 4.0, 4.0):
        targets.look(difference, threshold=0.5)
        seen.append(int(targets.index))
    # Running means 8, 7, 5.5, 3.75: a switch at the fourth look. Then 1, 1, 5, 4.5, ...: none.
    assert seen == [3, 3, 3, 2, 2, 2, 2, 2, 2, 2]


def test_a_target_of_another_network_is_refused(distil: Distil) -> None:
    trainer = distil("disback")
    while trainer.nimg < 24:
        trainer.train_step()
    path = trainer.method.targets.path(2)
    save_file({f"fake_unet.{key}": value for key, value in load_file(path).items()}, path)
    with pytest.raises(UserError, match=r"do not fit this network"):
        trainer.train_step()


def test_a_closed_form_does_not_degrade(distil: Distil) -> None:
    with pytest.raises(UserError, match="give a trained model, not a closed form"):
        distil("disback", "teacher=gaussian")


@pytest.mark.parametrize("batch", [1, 7, 8, 16, 24, 40])
def test_a_way_too_short_for_its_targets_is_refused(batch: int) -> None:
    """Else the first target that the student is led to would not have been recorded."""
    plan = Backtracking(record=40, targets=5)
    seen = [k for nimg in range(0, plan.record, batch) for k in plan.recorded(nimg, batch)]
    if seen == [1, 2, 3, 4]:
        plan.check(batch)
    else:
        with pytest.raises(UserError, match=f"take at least {5 * batch}"):
            plan.check(batch)
    Backtracking(record=5 * batch, targets=5).check(batch)
