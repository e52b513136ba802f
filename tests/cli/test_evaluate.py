"""Laws of evaluate.py: one number for one set of images, and two numbers that say whether they compare."""

import json
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from scoregen.data.digits import load_digits
from scoregen.evaluation.examine import EXAMINATIONS, Subject
from scoregen.evaluation.metrics import METRICS
from scoregen.evaluation.result import Result, obstacles
from tests.cli.conftest import Run
from tests.cli.test_input import assert_refused

AGAINST = ["--reference", "digits", "--metrics", "fd_scatter"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def pixels(tmp_path: Path) -> np.ndarray:
    """200 digits [N, 8, 8], also as PNG files in images/, a zip of them and an .npz."""
    array: np.ndarray = load_digits(split="train").x[:200, 0].numpy()
    (tmp_path / "images").mkdir()
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as packed:
        for i, image in enumerate(array):
            file = tmp_path / f"images/{i:04}.png"
            Image.fromarray(image).save(file)
            packed.write(file, file.name)
    np.savez(tmp_path / "images.npz", images=array)
    return array


def records(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text())
    return found


def test_a_folder_a_zip_and_an_npz_of_the_same_images_score_the_same(
    call: Run, tmp_path: Path, pixels: np.ndarray
) -> None:
    for name in ("images", "images.zip", "images.npz"):
        done = call("evaluate.py", "--images", name, *AGAINST)
        assert done.returncode == 0, done.stderr
    found = records(tmp_path / "metrics.json")
    assert [record["n"] for record in found] == [200] * 3
    assert found[1]["value"] == found[2]["value"] == pytest.approx(found[0]["value"], rel=1e-12)
    assert not obstacles(found[0], found[2])
    assert len(list((tmp_path / "cache/scoregen/references").iterdir())) == 1
    same = call("evaluate.py", "--compare", "images.zip", "digits", "--metrics", "fd_scatter")
    assert same.returncode == 0, same.stderr
    assert records(tmp_path / "metrics.json")[3]["value"] == found[1]["value"]


def test_a_set_against_itself_is_at_zero_and_kid_agrees(
    call: Run, tmp_path: Path, pixels: np.ndarray
) -> None:
    done = call("evaluate.py", "--compare", "images", "images.npz", "--metrics", "fd_scatter")
    assert done.returncode == 0, done.stderr
    (record,) = records(tmp_path / "metrics.json")
    assert record["value"] == pytest.approx(0, abs=1e-6)
    assert record["reference_n"] == 200


def test_a_number_says_how_it_was_measured_and_its_spread_over_repeats(call: Run, tmp_path: Path) -> None:
    request = ["--num", "300", "--repeats", "3", "--steps", "3", "--seed", "7"]
    done = call("evaluate.py", *request)
    assert done.returncode == 0, done.stderr
    (record,) = records(tmp_path / "metrics.json")
    values = np.array(record["values"])
    assert len(set(values)) == 3
    assert record["value"] == pytest.approx(values.mean())
    assert record["repeats_spread"] == pytest.approx(values.std(ddof=1))
    assert record["seeds"] == "7-906"
    sha256 = record["extractor_sha256"][:8]
    for told in (
        f"n = 300; scatter {sha256}; resize: none, x / 255; reference digits (1,617 images)",
        "HeunSampler, 5 evaluations; seeds 7-906",
        f"{values.min():.5g}",
        "3 x 300 images: 4,500 evaluations",
    ):
        assert told in done.stdout


def test_records_say_whether_they_compare_and_if_not_why(
    call: Run, tmp_path: Path, pixels: np.ndarray
) -> None:
    requests = {
        "a": ["--images", "images", "--num", "150", *AGAINST],
        "b": ["--images", "images", "--num", "150", "--seed", "1", *AGAINST],
        "fewer": ["--images", "images", "--num", "100", *AGAINST],
        "other": ["--images", "images", "--num", "150", "--reference", "digits:test"],
    }
    for name, request in requests.items():
        assert call("evaluate.py", *request, "--out", f"{name}.json").returncode == 0
    told = {name: call("evaluate.py", "--compare", "a.json", f"{name}.json").stdout for name in requests}
    assert "  comparable" in told["b"]
    assert "NOT comparable: number of images: 150 against 100" in told["fewer"]
    assert "NOT comparable: reference: digits" in told["other"]
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").touch()
    assert_refused(call("evaluate.py", "--compare", "a.json", "run"), "evaluate.py --run run makes it")
    shutil.copy(tmp_path / "fewer.json", tmp_path / "run/metrics.json")
    several = call("evaluate.py", "--compare", "a.json", "b.json", "run").stdout
    assert "  b.json: comparable" in several
    assert "  run: NOT comparable: number of images: 150 against 100" in several
    assert_refused(
        call("evaluate.py", "--compare", "run", "images"), "among themselves, or two sets of images"
    )
    assert_refused(call("evaluate.py", "--compare", "run"), "give two or more")
    (tmp_path / "none.json").write_text("[]")
    assert_refused(call("evaluate.py", "--compare", "a.json", "none.json"), "no metric in common")
    assert_refused(call("evaluate.py", "--compare", "a.json", "absent.json"), "absent.json")


def test_images_that_cannot_be_scored_are_refused_by_file(
    call: Run, tmp_path: Path, pixels: np.ndarray
) -> None:
    whole = (tmp_path / "images/0000.png").read_bytes()
    (tmp_path / "images/0007.png").write_bytes(whole[:60])
    assert_refused(call("evaluate.py", "--images", "images", *AGAINST), "0007.png", "not a readable image")
    Image.fromarray(np.zeros((9, 8), np.uint8)).save(tmp_path / "images/0007.png")
    assert_refused(call("evaluate.py", "--images", "images", *AGAINST), "0007.png", "1 x 9 x 8")
    np.savez(tmp_path / "points.npz", x=np.zeros((20, 2), np.float32))
    assert_refused(call("evaluate.py", "--images", "points.npz", *AGAINST), "not uint8 images")
    (tmp_path / "tiny").mkdir()
    for name in "ab":
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / f"tiny/{name}.png")
    assert_refused(call("evaluate.py", "--images", "tiny", *AGAINST), "at least 8 x 8 pixels")


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (["--images", "images"], "compared with which real images?"),
        (["--images", "nowhere", *AGAINST], "no such file or folder"),
        (["--images", "digits:val", *AGAINST], "train or test"),
        (["--images", "images", "--num", "150", "--repeats", "2", *AGAINST], "has 200 images"),
        (["--images", "images", "--run", "x"], "--run and --images: give one of them"),
        (["--compare", "images", "digits", "--reference", "digits"], "leave --reference out"),
        (["--weights", "incepton=x"], "--weights incepton"),
        (["--metrics", "fid_inf", "--latents", "sobol", "--num", "4"], "drop --latents sobol"),
        (
            ["--metrics", "fid_inf,kid,recall", "--num", "4"],
            "fid_inf at least 4,104, recall at least 6",
        ),
    ],
)
def test_requests_that_make_no_sense_are_refused(
    call: Run, pixels: np.ndarray, request_: list[str], said: str
) -> None:
    assert_refused(call("evaluate.py", *request_), said)


