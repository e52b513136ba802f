"""A real run in miniature: the embedded digits and a network of a few thousand weights."""

from collections.abc import Callable
from pathlib import Path

import pytest

from scoregen import config
from scoregen.build import build_trainer
from scoregen.training.trainer import Trainer
from scoregen.validation import validate

NETWORK = ["network.model_channels=8", "network.channel_mult=[1]", "network.attention_resolutions=[]"]
RUN = [
    "device=cpu",
    "trainer.total=128",
    "trainer.batch=16",
    "hooks.status.every=32",
    "hooks.heldout.every=null",
    "hooks.grid.every=null",
    "hooks.checkpoint.every=64",
    "trainer.keep=9",
]


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., Trainer]:
    """build(*overrides, run="a") -> a trainer in the run folder of that name, resumed where it was."""

    def make(*overrides: str, run: str = "a") -> Trainer:
        network = [] if any(override.startswith("network=") for override in overrides) else NETWORK
        cfg, problems = config.compose([*RUN, *network, f"run_dir={tmp_path / run}", *overrides])
        problems += validate(cfg)
        config.refuse(problems)
        return build_trainer(cfg)

    return make
