"""Laws of what sample.py writes besides the grid, and of its guidance flags."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from scoregen import config
from scoregen.samplers import SAMPLERS
from scoregen.samplers.table import OF_DATA
from tests.cli.conftest import TINY, Run
from tests.cli.test_input import assert_refused

MODEL = [*TINY, "trainer.total=256", "trainer.label_dropout=0.2"]
FEW = ["--nfe", "5", "--seeds", "0-11"]


@pytest.fixture
def model(call: Run) -> str:
    """A conditional digits model in the run folder "x"."""
    assert call("train.py", *MODEL, "run_dir=x").returncode == 0
    return "x"


def images(out: Path) -> np.ndarray:
    with np.load(out / "samples.npz") as file:
        return np.asarray(file["images"])


def read_manifest(out: Path) -> dict[str, Any]:
    written: dict[str, Any] = json.loads((out / "manifest.json").read_text())
    return written


def tiles(path: Path, columns: int) -> np.ndarray:
    """The 8 x 8 images of a grid whose tiles are enlarged fourfold, [rows, columns, 8, 8]."""
    grid = np.asarray(Image.open(path))
    rows = [grid[i + 2 : i + 34 : 4] for i in range(0, grid.shape[0] - 2, 34)]
    return np.stack([[row[:, j + 2 : j + 34 : 4] for j in range(0, 34 * columns, 34)] for row in rows])


def test_a_dump_goes_on_where_it_stopped_and_equals_the_whole(call: Run, model: str, tmp_path: Path) -> None:
    assert call("sample.py", "--run", model, *FEW, "--out", "plain").returncode == 0
    assert call("sample.py", "--run", model, "--nfe", "5", "--seeds", "0-4", "--png").returncode == 0
    first = tmp_path / "out/images/000000/000003.png"
    before = first.stat().st_mtime_ns
    assert call("sample.py", "--run", model, *FEW, "--png", "--batch", "5").returncode == 0
    assert first.stat().st_mtime_ns == before
    assert np.abs(images(tmp_path / "plain").astype(int) - images(tmp_path / "out")).max() <= 1
    with np.load(tmp_path / "plain/samples.npz") as a, np.load(tmp_path / "out/samples.npz") as b:
        assert np.array_equal(a["labels"], b["labels"])
    assert_refused(call("sample.py", "--run", model, "--nfe", "7", "--png"), "other weights or settings")


def test_views_show_the_same_samples_as_the_grid(call: Run, model: str, tmp_path: Path) -> None:
    views = ["--trajectory", "--interpolate", "2", "9", "--class-grid", "--class", "4"]
    assert call("sample.py", "--run", model, *FEW, *views).returncode == 0
    samples = images(tmp_path / "out")[..., 0].astype(int)
    trajectory = tiles(tmp_path / "out/trajectory.png", 3)
    assert np.abs(trajectory[:, -1] - samples[:8]).max() <= 1
    path = tiles(tmp_path / "out/interpolation.png", 10)[0]
    assert np.abs(path[[0, -1]] - samples[[2, 9]]).max() <= 1
    classes = tiles(tmp_path / "out/classes.png", 10)
    assert classes.shape[0] == 10
    assert np.abs(classes[4] - samples[:10]).max() <= 1


def test_neutral_guidance_is_bit_equal_and_costs_nothing(call: Run, model: str, tmp_path: Path) -> None:
    plain = call("sample.py", "--run", model, *FEW, "--out", "plain")
    neutral = call("sample.py", "--run", model, *FEW, "--guidance", "1", "--out", "neutral")
    guided = call("sample.py", "--run", model, *FEW, "--guidance", "3", "--out", "guided")
    assert "5 network evaluations" in plain.stdout
    assert "5 network evaluations" in neutral.stdout
    assert "10 network evaluations" in guided.stdout
    assert np.array_equal(images(tmp_path / "plain"), images(tmp_path / "neutral"))
    assert not np.array_equal(images(tmp_path / "plain"), images(tmp_path / "guided"))
    assert "guidance" not in read_manifest(tmp_path / "neutral")
    assert read_manifest(tmp_path / "guided")["guidance"] == 3


@pytest.mark.parametrize("label", ["0", "1", "2"])
def test_images_of_a_class_are_not_taken_for_those_of_any(
    call: Run, model: str, tmp_path: Path, label: str
) -> None:
    """Class 1 is no less a choice than another, though 1 == 1.0 is the neutral weight of guidance."""
    request = ["--run", model, "--nfe", "5", "--seeds", "0-3"]
    assert call("sample.py", *request, "--png").returncode == 0
    refused = call("sample.py", *request, "--png", "--class", label)
    assert_refused(refused, "images of other weights or settings")
    assert call("sample.py", *request, "--class", label, "--out", "one").returncode == 0
    assert read_manifest(tmp_path / "one")["label"] == int(label)


def test_guidance_that_cannot_be_is_refused(call: Run, model: str, tmp_path: Path) -> None:
    assert call("train.py", *TINY, "trainer.total=64", "data.conditional=false", "run_dir=u").returncode == 0
    requests = [
        (["--run", "u", "--guidance", "2"], "data.conditional=true"),
        (["--run", "u", "--class-grid"], "unconditional"),
        (["--run", model, "--guidance", "2", "--guidance-interval", "5,1"], "the lower first"),
        (["--run", model, "--guidance", "2", "--guidance-interval", "wide"], "two noise levels"),
        (["--run", model, "--guidance-interval", "0.2,5"], "weight"),
        (["--run", model, "--classifier", "u"], "not a classifier"),
        (["--run", model, "--guidance", "2", "--autoguidance", "nowhere"], "no such folder"),
    ]
    for request, said in requests:
        assert_refused(call("sample.py", *FEW, *request), said)
    assert not (tmp_path / "out").exists()


def test_a_data_set_is_sampled_with_no_training_and_shows_its_copies(call: Run, tmp_path: Path) -> None:
    few = ["--data", "digits", "--seeds", "0-15"]
    copies = call("sample.py", *few, "--sigma-s", "0", "--out", "copies")
    assert "16 of 16 samples copy training samples" in copies.stdout
    new = call("sample.py", *few, "--out", "new")
    assert "0 of 16 samples copy training samples" in new.stdout
    manifest = read_manifest(tmp_path / "new")
    assert min(manifest["nearest_training_distance"]) > 0.1
    assert manifest["closed_form"] == "digits"
    assert_refused(call("sample.py", "--data", "digits", "--run", "x"), "--run and --data")
    assert_refused(call("sample.py", "--data", "digts"), "no data set of that name")
    assert_refused(call("sample.py", "--data", "digits", "--sigma-s", "-1"), "at least 0")


def test_samplers_get_what_they_want_of_the_training_data(call: Run, model: str, tmp_path: Path) -> None:
    done = call("sample.py", "--run", model, "--sampler", "teleport", "sigma_skip=20", "--seeds", "0-3")
    assert "18 steps, 27 network evaluations" in done.stdout
    assert list((tmp_path / "x/references").glob("gaussian-digits-*.npz"))
    args = ["--sampler", "langevin", "init=data", "--steps", "3", "--seeds", "0-3"]
    assert call("sample.py", "--run", model, *args).returncode == 0
    refused = call("sample.py", "--run", model, "--sampler", "teleport", "sigma_skip=90")
    assert_refused(refused, "sigma_skip=90")
    refused = call("sample.py", "--run", model, "--sampler", "closed_form")
    assert_refused(refused, "holds no training data")


def test_the_table_names_every_sampler_and_every_choice_is_one_or_a_preset_of_one(call: Run) -> None:
    listed = call("sample.py", "--list").stdout
    kinds = {**SAMPLERS, **OF_DATA}
    assert all(f"`{name}`" in listed for name in kinds)
    chosen = {name: config.choose("sampler", name)[0]["_target_"] for name in config.groups()["sampler"]}
    assert kinds.keys() <= chosen.keys()
    assert {config.locate(target) for target in chosen.values()} == set(kinds.values())


def test_a_student_is_not_sampled_in_many_steps_unwarned(call: Run, caplog: pytest.LogCaptureFixture) -> None:
    student = [*TINY, "experiment=digits_sim", "teacher=gaussian", "trainer.total=64", "run_dir=student"]
    done = call("train.py", *student, "hooks.evaluate.every=null")
    assert done.returncode == 0, done.stderr
    for flags, warned in ([], False), (["--sampler", "heun"], True):
        caplog.clear()
        assert call("sample.py", "--run", "student", "--seeds", "0-3", *flags).returncode == 0
        assert ("made to draw in one step; HeunSampler" in caplog.text) == warned
