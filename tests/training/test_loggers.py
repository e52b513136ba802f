"""A log is valid JSON, survives kills, and after a resume equals that of an uninterrupted run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scoregen.build import tell_loggers
from scoregen.objectives.base import SIGMA_BINS
from scoregen.training.loggers import JSONLLogger, Logger, flatten
from scoregen.training.trackers import TensorBoardLogger, WandbLogger
from scoregen.training.trainer import Trainer


def row(nimg: int) -> dict[str, Any]:
    return {"loss": 1 / (nimg + 1), "loss_by_sigma": [0.5, None, nimg], "time": {"img_per_s": nimg / 7}}


def write(logger: Logger, start: int, stop: int) -> None:
    """Rows at the multiples of 64 in (start, stop]."""
    for nimg in range(start + 64, stop + 1, 64):
        logger.log(nimg, row(nimg))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The log of an uninterrupted run of 1280 images."""
    folder = tmp_path_factory.mktemp("whole")
    logger = JSONLLogger(folder)
    logger.start(0)
    write(logger, 0, 1280)
    logger.close()
    return (folder / "log.jsonl").read_bytes()


@given(cut=st.floats(0, 1), saved=st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_a_killed_and_resumed_log_equals_an_uninterrupted_one(
    whole: bytes, tmp_path_factory: pytest.TempPathFactory, cut: float, saved: float
) -> None:
    folder = tmp_path_factory.mktemp("killed")
    torn = whole[: int(cut * len(whole))]  # a kill in the middle of a write
    resumed = 64 * int(saved * torn.count(b"\n"))  # a checkpoint at or before the last whole row
    resume_from(folder, torn, resumed)
    assert (folder / "log.jsonl").read_bytes() == whole
    assert [path.name for path in folder.iterdir()] == ["log.jsonl"]


def test_a_whole_row_that_lost_its_end_of_line_is_kept(whole: bytes, tmp_path: Path) -> None:
    rows = whole.splitlines(keepends=True)
    resume_from(tmp_path, b"".join(rows[:5])[:-1], 5 * 64)
    assert (tmp_path / "log.jsonl").read_bytes() == whole


def resume_from(folder: Path, torn: bytes, resumed: int) -> None:
    """Go on to 1280 images from a torn log and a checkpoint."""
    (folder / "log.jsonl").write_bytes(torn)
    logger = JSONLLogger(folder)
    logger.start(resumed)
    write(logger, resumed, 1280)
    logger.close()


def test_a_line_is_in_the_file_as_soon_as_it_is_logged(tmp_path: Path) -> None:
    logger = JSONLLogger(tmp_path)
    logger.start(0)
    logger.log(64, row(64))
    assert json.loads((tmp_path / "log.jsonl").read_text()) == {"nimg": 64, **row(64)}
    logger.close()


def test_every_line_is_standard_json_and_starts_with_the_images(tmp_path: Path) -> None:
    logger = JSONLLogger(tmp_path)
    logger.start(0)
    logger.log(
        64, {"a": float("nan"), "b": {"c": np.float32(0.5), "d": -float("inf")}, "e": [torch.tensor(2.0)]}
    )
    logger.log(128, {"skipped": 3, "done": True})
    logger.close()
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert lines == [
        '{"nimg": 64, "a": null, "b": {"c": 0.5, "d": null}, "e": [2.0]}',
        '{"nimg": 128, "skipped": 3, "done": true}',
    ]


def test_nested_scalars_are_named_by_their_path() -> None:
    nested = {"loss": 1, "time": {"a": 2.0, "b": {"c": 3}}, "by_sigma": [0.5, None, 0.25]}
    flat = {"loss": 1, "time/a": 2, "time/b/c": 3, "by_sigma/0": 0.5, "by_sigma/2": 0.25}
    assert dict(flatten(nested)) == flat


def test_losses_by_noise_level_are_named_by_their_range_and_sort_by_it() -> None:
    named = dict(flatten({"loss_by_sigma": list(range(SIGMA_BINS))}))
    assert list(named.items())[:2] == [("loss_by_sigma/0_below_0.01", 0), ("loss_by_sigma/1_0.01-0.0316", 1)]
    assert list(named)[-1] == "loss_by_sigma/9_above_100"
    assert sorted(named) == list(named)


@pytest.mark.parametrize("make", [JSONLLogger, WandbLogger, TensorBoardLogger])
def test_building_a_logger_touches_nothing_and_closing_an_unstarted_one_is_allowed(
    make: Any, tmp_path: Path
) -> None:
    make(tmp_path / "run").close()
    assert list(tmp_path.iterdir()) == []


def test_a_run_from_elsewhere_does_not_choose_what_runs_when_it_is_measured(
    build: Callable[..., Trainer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    trainer = build()
    trainer.run()
    trainer.close()
    (tmp_path / "elsewhere.py").write_text("raise SystemExit('it ran')")
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "a" / "config.yaml"
    file.write_text(file.read_text().replace("scoregen.training.loggers.JSONLLogger", "elsewhere.Logger"))
    tell_loggers(tmp_path / "a", 128, {"fd_scatter": 1.0})
    assert "names elsewhere.Logger" in caplog.text
