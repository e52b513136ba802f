"""Models of latents through the entries: train, resume, sample, evaluate, distil, and what is refused."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from scoregen.cli.source import load_source
from scoregen.config import instantiate
from scoregen.images import to_uint8
from scoregen.rng import SampleRng
from scoregen.training.checkpoint import latest_checkpoint
from tests.cli.conftest import TINY, Run
from tests.data.autoencoders import save_autoencoder

MODEL = [
    *TINY,
    "codec=autoencoder",
    "codec.path=vae",
    "sigma_data=0.5",
    "sampler.steps=3",
    "hooks.checkpoint.every=64",
]


@pytest.fixture(autouse=True)
def vae(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a tiny autoencoder, beside the runs, and a cache of our own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return save_autoencoder(tmp_path / "vae")


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    found = latest_checkpoint(run_dir / "checkpoints")
    assert found is not None
    return load_file(found.path / "ema.safetensors")


def losses(run_dir: Path) -> list[float]:
    rows = map(json.loads, (run_dir / "log.jsonl").read_text().splitlines())
    return [row["loss"] for row in rows if "loss" in row]


def test_a_run_is_sampled_and_scored_in_images(call: Run, tmp_path: Path) -> None:
    hooks = ["hooks.heldout.every=128", "hooks.grid.every=128", "hooks.evaluate.every=128"]
    done = call("train.py", *MODEL, *hooks, "hooks.evaluate.num=8", "trainer.total=128", "run_dir=run")
    assert done.returncode == 0, done.stderr
    assert "encoding 1,617 images of digits by vae" in done.stdout
    assert "consider sigma_data" not in done.stderr
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert {"heldout_loss", "fd_scatter"} <= {key for row in rows for key in row}
    views = ["--trajectory", "--interpolate", "1", "2"]
    done = call("sample.py", "--run", "run", "--seeds", "0-7", "--device", "cpu", *views)
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "out" / "samples.npz") as file:
        images = torch.from_numpy(file["images"]).permute(0, 3, 1, 2).int()
    assert (images - decoded_by_hand(tmp_path).int()).abs().max() <= 1
    done = call("evaluate.py", "--run", "run", "--num", "8", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert "reference digits (1,617 images)" in done.stdout


def decoded_by_hand(folder: Path) -> torch.Tensor:
    """Seeds 0 to 7 of the run, their latents decoded by diffusers itself."""
    source = load_source(folder / "run", torch.device("cpu"))
    stats = source.denoiser.codec.stats  # type: ignore[attr-defined]
    mean, std = (torch.tensor(value)[:, None, None] for value in (stats.mean, stats.std))
    rng = SampleRng(range(8))
    with torch.no_grad():
        z = instantiate(source.cfg.sampler)(source.denoiser, rng.randn(2, 4, 4), rng.randint(10), rng)
        network = AutoencoderKL.from_pretrained(folder / "vae")
        return to_uint8(network.decode(z.float() / 0.5 * std + mean).sample)


@pytest.mark.parametrize("posterior", ["sample", "mean"])
def test_twice_n_images_are_n_and_n_again(call: Run, tmp_path: Path, vae: Path, posterior: str) -> None:
    settings = [*MODEL, f"codec.posterior={posterior}"]
    for total, run_dir in ((256, "a"), (128, "b"), (256, "b")):
        if run_dir == "b" and total == 256:  # elsewhere, but the same
            vae.rename(tmp_path / "moved")
            settings.append("codec.path=moved")
        done = call("train.py", *settings, f"trainer.total={total}", f"run_dir={run_dir}")
        assert done.returncode == 0, done.stderr
    ours, theirs = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert losses(tmp_path / "a") == losses(tmp_path / "b")


def test_two_processes_encode_once_and_train_as_one(run: Run, call: Run, tmp_path: Path) -> None:
    settings = [*MODEL, "trainer.total=64", "hooks.status.every=32"]
    two = run("train.py", *settings, "run_dir=two", processes=2)
    one = call("train.py", *settings, "run_dir=one")
    assert (two.returncode, one.returncode) == (0, 0), two.stderr
    assert (two.stdout + one.stdout).count("encoding 1,617 images") == 1
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-6)


def test_what_a_run_will_cost_is_told_without_encoding(call: Run, tmp_path: Path) -> None:
    done = call("train.py", *MODEL, "dry=true")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "cache").exists()


def test_a_student_draws_the_latents_of_its_teacher(call: Run, tmp_path: Path) -> None:
    done = call("train.py", *MODEL, "trainer.total=64", "run_dir=teacher")
    assert done.returncode == 0, done.stderr
    for method, needs_data in (("sim", False), ("dmd2", True)):
        distil = [f"experiment=digits_{method}", *TINY, "teacher=teacher", "hooks.evaluate.every=null"]
        done = call("train.py", *distil, "trainer.total=64", f"run_dir={method}")
        assert done.returncode == 0, done.stderr
        student = load_source(tmp_path / method, torch.device("cpu")).denoiser
        teacher = load_source(tmp_path / "teacher", torch.device("cpu")).denoiser
        assert student.codec == teacher.codec  # type: ignore[attr-defined]
        found = latest_checkpoint(tmp_path / method / "checkpoints")
        assert found is not None
        assert ("autoencoder" in found.metadata("ema")) == needs_data
        assert call("sample.py", "--run", method, "--seeds", "0-3", "--device", "cpu").returncode == 0


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["codec.path=null"], r"codec\.path is needed"),
        (["codec.path=gone"], r"codec\.path=gone was not found"),
        (["augment=edm"], "codec=autoencoder needs augment=none"),
        (["precond=log", "objective=multiplicative"], "needs a precond without a codec of its own"),
        (["data=moons", "network=mlp"], "the autoencoder takes images of 1 channels"),
        (["experiment=digits_sim", "teacher=gaussian"], "needs a teacher that was trained on them"),
        (["codec.posterior=all"], r"codec\.posterior=all: one of sample, mean is expected"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_does_not_go_with_latents_is_refused(
    overrides: list[str], said: str, call: Run, tmp_path: Path
) -> None:
    settings = [key for key in MODEL if not ("network=mlp" in overrides and key.startswith("network."))]
    done = call("train.py", *settings, *overrides, "run_dir=run")
    assert done.returncode == 2, done.stderr
    assert re.search(said, done.stderr)
    assert not (tmp_path / "run").exists()


def test_a_model_without_its_autoencoder_says_so_first(call: Run, tmp_path: Path, vae: Path) -> None:
    done = call("train.py", *MODEL, "trainer.total=64", "run_dir=run")
    assert done.returncode == 0, done.stderr
    shutil.move(vae, tmp_path / "kept")
    done = call("sample.py", "--run", "run", "--seeds", "0-3", "--device", "cpu")
    assert done.returncode == 2
    assert "the autoencoder codec.path=vae was not found" in done.stderr
    save_autoencoder(vae, seed=1)
    done = call("sample.py", "--run", "run", "--seeds", "0-3", "--device", "cpu")
    assert done.returncode == 2
    assert "put that one back" in done.stderr
    done = call("train.py", *MODEL, "trainer.total=128", "run_dir=run")
    assert done.returncode == 2
    assert "autoencoder" in done.stderr
