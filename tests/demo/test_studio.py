"""Laws of what the page answers: the command's own images, within limits, and one message for bad input."""

import re
import shlex
import shutil
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from scoregen.cli.sample import main as sample
from scoregen.cli.train import main as train
from scoregen.demo.film import FRAMES
from scoregen.demo.request import Limits, Request, level, whole
from scoregen.demo.studio import ANSWERS_KEPT, CLOSED_FORM, MODELS_KEPT, Studio
from scoregen.denoisers.mixture import GaussianMixtureDenoiser
from scoregen.errors import UserError
from scoregen.model import pretrained
from scoregen.rng import SampleRng
from scoregen.samplers import SAMPLERS
from scoregen.samplers.views import Recorder, estimates, evenly, states
from tests.cli.conftest import TINY

RUN = "runs/digits"
ASKED = {
    "as the model has it": Request(RUN, images=8),
    "evaluations": Request(RUN, nfe=5, seed=3, images=1),
    "guided in an interval": Request(RUN, steps=3, label=4, guidance=2.5, above=0.2, up_to=30.0, images=5),
    "guided from a level on": Request(RUN, steps=3, guidance=-1.0, above=0.5, images=2),
    "another sampler and settings": Request(
        RUN, sampler="restart", steps=3, settings="s_noise=1.01", images=3
    ),
    "jump": Request(RUN, sampler="teleport", steps=4, settings="sigma_skip=20", images=3),
    "of the package": Request("pretrained/digits", images=2, steps=2),
    "more than a batch": Request(RUN, nfe=1, images=70),
    "closed form": Request(CLOSED_FORM, smoothing=1.5, images=6),
}


@pytest.fixture
def studio(here: Path) -> Iterator[Studio]:
    studio = Studio(device="cpu", limits=Limits(images=80, evaluations=100))
    yield studio
    studio.close()


@pytest.mark.parametrize("request_", ASKED.values(), ids=ASKED)
def test_the_images_are_those_of_the_command_bit_for_bit(
    studio: Studio, tmp_path: Path, request_: Request
) -> None:
    answer = studio.draw(request_)
    program, script, *flags = shlex.split(answer.command)
    assert (program, script) == ("python", "sample.py")
    assert sample([*flags, "--trajectory", "--out", str(tmp_path)]) == 0
    assert answer.grid.read_bytes() == (tmp_path / "grid.png").read_bytes()
    for name in ("samples.npz", "manifest.json"):
        assert (answer.grid.parent / name).read_bytes() == (tmp_path / name).read_bytes()
    if request_.images <= 8:  # what both show, in batches of one size
        strip = answer.grid.parent / "trajectory.png"
        assert strip.read_bytes() == (tmp_path / "trajectory.png").read_bytes()


def test_the_trajectory_ends_at_the_images_and_says_where_it_is(studio: Studio) -> None:
    answer = studio.draw(Request(RUN, sampler="euler", steps=40, images=3))
    assert len(answer.frames) == FRAMES
    first = (80 ** (1 / 7) + (0.002 ** (1 / 7) - 80 ** (1 / 7)) / 39) ** 7
    assert answer.frames[0].caption == f"step 1 of 40, noise level {first:.3g}"
    assert answer.frames[-1].caption == "step 40 of 40, noise level 0"
    last, grid = np.array(Image.open(BytesIO(answer.frames[-1].png))), np.array(Image.open(answer.grid))
    assert np.array_equal(last[:36], last[34:])  # the state is the estimate
    assert np.array_equal(last[:36, :70], grid[:36, :70])  # the first two of three images


@pytest.mark.parametrize("name", SAMPLERS)
def test_recording_changes_nothing_and_ends_at_the_sample(
    name: str, mixture: GaussianMixtureDenoiser
) -> None:
    denoiser, sampler = mixture, SAMPLERS[name]()
    noise = SampleRng(range(5)).randn(2)
    recorder = Recorder(sampler, rows=2)
    drawn = [solve(denoiser, noise, None, SampleRng(range(5))) for solve in (sampler, recorder)]
    assert torch.equal(*drawn)
    assert all(len(step.x) == len(step.denoised) == 2 for step in recorder.steps)
    kept = evenly(recorder.steps, 3)
    for view in (states, estimates):
        assert torch.equal(view(denoiser, kept)[:, -1], drawn[0][:2].float())


HARMFUL = [
    "grid._target_=os.system",
    "_target_=os.system",
    "grid={_target_: os.system, command: id}",
    'grid={"\\x5ftarget_":os.system}',
    "s_churn=${oc.env:SECRET}",
    "s_churn=$(id)",
    "statistics=/etc/passwd",
    "steps=9",
    "s_churn",
    "--run=x",
    "--out=x",
    "a=[1,{b:2}]",
]


@pytest.mark.parametrize("settings", HARMFUL)
def test_settings_neither_choose_code_nor_read_what_is_not_theirs(
    studio: Studio, monkeypatch: pytest.MonkeyPatch, settings: str
) -> None:
    monkeypatch.setenv("SECRET", "17.25")
    with pytest.raises(UserError, match="write key=value") as refused:
        studio.draw(Request(RUN, settings=settings))
    assert "17.25" not in str(refused.value)


