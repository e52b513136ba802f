"""Snapshots of EDM2 give here the denoiser that they gave there, and run nothing."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from scoregen.cli.sample import main as sample
from scoregen.cli.source import load_source
from scoregen.export.foreign import main as convert
from tests.data.autoencoders import save_autoencoder
from tests.export.conftest import Calls, Persistent
from tests.export.originals import EDM2Equations, edm2_tensors, edm_denoiser

SMALL = {
    "model_channels": 64,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [4],
    "dropout": 0.1,
}
LATENTS = {
    "vae_name": "stabilityai/sd-vae-ft-mse",
    "scale": np.float32([0.1] * 4),
    "bias": np.float32([0] * 4),
}


def _insert(module: nn.Module, name: str, tensor: torch.Tensor, depth: int = 0) -> None:
    """Put a tensor where its dotted name says, in objects that pickle as EDM2's."""
    head, _, rest = name.partition(".")
    if not rest:
        is_buffer = head in ("freqs", "phases")
        kept = module._buffers if is_buffer else module._parameters
        kept[head] = tensor if is_buffer else nn.Parameter(tensor, requires_grad=False)
        return
    if head not in module._modules:
        module._modules[head] = (
            nn.ModuleDict() if head in ("enc", "dec") else Persistent("Block" if depth else "MPConv")
        )
    _insert(module._modules[head], rest, tensor, depth + 1)


@pytest.fixture
def snapshot(tmp_path: Path, edm_program: type[dict]) -> Callable[..., Path]:
    """Write a snapshot as EDM2's training does: half precision, with encoder, data set and loss beside it."""

    def write(
        *,
        encoder: str = "StandardRGBEncoder",
        channels: int = 3,
        kwargs: dict[str, Any] | None = None,
        **entries: Any,
    ) -> Path:
        unet = Persistent("UNet", _init_kwargs={"img_resolution": 8, **SMALL, **(kwargs or {})})
        for name, tensor in edm2_tensors(channels=channels).items():
            _insert(unet, name, tensor.half())
        precond = Persistent("Precond", img_resolution=8, img_channels=channels, label_dim=5, sigma_data=0.4)
        precond._modules["unet"] = unet
        _insert(precond, "logvar_fourier.freqs", torch.randn(128).half())
        _insert(precond, "logvar_linear.weight", torch.randn(1, 128).half())
        content = edm_program(
            encoder=Persistent(encoder, **(LATENTS if encoder == "StabilityVAEEncoder" else {})),
            dataset_kwargs=edm_program(path="x.zip", use_labels=True),
            loss_fn=Persistent("EDM2Loss", P_mean=-0.8, P_std=1.6, sigma_data=0.5),
            ema=precond,
        )
        content.update(entries)
        path = tmp_path / "edm2-img64-s-1073741-0.075.pkl"
        path.write_bytes(pickle.dumps(content))
        return path

    return write


def test_a_snapshot_gives_the_denoiser_of_the_published_equations(
    snapshot: Callable[..., Path], tmp_path: Path
) -> None:
    out = tmp_path / "out.safetensors"
    assert convert([str(snapshot()), "--out", str(out), "--data", "cifar10"]) == 0
    read = load_source(out, torch.device("cpu")).denoiser.double()
    network = EDM2Equations({key: value.half().double() for key, value in edm2_tensors().items()})
    x, sigma = (
        torch.randn(3, 3, 8, 8, dtype=torch.float64),
        torch.tensor([0.05, 1.0, 20.0], dtype=torch.float64),
    )
    cond = torch.tensor([0, 4, 5])  # the last is no class
    expected = edm_denoiser(network, x, sigma, F.one_hot(cond, 6)[:, :5].double(), 0.4)
    with torch.no_grad():
        torch.testing.assert_close(read(x, sigma, cond), expected, rtol=1e-10, atol=1e-10)
    assert "SPRUNG" not in os.environ
    assert sample(["--run", str(out), "--seeds", "0", "--steps", "2", "--out", str(tmp_path / "drawn")]) == 0


def test_a_model_of_latents_decodes_as_its_program_does(
    snapshot: Callable[..., Path], tmp_path: Path
) -> None:
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(save_autoencoder(tmp_path / "vae", channels=3, latents=4))
    source, out = snapshot(encoder="StabilityVAEEncoder", channels=4), tmp_path / "out.safetensors"
    assert convert([str(source), "--out", str(out), "--autoencoder", str(tmp_path / "vae")]) == 0
    codec = load_source(out, torch.device("cpu")).denoiser.codec
    scale, bias = (torch.tensor(LATENTS[name])[:, None, None] for name in ("scale", "bias"))
    pixels, z = torch.rand(2, 3, 16, 16), 0.5 * torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        encoded = vae.encode(pixels).latent_dist.mean * scale + bias
        decoded = vae.decode((z - bias) / scale).sample
    torch.testing.assert_close(codec.encode(2 * pixels - 1), encoded, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close((codec.decode(z) + 1) / 2, decoded, rtol=1e-4, atol=1e-5)
    assert sample(["--run", str(out), "--seeds", "0", "--steps", "2", "--out", str(tmp_path / "drawn")]) == 0


@pytest.mark.parametrize(
    ("encoder", "channels", "message"),
    [
        ("StabilityVAEEncoder", 4, "has latents of 2 channels, the network of"),
        ("StandardRGBEncoder", 3, "draws images, not latents; leave out --autoencoder"),
    ],
)
def test_an_autoencoder_that_does_not_belong_to_it_is_refused(
    encoder: str,
    channels: int,
    message: str,
    snapshot: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    vae, out = save_autoencoder(tmp_path / "vae", channels=3, latents=2), tmp_path / "out.safetensors"
    source = snapshot(encoder=encoder, channels=channels)
    assert convert([str(source), "--out", str(out), "--autoencoder", str(vae)]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"encoder": "StabilityVAEEncoder"},
            "draws latents of stabilityai/sd-vae-ft-mse, whose weights are not",
        ),
        ({"encoder": "AnotherEncoder"}, "no counterpart of AnotherEncoder here"),
        ({"kwargs": {"res_balance": 0.5}}, "res_balance=0.5 is not read, only 0.3"),
        ({"kwargs": {"num_blocks": 2}}, "do not fit this network"),
        ({"kwargs": {"num_blocks": 10**9}}, "1000000000 blocks a level"),
        ({"kwargs": {"model_channels": 2**24}}, "do not fit this network"),
        (
            {"kwargs": {"model_channels": "all"}},
            "network.model_channels=all: an integer at least 1 is expected",
        ),
        ({"ema": Persistent("Precond")}, "Precond holds no network 'model'"),
        ({"ema": [1]}, "holds a list, not a network"),
        ({"loss_fn": Calls(os.system, "touch sprung")}, "it asks for posix.system"),
        ({"loss_fn": Calls(eval, "1")}, "it asks for builtins.eval"),
    ],
)
def test_what_has_no_counterpart_or_is_hostile_is_refused(
    changes: dict[str, Any],
    message: str,
    snapshot: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert convert([str(snapshot(**changes)), "--out", "out.safetensors"]) == 2
    assert message in capsys.readouterr().err
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".pkl"]
