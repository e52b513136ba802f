"""Checkpoints of score_sde give here the denoiser that they gave there, and run nothing."""

import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from math import exp, expm1, sqrt
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from scoregen.cli.sample import main as sample
from scoregen.cli.source import load_source
from scoregen.export.foreign import main as convert
from tests.export.conftest import Calls
from tests.export.originals import ScoreSDE

SIZE = ["--resolution", "8"]


def checkpoint(model: ScoreSDE) -> dict[str, Any]:
    """What its training saves: the last weights in `model`, and averages by their order alone."""
    named = {"sigmas": torch.linspace(50.0, 0.01, 1000, dtype=torch.float64), **model.tensors}
    learned = [value for name, value in named.items() if name not in ("sigmas", "all_modules.0.W")]
    last = {
        f"module.{name}": value if name in ("sigmas", "all_modules.0.W") else value + 1
        for name, value in named.items()
    }
    ema = {"decay": 0.9999, "num_updates": 7, "shadow_params": learned}
    adam = {
        "state": {0: {"step": 7, "exp_avg": torch.zeros(3)}},
        "param_groups": [{"lr": 2e-4, "params": [0]}],
    }
    return {"optimizer": adam, "model": last, "ema": ema, "step": 7}


def theirs_vp(model: ScoreSDE, x: Tensor, t: float) -> tuple[float, Tensor]:
    """sigma and D(x; sigma) at time t of the VP process on images in [-1, 1], beta from 0.1 to 20."""
    log_mean = -0.25 * t**2 * 19.9 - 0.5 * t * 0.1
    mean, std = exp(log_mean), sqrt(-expm1(2 * log_mean))
    score = -model(x * mean, torch.full((len(x),), 999 * t, dtype=torch.float64)) / std
    return std / mean, (x * mean + std**2 * score) / mean


def theirs_ve(model: ScoreSDE, x: Tensor, t: float) -> tuple[float, Tensor]:
    """sigma and D(x; sigma) at time t of the VE process on images in [0, 1], sigma from 0.01 to 50."""
    std = 0.01 * 5000**t
    y = (x + 1) / 2
    score = model(2 * y - 1, torch.full((len(x),), std, dtype=torch.float64)) / std
    return 2 * std, 2 * (y + std**2 * score) - 1


@pytest.mark.parametrize(("pyramid", "theirs"), [(False, theirs_vp), (True, theirs_ve)])
def test_a_checkpoint_gives_the_denoiser_of_the_published_score(
    pyramid: bool, theirs: Callable[..., tuple[float, Tensor]], tmp_path: Path
) -> None:
    model = ScoreSDE(pyramid=pyramid)
    saved, out = tmp_path / "checkpoint_26.pth", tmp_path / "out.safetensors"
    kept = {name: tensor.float().double() for name, tensor in model.tensors.items()}  # ours are float32
    for name, tensor in kept.items():
        _, number, key = name.split(".", 2)
        model.layers[int(number)][key] = tensor
    torch.save(checkpoint(model), saved)
    assert convert([str(saved), "--out", str(out), *SIZE]) == 0
    read = load_source(out, torch.device("cpu")).denoiser.double()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    for t in (0.01, 0.3, 0.99):
        sigma, expected = theirs(model, x, t)
        with torch.no_grad():
            denoised = read(x, torch.tensor(sigma, dtype=torch.float64))
        torch.testing.assert_close(denoised, expected, rtol=1e-10, atol=1e-10)
        assert (expected - x).abs().max() > 1e-3
    if pyramid:
        assert (read.sigma_min, read.sigma_max) == pytest.approx((0.02, 100))
    assert sample(["--run", str(out), "--seeds", "0", "--steps", "2", "--out", str(tmp_path / "drawn")]) == 0


def test_the_last_weights_are_read_where_asked_for(tmp_path: Path) -> None:
    saved, out = tmp_path / "checkpoint_26.pth", tmp_path / "out.safetensors"
    model = ScoreSDE(pyramid=False)
    torch.save(checkpoint(model), saved)
    assert convert([str(saved), "--out", str(out), "--key", "model", *SIZE]) == 0
    read = load_source(out, torch.device("cpu")).denoiser.state_dict()["network.enc.8x8_conv.bias"]
    torch.testing.assert_close(read, model.tensors["all_modules.2.bias"].float() + 1)


