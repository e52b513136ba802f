"""All that a run is, to and from a checkpoint: so a resumed run equals one that was never stopped."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from scoregen.errors import UserError
from scoregen.sharding import gathered
from scoregen.training.checkpoint import CHECKPOINTS, Checkpoint, latest_checkpoint, save_checkpoint
from scoregen.training.weights import Weights, load_weights

if TYPE_CHECKING:
    from scoregen.training.trainer import Trainer

# Weights by file, what only a resume needs, and the folder of parts if there is one.
Tensors = tuple[dict[str, Weights], dict[str, Any], Path | None]


def save_trainer(trainer: "Trainer") -> None:
    """Write a checkpoint of a run; every process calls it, the main one writes, and all write parts."""
    folder = trainer.run_dir / CHECKPOINTS
    weights, training, parts = _parted(trainer, folder) if trainer.parallel.sharded else _whole(trainer)
    training["meters"] = {name: role.meters.state() for name, role in trainer.roles.items()}
    if trainer.parallel.is_main:
        save_checkpoint(
            folder,
            trainer.nimg,
            weights=weights,
            training=training,
            parts=parts,
            state={
                "inputs": trainer.inputs,
                "averaged_to": trainer.averaged_to,
                "heldout_loss": trainer.heldout_loss,
                "hooks": {name: hook.state() for name, hook in trainer.hooks.items()},
            },
            metadata=trainer.metadata,
            keep=trainer.options.keep,
            keep_best="heldout_loss",
        )
    trainer.parallel.barrier()


def _whole(trainer: "Trainer") -> Tensors:
    """All tensors, as every process has them."""
    training = {
        "optimizers": {name: role.optimizer.state_dict() for name, role in trainer.roles.items()},
        "modules": {name: module.state_dict() for name, module in trainer.method.state.items()},
    }
    return {"model": trainer.denoiser.state_dict(), **trainer.ema.weights()}, training, None


def _parted(trainer: "Trainer", folder: Path) -> Tensors:
    """What a resume reads, in parts on the disk, and the averages also whole, for all other uses."""
    from scoregen.training.parts import save_parts

    parts = save_parts(trainer, folder)
    weights: dict[str, Weights] = {name: gathered(track) for name, track in trainer.ema.weights().items()}
    settings = {name: {**role.optimizer.state_dict(), "state": {}} for name, role in trainer.roles.items()}
    return weights, {"optimizers": settings}, parts


def load_trainer(trainer: "Trainer") -> None:
    """Restore the newest whole checkpoint of the run folder, if there is one; every process reads it.

    Raises UserError where it is of other data or of another network.
    """
    found = latest_checkpoint(trainer.run_dir / CHECKPOINTS)
    if found is None:
        return
    for what, fingerprint in found.state["inputs"].items():
        if trainer.inputs.get(what) != fingerprint:
            raise UserError(
                f"{trainer.run_dir} was trained with other {what} than now; choose another run_dir, or "
                f"restore the {what}"
            )
    training = found.training()
    if found.parts is not None:
        from scoregen.training.parts import load_parts

        load_parts(trainer, found.parts, training["optimizers"])
    else:
        _load_whole(trainer, found, training)
    for name, role in trainer.roles.items():
        role.meters.load(training["meters"][name])
    for name in trainer.hooks.keys() & found.state["hooks"].keys():
        trainer.hooks[name].load(found.state["hooks"][name])
    trainer.nimg, trainer.averaged_to = found.nimg, found.state["averaged_to"]


def _load_whole(trainer: "Trainer", found: Checkpoint, training: dict[str, Any]) -> None:
    """Restore all tensors from files in which they are whole."""
    load_weights(trainer.denoiser, found.weights("model"), str(found.path))
    trainer.ema.load({name: found.weights(name) for name in trainer.ema.tracks()})
    for name, module in trainer.method.state.items():
        load_weights(module, training["modules"][name], f"{found.path} ({name})")
    for name, role in trainer.roles.items():
        role.load_optimizer(training["optimizers"][name])