REFUSED = [
    (Request("nowhere"), "no such model; offered are runs/digits, pretrained/digits, digits in closed form"),
    (Request("runs/judge"), "no such model"),
    (Request("/etc/passwd"), "no such model"),
    (Request(RUN, images=0), "0 images: from 1 to 80"),
    (Request(RUN, images=81), "from 1 to 80"),
    (Request(RUN, seed=-1), "seed -1"),
    (Request(RUN, seed=2**63), "below 2\\^63"),
    (Request(RUN, steps=0), "steps=0: an integer at least 1"),
    (Request(RUN, steps=-5), "steps=-5"),
    (Request(RUN, steps=10**12), "at most 100 here"),
    (Request(RUN, nfe=10**12), "at most 100 here"),
    (Request(RUN, nfe=0), "at least 1 network evaluation"),
    (Request(RUN, steps=51), "101 network evaluations per image: at most 100"),
    (Request(RUN, steps=40, guidance=2.0), "158 network evaluations per image: at most 100"),
    (Request(RUN, sampler="restart", settings="k=99999999"), "unknown key|at most 100"),
    (Request(RUN, sampler="huen"), "did you mean heun"),
    (Request(RUN, sampler="--list"), "no such sampler"),
    (Request(RUN, settings="s_chrun=4"), "did you mean s_churn"),
    (Request(RUN, label=10), "class 10 is unknown"),
    (Request(RUN, label=-1), "class -1 is unknown"),
    (Request(RUN, guidance=float("nan")), "finite"),
    (Request(RUN, guidance=2.0, above=5.0, up_to=1.0), "the lower first"),
    (Request(RUN, above=1.0), "weight"),
    (Request(RUN, sampler="closed_form"), "holds no training data"),
    (Request(CLOSED_FORM, smoothing=-1.0), "--sigma-s -1"),
]


@pytest.mark.parametrize(("request_", "said"), REFUSED, ids=lambda value: str(value)[:60])
def test_bad_input_is_told_in_one_message_and_nothing_is_kept(
    studio: Studio, request_: Request, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        studio.draw(request_)
    assert list(studio.folder.iterdir()) == []
    assert studio.draw(Request(RUN, steps=1, images=1)).told.endswith(" s")


@pytest.mark.parametrize("text", ["abc", "1e", "0x10", "--out", "1;2", "½"])
def test_what_is_no_number_is_refused_by_its_field(text: str) -> None:
    with pytest.raises(UserError, match=f"class {re.escape(text)}: a number is expected"):
        whole("class", text)


def test_empty_fields_are_nothing_and_whole_numbers_keep_all_their_digits() -> None:
    assert [level("x", value) for value in (None, "", "  ", "0.5", 3)] == [None, None, None, 0.5, 3.0]
    assert [whole("x", value) for value in (None, "7", 7.0, 2**62 + 1)] == [None, 7, 7, 2**62 + 1]
    for value in ("1.5", float("inf"), float("nan")):
        with pytest.raises(UserError, match="a whole number"):
            whole("x", value)


def test_warnings_are_told_to_every_visitor(here: Path) -> None:
    studio = Studio(device="cpu")
    for _ in range(2):
        answer = studio.draw(Request(RUN, steps=2, images=1, sampler="teleport", settings="sigma_skip=1"))
        assert any("below" in note for note in answer.notes)
    copies = studio.draw(Request(CLOSED_FORM, smoothing=0.0, images=4)).notes
    assert copies == ["4 of 4 samples copy training samples (fewer with a higher --sigma-s)"]
    studio.close()


def test_runs_are_found_and_loaded_again_once_trained_further(here: Path, tmp_path: Path) -> None:
    shutil.copytree("runs", tmp_path / "runs")
    studio = Studio(tmp_path / "runs", [Path("runs/digits")], "cpu")
    run = f"{tmp_path}/runs/digits"
    assert studio.models() == ["runs/digits", run, *pretrained(), CLOSED_FORM]
    assert studio.card(run).num_classes == 10
    before = studio.draw(Request(run, steps=1, images=1)).told
    assert train([*TINY, "trainer.total=256", "trainer.label_dropout=0.1", f"run_dir={run}"]) == 0
    after = studio.draw(Request(run, steps=1, images=1)).told
    assert "(128 images" in before
    assert "(256 images" in after
    studio.close()


def test_models_and_answers_kept_are_bounded(here: Path) -> None:
    studio = Studio(device="cpu")
    for i in range(MODELS_KEPT + 2):
        studio.draw(Request(CLOSED_FORM, smoothing=i / 4, steps=1, images=1))
    assert studio._load.cache_info().currsize == MODELS_KEPT
    for _ in range(ANSWERS_KEPT):
        last = studio.draw(Request(RUN, steps=1, images=1))
    assert len(list(studio.folder.iterdir())) == ANSWERS_KEPT
    assert all(file.exists() for file in last.files)
    studio.close()
    assert not studio.folder.exists()
