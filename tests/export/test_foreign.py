"""Weights of other programs compute here what they computed there, and hostile files compute nothing."""

import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from scoregen.cli.sample import main as sample
from scoregen.cli.source import load_source
from scoregen.denoisers.network import NetworkDenoiser
from scoregen.diffusion.precond import DDPMPrecond, EDMPrecond, IDDPMPrecond, VEPrecond, VPPrecond
from scoregen.export.foreign import main as convert
from scoregen.networks import ADM, DDPMpp, NCSNpp
from tests.export.conftest import Calls, Persistent

CLASSES = {"DDPMpp": "SongUNet", "NCSNpp": "SongUNet", "ADM": "DhariwalUNet", "IDDPMPrecond": "iDDPMPrecond"}
SMALL = {"model_channels": 64, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4]}
SONG = {
    "DDPMpp": {"embedding_type": "positional", "encoder_type": "standard", "resample_filter": [1, 1]},
    "NCSNpp": {"embedding_type": "fourier", "encoder_type": "residual", "resample_filter": [1, 3, 3, 1]},
}
MODELS = [
    (DDPMpp, EDMPrecond(sigma_data=0.4), {}),
    (NCSNpp, VPPrecond(), {"beta_d": 19.9, "beta_min": 0.1, "M": 1000, "epsilon_t": 1e-5}),
    (NCSNpp, VEPrecond(), {"sigma_min": 0.02, "sigma_max": 100.0}),
    (ADM, IDDPMPrecond(), {"C_1": 0.001, "C_2": 0.008, "M": 1000}),
]


def _persistent(module: nn.Module, name: str, **attributes: Any) -> nn.Module:
    """The module as an object of EDM, its containers as torch's own."""
    if type(module) in (nn.ModuleDict, nn.ModuleList):
        made: nn.Module = nn.ModuleDict()
    else:
        made = Persistent(name)
    made._parameters, made._buffers = module._parameters, module._buffers
    made._modules = {key: _persistent(child, type(child).__name__) for key, child in module._modules.items()}
    made.__dict__.update(attributes)
    return made


@pytest.fixture
def write_edm(tmp_path: Path, edm_program: type[dict]) -> Callable[..., Path]:
    """Write a network as EDM's training writes it."""

    def write(denoiser: NetworkDenoiser, attributes: dict[str, Any]) -> Path:
        build, precond = type(denoiser.network).__name__, type(denoiser.precond).__name__
        network = _persistent(
            denoiser.network,
            CLASSES[build],
            _init_kwargs=edm_program(**SMALL, **SONG.get(build, {}), augment_dim=9, skip_scale=np.sqrt(0.5)),
        )
        whole = Persistent(CLASSES.get(precond, precond))
        whole._modules = {"model": network}
        whole.__dict__.update(img_resolution=8, img_channels=3, label_dim=5, use_fp16=False, **attributes)
        path = tmp_path / "network.pkl"
        path.write_bytes(pickle.dumps({"ema": whole, "dataset_kwargs": edm_program(path="x.zip")}))
        return path

    return write


@pytest.mark.parametrize(("build", "precond", "attributes"), MODELS)
def test_an_edm_pickle_gives_the_same_denoiser_and_runs_nothing(
    build: Any, precond: Any, attributes: dict[str, Any], write_edm: Callable[..., Path], tmp_path: Path
) -> None:
    ours = {"attention_resolutions": (4,), "model_channels": 64, "channel_mult": (1, 2), "num_blocks": 1}
    network = build(
        resolution=8,
        channels=3,
        num_classes=5,
        augment_dim=9,
        out_channels=3 * precond.channel_factor,
        **ours,
    )
    with torch.no_grad():  # the last layers start at zero, which would hide what lies before them
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    original = NetworkDenoiser(network, precond, shape=(3, 8, 8), num_classes=5).eval()
    attributes = attributes or {"sigma_data": precond.sigma_data}
    out = tmp_path / "out.safetensors"
    assert convert([str(write_edm(original, attributes)), "--out", str(out), "--data", "cifar10"]) == 0
    read = load_source(out, torch.device("cpu")).denoiser
    x, sigma, cond = torch.randn(3, 3, 8, 8), torch.tensor([0.05, 1.0, 20.0]), torch.tensor([0, 4, 5])
    with torch.no_grad():
        assert torch.equal(read(x, sigma, cond), original(x, sigma, cond))
    assert "SPRUNG" not in os.environ
    assert sample(["--run", str(out), "--seeds", "0", "--steps", "2", "--out", str(tmp_path / "drawn")]) == 0


