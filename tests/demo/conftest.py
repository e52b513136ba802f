"""A folder with a run in it, from which the page and the command line draw."""

from pathlib import Path

import pytest

from scoregen.cli.train import main as train
from tests.cli.conftest import TINY


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs/digits, a model that knows classes and none, and runs/judge, a classifier."""
    folder = tmp_path_factory.mktemp("demo")
    tiny = [*TINY, "trainer.total=128"]
    assert train([*tiny, "trainer.label_dropout=0.1", f"run_dir={folder}/runs/digits"]) == 0
    judge = ["experiment=digits_classifier", "network.model_channels=8", "trainer.total=64"]
    assert train([*judge, "device=cpu", f"run_dir={folder}/runs/judge"]) == 0
    return folder


@pytest.fixture
def here(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That folder, as the current one."""
    monkeypatch.chdir(trained)
    monkeypatch.delenv("SCOREGEN_DATA", raising=False)
    return trained
