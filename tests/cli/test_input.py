"""Bad input of the entries: one clear message, exit code 2, no traceback, and nothing written or lost."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from scoregen.data.digits import load_digits
from tests.cli.conftest import ROOT, TINY, Run, Start


def assert_refused(done: "subprocess.CompletedProcess[str]", *said: str) -> None:
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("error: ") or "usage:" in done.stderr
    for words in said:
        assert words in done.stderr


@pytest.mark.parametrize("script", ["train", "sample", "evaluate"])
def test_help_imports_no_torch(script: str) -> None:
    code = (
        f"import sys; from scoregen.cli.{script} import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "exit codes: 0 done, 2 wrong input" in done.stdout


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, scoregen; assert not {'torch', 'numpy', 'omegaconf'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_the_core_pulls_no_optional_package() -> None:
    rooms = "build, cli.source, cli.draw, data.hub, data.webdataset, demo.studio"
    heavy = "diffusers torchmetrics wandb tensorboard accelerate scipy gradio optuna datasets pyarrow pandas"
    code = (
        f"import sys, {', '.join(f'scoregen.{room}' for room in rooms.split(', '))}\n"
        f"heavy = {set(heavy.split())} & set(sys.modules); assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_train_refuses_bad_settings_and_writes_nothing(call: Run, tmp_path: Path) -> None:
    done = call("train.py", *TINY, "trainer.batch=-3", "objective=denoisng")
    assert_refused(done, "2 problems", "did you mean denoising?", "trainer.batch=-3")
    assert list(tmp_path.iterdir()) == []


def save_image(path: Path, *shape: int) -> None:
    path.parent.mkdir(exist_ok=True)
    pixels = np.random.default_rng(len(path.name)).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def empty(folder: Path) -> str:
    folder.mkdir()
    return "no images"


def unreadable(folder: Path) -> str:
    save_image(folder / "a.png", 8, 8, 3)
    (folder / "b.png").write_bytes((folder / "a.png").read_bytes()[:60])
    return "b.png"


def other_channels(folder: Path) -> str:
    save_image(folder / "a.png", 8, 8, 3)
    save_image(folder / "b.png", 8, 8)
    return "b.png"


def other_size(folder: Path) -> str:
    save_image(folder / "a.png", 8, 8, 3)
    save_image(folder / "b.png", 8, 9, 3)
    return "b.png"


def label_out_of_range(folder: Path) -> str:
    save_image(folder / "a.png", 8, 8, 3)
    labels = {"labels": [["a.png", 7]], "class_names": ["cat", "dog"]}
    (folder / "dataset.json").write_text(json.dumps(labels))
    return "label"


@pytest.mark.parametrize("spoil", [empty, unreadable, other_channels, other_size, label_out_of_range])
def test_bad_image_folders_are_refused_by_file(
    call: Run, tmp_path: Path, spoil: Callable[[Path], str]
) -> None:
    said = spoil(tmp_path / "images")
    labelled = str((tmp_path / "images/dataset.json").exists()).lower()
    data = ["data=folder", "data.root=images", f"data.conditional={labelled}", "data.test_fraction=0.0"]
    assert_refused(call("train.py", *TINY, *data, "run_dir=x"), said)
    assert not (tmp_path / "x").exists()


def test_data_that_are_not_finite_or_not_there_are_refused(call: Run, tmp_path: Path) -> None:
    np.save(tmp_path / "bad.npy", np.array([[0.0, 1.0], [np.nan, 0.0]], dtype=np.float32))
    data = ["data=npz", "data.root=bad.npy", "data.test_fraction=0.0"]
    assert_refused(call("train.py", "data=npz", *data, "network=mlp", "run_dir=x"), "NaN", "sample 1")
    assert_refused(
        call("train.py", "experiment=cifar_edm", "run_dir=x"), "cifar-10-python.tar.gz", "SCOREGEN_DATA"
    )
    assert not (tmp_path / "x").exists()


def test_images_that_are_not_square_are_refused(call: Run, tmp_path: Path) -> None:
    save_image(tmp_path / "wide/a.png", 8, 16, 3)
    data = ["data=folder", "data.root=wide", "data.test_fraction=0.0", "run_dir=x"]
    assert_refused(call("train.py", *TINY, *data), "8 x 16 pixels", "--crop center")
    assert not (tmp_path / "x").exists()


def test_an_evaluation_of_one_image_is_refused_before_training(call: Run, tmp_path: Path) -> None:
    done = call("train.py", *TINY, "hooks.evaluate.every=64", "hooks.evaluate.num=1")
    assert_refused(done, "hooks.evaluate.num=1")
    assert done.stdout == ""


def test_data_without_any_variation_are_refused(call: Run, tmp_path: Path) -> None:
    np.save(tmp_path / "grey.npy", np.full((20, 8, 8), 7, dtype=np.uint8))
    assert_refused(call("train.py", *TINY, "data=npz", "data.root=grey.npy"), "all values of grey are equal")


def test_a_run_of_another_architecture_is_refused_and_kept(call: Run, tmp_path: Path) -> None:
    small = [*TINY, "trainer.total=64"]
    assert call("train.py", *small, "run_dir=x").returncode == 0
    before = {path: path.read_bytes() for path in (tmp_path / "x").rglob("*") if path.is_file()}
    done = call("train.py", *small, "network.model_channels=16", "run_dir=x")
    assert_refused(done, "network.model_channels: 8 -> 16", "another run_dir")
    assert {path: path.read_bytes() for path in (tmp_path / "x").rglob("*") if path.is_file()} == before
    finished = call("train.py", *small, "run_dir=x")
    assert finished.returncode == 0
    assert "x is finished at 64 images" in finished.stdout


@pytest.mark.parametrize(
    "content", [None, b"", b"\xff\xfe", b"a: [1"], ids=["gone", "empty", "bytes", "torn"]
)
def test_a_run_with_a_damaged_config_goes_by_the_one_in_its_weights(
    call: Run, tmp_path: Path, content: bytes | None
) -> None:
    small, file = [*TINY, "trainer.total=32", "run_dir=x"], tmp_path / "x/config.yaml"
    assert call("train.py", *small).returncode == 0
    whole = file.read_text()
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    assert_refused(call("train.py", *small, "seed=1"), "seed: 0 -> 1")
    assert call("train.py", *small, "trainer.total=64").returncode == 0
    assert file.read_text() == whole.replace("total: 32", "total: 64")


def equal(a: Any, b: Any) -> bool:
    """Whether two nested containers of tensors and plain values are the same, bit for bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else bool(a == b)


