"""A tracker holds each row of the log once, at its number of images, whatever happened to the run."""

import json
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from scoregen.cli.evaluate import main as evaluate
from scoregen.errors import UserError
from scoregen.training.loggers import read_log
from scoregen.training.trackers import BIN_EDGES, TensorBoardLogger, WandbLogger
from scoregen.training.trainer import Trainer
from scoregen.training.weights import provenance

Build = Callable[..., Trainer]
GRID = ["hooks.grid.every=64", "hooks.grid.count=4"]


@pytest.fixture(autouse=True)
def _no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No key, no home with one, and nothing on the terminal."""
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)


def read_wandb(run_dir: Path) -> Iterator[Any]:
    """The records of all parts of an offline run: blocks of 32 KiB with pieces, as in LevelDB's logs."""
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    wandb.teardown()  # the process that writes them may still be busy
    for file in sorted(run_dir.glob("wandb/offline-run-*/*.wandb")):
        content, at, pieces = file.read_bytes(), 7, b""
        while at + 7 <= len(content):
            if (left := 32768 - at % 32768) < 7:
                at += left
                continue
            size, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
            pieces += content[at + 7 : at + 7 + size]
            at += 7 + size
            if kind in (1, 4):  # a whole record, or the last piece of one
                record = Record()
                record.ParseFromString(pieces)
                yield record
                pieces = b""


def history(run_dir: Path) -> list[tuple[int, dict[str, Any]]]:
    """The rows: step and values by name."""
    rows = []
    for record in read_wandb(run_dir):
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            values = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}
            rows.append((record.history.step.num, values))
    return rows


def summary(run_dir: Path) -> dict[str, Any]:
    """The last value of everything."""
    updates = [record.summary.update for record in read_wandb(run_dir)]
    return {item.key: json.loads(item.value_json) for update in updates for item in update if item.key}


def read_events(run_dir: Path) -> Any:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"scalars": 0})
    return events.Reload()


def tensorboard_steps(run_dir: Path, name: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in read_events(run_dir).Scalars(name)]


def wandb_steps(run_dir: Path, name: str) -> list[tuple[int, float]]:
    return [(step, values[name]) for step, values in history(run_dir) if name in values]


STEPS = {"wandb": wandb_steps, "tensorboard": tensorboard_steps}
EVERY_TRACKER = pytest.mark.parametrize("tracker", STEPS)


def killed_at(trainer: Trainer, nimg: int) -> None:
    """Train to `nimg` and leave without saving, closing or flushing anything more."""
    step = trainer.train_step

    def step_or_die() -> None:
        if trainer.nimg == nimg:
            raise KeyboardInterrupt
        step()

    trainer.train_step = step_or_die  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    for logger in trainer.loggers:  # as good as a kill: what the tracker's own process holds still gets out
        run = getattr(logger, "_run", None)
        if run is not None:
            run.finish()
    assert trainer.lock is not None
    trainer.lock.close()


@EVERY_TRACKER
@pytest.mark.parametrize("killed", [48, 112])  # before the first checkpoint, and after it
def test_a_killed_and_resumed_run_is_there_once_row_by_row(build: Build, tracker: str, killed: int) -> None:
    killed_at(build(f"logger={tracker}"), killed)
    resumed = build(f"logger={tracker}")
    assert resumed.run()
    resumed.close()
    logged = [(row["nimg"], row["loss"]) for row in read_log(resumed.run_dir)]
    assert [nimg for nimg, _ in logged] == [32, 64, 96, 128]
    told = STEPS[tracker](resumed.run_dir, "loss")
    assert [step for step, _ in told] == [32, 64, 96, 128]
    assert [value for _, value in told] == pytest.approx([loss for _, loss in logged], rel=1e-6)


@EVERY_TRACKER
def test_a_tracker_chosen_late_gets_the_run_from_its_beginning(build: Build, tracker: str) -> None:
    first = build("trainer.total=64")
    first.run()
    first.close()
    second = build(f"logger={tracker}")
    second.run()
    second.close()
    assert [step for step, _ in STEPS[tracker](second.run_dir, "grad_norm")] == [32, 64, 96, 128]


@EVERY_TRACKER
def test_a_run_that_is_lengthened_goes_on_in_the_same_one(build: Build, tracker: str) -> None:
    for total in (80, 128):  # 80 ends in the middle of an interval: its last row is marked as an end
        trainer = build(f"logger={tracker}", f"trainer.total={total}")
        trainer.run()
        trainer.close()
    steps = [step for step, _ in STEPS[tracker](trainer.run_dir, "loss")]
    assert steps == [32, 64, 80, 96, 128]


