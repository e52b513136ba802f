"""The checkpoints of score_sde (PyTorch) in this program's terms.

Such a file holds a model's parameters by the place of each layer in one list, and their averages in the
order of the parameters. It does not say how the model was trained: DDPM++ is read as of the continuous VP
process on images in [-1, 1], NCSN++ as of the continuous VE process on images in [0, 1], its output divided
by sigma, which is how they were published for CIFAR-10.

Source: Song et al., Score-Based Generative Modeling through Stochastic Differential Equations, 2021, arXiv
2011.13456, and the layout of its PyTorch code's models and checkpoints.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from scoregen.errors import UserError
from scoregen.export.torch_file import read_torch
from scoregen.networks.layers import fir_filter

if TYPE_CHECKING:
    from scoregen.export.foreign import Foreign

Layer = Mapping[str, Tensor]  # the parameters of one entry of the list
BLOCK = {
    "GroupNorm_0": "norm0",
    "Conv_0": "conv0",
    "Dense_0": "affine",
    "GroupNorm_1": "norm1",
    "Conv_1": "conv1",
    "Conv_2": "skip",
}


@dataclass(frozen=True)
class Layout:
    """What a model's list of layers tells of its build: sizes and attention by level, and the embedding."""

    model_channels: int
    channel_mult: list[int]
    num_blocks: int
    attends: list[bool]  # one a level
    pyramid: bool  # NCSN++: Fourier features, and the input again at each level

    @classmethod
    def of(cls, layers: Sequence[Layer]) -> "Layout":
        """Read off the list; ValueError where it is too short to be a U-Net's."""
        kinds = [_kind(layer) for layer in layers]
        levels, plain = kinds.count("resample") // 2 + 1, kinds.count("block")
        num_blocks = ((plain - 2) // levels - 1) // 2
        if num_blocks < 1:
            raise ValueError(f"{plain} blocks at {levels} resolutions")
        stem = layers[kinds.index("conv")]["weight"].shape[0]
        places = islice((i for i, kind in enumerate(kinds) if kind == "block"), levels * num_blocks)
        firsts = list(places)[::num_blocks]
        return cls(
            model_channels=stem,
            channel_mult=[layers[i]["Conv_0.weight"].shape[0] // stem for i in firsts],
            num_blocks=num_blocks,
            attends=[kinds[i + 1] == "attention" for i in firsts],
            pyramid="fourier" in kinds,
        )

    def places(self, resolution: int) -> Iterator[tuple[str, str]]:
        """The kind of each layer of the list, and where it stands in our network."""
        names = [f"{resolution >> level}x{resolution >> level}" for level in range(len(self.channel_mult))]
        if self.pyramid:
            yield "fourier", "map_noise"
        yield from (("linear", "map_layer0"), ("linear", "map_layer1"), ("conv", f"enc.{names[0]}_conv"))
        for name, attends in zip(names, self.attends, strict=True):
            if name != names[0]:
                yield "resample", f"enc.{name}_down"
                if self.pyramid:
                    yield "pyramid", f"enc.{name}_aux_residual"
            for i in range(self.num_blocks):
                yield "block", f"enc.{name}_block{i}"
                if attends:
                    yield "attention", f"enc.{name}_block{i}"
        yield from (("block", f"dec.{names[-1]}_in0"), ("attention", f"dec.{names[-1]}_in0"))
        yield "block", f"dec.{names[-1]}_in1"
        for name, attends in zip(reversed(names), reversed(self.attends), strict=True):
            if name != names[-1]:
                yield "resample", f"dec.{name}_up"
            for i in range(self.num_blocks + 1):
                yield "block", f"dec.{name}_block{i}"
            if attends:
                yield "attention", f"dec.{name}_block{self.num_blocks}"
        yield from (("norm", f"dec.{names[0]}_aux_norm"), ("conv", f"dec.{names[0]}_aux_conv"))


def from_score_sde(path: Path, key: str = "ema", resolution: int = 32) -> "Foreign":
    """The model of a checkpoint.

    Args:
        path: the .pth. key: "ema" for the averages, "model" for the weights as they were last trained.
        resolution: of its images, which the file does not tell.

    Raises:
        UserError: for a file that cannot be read safely, and for models without a counterpart here.
    """
    from scoregen.export.foreign import Foreign
    from scoregen.model import ModelSpec

    named = _parameters(read_torch(path), key, path)
    layers = _layers(named)
    layout = Layout.of(layers)
    places = list(layout.places(resolution))
    theirs = [_kind(layer) for layer in layers]
    if theirs != [kind for kind, _ in places]:
        raise UserError(
            f"{path}: a list of {', '.join(dict.fromkeys(theirs))} has no counterpart here; known are DDPM++ "
            "(positional embedding, no input pyramid) and NCSN++ (Fourier features, residual input pyramid)"
        )
    taps = (1, 3, 3, 1) if layout.pyramid else (1, 1)
    tensors = {
        f"network.{place}.{name}": tensor.float()
        for layer, (kind, place) in zip(layers, places, strict=True)
        for name, tensor in _translated(layer, kind, fir_filter(taps)).items()
    }
    sizes = [resolution >> level for level, attends in enumerate(layout.attends) if attends]
    build = "NCSNpp" if layout.pyramid else "DDPMpp"
    channels = layers[[kind for kind, _ in places].index("conv")]["weight"].shape[1]
    return Foreign(
        network={
            "_target_": f"scoregen.networks.{build}",
            "model_channels": layout.model_channels,
            "channel_mult": layout.channel_mult,
            "num_blocks": layout.num_blocks,
            "attention_resolutions": sizes,
            "dropout": 0.1,
        },
        precond=_precond(layout.pyramid, named.get("sigmas")),
        spec=ModelSpec((channels, resolution, resolution)),
        tensors=tensors,
        origin=f"{path.name}, {build} of the continuous {'VE' if layout.pyramid else 'VP'} process",
    )


def _parameters(content: dict[str, Any], key: str, path: Path) -> dict[str, Tensor]:
    """Parameters and buffers by name, of the model or of its averages."""
    model, known = content.get("model"), ("ema", "model")
    if not isinstance(model, dict) or key not in known or key not in content:
        raise UserError(
            f"{path} holds {_few(content)}: a checkpoint of score_sde has 'model' and 'ema', "
            f"and --key is one of {', '.join(known)}"
        )
    if not all(isinstance(value, Tensor) for value in model.values()):
        raise UserError(f"{path}: its 'model' is no dictionary of tensors")
    named = {name.removeprefix("module."): value for name, value in model.items()}
    if key == "model":
        return named
    # Only what learned has an average; Fourier features and the table of noise levels did not.
    learned = [name for name in named if name not in ("sigmas", "all_modules.0.W")]
    averages = content["ema"]["shadow_params"]
    if [named[name].shape for name in learned] != [average.shape for average in averages]:
        raise UserError(f"{path}: the averages are not those of the model's {len(learned)} parameters")
    return named | dict(zip(learned, averages, strict=True))


def _layers(named: Mapping[str, Tensor]) -> list[Layer]:
    """The list of layers, in its order."""
    layers: dict[int, dict[str, Tensor]] = {}
    for name, tensor in named.items():
        if name.startswith("all_modules."):
            _, number, parameter = name.split(".", 2)
            layers.setdefault(int(number), {})[parameter] = tensor
    return [layers[number] for number in sorted(layers)]


def _kind(layer: Layer) -> str:
    """What an entry of the list is, from the names and shapes of its parameters."""
    if "W" in layer:
        return "fourier"
    if "NIN_3.W" in layer:
        return "attention"
    if "Conv2d_0.weight" in layer:
        return "pyramid"
    if "Dense_0.weight" in layer:
        skip = layer.get("Conv_2.weight")
        return "block" if skip is None or skip.shape[0] != skip.shape[1] else "resample"
    if "weight" in layer:
        return {1: "norm", 2: "linear", 4: "conv"}.get(layer["weight"].ndim, "unknown")
    return f"unknown layer ({', '.join(sorted(layer))})"


def _translated(layer: Layer, kind: str, fir: Tensor) -> dict[str, Tensor]:
    """The parameters and buffers of an entry under our names, below its place."""
    if kind == "fourier":
        return {"freqs": layer["W"]}
    if kind == "attention":
        return _attention(layer)
    if kind == "pyramid":
        plain = {name.removeprefix("Conv2d_0."): tensor for name, tensor in layer.items()}
        return {**plain, "resample_filter": fir}
    if kind not in ("block", "resample"):
        return dict(layer)
    split = {name: name.split(".") for name in layer}
    named = {f"{BLOCK[part]}.{parameter}": layer[name] for name, (part, parameter) in split.items()}
    filters = {"conv0.resample_filter": fir, "skip.resample_filter": fir} if kind == "resample" else {}
    return named | filters


def _attention(layer: Layer) -> dict[str, Tensor]:
    """Theirs are matrices that act from the right; ours are convolutions, one with q, k, v in turn."""
    weights = [layer[f"NIN_{j}.W"].T for j in range(4)]
    biases = [layer[f"NIN_{j}.b"] for j in range(4)]
    return {
        "norm2.weight": layer["GroupNorm_0.weight"],
        "norm2.bias": layer["GroupNorm_0.bias"],
        "qkv.weight": torch.stack(weights[:3], 1).flatten(0, 1)[..., None, None],
        "qkv.bias": torch.stack(biases[:3], 1).flatten(),
        "proj.weight": weights[3][..., None, None],
        "proj.bias": biases[3],
    }


def _precond(pyramid: bool, sigmas: Tensor | None) -> dict[str, Any]:
    """What `conf/precond` would say; their noise levels are of images in [0, 1], half as wide as ours."""
    if not pyramid:
        return {"_target_": "scoregen.diffusion.precond.VPPrecond"}
    low, high = (0.01, 50.0) if sigmas is None else (float(sigmas.min()), float(sigmas.max()))
    return {"_target_": "scoregen.diffusion.precond.VEPrecond", "sigma_min": 2 * low, "sigma_max": 2 * high}


def _few(names: Iterable[object], shown: int = 4) -> str:
    """The first few of many names."""
    listed = list(map(str, names))
    return f"{', '.join(listed[:shown])}{f' and {len(listed) - shown} more' if len(listed) > shown else ''}"
