"""Read the network pickles of NVIDIA's EDM and EDM2 without running the code that they carry.

Such a file holds objects whose class is given by its source text, to be executed on loading. Here every
object becomes an inert `Node`: the name of its class and its attributes. The texts are dropped.

Format: `torch_utils/persistence.py` and `training/networks.py` of the code to Karras et al., Elucidating the
Design Space of Diffusion-Based Generative Models, 2022, arXiv 2206.00364.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoregen.data.pickles import load_plain
from scoregen.errors import UserError

MODULES = ("Module", "ModuleDict", "ModuleList", "Sequential")  # of torch, without code of their own


@dataclass
class Node:
    """An object that was not brought to life: the name of its class, and its attributes."""

    name: str
    state: dict[str, Any] = field(default_factory=dict)

    def tensors(self, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
        """Parameters and buffers by their dotted names, as a module's `state_dict` has them."""
        for kind in ("_parameters", "_buffers"):
            for key, value in self.state.get(kind, {}).items():
                if isinstance(value, Tensor):
                    yield prefix + key, value
        for key, child in self.state.get("_modules", {}).items():
            if isinstance(child, Node):
                yield from child.tensors(f"{prefix}{key}.")


def read_network(path: Path, key: str = "ema") -> tuple[Node, Node | None]:
    """The preconditioned network that a file holds under `key`, or that it is, and the file's `encoder`.

    EDM2 writes the latter: what stands between images and the samples of the network.

    Raises:
        UserError: where the file is damaged, is another program's, or names anything that an EDM network
            does not need; nothing in it has been run then.
    """
    content = load_plain(path.read_bytes(), str(path), encoding="ASCII", also=_STAND_INS)
    encoder = None
    if isinstance(content, dict):
        if key not in content:
            raise UserError(f"{path} holds {', '.join(map(str, content))}, but no '{key}'")
        content, encoder = content[key], content.get("encoder")
    if not isinstance(content, Node) or not isinstance(content.state.get("_modules"), dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not a network of EDM")
    if not isinstance(encoder, Node | None):
        raise UserError(f"{path} holds a {type(encoder).__name__} in place of an encoder")
    return content, encoder


def _persistent(meta: Any) -> Node:
    """Stand for the function that would execute the source text in `meta`."""
    return Node(str(meta["class_name"]), dict(meta["state"]))


def _module_class(name: str) -> type[Node]:
    """Stand for a container class of torch."""

    class Module(Node):
        def __new__(cls) -> "Module":
            made = object.__new__(cls)
            made.name, made.state = name, {}
            return made

        def __setstate__(self, state: dict[str, Any]) -> None:
            self.state = dict(state)

    return Module


def _storage(data: bytes) -> Tensor:
    """A storage as a vector, from torch's own format by its reader of plain data."""
    stored = torch.load(BytesIO(data), map_location="cpu", weights_only=True)
    if not isinstance(stored, torch.storage.TypedStorage):
        raise ValueError(f"a tensor's storage is a {type(stored).__name__}")
    return torch.empty(0, dtype=stored.dtype).set_(stored._untyped_storage)


def _tensor(storage: Tensor, offset: int, size: Sequence[int], stride: Sequence[int], *_: object) -> Tensor:
    """A copy of the part of a storage that a tensor is; never larger than the storage."""
    count = torch.Size(size).numel()
    if count > len(storage):
        raise ValueError(f"a tensor of {count} elements claims a storage of {len(storage)}")
    return storage.as_strided(tuple(size), tuple(stride), offset).clone()


def _parameter(tensor: Tensor, *_: object) -> Tensor:
    return tensor


def _scalar(dtype: np.dtype, data: bytes) -> Any:
    """A number of numpy's."""
    if dtype.hasobject:
        raise ValueError("a numpy scalar that is an object")
    return np.frombuffer(data, dtype)[0].item()


_STAND_INS: dict[tuple[str, str], Any] = {
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _persistent,
    ("dnnlib.util", "EasyDict"): dict,
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "set"): set,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy._core.multiarray", "scalar"): _scalar,
} | {("torch.nn.modules.container", name): _module_class(name) for name in MODULES}
