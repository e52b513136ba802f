"""Laws of processes that hold parts of the weights: they train what one does, and any number goes on."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.cli.conftest import TINY, Run
from tests.cli.test_processes import log_of

RUN = [*TINY, "trainer.batch=12", "hooks.status.every=24", "hooks.checkpoint.every=24"]
RUN += ["hooks.heldout.every=48", "hooks.heldout.images=8", "hooks.grid.every=96"]
Stage = tuple[str, int, int]  # how, on how many processes, up to which image
Train = Callable[..., None]


@pytest.fixture
def train(run: Run, call: Run) -> Train:
    """train(folder, stages, *options): one process is this one."""

    def all_stages(folder: str, stages: list[Stage], *options: str) -> None:
        for parallel, processes, total in stages:
            args = [*RUN, *options, f"run_dir={folder}", f"parallel={parallel}", f"trainer.total={total}"]
            done = run("train.py", *args, processes=processes) if processes > 1 else call("train.py", *args)
            assert done.returncode == 0, done.stderr

    return all_stages


def assert_same_run(a: Path, b: Path) -> None:
    """Losses to 1e-6, and averages of the same names to 1e-4."""
    for ours, theirs in zip(log_of(a), log_of(b), strict=True):
        for name in {"loss", "heldout_loss"} & ours.keys():
            assert ours[name] == pytest.approx(theirs[name], rel=1e-6)
    mine, other = (
        load_file(max((folder / "checkpoints").iterdir()) / "ema.safetensors") for folder in (a, b)
    )
    assert mine.keys() == other.keys()
    for name, value in other.items():
        # By its norm: Adam makes much of the rounding of single gradients next to 0.
        assert (mine[name] - value).norm() <= 1e-4 * value.norm(), name


def test_two_processes_with_parts_train_what_one_does_which_goes_on_from_them(
    train: Train, call: Run, tmp_path: Path
) -> None:
    train("one", [("ddp", 1, 192)])
    train("parts", [("fsdp", 2, 96)])
    last = tmp_path / "parts/checkpoints/000000000096"
    assert len(list((last / "parts").iterdir())) == 2
    assert {file.name for file in last.glob("*.safetensors")} == {"ema.safetensors"}
    drawn = call("sample.py", "--run", "parts", "--seeds", "0-3", "--nfe", "3")
    assert drawn.returncode == 0, drawn.stderr
    train("parts", [("fsdp", 1, 192)])
    assert_same_run(tmp_path / "one", tmp_path / "parts")


OPTIONS = {
    "plain": [],
    "learned": ["objective=denoising_uncertainty", "trainer.clip=0.1", "trainer.microbatch=1"],
    "power": ["ema=power", "hooks.ema_snapshot.every=48", "optimizer=adamw"],
    "ncsnpp": ["network=ncsnpp", "network.dropout=0.0"],
    "adm": ["network=adm", "network.dropout=0.0", "network.num_blocks=1", "network.model_channels=64"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
def test_parts_are_read_by_any_number_of_processes(train: Train, tmp_path: Path, name: str) -> None:
    train("one", [("ddp", 1, 288)], *OPTIONS[name])
    stages = [
        ("fsdp", 2, 48),
        ("fsdp", 4, 96),
        ("ddp", 2, 144),
        ("fsdp", 3, 192),
        ("ddp", 1, 240),
        ("fsdp", 2, 288),
    ]
    train("parts", stages, *OPTIONS[name])
    assert_same_run(tmp_path / "one", tmp_path / "parts")
    snapshots = [sorted((tmp_path / folder).glob("ema_snapshots/*")) for folder in ("one", "parts")]
    assert [file.name for file in snapshots[0]] == [file.name for file in snapshots[1]]


@pytest.mark.slow
def test_halves_with_parts_equal_the_whole_bit_for_bit(train: Train, tmp_path: Path) -> None:
    train("whole", [("fsdp", 2, 192)])
    train("halves", [("fsdp", 2, 96), ("fsdp", 2, 192)])
    ours, theirs = (max((tmp_path / name / "checkpoints").iterdir()) for name in ("whole", "halves"))
    for file in ours.rglob("*.safetensors"):
        torch.testing.assert_close(
            load_file(file), load_file(theirs / file.relative_to(ours)), rtol=0, atol=0
        )
    assert log_of(tmp_path / "whole") == log_of(tmp_path / "halves")


@pytest.mark.parametrize("options", ["experiment=digits_sim", "trainer.compile=true"])
def test_distillations_and_compiled_networks_are_not_parted(call: Run, options: str) -> None:
    refused = call("train.py", options, "parallel=fsdp")
    assert refused.returncode == 2
    assert "parallel=ddp" in refused.stderr
