"""Read a pickle of plain data and numpy arrays without letting it call anything else."""

import pickle
import pickletools
from collections.abc import Mapping
from io import BytesIO
from typing import Any

import numpy as np

from scoregen.errors import UserError


def _new_array(*_: object) -> np.ndarray:
    """An empty array whose content numpy's own, inert state then sets."""
    return np.empty(0, np.uint8)


def _to_bytes(text: str, encoding: str) -> bytes:
    """How protocol 2 spells bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"encoding {encoding!r}")
    return text.encode("latin1")


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _new_array,
    ("numpy._core.multiarray", "_reconstruct"): _new_array,
    ("_codecs", "encode"): _to_bytes,
}


class _PlainUnpickler(pickle.Unpickler):
    """Knows the names in `allowed` and no others."""

    def __init__(self, data: bytes, encoding: str, allowed: Mapping[tuple[str, str], Any]) -> None:
        super().__init__(BytesIO(data), encoding=encoding)
        self._allowed = allowed

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._allowed:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return self._allowed[module, name]


def load_plain(
    data: bytes,
    where: str,
    *,
    encoding: str = "bytes",
    also: Mapping[tuple[str, str], Any] | None = None,
) -> Any:
    """The plain containers, numbers, bytes and numpy arrays in a pickle.

    Nothing that the pickle names is imported or called but numpy's array and dtype, and what stands for the
    names in `also`.

    Args:
        data: the whole file.
        where: its name, for messages.
        encoding: what Python 2 strings become: "bytes", or text in this encoding.
        also: (module, name) to what is taken in its place, which must be harmless whatever it is called with.

    Raises UserError for anything else and for damage.
    """
    try:
        _check_opcodes(data)
        return _PlainUnpickler(data, encoding, {**_ALLOWED, **(also or {})}).load()
    except Exception as error:  # a damaged or hostile pickle can raise any kind
        raise UserError(f"{where} is damaged or not plain data, and was not loaded: {error}") from error


def _check_opcodes(data: bytes) -> None:
    """Refuse what would take memory out of proportion to the file: more places in the memo than opcodes."""
    for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > count:
            raise pickle.UnpicklingError(f"opcode {count} claims place {argument} of the memo")