def _rewritten(
    path: Path, change: Callable[[str, bytes], bytes], compression: int = zipfile.ZIP_STORED
) -> None:
    """Change the members of an archive of torch.save."""
    torch.save(checkpoint(ScoreSDE(pyramid=False)), path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, change(name, data))


def _pickled(content: Any) -> Callable[[str, bytes], bytes]:
    """Put another pickle in the place of the archive's."""
    new = content if isinstance(content, bytes) else pickle.dumps(content, protocol=2)
    return lambda name, data: new if name.endswith("data.pkl") else data


HOSTILE: dict[str, tuple[Callable[[str, bytes], bytes], int]] = {
    "os.system": (_pickled({"model": Calls(os.system, "touch sprung")}), 0),
    "eval": (_pickled({"model": Calls(eval, "open('sprung', 'w')")}), 0),
    "nested": (_pickled(Calls(list, [Calls(os.system, "touch sprung")])), 0),
    "a pickle in a pickle": (
        _pickled(Calls(pickle.loads, pickle.dumps(Calls(os.system, "touch sprung")))),
        0,
    ),
    "text without end": (_pickled(b"\x80\x02X" + struct.pack("<I", 2**32 - 1) + b"x."), 0),
    "a place that the memo lacks": (_pickled(b"\x80\x02}j" + struct.pack("<I", 2**31) + b"."), 0),
    "a bomb": (lambda name, data: bytes(10**8) if name.endswith("data/0") else data, zipfile.ZIP_DEFLATED),
    "cut short": (lambda name, data: data[:-5], 0),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_checkpoint_is_refused_and_runs_nothing(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _rewritten(tmp_path / "bad.pth", *HOSTILE[kind])
    assert convert(["bad.pth", "--out", "out.safetensors", *SIZE]) == 2
    assert capsys.readouterr().err.startswith(
        "error: bad.pth is damaged or not plain data, and was not loaded"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["bad.pth"]


def test_an_archive_is_refused_before_it_is_unpacked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _rewritten(tmp_path / "bomb.pth", *HOSTILE["a bomb"])
    assert (tmp_path / "bomb.pth").stat().st_size < 10**6
    assert convert([str(tmp_path / "bomb.pth"), "--out", str(tmp_path / "out.safetensors")]) == 2
    assert "it is compressed, as torch.save never does" in capsys.readouterr().err


def test_a_tensor_larger_than_its_storage_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.pth"
    torch.save({"model": {"a": torch.zeros(1).expand(2**30)}}, path)
    assert convert([str(path), "--out", str(tmp_path / "out.safetensors")]) == 2
    assert "claims a smaller storage" in capsys.readouterr().err


def _without(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["model"].pop(f"module.{name}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.pop("model"), "a checkpoint of score_sde has 'model' and 'ema'"),
        (lambda content: content["ema"]["shadow_params"].pop(), "the averages are not those of the model's"),
        (lambda content: content["model"].update({"module.sigmas": 1}), "no dictionary of tensors"),
        (lambda content: content.update(ema=[]), "is not as its program writes such files"),
        (lambda content: content.update(model={}, ema={"shadow_params": []}), "is not as its program writes"),
    ],
)
def test_what_is_no_such_checkpoint_is_refused(
    change: Callable[[dict[str, Any]], object],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    content = checkpoint(ScoreSDE(pyramid=False))
    change(content)
    torch.save(content, tmp_path / "other.pth")
    assert convert([str(tmp_path / "other.pth"), "--out", str(tmp_path / "out.safetensors"), *SIZE]) == 2
    assert message in capsys.readouterr().err


def test_a_model_without_counterpart_is_told_by_its_layers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ScoreSDE(pyramid=True)
    model.layers = model.layers[1:]  # a pyramid with positional embedding, as the VP model of NCSN++ has
    model.layers[0]["weight"] = model.layers[0]["weight"][:, :8]
    torch.save(checkpoint(model), tmp_path / "vp.pth")
    assert convert([str(tmp_path / "vp.pth"), "--out", str(tmp_path / "out.safetensors"), *SIZE]) == 2
    assert "has no counterpart here; known are DDPM++" in capsys.readouterr().err


def test_a_size_of_no_pixels_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(checkpoint(ScoreSDE(pyramid=False)), tmp_path / "a.pth")
    out = tmp_path / "out.safetensors"
    assert convert([str(tmp_path / "a.pth"), "--out", str(out), "--resolution", "-4"]) == 2
    assert "--resolution -4: a positive number of pixels is expected" in capsys.readouterr().err
