"""The sharded part of a checkpoint: every process writes what it holds, and any number of them read it again.

checkpoints/000000020480/parts/shard-00001-model-00001-of-00001.safetensors, ...: the tensors of the model,
its averages, the objective and the optimizers, as torch.distributed.checkpoint writes them; no pickles.
"""

import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from scoregen.sharding import as_part
from scoregen.training.checkpoint import PARTS

if TYPE_CHECKING:
    from scoregen.training.role import Role
    from scoregen.training.trainer import Trainer


def save_parts(trainer: "Trainer", folder: Path) -> Path:
    """Write all tensors of a run to a folder in `folder`; every process calls it and writes what it holds."""
    parts = folder / f".{PARTS}"
    if trainer.parallel.is_main:
        shutil.rmtree(parts, ignore_errors=True)
        parts.mkdir(parents=True)
    trainer.parallel.barrier()
    writer = HuggingFaceStorageWriter(str(parts), save_distributed=True)
    save(_tensors(trainer), storage_writer=writer)
    return parts


def load_parts(trainer: "Trainer", parts: Path, optimizers: Mapping[str, dict[str, Any]]) -> None:
    """Read into the tensors of a run, parted or not, what any number of processes have written.

    `optimizers` holds by role what their `state_dict` returned beside tensors.
    """
    reader = HuggingFaceStorageReader(str(parts))
    saved = reader.read_metadata().state_dict_metadata
    for name, role in trainer.roles.items():
        _begin_optimizer(role, [key for key in saved if key.startswith(f"optimizer.{name}.")])
    with warnings.catch_warnings():  # that one process alone reads
        warnings.simplefilter("ignore")
        load(_tensors(trainer), storage_reader=reader, no_dist=trainer.parallel.world == 1)
    for name, role in trainer.roles.items():
        role.optimizer.load_state_dict({**optimizers[name], "state": role.optimizer.state_dict()["state"]})


def _tensors(trainer: "Trainer") -> dict[str, Tensor]:
    """All tensors of a run by name, in the memory that they are in."""
    tensors = {f"model.{key}": value for key, value in trainer.denoiser.state_dict().items()}
    for track, weights in trainer.ema.tracks().items():
        tensors |= {f"{track}.{key}": value for key, value in weights.items()}
    for name, module in trainer.method.state.items():
        tensors |= {f"module.{name}.{key}": value for key, value in module.state_dict().items()}
    for name, role in trainer.roles.items():
        for i, (p, part) in enumerate(zip(role.parameters, role.parts, strict=True)):
            for key, value in role.optimizer.state[part].items():
                tensors[f"optimizer.{name}.{i}.{key}"] = as_part(value, p) if value.ndim else value
    return tensors


def _begin_optimizer(role: "Role", keys: Sequence[str]) -> None:
    """Give an optimizer zeros for what is saved of it: counts of steps, and tensors like its parameters."""
    for name in keys:
        *_, i, key = name.split(".")
        part = role.parts[int(i)]
        role.optimizer.state[part][key] = torch.zeros(()) if key == "step" else torch.zeros_like(part)
