"""Runs on the same images from different places: the same losses, and an exact resumption, bit for bit."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from scoregen.cli.candidate import open_images
from scoregen.training.checkpoint import latest_checkpoint
from tests.cli.conftest import TINY, Run
from tests.data.containers import (
    Files,
    members,
    png_files,
    write_folder,
    write_parquet,
    write_shards,
    write_tar,
)

Write = Callable[[Path, Files], None]
SOURCES: dict[str, tuple[Write, str]] = {
    "folder": (write_folder, "set"),
    "hf": (write_parquet, "set.parquet"),
    "webdataset": (write_shards, "set/part-{00..02}.tar"),
}
FILES = png_files(np.random.default_rng(0).integers(0, 256, (12, 8, 8), np.uint8))
MODEL = [
    *TINY,
    "trainer.batch=4",
    "hooks.status.every=4",
    "hooks.checkpoint.every=8",
    "data.conditional=true",
]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Caches of our own."""
    import datasets

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache" / "datasets")
    datasets.disable_progress_bars()


@pytest.fixture
def train(call: Run, tmp_path: Path) -> Callable[..., tuple[list[float], bytes]]:
    """train("hf", total, run_dir, ...) -> the losses in the log of the run and its last averaged weights."""

    def run(kind: str, total: int, run_dir: str, *settings: str) -> tuple[list[float], bytes]:
        write, path = SOURCES[kind]
        if not (tmp_path / kind).exists():
            (tmp_path / kind).mkdir()
            write(tmp_path / kind, FILES)
        of_data = [f"data={kind}", f"data.root={kind}", f"data.path={path}"]
        done = call("train.py", *MODEL, *of_data, *settings, f"trainer.total={total}", f"run_dir={run_dir}")
        assert done.returncode == 0, done.stderr
        found = latest_checkpoint(tmp_path / run_dir / "checkpoints")
        assert found is not None
        rows = [json.loads(line) for line in (tmp_path / run_dir / "log.jsonl").read_text().splitlines()]
        return [row["loss"] for row in rows if "loss" in row], (found.path / "ema.safetensors").read_bytes()

    return run


def test_the_losses_are_those_of_the_same_files_in_a_folder(train: Callable) -> None:
    losses = [train(kind, 32, f"{kind}-{gb}", f"data.cache_gb={gb}")[0] for kind in SOURCES for gb in (4, 0)]
    assert len(losses[0]) == 8
    assert all(loss == losses[0] for loss in losses)


@pytest.mark.parametrize("kind", ["hf", "webdataset"])
def test_twice_n_images_are_n_and_n_again(train: Callable, kind: str) -> None:
    at_once, halfway = train(kind, 32, "a", "data.cache_gb=0"), train(kind, 16, "b", "data.cache_gb=0")
    again = train(kind, 32, "b", "data.cache_gb=0")
    assert again[0] == at_once[0]
    assert again[0][:4] == halfway[0]
    assert weights(again[1]) == weights(at_once[1])


def test_images_are_judged_from_a_file_of_any_kind(tmp_path: Path) -> None:
    write_folder(tmp_path, FILES)
    write_parquet(tmp_path, FILES)
    write_tar(tmp_path / "set.tar", members(FILES))
    folder = open_images(str(tmp_path / "set"))
    for file in ("set.parquet", "set.tar"):
        images = open_images(str(tmp_path / file))
        assert (len(images), images.fingerprint) == (12, folder.fingerprint)


def weights(content: bytes) -> bytes:
    """What follows the header, which names the run's folder."""
    return content[8 + int.from_bytes(content[:8], "little") :]