def test_help_names_every_metric(call: Run) -> None:
    told = call("evaluate.py", "--help").stdout.replace(";", " ").replace(",", " ").split()
    assert METRICS.keys() | EXAMINATIONS.keys() <= set(told)


def test_quasi_random_latents_are_told_and_do_not_compare_with_independent_ones(
    call: Run, tmp_path: Path
) -> None:
    for latents in ("normal", "sobol"):
        done = call("evaluate.py", "--num", "256", "--steps", "2", "--latents", latents)
        assert done.returncode == 0, done.stderr
    normal, sobol = records(tmp_path / "metrics.json")
    assert sobol["value"] != normal["value"]
    assert sobol["value"] == pytest.approx(normal["value"], rel=0.2)
    assert obstacles(normal, sobol) == ["latents: none against scrambled Sobol"]
    assert "latents scrambled Sobol" in done.stdout


def test_a_metric_of_the_model_itself_stands_beside_those_of_its_images(
    call: Run, tmp_path: Path, pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def examine(subject: Subject) -> Result:
        seen.append(subject)
        return Result("probe", float(len(subject.data("test"))), subject.num)

    monkeypatch.setitem(EXAMINATIONS, "probe", examine)
    request = ["--metrics", "probe,fd_scatter", "--num", "200", "--repeats", "2", "--steps", "1"]
    done = call("evaluate.py", *request)
    assert done.returncode == 0, done.stderr
    assert [record["name"] for record in records(tmp_path / "metrics.json")] == ["fd_scatter", "probe"]
    assert records(tmp_path / "metrics.json")[1]["value"] == 180
    assert [subject.seed for subject in seen] == [0, 200]
    assert_refused(call("evaluate.py", "--images", "images", "--metrics", "probe"), "examines a model")
    first, second = (replace(subject, denoiser=None, data=None, draw=None) for subject in seen)
    assert replace(first, seed=200) == second