def test_wandb_has_config_code_curves_charts_and_pictures_in_one_run(build: Build) -> None:
    trainer = build("logger=wandb", *GRID)
    trainer.run()
    trainer.close()
    run = next(record.run for record in read_wandb(trainer.run_dir) if record.HasField("run"))
    updates = [item for record in read_wandb(trainer.run_dir) for item in record.config.update]
    about = {item.key: json.loads(item.value_json) for item in [*run.config.update, *updates] if item.key}
    assert about["trainer"]["batch"] == 16
    assert about["objective"]["_target_"].endswith("EDMLoss")
    assert about["provenance"] == provenance()
    rows = dict(history(trainer.run_dir))
    assert sorted(rows) == [32, 64, 96, 128]
    assert {"lr", "time/img_per_s", "loss_by_sigma/4_0.316-1"} <= rows[32].keys()
    assert rows[64]["samples/_type"] == "image-file"
    assert "samples/_type" not in rows[96]
    chart = rows[96]["loss_by_sigma/histogram/values"]
    assert chart[4] == pytest.approx(rows[96]["loss_by_sigma/4_0.316-1"])
    assert len(BIN_EDGES) == len(chart) + 1
    assert rows[96]["loss_by_sigma/histogram/bins"] == pytest.approx(BIN_EDGES.tolist())
    state = json.loads((trainer.run_dir / "wandb_run.json").read_text())
    assert state == {"id": run.run_id, "nimg": 128}
    assert run.display_name == trainer.run_dir.name


def test_tensorboard_has_config_code_curves_charts_and_pictures(build: Build) -> None:
    trainer = build("logger=tensorboard", *GRID)
    trainer.run()
    trainer.close()
    events = read_events(trainer.run_dir)
    tags = events.Tags()
    assert "loss_by_sigma/4_0.316-1" in tags["scalars"]
    assert [event.step for event in events.Images("samples")] == [64, 128]
    text = {name: events.Tensors(f"{name}/text_summary")[0].tensor_proto.string_val[0].decode()
            for name in ("config", "provenance")}  # fmt: skip
    assert "    batch: 16" in text["config"]
    assert all(f"{name}: {version}" in text["provenance"] for name, version in provenance().items())
    row = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    assert b"trainer.batch" in row
    assert b"EDMLoss" in row
    assert b"loss_by_sigma/.*" in events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]


@EVERY_TRACKER
def test_results_of_evaluate_reach_the_run(build: Build, tracker: str) -> None:
    trainer = build(f"logger={tracker}")
    trainer.run()
    trainer.close()
    command = ["--run", str(trainer.run_dir), "--num", "16", "--steps", "1", "--device", "cpu"]
    assert evaluate(command) == 0
    assert evaluate([*command, "--out", str(trainer.run_dir / "elsewhere.json"), "--seed", "16"]) == 0
    (record,) = json.loads((trainer.run_dir / "metrics.json").read_text())
    name, value = f"evaluate/{record['name']}", pytest.approx(record["value"], rel=1e-6)
    if tracker == "wandb":
        assert summary(trainer.run_dir)[name] == value
        assert (
            len({record.run.run_id for record in read_wandb(trainer.run_dir) if record.HasField("run")}) == 1
        )
    else:
        assert tensorboard_steps(trainer.run_dir, name) == [(128, value)]
    assert [step for step, _ in STEPS[tracker](trainer.run_dir, "loss")] == [32, 64, 96, 128]


def test_results_leave_the_tracker_of_a_run_in_training_alone(
    build: Build, caplog: pytest.LogCaptureFixture
) -> None:
    first = build("logger=tensorboard", "trainer.total=64")
    first.run()
    first.close()
    training = build("logger=tensorboard")
    assert evaluate(["--run", str(training.run_dir), "--num", "16", "--steps", "1", "--device", "cpu"]) == 0
    assert "another process is training" in caplog.text
    assert (training.run_dir / "metrics.json").exists()
    training.close()


def test_disabled_wandb_keeps_nothing_and_hides_nothing_from_a_later_one(build: Build) -> None:
    first = build("logger=wandb", "logger.mode=disabled", "trainer.total=64")
    first.run()
    first.close()
    assert not list(first.run_dir.glob("wandb*"))
    second = build("logger=wandb")
    second.run()
    second.close()
    assert [step for step, _ in history(second.run_dir)] == [32, 64, 96, 128]


def test_wandb_falls_back_to_offline_with_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[tuple[str, str]] = []

    def init(mode: str, id: str, **_: Any) -> Any:
        calls.append((mode, id))
        if mode == "online":
            raise ConnectionError("no route")
        return SimpleNamespace(config=SimpleNamespace(update=lambda *_, **__: None), finish=lambda: None)

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init, Settings=SimpleNamespace))
    logger = WandbLogger(tmp_path, mode="online")
    with caplog.at_level(logging.WARNING):
        logger.start(0)
    logger.close()
    assert [mode for mode, _ in calls] == ["online", "offline"]
    assert len({run_id for _, run_id in calls}) == 1
    assert len(caplog.records) == 1
    assert "no route" in caplog.text


def test_a_missing_tensorboard_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match=r"scoregen\[tensorboard\]"):
        TensorBoardLogger(tmp_path)
