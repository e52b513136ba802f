"""Read the tensors of a file of torch.save without running what it might ask for."""

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoregen.errors import UserError


def read_torch(path: Path) -> dict[str, Any]:
    """The dictionary of plain containers, numbers and tensors that a file holds, on the CPU.

    Raises:
        UserError: for damage, for any other name than torch's own reader of plain data knows, and for a file
            that would take more memory than it has bytes; nothing in it has been run then.
    """
    try:
        _check_archive(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
        for tensor in _tensors(content):
            if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
                raise ValueError(f"a tensor of {tensor.numel()} elements claims a smaller storage")
    except Exception as error:  # a damaged or hostile file can raise any kind
        reason = str(error).split("\n", 1)[0]
        raise UserError(f"{path} is damaged or not plain data, and was not loaded: {reason}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not a checkpoint")
    return content


def _check_archive(path: Path) -> None:
    """Refuse what torch.save has not written since 1.6: other formats, and compressed members."""
    if not zipfile.is_zipfile(path):
        raise ValueError("it is not of the format that torch.save has had since torch 1.6")
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise ValueError("it is compressed, as torch.save never does")
    if sum(member.file_size for member in members) > path.stat().st_size:
        raise ValueError("its members claim more bytes than it has")


def _tensors(content: Any) -> Iterator[Tensor]:
    if isinstance(content, Tensor):
        yield content
    elif isinstance(content, dict | list | tuple):
        for item in content.values() if isinstance(content, dict) else content:
            yield from _tensors(item)
