"""Read a pickle of plain data and numpy arrays without letting it call anything else."""

import pickle
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
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _ALLOWED[module, name]


def load_plain(data: bytes, where: str) -> Any:
    """The plain containers, numbers, bytes and numpy arrays in a pickle; Python 2 strings become bytes.

    Nothing that the pickle names is imported or called but numpy's array and dtype.
    Raises UserError, naming `where`, for anything else and for damage.
    """
    try:
        return _PlainUnpickler(BytesIO(data), encoding="bytes").load()
    except Exception as error:  # a damaged or hostile pickle can raise any kind
        raise UserError(f"{where} is damaged or not plain data, and was not loaded: {error}") from error
