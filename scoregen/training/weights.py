"""Weights files: safetensors with their origin in the metadata, no pickles; written whole or not at all."""

import platform
import subprocess
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

import scoregen
from scoregen.errors import UserError
from scoregen.files import sha256, write_whole
from scoregen.sharding import parted

Weights = Mapping[str, Tensor]
PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")  # torch.save's zip; bare ones


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read (tensors on the CPU, metadata); UserError for a file that is missing, torn or a pickle."""
    if not path.is_file():
        raise UserError(f"There is no weights file {path}.")
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        with open(path, "rb") as raw:
            pickled = raw.read(4).startswith(PICKLES)
        reason = "is a pickle, which can run code when read" if pickled else f"is not whole ({error})"
        raise UserError(f"The weights file {path} {reason}; only whole safetensors are read.") from error


def load_weights(module: nn.Module, tensors: Weights, source: str) -> None:
    """Load parameters and buffers strictly; `source` names the file in messages.

    On a mismatch raises UserError with the differences and changes nothing.
    """
    check_weights(module.state_dict(), tensors, source)
    module.load_state_dict({key: parted(tensors[key], value) for key, value in module.state_dict().items()})


def check_weights(own: Weights, tensors: Weights, source: str) -> None:
    """Raise UserError with the differences unless `tensors` have the names and shapes of `own`."""
    differences = {
        "missing": [key for key in own if key not in tensors],
        "unexpected": [key for key in tensors if key not in own],
        "of another shape": [
            f"{key} {tuple(tensors[key].shape)} in the file, {tuple(value.shape)} here"
            for key, value in own.items()
            if key in tensors and tensors[key].shape != value.shape
        ],
    }
    if any(differences.values()):
        raise UserError(
            f"The weights of {source} do not fit this network:\n{_listed(differences)}"
            "Build the `network` that they were trained with: the file's metadata carries its config."
        )


def write_weights(path: Path, tensors: Weights, metadata: Mapping[str, str]) -> None:
    """Write one weights file as `write_whole` does."""
    write_whole(path, serialise(tensors, metadata))


def provenance() -> dict[str, str]:
    """Origin of a file: versions of scoregen, torch, python; the git commit if scoregen runs from a clone."""
    versions = {
        "scoregen": scoregen.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    root = Path(scoregen.__file__).parent.parent
    git = partial(subprocess.run, cwd=root, capture_output=True, text=True, check=False)
    try:
        where = git(["git", "rev-parse", "HEAD", "--show-prefix"])
        # A prefix means that scoregen is installed somewhere inside another project's clone.
        if where.returncode or where.stdout.split("\n", 1)[1].strip():
            return versions
        changed = git(["git", "status", "--porcelain", "--untracked-files=no"]).stdout
    except FileNotFoundError:  # there is no git here
        return versions
    return versions | {"git": where.stdout.split("\n", 1)[0] + ("-dirty" if changed else "")}


def weights_hash(path: Path) -> str:
    """The first 16 hex digits of a file's SHA-256, by which manifests name it."""
    return sha256(path)[:16]


def serialise(tensors: Weights, metadata: Mapping[str, str]) -> bytes:
    """The bytes of a safetensors file; tensors that share memory are stored once each."""
    plain: dict[str, Tensor] = {}
    seen: set[int] = set()
    for key, value in tensors.items():
        tensor = value.detach().cpu().contiguous()
        pointer = tensor.untyped_storage().data_ptr()
        plain[key] = tensor.clone() if pointer in seen else tensor
        seen.add(pointer)
    return to_safetensors(plain, dict(metadata))


def count_bytes(value: Any, where: str) -> int:
    """Bytes of the tensors in nested plain containers; TypeError for what `weights_only=True` may refuse."""
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, Mapping):
        return sum(count_bytes(item, f"{where}[{key!r}]") for key, item in value.items())
    if type(value) in (list, tuple):
        return sum(count_bytes(item, f"{where}[{i}]") for i, item in enumerate(value))
    if type(value) in (int, float, bool, str, type(None)):
        return 0
    raise TypeError(f"{where} is a {type(value).__name__}; a checkpoint holds tensors and plain containers")


def _listed(differences: Mapping[str, Sequence[str]], shown: int = 4) -> str:
    """The count and the first few of each kind of difference, one kind a line."""
    return "".join(
        f"  {len(keys)} {kind}: {', '.join(keys[:shown])}{', ...' if len(keys) > shown else ''}\n"
        for kind, keys in differences.items()
        if keys
    )
