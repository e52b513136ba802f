"""The multiplicative model through the entries: train, sample, evaluate, and what is refused."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from scoregen.cli.source import load_source
from scoregen.config import instantiate
from scoregen.rng import SampleRng
from scoregen.samplers.fit import fit_sampler
from tests.cli.conftest import TINY, Run

MODEL = [*TINY, "experiment=digits_multiplicative", "trainer.total=128", "run_dir=run"]


@pytest.mark.parametrize(
    "form", [[], ["precond=hyvarinen", "objective.weight=paper"]], ids=["log", "published"]
)
def test_a_run_is_sampled_and_scored_in_images(form: list[str], call: Run, tmp_path: Path) -> None:
    hooks = [
        "hooks.heldout.every=64",
        "hooks.grid.every=64",
        "hooks.evaluate.every=128",
        "hooks.evaluate.num=16",
    ]
    done = call("train.py", *MODEL, *hooks, *form, "sampler.steps=4")
    assert done.returncode == 0, done.stderr
    assert "consider sigma_data" not in done.stderr
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert {"heldout_loss", "fd_scatter"} <= {key for row in rows for key in row}
    assert (
        call(
            "sample.py", "--run", "run", "--seeds", "0-15", "--trajectory", "--interpolate", "1", "2"
        ).returncode
        == 0
    )
    with np.load(tmp_path / "out" / "samples.npz") as file:
        images = file["images"]
    source = load_source(Path("run"), torch.device("cpu"))
    sampler = fit_sampler(instantiate(source.cfg.sampler), source.denoiser, source.data, source.cache)
    rng = SampleRng(range(16))
    with torch.no_grad():
        u = sampler(source.denoiser, rng.randn(1, 8, 8), rng.randint(10), rng)[:, 0, :, :, None]
    pixels = 255 * (u.exp() - 1)  # u = ln(1 + pixel / 255)
    assert float((torch.from_numpy(images) - pixels.clamp(0, 255)).abs().max()) <= 0.5 + 1e-3
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["sampler"]["class"] == "MultiplicativeSampler"
    assert manifest["nfe"] == 4
    done = call(
        "evaluate.py",
        "--run",
        "run",
        "--num",
        "16",
        "--sampler",
        "multiplicative_unconstrained",
        "--steps",
        "4",
    )
    assert done.returncode == 0, done.stderr
    assert "fd_scatter" in done.stdout


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["data=npz", "data.root=bad.npz", "network=mlp"],
            "sample 2 holds -4, .* must be positive .*offset above 2",
        ),
        (
            ["precond.codec.offset=0.4"],
            "8-bit images reach down to -1, .* set precond.codec.offset above 0.5",
        ),
        (
            ["experiment=digits_edm", "objective=multiplicative"],
            "logarithms of positive data: choose precond=log, or precond=hyvarinen",
        ),
        (["objective.sigma_max=3"], "objective.sigma_max=3: .* precond.sigma_max=0.8 down"),
        (["data=kmnist", "data.root=."], r"KMNIST \(train\) was not found(.|\n)*train-images"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_has_no_logarithm_is_refused_and_nothing_is_written(
    overrides: list[str], said: str, call: Run, tmp_path: Path
) -> None:
    points = np.zeros((40, 2), dtype=np.float32)
    points[2, 1] = -4
    np.savez(tmp_path / "bad.npz", x_train=points, x_test=points)
    before = sorted(tmp_path.iterdir())
    settings = [key for key in MODEL if not ("network=mlp" in overrides and key.startswith("network."))]
    done = call("train.py", *settings, *overrides)
    assert done.returncode == 2, done.stderr
    assert re.search(said, done.stderr)
    assert "Traceback" not in done.stderr
    assert sorted(tmp_path.iterdir()) == before
