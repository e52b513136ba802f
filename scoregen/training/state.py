"""All that a run is, to and from a checkpoint: so a resumed run equals one that was never stopped."""

from typing import TYPE_CHECKING

from scoregen.errors import UserError
from scoregen.training.checkpoint import latest_checkpoint, save_checkpoint
from scoregen.training.weights import load_weights

if TYPE_CHECKING:
    from scoregen.training.trainer import Trainer


def save_trainer(trainer: "Trainer") -> None:
    """Write a checkpoint of a run; every process calls it, the main one writes."""
    meters = {name: role.meters.state() for name, role in trainer.roles.items()}
    if trainer.parallel.is_main:
        save_checkpoint(
            trainer.run_dir / "checkpoints",
            trainer.nimg,
            weights={"model": trainer.denoiser.state_dict(), **trainer.ema.weights()},
            training={
                "optimizers": {name: role.optimizer.state_dict() for name, role in trainer.roles.items()},
                "modules": {name: module.state_dict() for name, module in trainer.method.state.items()},
                "meters": meters,
            },
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


def load_trainer(trainer: "Trainer") -> None:
    """Restore the newest whole checkpoint of the run folder, if there is one; every process reads it.

    Raises UserError where it is of other data or of another network.
    """
    found = latest_checkpoint(trainer.run_dir / "checkpoints")
    if found is None:
        return
    for what, fingerprint in found.state["inputs"].items():
        if trainer.inputs.get(what) != fingerprint:
            raise UserError(
                f"{trainer.run_dir} was trained on other {what} than there is now; choose another run_dir, "
                f"or restore the {what}"
            )
    load_weights(trainer.denoiser, found.weights("model"), str(found.path))
    trainer.ema.load({name: found.weights(name) for name in trainer.ema.tracks()})
    training = found.training()
    for name, module in trainer.method.state.items():
        load_weights(module, training["modules"][name], f"{found.path} ({name})")
    for name, role in trainer.roles.items():
        role.optimizer.load_state_dict(training["optimizers"][name])
        role.meters.load(training["meters"][name])
    for name in trainer.hooks.keys() & found.state["hooks"].keys():
        trainer.hooks[name].load(found.state["hooks"][name])
    trainer.nimg, trainer.averaged_to = found.nimg, found.state["averaged_to"]