def test_a_run_goes_on_by_its_folder_alone(call: Run, tmp_path: Path) -> None:
    unusual = [*TINY, "optimizer.lr=3e-3", "seed=5"]
    assert call("train.py", *unusual, "trainer.total=64", "run_dir=whole").returncode == 0
    assert call("train.py", *unusual, "trainer.total=32", "run_dir=x").returncode == 0
    (tmp_path / "x").rename(tmp_path / "y")
    assert call("train.py", "--resume", "y", "trainer.total=64").returncode == 0
    weights = "checkpoints/000000000064/optimizer.pt"
    states = [torch.load(tmp_path / run / weights, weights_only=True) for run in ("whole", "y")]
    assert equal(*states)
    assert call("train.py", "--resume", "y", "trainer.total=96", "sampler=unipc").returncode == 0
    assert "UniPCSampler" in call("sample.py", "--run", "y", "--seeds", "0-1").stdout
    assert_refused(call("train.py", "--resume", "y", "objective=lcss"), "start another run with it")
    assert_refused(call("train.py", "--resume", "y", "run_dir=z"), "goes on where the run is")
    assert_refused(call("train.py", "--resume", "y", "seed=6"), "seed: 5 -> 6", "--resume y")
    assert_refused(call("train.py", "--resume", "nowhere"), "there is no run with a checkpoint")
    assert_refused(call("train.py", "-m", "--resume", "y", "seed=1,2"), "goes on with one run")


def test_a_run_that_ends_with_its_schedule_is_not_lengthened(call: Run, tmp_path: Path) -> None:
    assert call("train.py", *TINY, "schedule=cosine", "trainer.total=32", "run_dir=x").returncode == 0
    (tmp_path / "x").rename(tmp_path / "2024")
    assert_refused(call("train.py", "--resume", "2024", "trainer.total=64"), "schedule.total: 32 -> 64")
    assert "is finished at 32 images" in call("train.py", "--resume", "2024").stdout


