"""Laws of the loop: exact resume, invariance to micro-batches, and steps that are not finite."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from scoregen.errors import UserError
from scoregen.objectives.base import Loss
from scoregen.training.trainer import Trainer

Build = Callable[..., Trainer]

RESUMED = [
    [],
    ["trainer.microbatch=4"],
    ["network.dropout=0.3", "augment=edm", "trainer.label_dropout=0.5"],
    [
        "objective=denoising_uncertainty",
        "ema=power",
        "schedule=cosine",
        "schedule.total=128",
        "trainer.clip=0.1",
    ],
    ["precond=vp", "objective=denoising_vp", "optimizer=adamw"],
    ["hooks.heldout.every=32", "hooks.heldout.images=4", "hooks.heldout.levels=3"],
    ["data=moons", "network=mlp"],
    # Neither the half nor the end falls on an interval, and no hook saves.
    ["hooks.status.every=48", "hooks.heldout.every=80", "hooks.heldout.images=4", "hooks.checkpoint=null"],
]


def states(trainer: Trainer) -> dict[str, Any]:
    """Everything that a run is at its end, from its last checkpoint's files and its log."""
    last = max((trainer.run_dir / "checkpoints").iterdir())
    weights = {file.name: load_file(file) for file in last.glob("*.safetensors")}
    training = torch.load(last / "optimizer.pt", weights_only=True)
    rows = [json.loads(line) for line in (trainer.run_dir / "log.jsonl").read_text().splitlines()]
    return {"weights": weights, "training": training, "log": [{**row, "time": None} for row in rows]}


def assert_same(a: Any, b: Any) -> None:
    """Bit for bit."""
    torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("options", RESUMED, ids=lambda options: options[0] if options else "default")
def test_two_halves_equal_the_whole(build: Build, options: list[str]) -> None:
    whole = build(*options, run="whole")
    assert whole.run()
    half = build(*options, "trainer.total=64", run="halves")
    assert half.run()
    half.close()
    second = build(*options, run="halves")
    assert second.nimg == 64
    assert second.run()
    ours, theirs = states(whole), states(second)
    assert_same(ours["weights"], theirs["weights"])
    assert_same(ours["training"], theirs["training"])
    assert ours["log"] == theirs["log"]


def test_a_stop_signal_saves_and_the_same_run_goes_on(build: Build) -> None:
    whole = build(run="whole")
    whole.run()
    stopped = build(run="stopped")
    step = stopped.train_step

    def step_then_signal() -> None:
        step()
        if stopped.nimg == 48:
            os.kill(os.getpid(), signal.SIGTERM)

    stopped.train_step = step_then_signal  # type: ignore[method-assign]
    assert not stopped.run()
    assert stopped.nimg == 48
    stopped.close()
    resumed = build(run="stopped")
    assert resumed.nimg == 48
    resumed.run()
    assert_same(states(whole)["weights"], states(resumed)["weights"])
    assert states(whole)["log"] == states(resumed)["log"]


@pytest.mark.parametrize("options", [[], ["augment=edm"], ["trainer.label_dropout=0.5"]], ids=str)
def test_micro_batches_change_only_the_order_of_sums(build: Build, options: list[str]) -> None:
    whole, pieces = build(*options, run="whole"), build(*options, "trainer.microbatch=2", run="pieces")
    whole.run()
    pieces.run()
    for ours, theirs in zip(states(whole)["log"], states(pieces)["log"], strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-6)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-5)


def test_a_step_that_is_not_finite_changes_nothing_but_the_count(build: Build) -> None:
    trainer = build("hooks.status.every=null")
    trainer.train_step()
    before = (
        [p.clone() for p in trainer.method.parameters()],
        trainer.ema.tracks(),
        trainer.model.optimizer.state_dict(),
    )
    before = torch.utils._pytree.tree_map_only(torch.Tensor, torch.clone, before)
    objective = trainer.method.objective

    def poisoned(*args: Any) -> Loss:
        loss = objective(*args)
        return Loss(loss.value * torch.tensor([float("nan"), *[1.0] * 15]), loss.sigma)

    trainer.method.objective = poisoned
    trainer.train_step()
    after = list(trainer.method.parameters()), trainer.ema.tracks(), trainer.model.optimizer.state_dict()
    assert_same([p.detach() for p in after[0]], [p.detach() for p in before[0]])
    assert_same(after[1], before[1])
    assert_same(after[2]["state"], before[2]["state"])
    averages = trainer.read_meters()
    assert averages["skipped"] == 1
    assert trainer.model.meters.skipped_in_a_row == 1
    assert sum(averages["bad_by_sigma"]) == 1
    assert averages["loss"] is not None


def test_too_many_skipped_steps_end_the_run_with_their_noise_levels(build: Build) -> None:
    trainer = build("trainer.max_skipped=2")
    objective = trainer.method.objective

    def poisoned(*args: Any) -> Loss:
        loss = objective(*args)
        return Loss(loss.value * torch.where(loss.sigma > 1.0, torch.nan, 1.0), loss.sigma)

    trainer.method.objective = poisoned
    with pytest.raises(UserError, match=r"2 steps in a row.*sigma 1 to 3\.16"):
        trainer.run()


