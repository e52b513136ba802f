"""A teacher in miniature, and students of it by every method."""

from collections.abc import Callable
from pathlib import Path

import pytest

from scoregen import config
from scoregen.build import build_trainer
from scoregen.training.trainer import Trainer
from scoregen.validation import validate

NETWORK = [
    "network.model_channels=8",
    "network.channel_mult=[1,1]",
    "network.attention_resolutions=[]",
]
QUIET = ["hooks.heldout.every=null", "hooks.grid.every=null", "hooks.evaluate.every=null"]
RUN = [
    "device=cpu",
    "trainer.total=80",
    "trainer.batch=8",
    "hooks.status.every=16",
    "hooks.checkpoint.every=40",
    "trainer.keep=9",
]


def build_run(*overrides: str) -> Trainer:
    cfg, problems = config.compose([*RUN, *QUIET, *overrides])
    config.refuse(problems + validate(cfg))
    return build_trainer(cfg)


# What a method needs to get through all that it does in so few images.
SHORT = {
    "disback": [
        "distiller.backtracking.record=24",
        "distiller.backtracking.targets=3",
        "distiller.backtracking.interval=16",
    ],
    "ect": ["distiller.stage_images=32"],
}


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a trained model of the embedded digits, a few thousand weights."""
    run_dir = tmp_path_factory.mktemp("teacher") / "run"
    trainer = build_run(*NETWORK, f"run_dir={run_dir}", "trainer.total=64")
    trainer.run()
    trainer.close()
    return run_dir


@pytest.fixture
def distil(tmp_path: Path, teacher: Path) -> Callable[..., Trainer]:
    """distil("sim", *overrides, run="a") -> a trainer of that method, resumed where it was."""

    def make(method: str, *overrides: str, run: str = "a") -> Trainer:
        where = [f"teacher={teacher}", f"run_dir={tmp_path / run}"]
        return build_run(f"experiment=digits_{method}", *where, *NETWORK, *SHORT.get(method, []), *overrides)

    return make