def test_a_run_from_elsewhere_does_not_choose_what_runs_when_it_is_resumed(call: Run, tmp_path: Path) -> None:
    assert call("train.py", *TINY, "trainer.total=32", "run_dir=x").returncode == 0
    file = tmp_path / "x/config.yaml"
    file.write_text(file.read_text().replace("scoregen.data.augment.NoAugment", "elsewhere.Augment"))
    assert_refused(call("train.py", "--resume", "x", "trainer.total=64"), "names elsewhere.Augment")


def test_nobody_need_read_to_the_end(start: Start) -> None:
    process = start("sample.py", "--list")
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(60) == 130
    assert process.stderr is not None
    assert process.stderr.read() == ""


def test_a_folder_under_another_name_is_the_same_run(call: Run, tmp_path: Path) -> None:
    small = [*TINY, "trainer.total=32"]
    assert call("train.py", *small, "run_dir=x").returncode == 0
    (tmp_path / "x").rename(tmp_path / "y")
    assert "y is finished at 32 images" in call("train.py", *small, f"run_dir={tmp_path / 'y'}").stdout


def test_sample_refuses_bad_requests_and_writes_nothing(call: Run, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.safetensors"
    save_file({"w": torch.zeros(1)}, foreign)
    config = {
        "config": "trainer: {}\nprecond: {_target_: os.mkdir, path: run}\n",
        "model": '{"shape": [1, 8, 8]}',
    }
    save_file({"w": torch.zeros(1)}, tmp_path / "code.safetensors", config)
    pickled = tmp_path / "pickled.safetensors"
    torch.save({"w": torch.zeros(1)}, pickled)
    for folder in ("several/a/checkpoints", "several/b/checkpoints", "foreign/unet"):
        (tmp_path / folder).mkdir(parents=True)
    requests = [
        (["--run", "nowhere"], "no such folder or file"),
        (["--run", "several"], "give one of the runs in it: several/a, several/b"),
        (["--run", "foreign"], "python -m scoregen.export.foreign foreign --out OUT"),
        (["--run", "foreign.safetensors"], "does not say which network"),
        (["--run", "code.safetensors"], "os.mkdir"),
        (["--run", "pickled.safetensors"], "pickle"),
        (["--sampler", "huen"], "did you mean heun?"),
        (["--steps", "0"], "steps=0"),
        (["s_chrun=4"], "did you mean s_churn?"),
        (["--seeds", "5-3"], "no seed or range"),
        (["--seeds", "1,1"], "more than once"),
        (["--seeds", "0-20000,5"], "5 is named more than once"),
        (["--seeds", "\u00b2"], "no seed or range"),
        (["--seeds", str(2**63)], "below 2^63"),
        (["--seeds", "0-99999999999"], "at most 10,000,000"),
        (["--out", "foreign.safetensors"], "foreign.safetensors is in the way"),
        (["grid=null"], "sampler.grid=None"),
        (["--class", "11"], "class 11"),
        (["--batch", "0"], "batch=0"),
        (["--nfe", "0"], "at least 1 network evaluation"),
        (["--device", "tpu"], "device=tpu"),
        (["--steps", "3", "--nfe", "3"], "not allowed with"),
        (["--sampler", "teleport", "sigma_skip=100"], "sigma_max=80"),
        (["--sampler", "teleport", "--steps", "1"], "take more steps"),
        (["--data", "five.npz", "--estimator", "neighbours"], "only 5 samples"),
        (["--data", "five.npz", "--guidance", "2"], "needs a model with classes"),
    ]
    np.savez(tmp_path / "five.npz", images=np.arange(320, dtype=np.uint8).reshape(5, 8, 8))
    for request, said in requests:
        assert_refused(call("sample.py", *request), said)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "run").exists()


def test_evaluate_refuses_bad_requests(call: Run) -> None:
    requests = [
        (["--metrics", "fdi"], "did you mean fid?"),
        (["--metrics", "fid", "--inception-weights", "nowhere.pth"], "nowhere.pth"),
        (["--num", "0"], "--num 0"),
        (["--seed", "-1"], "--seed -1"),
        (["--out", "."], "is in the way"),
        (["--num", "1"], "at least 2 images"),
        (["--reference", "nowhere"], "no such file or folder"),
        (["--reference", "nowhere.npz"], "nowhere.npz"),
    ]
    for request, said in requests:
        assert_refused(call("evaluate.py", "--num", "4", *request), said)