def test_a_damaged_checkpoint_is_passed_over(build: Build, caplog: pytest.LogCaptureFixture) -> None:
    whole = build()
    whole.run()
    whole.close()
    newest = max((whole.run_dir / "checkpoints").iterdir()) / "model.safetensors"
    content = bytearray(newest.read_bytes())
    content[-7] ^= 1
    newest.write_bytes(content)
    again = build()
    assert again.nimg == 64
    assert "model.safetensors" in caplog.text
    again.run()
    assert_same(states(whole)["training"], states(again)["training"])


def test_another_architecture_is_refused_and_nothing_is_written(build: Build) -> None:
    trainer = build()
    trainer.run()
    trainer.close()
    files = {path: path.stat().st_mtime_ns for path in trainer.run_dir.rglob("*")}
    with pytest.raises(UserError, match=r"network\.model_channels: 8 -> 16"):
        build("network.model_channels=16")
    assert {path: path.stat().st_mtime_ns for path in trainer.run_dir.rglob("*")} == files


def test_other_data_are_refused(build: Build, tmp_path: Path) -> None:
    network = ["data=npz", "data.test_fraction=0.0", "network=mlp"]
    for seed in (0, 1):
        np.save(tmp_path / f"{seed}.npy", np.random.default_rng(seed).normal(size=(64, 2)).astype(np.float32))
    trainer = build(*network, f"data.root={tmp_path / '0.npy'}")
    trainer.run()
    trainer.close()
    with pytest.raises(UserError, match="trained with other data than now"):
        build(*network, f"data.root={tmp_path / '1.npy'}")


@pytest.mark.parametrize(
    "path", ["a", "a/checkpoints/000000000128", "a/checkpoints/000000000128/ema.safetensors"]
)
def test_a_run_starts_from_the_averages_of_another(build: Build, tmp_path: Path, path: str) -> None:
    first = build()
    first.run()
    first.close()
    init = ["objective=lcss", "seed=7", f"init={tmp_path / path}"]
    second = build(*init, run="b")
    averages = first.ema.weights()["ema"]
    for name, weight in averages.items():
        assert torch.equal(second.denoiser.state_dict()[name], weight), name
    second.run()
    second.close()
    (tmp_path / "c" / "checkpoints").mkdir(parents=True)  # a run that was killed before its first checkpoint
    third = build(*init, run="c")
    assert all(torch.equal(third.denoiser.state_dict()[name], averages[name]) for name in averages)
    third.close()
    (tmp_path / "a").rename(tmp_path / "gone")
    again = build(*init, run="b")
    assert again.nimg == 128
    again.close()


@pytest.mark.parametrize("mistake", ["optimizer.lr=-1", "network.channel_mult=[1,2,2,2,2,2]"])
def test_a_run_that_is_refused_leaves_no_folder(build: Build, tmp_path: Path, mistake: str) -> None:
    with pytest.raises(UserError):
        build(mistake)
    assert not (tmp_path / "a").exists()


def test_what_cannot_be_started_from_is_refused(build: Build, tmp_path: Path) -> None:
    first = build()
    first.run()
    first.close()
    with pytest.raises(UserError, match="init=nowhere: no such run folder, checkpoint or weights file"):
        build("init=nowhere", run="b")
    with pytest.raises(UserError, match=r"init=.*a"):
        build(f"init={tmp_path / 'a'}", "network.model_channels=16", run="b")
    with pytest.raises(UserError, match="a student starts from its teacher"):
        build(f"init={tmp_path / 'a'}", "experiment=digits_sim", "teacher=gaussian", run="b")


def test_two_trainers_do_not_share_a_run_folder(build: Build) -> None:
    first = build()
    with pytest.raises(UserError, match="another process is training"):
        build()
    first.close()
    build()


def test_held_out_patience_stops_a_run_until_it_is_raised(build: Build) -> None:
    options = [
        "hooks.heldout.every=16",
        "hooks.heldout.images=8",
        "hooks.heldout.patience=2",
        "optimizer.lr=0.0",
    ]
    trainer = build(*options)
    assert trainer.run()
    assert trainer.nimg == 48
    assert "held-out" in (trainer.stop_reason or "")
    trainer.close()
    stopped = build(*options)
    assert stopped.finished
    stopped.close()
    assert not build(*options, "hooks.heldout.patience=null").finished


def test_image_n_of_the_run_is_the_same_for_every_batch_size(build: Build, tmp_path: Path) -> None:
    trainer = build()
    big = trainer.stream.batch(0, 16, slice(None)).x
    small = torch.cat([trainer.stream.batch(n, 4, slice(None)).x for n in range(0, 16, 4)])
    assert_same(big, small)
