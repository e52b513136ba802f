"""The AutoencoderKL of diffusers, by which images become latents and latents images."""

import hashlib
import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from scoregen.data.locate import HUB_NAME, hub_refusal, resolve_root
from scoregen.errors import UserError
from scoregen.ranges import Positive, PositiveInt

# Entries of its configuration that change nothing of what it computes here.
IDLE = ("scaling_factor", "shift_factor", "latents_mean", "latents_std", "sample_size", "force_upcast")


@dataclass(frozen=True)
class Autoencoder:
    """Encodes images as a Gaussian of latents, q(z | x) = N(m(x), s(x)^2), and decodes latents, in float32.

    Args:
        path: the folder of an AutoencoderKL, as given or below SCOREGEN_DATA, or owner/name on the hub, which
            diffusers downloads to its own cache.
        subfolder: where it is part of a pipeline, for example vae.
        revision: branch, tag or commit on the hub.
        posterior: train on a fresh draw from q at every step (sample), or on m(x).
        std: the standard deviation of every channel of the whitened latents.
        pixels: what it takes and gives: values in [-1, 1] (signed), or as EDM2 has it in [0, 1] (unit).
        batch: images at a time.

    Two are equal that differ in where they are found only; `sha256` tells the weights.

    Source: Rombach et al., High-Resolution Image Synthesis with Latent Diffusion Models, 2022, arXiv
    2112.10752.
    """

    path: str | None = field(default=None, compare=False)
    subfolder: str | None = field(default=None, compare=False)
    revision: str | None = field(default=None, compare=False)
    posterior: Literal["sample", "mean"] = "sample"
    std: Positive = 0.5
    pixels: Literal["signed", "unit"] = "signed"
    batch: PositiveInt = field(default=32, compare=False)

    def load(self, device: torch.device | str = "cpu") -> nn.Module:
        """The network, frozen; UserError where it is missing, damaged or of another kind."""
        return _load(self._place()).to(device)

    @property
    def sha256(self) -> str:
        """A hash of weights and architecture."""
        return _digest(self._place())

    def _place(self) -> "_Place":
        if self.path is None:
            raise UserError(
                "codec.path is needed: the folder of an AutoencoderKL, or its owner/name on the hub"
            )
        place, is_local = _find(self.path)
        if not is_local:
            return _Place(place.as_posix(), self.subfolder, self.revision, False, ())
        folder = (place / (self.subfolder or "")).resolve()
        if not folder.is_dir():  # diffusers would take what is above it
            raise UserError(f"codec.subfolder={self.subfolder}: there is no such folder in {place}")
        files = [(file.name, file.stat()) for file in sorted(folder.iterdir())]
        stamp = tuple(f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in files)
        return _Place(folder.as_posix(), None, None, True, stamp)

    def code_shape(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        """The shape of the latents of samples of `shape`; UserError for samples that it cannot encode."""
        config: Any = self.load().config
        factor = 2 ** (len(config.block_out_channels) - 1)
        if len(shape) != 3 or shape[0] != config.in_channels:
            raise UserError(
                f"codec.path={self.path}: the autoencoder takes images of {config.in_channels} channels, the "
                f"data have shape {shape}; data.mode=RGB or L converts images of data=folder, hf, webdataset"
            )
        if shape[1] % factor or shape[2] % factor:
            raise UserError(
                f"codec.path={self.path}: the autoencoder shrinks images by {factor}, and {shape[1]} x "
                f"{shape[2]} pixels are no multiple; choose another data.resolution"
            )
        return config.latent_channels, shape[1] // factor, shape[2] // factor

    @torch.no_grad()
    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """m and s, [B, c, h, w] each, of images [B, C, H, W] in [-1, 1]."""
        network: Any = self.load(x.device)
        x = (x + 1) / 2 if self.pixels == "unit" else x
        posteriors = [network.encode(part.float()).latent_dist for part in x.split(self.batch)]
        return torch.cat([q.mean for q in posteriors]), torch.cat([q.std for q in posteriors])

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Images [B, C, H, W] of latents [B, c, h, w], in [-1, 1] up to overshoot."""
        network: Any = self.load(z.device)
        x = torch.cat([network.decode(part.float()).sample for part in z.split(self.batch)])
        return 2 * x - 1 if self.pixels == "unit" else x


class _Place(NamedTuple):
    """What an autoencoder is remembered by within a process."""

    path: str  # absolute, or on the hub
    subfolder: str | None
    revision: str | None
    is_local: bool
    stamp: tuple[str, ...]  # names, sizes and times of the files


@cache
def _load(place: _Place) -> nn.Module:
    from diffusers import AutoencoderKL

    try:
        network, read = AutoencoderKL.from_pretrained(
            place.path,
            subfolder=place.subfolder,
            revision=place.revision,
            use_safetensors=True,
            local_files_only=place.is_local,
            torch_dtype=torch.float32,
            low_cpu_mem_usage=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        if place.is_local:
            problem = f"{place.path} holds no readable AutoencoderKL in safetensors"
            raise UserError(f"{problem}: {error}") from error
        raise hub_refusal(f"codec.path={place.path}", error) from error
    if missing := read["missing_keys"]:  # diffusers would fill them at random
        raise UserError(f"{place.path} holds no whole AutoencoderKL: {len(missing)} weights are missing")
    frozen: nn.Module = network.eval().requires_grad_(False)
    return frozen


def _find(path: str) -> tuple[Path, bool]:
    """The folder of an autoencoder and whether it is on this machine."""
    root = resolve_root(None)
    places = [Path(path).expanduser(), root / path, root / Path(path).name]
    for place in places:
        if place.is_dir():
            return place, True
    if HUB_NAME.fullmatch(path):
        return Path(path), False
    raise UserError(
        f"the autoencoder codec.path={path} was not found: looked for {', '.join(map(str, places))}; put its "
        "folder there, or name the folder that it is in by SCOREGEN_DATA"
    )


@cache
def _digest(place: _Place) -> str:
    network: Any = _load(place)
    settings = {k: v for k, v in network.config.items() if not k.startswith("_") and k not in IDLE}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
