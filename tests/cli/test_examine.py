"""Laws of evaluate.py where it examines a model itself, and of its report."""

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from torch import Tensor

from scoregen.detection import msma
from scoregen.evaluation.examine import EXAMINATIONS, Subject
from scoregen.evaluation.result import Result
from tests.cli.conftest import TINY, Run
from tests.cli.test_input import assert_refused


class Text(HTMLParser):
    """The text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text = ""
        self.feed(html)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_model_that_returns_its_training_images_is_found_out(call: Run, tmp_path: Path) -> None:
    """The closed form of the digits, against themselves, and smoothed."""
    examine = ["--metrics", "memorization", "--num", "80", "--steps", "16"]
    for sigma_s in ("0", "0.6"):
        done = call("evaluate.py", "--data", "digits", "--sampler", "heun", "--sigma-s", sigma_s, *examine)
        assert done.returncode == 0, done.stderr
    copying, smoothed = json.loads((tmp_path / "metrics.json").read_text())
    assert copying["value"] == 1
    assert copying["details"]["authentic_pixels"] == copying["details"]["authentic_scatter"] == 0
    assert copying["details"]["c_t_pixels"] < -5
    assert copying["details"]["nearest_levels"] < 1
    assert smoothed["value"] < 0.9
    assert smoothed["reference_n"] == 1617


@pytest.fixture
def run(call: Run, tmp_path: Path) -> Path:
    """A tiny model of the digits, trained for a moment."""
    done = call("train.py", *TINY, "run_dir=runs/tiny", "trainer.total=256")
    assert done.returncode == 0, done.stderr
    return tmp_path / "runs/tiny"


def test_the_likelihood_and_the_report_of_a_run(call: Run, run: Path) -> None:
    done = call("evaluate.py", "--metrics", "nll", "--num", "12", "--report", "--steps", "3")
    assert done.returncode == 0, done.stderr
    (record,) = json.loads((run / "metrics.json").read_text())
    # Of a model that has hardly been trained: about that of the Gaussian that it is compared with, or worse.
    assert 2 < record["value"] < 12
    assert record["n"] == 12
    assert "sigma 0.002 to 80" in record["resize"]
    page = Text((run / "report.html").read_text()).text
    for part in ("nll", f"{record['value']:.5g}", "HeunSampler: 3 steps, 5 network evaluations", "trainer:"):
        assert part in page
    for row in map(json.loads, (run / "log.jsonl").read_text().splitlines()):
        assert f"training: {row['loss']:.6g} at {row['nimg']:,}" in page


def test_only_a_run_has_a_report(call: Run, tmp_path: Path) -> None:
    done = call("evaluate.py", "--data", "digits", "--report", "--steps", "2")
    assert_refused(done, "--report is of a run folder")
    assert not (tmp_path / "metrics.json").exists()


def test_latents_are_the_same_for_examinations_as_for_metrics(
    call: Run, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Tensor] = []

    def examine(subject: Subject) -> Result:
        drawn.append(torch.cat(list(subject.draw())))
        return Result("probe", 0.0, subject.num)

    monkeypatch.setitem(EXAMINATIONS, "probe", examine)
    for latents in ("normal", "sobol"):
        done = call("evaluate.py", "--metrics", "probe", "--num", "4", "--steps", "2", "--latents", latents)
        assert done.returncode == 0, done.stderr
    normal, sobol = drawn
    assert (normal != sobol).float().mean() > 0.5


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (["experiment=digits_sim", "teacher=gaussian"], "is a student"),
        (["experiment=digits_multiplicative", "sampler.steps=2"], "is of codes, not of the data (LogCodec("),
    ],
)
def test_what_is_no_score_of_the_data_has_no_likelihood_and_detects_nothing(
    call: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: list[str], told: str
) -> None:
    """The numbers would come, and mean nothing."""
    done = call("train.py", *kind, *TINY, "hooks.evaluate.every=null", "run_dir=run", "trainer.total=32")
    assert done.returncode == 0, done.stderr
    assert_refused(call("evaluate.py", "--run", "run", "--metrics", "fd_scatter,nll", "--num", "8"), told)
    assert not (tmp_path / "run/metrics.json").exists()
    assert msma.main(["fit", "--run", "run", "--out", "x.msma", "--sigmas", "0.5,0.1,3"]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "x.msma").exists()


def test_a_report_alone_announces_no_images_and_a_wrong_one_is_refused_before_any(
    call: Run, run: Path
) -> None:
    done = call("evaluate.py", "--report", "--steps", "1")
    assert done.returncode == 0, done.stderr
    assert "50,000" not in done.stdout
    weights = next(run.glob("checkpoints/*/ema.safetensors"))
    done = call("evaluate.py", "--run", str(weights), "--report", "--metrics", "fd_scatter", "--num", "8")
    assert_refused(done, "--report is of a run folder")
    assert "images" not in done.stdout
