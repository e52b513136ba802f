"""Laws of the loop with several networks: exact resume, freezing, rhythms, averages."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scoregen.cli.source import load_source
from scoregen.data.base import to_model_range
from scoregen.data.digits import load_digits
from scoregen.denoisers.empirical import EmpiricalDenoiser
from scoregen.denoisers.training_set import TrainingSetDenoiser
from scoregen.distillers import DISTILLERS
from scoregen.distillers.base import Rhythm
from scoregen.errors import UserError
from scoregen.export.diffusers import export
from scoregen.model import find_model
from scoregen.rng import SampleRng
from scoregen.training.trainer import Trainer
from tests.distillers.conftest import NETWORK, build_run
from tests.training.test_trainer import assert_same, states

Distil = Callable[..., Trainer]


@pytest.mark.parametrize("method", DISTILLERS)
def test_two_halves_equal_the_whole(distil: Distil, method: str) -> None:
    whole, half = distil(method, run="whole"), distil(method, "trainer.total=40", run="halves")
    assert whole.run()
    assert half.run()
    half.close()
    second = distil(method, run="halves")
    assert second.nimg == 40
    assert second.run()
    ours, theirs = states(whole), states(second)
    assert_same(ours["weights"], theirs["weights"])
    assert_same(ours["training"], theirs["training"])
    assert ours["log"] == theirs["log"]


@pytest.mark.parametrize("method", DISTILLERS)
def test_micro_batches_change_only_the_order_of_sums(distil: Distil, method: str) -> None:
    logs = []
    for micro in ("null", "4"):
        trainer = distil(method, f"trainer.microbatch={micro}", run=micro)
        for _ in range(3):  # in the third, the student moves again where it waits, and the scores differ
            trainer.train_step()
        logs.append(trainer.read_meters())
        trainer.close()
    ours, theirs = logs
    assert {"loss", "grad_norm"} <= ours.keys()
    for name, value in ours.items():
        if isinstance(value, float):
            assert value == pytest.approx(theirs[name], rel=2e-4, abs=1e-6), name


def gradients(module: nn.Module) -> list[Tensor | None]:
    return [p.grad for p in module.parameters()]


@pytest.mark.parametrize("method", DISTILLERS)
def test_a_phase_moves_its_role_alone_and_all_of_it(distil: Distil, method: str) -> None:
    trainer = distil(method, "optimizer.lr=0.01")
    trainer.train_step()  # zero initial layers have moved now
    networks = {name: role.module for name, role in trainer.roles.items()}
    stepped = []
    for name, role in trainer.roles.items():

        def step(*args: Any, name: str = name, inner: Any = role.apply, **kwargs: Any) -> Tensor:
            for other, module in networks.items():
                given = [p.grad is not None for p in module.parameters()]
                assert not any(given) or other == name
            learning = [p for p in networks[name].parameters() if p.requires_grad]
            assert learning
            assert all(p.grad is not None and p.grad.abs().sum() >= 0 for p in learning)
            stepped.append(name)
            return inner(*args, **kwargs)

        role.apply = step  # type: ignore[method-assign]
    for _ in range(5):
        trainer.train_step()
    assert set(stepped) == set(networks)
    teacher = trainer.method.networks.teacher
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())


@pytest.mark.parametrize("method", DISTILLERS)
def test_freezing_costs_the_moving_role_no_gradient(distil: Distil, method: str) -> None:
    """The gradient of each role is the one that it has when nothing at all is frozen."""
    trainer = distil(method, "optimizer.lr=0.01")
    trainer.train_step()
    pieces = trainer._micro_batches()
    for step in (0, 1):
        for phase in trainer.method.phases(step, trainer.nimg):
            role = trainer.roles[phase.role]
            found = []
            for frozen in (True, False):
                for name, other in trainer.roles.items():
                    other.activate(name == phase.role)
                    for p in other.parameters:
                        p.requires_grad_(not frozen or name == phase.role)
                loss = phase.loss(pieces[0]).value.sum()
                found.append(torch.autograd.grad(loss, role.parameters))
            for ours, theirs in zip(*found, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)


def test_rhythms() -> None:
    def order(rhythm: Rhythm) -> list[str]:
        return ["".join(rhythm(step, "s", ["f", "c"])) for step in range(4)]  # type: ignore[arg-type]

    assert order(Rhythm()) == ["fcs"] * 4
    assert order(Rhythm(every=2)) == ["fcs", "fc", "fcs", "fc"]
    assert order(Rhythm(every=2, shared=True)) == ["sfc", "fc", "sfc", "fc"]
    assert order(Rhythm(every=2, exclusive=True)) == ["s", "fc", "s", "fc"]


@pytest.mark.parametrize("shared", [True, False])
def test_samples_are_shared_or_fresh_as_asked(distil: Distil, shared: bool) -> None:
    trainer = distil("diff_instruct", f"distiller.rhythm.shared={str(shared).lower()}")
    (batch,) = trainer._micro_batches()
    drawn = trainer.method.draw(batch)
    others = trainer.method.samples(batch)
    assert drawn.requires_grad
    assert not others.requires_grad
    assert torch.equal(drawn, others) == shared
    assert trainer.method.samples(batch) is others


def test_the_average_halves_its_distance_in_a_half_life_of_images_at_any_rhythm(distil: Distil) -> None:
    for every in (1, 4):
        options = ["optimizer.lr=0.0", "ema.half_life=64", "ema.ramp=null", f"distiller.rhythm.every={every}"]
        trainer = distil("diff_instruct", *options, run=str(every))
        for p in trainer.denoiser.parameters():
            p.data += 1.0
        before = [v.clone() for v in trainer.ema.tracks()["ema"].values()]
        while trainer.averaged_to < 64 + 8:
            trainer.train_step()
        share = 0.5 ** (trainer.averaged_to / 64)
        ours = list(trainer.ema.tracks()["ema"].values())
        for a, b, p in zip(ours, before, trainer.denoiser.parameters(), strict=True):
            torch.testing.assert_close(a, torch.lerp(p.detach(), b, share))


@pytest.mark.parametrize("precond", ["edm", "vp"])
def test_a_student_starts_as_its_teacher_at_the_level_it_is_sampled_from(
    distil: Distil, tmp_path: Path, precond: str
) -> None:
    """Also where the preconditioner has a highest level of its own that cannot be set."""
    options = [*NETWORK, f"precond={precond}", "objective=denoising_vp", "trainer.total=16"]
    taught = build_run(*options, f"run_dir={tmp_path / precond}")
    taught.run()
    taught.close()
    trainer = distil("sim", f"teacher={tmp_path / precond}")
    student, teacher = trainer.denoiser, trainer.method.networks.teacher
    noise = SampleRng(range(4)).randn(*student.shape)
    drawn = trainer.sampler(student.eval(), noise, torch.arange(4))
    expected = teacher(2.5 * noise, torch.full((4,), 2.5), torch.arange(4))
    torch.testing.assert_close(drawn, expected, rtol=1e-5, atol=1e-6)
    assert student.sigma_max == 2.5
    trainer.save()
    stored = find_model(trainer.run_dir)
    assert stored is not None
    assert stored.load().sigma_max == 2.5
    export(load_source(trainer.run_dir, torch.device("cpu")), tmp_path / "exported")
    exported = json.loads((tmp_path / "exported/denoiser/config.json").read_text())
    assert exported["sampler"]["grid"]["sigma_max"] == 2.5


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_scores_of_equal_networks_differ_by_nothing_and_are_compared_in_float32(
    distil: Distil, precision: str
) -> None:
    trainer = distil("sid", f"teacher_precision={precision}", "optimizer.lr=0.01")
    (batch,) = trainer._micro_batches()
    networks = trainer.method.networks
    assert trainer.method.draw(batch).dtype == torch.float32
    x, sigma = torch.randn(8, 1, 8, 8), torch.rand(8)
    assert networks.teacher(x, sigma, batch.cond).dtype == torch.float32
    loss = trainer.method.student_loss(batch)
    assert loss.logs["difference"].abs().max() == 0
    trainer.train_step()
    assert trainer.method.student_loss(batch).logs["difference"].min() > 0


def test_methods_without_data_read_none(distil: Distil, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise UserError("no data here")

    monkeypatch.setattr("scoregen.build.build_data", missing)
    trainer = distil("sim", "trainer.total=16")
    labels = trainer.stream.batch(0, 4000).label
    assert labels.bincount().min() > 300
    assert len(labels.unique()) == 10
    assert trainer.run()
    with pytest.raises(UserError, match="no data here"):
        distil("dmd2", run="b")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["teacher=null"], "needs a teacher: give teacher=RUN"),
        (["teacher=nowhere"], "teacher=nowhere: no such run folder or weights file, and no closed form"),
        (["teacher=mixture"], "teacher=mixture is the exact law of data=mixture"),
        (["data=mnist"], "was trained on scoregen.data.digits.load_digits"),
        (["augment=edm"], "was not trained with this `augment`"),
        (["precision=fp16"], "precision=fp16: distillation diverges"),
        (["teacher_precision=fp16"], "one of fp32, bf16 is expected"),
        (["hooks.heldout.every=64"], "hooks.heldout is for denoisers"),
        (["distiller.loss.distance.c=0.0"], "c=0 must be more than 0"),
    ],
)
def test_each_mistake_is_told_before_any_training(distil: Distil, options: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        distil("sim", *options)


def test_taps_that_do_not_exist_are_refused(distil: Distil) -> None:
    with pytest.raises(UserError, match=r"taps=\['7x7'\].*allowed: 8x8, 4x4"):
        distil("f_distill", "distiller.taps=[7x7]")


def test_a_teacher_that_does_not_know_the_levels_is_refused(distil: Distil, tmp_path: Path) -> None:
    options = [*NETWORK, "precond=vp", "objective=denoising_vp", "trainer.total=16"]
    vp = build_run(*options, f"run_dir={tmp_path / 'vp'}")
    vp.run()
    vp.close()
    with pytest.raises(UserError, match=r"distiller.sigma_init=500: the teacher is good for noise levels"):
        distil("sim", f"teacher={tmp_path / 'vp'}", "distiller.sigma_init=500.0")


def test_other_classes_than_the_teachers_are_refused(distil: Distil) -> None:
    with pytest.raises(UserError, match=r"10 classes, digits has shape .* and 0 classes"):
        distil("dmd2", "data.conditional=false")


def test_another_teacher_at_the_same_place_is_not_resumed(distil: Distil, tmp_path: Path) -> None:
    for seed in (0, 1):
        where = f"run_dir={tmp_path / f'teacher{seed}'}"
        teacher = build_run(*NETWORK, f"seed={seed}", where, "trainer.total=16")
        teacher.run()
        teacher.close()
    first = distil("sim", f"teacher={tmp_path / 'teacher0'}", "trainer.total=16")
    first.run()
    first.close()
    with pytest.raises(UserError, match="trained with other teacher than now"):
        distil("sim", f"teacher={tmp_path / 'teacher1'}")


@pytest.mark.parametrize("closed_form", ["gaussian", "training_set"])
def test_a_closed_form_teaches(distil: Distil, closed_form: str) -> None:
    trainer = distil("sim", f"teacher={closed_form}", "trainer.total=16")
    assert trainer.run()
    assert trainer.denoiser.num_classes == 10


def test_the_training_set_as_a_teacher_is_the_empirical_denoiser_with_a_gradient() -> None:
    data = load_digits()
    x0, labels = to_model_range(data.x), data.label
    exact, ours = EmpiricalDenoiser(data.x, labels), TrainingSetDenoiser(x0, labels)
    rng = SampleRng(range(12))
    for sigma in (0.01, 0.3, 2.0, 20.0):
        x, cond = x0[:12] + sigma * rng.randn_like(x0[:12]), torch.arange(12) % 11
        level = torch.tensor(sigma)
        torch.testing.assert_close(ours(x, level, cond), exact(x, level, cond), rtol=0, atol=5e-5)
    few = TrainingSetDenoiser(x0[:5])
    point = x0[5:6].double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: few(x, torch.tensor(2.0)), point)


def test_a_closed_form_of_the_data_does_not_teach_a_student_of_logarithms(distil: Distil) -> None:
    with pytest.raises(UserError, match=r"teacher=gaussian is of the data as they are.*LogCodec"):
        distil("sim", "teacher=gaussian", "precond=log")


def test_a_model_of_sound_is_not_distilled(tmp_path: Path) -> None:
    tiny = ["network.up_channels=[4,4,4,4]", "network.mel_channels=4", "network.down_channels=[4,4,4,4]"]
    sound = build_run("experiment=wavegrad_toy", "data.length=512", *tiny, f"run_dir={tmp_path / 'sound'}")
    sound.save()
    sound.close()
    where = [f"teacher={tmp_path / 'sound'}", f"run_dir={tmp_path / 'student'}"]
    with pytest.raises(UserError, match="told a class or nothing"):
        build_run("experiment=digits_sim", "data=speech", *where)


def test_grids_of_a_student_that_needs_no_data_read_none(
    distil: Distil, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("data were read")

    monkeypatch.setattr("scoregen.build.build_data", refuse)
    trainer = distil("sim", "hooks.grid.every=8", "hooks.grid.count=2", "trainer.total=8")
    assert trainer.run()
    assert (trainer.run_dir / "samples/000000000008.png").exists()
