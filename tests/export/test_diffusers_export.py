"""What is exported draws the same images where scoregen is not installed."""

import ast
import json
import os
import subprocess
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from scoregen.cli.sample import main as sample
from scoregen.cli.train import main as train
from scoregen.export.bundle import bundle
from scoregen.export.diffusers import main as export
from scoregen.networks import NETWORKS
from scoregen.samplers import SAMPLERS

DRAW = """
import importlib.util
import sys
import numpy as np
import torch
from diffusers import DiffusionPipeline
assert importlib.util.find_spec("scoregen") is None, "scoregen is here"
for path in sys.argv[1:]:
    pipeline = DiffusionPipeline.from_pretrained(path, custom_pipeline=path, trust_remote_code=True)
    images = pipeline(seeds=[3, 1, 7], output_type="np").images
    np.savez(path + "/drawn.npz", images=images)
"""
TINY = ("network.model_channels=8", "trainer.batch=16", "trainer.total=32")
QUIET = tuple(f"hooks.{name}.every=null" for name in ("grid", "heldout", "status"))
RUNS = {
    "classes": ("data.conditional=true",),
    "ncsnpp_vp": (
        "network=ncsnpp",
        "network.channel_mult=[1]",
        "network.attention_resolutions=[]",
        "precond=vp",
    ),
    "one_step": ("sampler=one_step", "sampler.grid.sigma_max=1.0", "precision=bf16"),
    "logarithms": ("precond=log", "sampler=euler", "sampler.steps=4"),
    "stochastic": ("sampler=dpmpp_2m_sde", "sampler.steps=4"),
}


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., None]:
    """Run a program in a second virtual environment, which has what scoregen needs but not scoregen."""
    home = tmp_path_factory.mktemp("elsewhere")
    venv.create(home / "env", with_pip=False)
    site = sysconfig.get_path("purelib", vars={"base": str(home / "env"), "platbase": str(home / "env")})
    for package in Path(sysconfig.get_path("purelib")).iterdir():
        if "scoregen" not in package.name:
            Path(site, package.name).symlink_to(package)

    def run(program: str, *arguments: object) -> None:
        environment = {**os.environ, "HF_HOME": str(home / "hub"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
        command = [home / "env" / "bin" / "python", "-c", program, *map(str, arguments)]
        result = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr

    return run


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, elsewhere: Callable[..., None]) -> Path:
    """Every kind of run, exported, and drawn from elsewhere."""
    folder = tmp_path_factory.mktemp("runs")
    for name, settings in RUNS.items():
        assert train([*settings, *TINY, *QUIET, f"run_dir={folder / name}", f"name={name}"]) == 0
        assert export([str(folder / name), str(folder / f"{name}_out"), "--license", "cc-by-4.0"]) == 0
    elsewhere(DRAW, *(folder / f"{name}_out" for name in RUNS))
    return folder


@pytest.mark.parametrize("name", RUNS)
def test_the_same_seeds_give_the_same_images_without_scoregen(name: str, exported: Path) -> None:
    out = exported / f"{name}_sampled"
    assert sample(["--run", str(exported / name), "--seeds", "3,1,7", "--out", str(out)]) == 0
    ours = np.load(out / "samples.npz")["images"].astype(int)
    theirs = np.load(exported / f"{name}_out" / "drawn.npz")["images"].astype(int)
    assert np.abs(ours - theirs).max() <= 1
    assert ours.std() > 10  # not blank


@pytest.mark.parametrize("registry", [NETWORKS, SAMPLERS], ids=["networks", "samplers"])
def test_nothing_that_is_bundled_asks_for_scoregen(registry: dict[str, type]) -> None:
    for entry in registry.values():
        for name, text in bundle("scoregen.export.construct", [entry.__module__], "entry").items():
            compile(text, name, "exec")
            imported = [
                node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import | ast.ImportFrom)
            ]
            assert not [node for node in imported if "scoregen." in ast.unparse(node)]


def test_the_card_tells_how_to_run_it_under_which_licence_and_how_it_scored(exported: Path) -> None:
    record = {"name": "fd_scatter", "value": 2.25, "n": 1617, "extractor": "scatter", "nfe": 35}
    record |= {
        "extractor_sha256": "0" * 64,
        "reference_sha256": "1" * 64,
        "sampler": {"class": "HeunSampler"},
    }
    (exported / "classes" / "metrics.json").write_text(json.dumps([record]))
    assert export([str(exported / "classes"), str(exported / "card"), "--license", "cc-by-4.0"]) == 0
    card = (exported / "card" / "README.md").read_text()
    assert card.startswith("---\nlicense: cc-by-4.0\nlibrary_name: diffusers\n")
    assert "| fd_scatter | 2.25 | 1,617 | HeunSampler, 35 |" in card
    assert "trust_remote_code=True" in card
    assert "  model_channels: 8" in card


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("classes", "classes"), "classes is not empty; choose another folder"),
        (("classes", "new", "--sampler", "teleport"), "TeleportSampler needs the training data"),
        (("classes", "new", "--sampler", "huen"), "did you mean heun?"),
        (("nowhere", "new"), "no such folder or file"),
    ],
)
def test_what_cannot_be_exported_is_refused_and_nothing_is_written(
    arguments: tuple[str, ...], message: str, exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out, *flags = arguments
    assert export([str(exported / run), str(exported / out), *flags]) == 2
    assert message in capsys.readouterr().err
    assert not (exported / "new").exists()


def test_a_model_of_points_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = tmp_path / "points", tmp_path / "out"
    small = ("experiment=checkerboard_edm", "data.size=64", "trainer.batch=16", "trainer.total=16")
    assert train([*small, *QUIET, f"run_dir={run}", "device=cpu"]) == 0
    assert export([str(run), str(out)]) == 2
    assert "this model draws samples of shape (2,)" in capsys.readouterr().err
    assert not out.exists()