def test_without_a_run_the_embedded_digits_are_sampled_in_closed_form(call: Run, tmp_path: Path) -> None:
    done = call("sample.py", "--steps", "5", "--seeds", "0-9,20", "--class", "3")
    assert done.returncode == 0, done.stderr
    assert "closed form" in done.stdout
    assert "5 steps, 9 network evaluations per image" in done.stdout
    with np.load(tmp_path / "out/samples.npz") as file:
        images, seeds, labels = file["images"], file["seeds"], file["labels"]
    assert images.shape == (11, 8, 8, 1)
    assert seeds.tolist() == [*range(10), 20]
    assert set(labels) == {3}
    digits = load_digits().x.permute(0, 2, 3, 1).numpy().astype(int)
    distances = np.abs(images[:, None].astype(int) - digits[None]).max((2, 3, 4)).min(1)
    assert (distances <= 1).all(), "the closed form of a finite set returns its members"
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert (manifest["steps"], manifest["nfe"], manifest["seeds"]) == (5, 9, seeds.tolist())


def test_an_image_is_the_same_alone_and_among_others_and_for_every_batch(call: Run, tmp_path: Path) -> None:
    assert call("train.py", *TINY, "trainer.total=256", "run_dir=x").returncode == 0
    images = {}
    for seeds, batch in (("0-15", "64"), ("0-15", "1"), ("15,7", "2"), ("7", "64")):
        done = call("sample.py", "--run", "x", "--seeds", seeds, "--batch", batch, "--nfe", "9")
        assert done.returncode == 0, done.stderr
        with np.load(tmp_path / "out/samples.npz") as file:
            images[seeds, batch] = dict(zip(file["seeds"].tolist(), file["images"].astype(int), strict=True))
    whole = images["0-15", "64"]
    for some in images.values():
        assert all(np.abs(image - whole[seed]).max() <= 1 for seed, image in some.items())


@pytest.mark.parametrize("content", ["{torn", "{}"])
def test_results_that_cannot_be_added_to_are_refused_before_any_work_and_kept(
    call: Run, tmp_path: Path, content: str
) -> None:
    (tmp_path / "metrics.json").write_text(content)
    done = call("evaluate.py", "--num", "4", "--steps", "1")
    assert_refused(done, "metrics.json holds no list of results")
    assert done.stdout == ""
    assert (tmp_path / "metrics.json").read_text() == content


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_results_that_cannot_be_written_leave_those_before_them(
    call: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    commands = [["sample.py", "--seeds", "0-3"], ["evaluate.py", "--num", "4", "--out", "out/metrics.json"]]
    assert all(call(*command, "--steps", "1").returncode == 0 for command in commands)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def fail(file: int) -> None:
        raise OSError(code, os.strerror(code), "out")

    monkeypatch.setattr(os, "fsync", fail)
    for command in commands:
        assert_refused(call(*command, "--steps", "2"), "out")
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_an_interrupt_is_told_in_one_line(call: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("scoregen.cli.sample.parse_seeds", interrupt)
    done = call("sample.py")
    assert done.returncode == 130
    assert done.stderr == "interrupted; give the same command again\n"


def test_a_classifier_neither_draws_in_training_nor_after(call: Run, tmp_path: Path) -> None:
    network = [
        "network=classifier",
        "objective=classifier",
        "trainer.total=64",
        "trainer.batch=32",
        "device=cpu",
    ]
    network.append("trainer.label_dropout=0")
    off = ["hooks.grid.every=null", "hooks.heldout.every=null"]
    assert_refused(
        call("train.py", *network, "hooks.heldout.every=null", "run_dir=x"), "hooks.grid.every=null"
    )
    assert call("train.py", *network, *off, "run_dir=runs/judge").returncode == 0
    assert_refused(call("sample.py", "--run", "runs/judge"), "guides a model")
    assert "closed form" in call("sample.py", "--steps", "2", "--seeds", "0-3").stdout