def test_a_diffusers_folder_gives_the_same_predictions(tmp_path: Path) -> None:
    from diffusers import DDPMScheduler, UNet2DModel

    torch.manual_seed(3)
    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        layers_per_block=1,
    ).eval()
    scheduler = DDPMScheduler(
        beta_schedule="scaled_linear", prediction_type="v_prediction", clip_sample=False
    )
    unet.save_pretrained(tmp_path / "pipe" / "unet")
    scheduler.save_pretrained(tmp_path / "pipe" / "scheduler")
    out = tmp_path / "out.safetensors"
    assert convert([str(tmp_path / "pipe"), "--out", str(out)]) == 0
    denoiser = load_source(out, torch.device("cpu")).denoiser
    assert denoiser.precond == DDPMPrecond("v_prediction", "scaled_linear")
    x = torch.randn(2, 3, 8, 8)
    for step in (1, 400, 999):
        abar = scheduler.alphas_cumprod[step]
        sigma = (1 / abar - 1).sqrt()
        with torch.no_grad():
            velocity = unet(x * abar.sqrt(), step).sample
            denoised = denoiser(x, sigma)
        theirs = scheduler.step(velocity, step, x * abar.sqrt()).pred_original_sample
        torch.testing.assert_close(denoised, theirs, rtol=1e-3, atol=1e-3)  # their time step is a float32


def _hostile(marker: Path) -> dict[str, bytes]:
    command = f"touch {marker}"
    nested = pickle.dumps(Calls(os.system, command))
    tensor, scalar = pickle.dumps(torch.zeros(2)), np.float64(0).__reduce__()[0]
    return {
        "os.system": pickle.dumps({"ema": Calls(os.system, command)}),
        "eval": pickle.dumps({"ema": Calls(eval, f"open({str(marker)!r}, 'w')")}),
        "getattr": pickle.dumps(Calls(getattr, Calls, "__reduce__")),
        "nested reduce": pickle.dumps(Calls(list, [Calls(os.system, command)])),
        "inside a tensor": pickle.dumps(Calls(torch.storage._load_from_bytes, nested)),
        "inside a pickle": pickle.dumps(Calls(pickle.loads, nested)),
        "an object for a number": pickle.dumps(Calls(scalar, np.dtype(object), b"\x00" * 8)),
        "a place in the memo": b"\x80\x04]r" + struct.pack("<I", 2**31 - 1) + b".",
        "bytes without end": b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x.",
        "a frame without end": b"\x80\x04\x95" + struct.pack("<Q", 2**40) + b"N.",
        "a tensor beyond its storage": tensor.replace(b"K\x02\x85", b"J\xff\xff\xff\x7f\x85"),
        "cut short": tensor[:-9],
        "no network": pickle.dumps({"ema": [1, 2, 3]}),
        "another key": pickle.dumps({"net": 1}),
    }


@pytest.mark.parametrize("kind", _hostile(Path("x")))
def test_a_hostile_pickle_is_refused_and_runs_nothing(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    marker, path, out = tmp_path / "sprung", tmp_path / "bad.pkl", tmp_path / "out.safetensors"
    path.write_bytes(_hostile(marker)[kind])
    assert convert([str(path), "--out", str(out)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {path} ")
    assert not marker.exists()
    assert not out.exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"_class_name": "UNet2DConditionModel"}, "only UNet2DModel is read"),
        ({"_class_name": "UNet2DModel", "time_embedding_type": "fourier"}, "time_embedding_type=fourier"),
        ({"_class_name": "UNet2DModel"}, "the noise schedule that the model was trained with is needed"),
        (None, "cannot be read as JSON"),
    ],
)
def test_a_folder_that_is_not_understood_is_refused(
    settings: dict[str, Any] | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import json

    (tmp_path / "config.json").write_text("{" if settings is None else json.dumps(settings))
    assert convert([str(tmp_path), "--out", str(tmp_path / "out.safetensors")]) == 2
    assert message in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert convert([str(tmp_path / "empty"), "--out", str(tmp_path / "out.safetensors")]) == 2
    assert "config.json is missing: the folder of a UNet2DModel is expected" in capsys.readouterr().err
