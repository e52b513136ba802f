"""From a validated configuration to objects: the one place that knows which group needs what from another."""

import logging
import shlex
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig
from torch import nn

from scoregen import config
from scoregen.data.augment import Augment
from scoregen.data.base import Dataset, first_samples, labels_fingerprint
from scoregen.data.codec import IDENTITY, LogCodec, encoded
from scoregen.data.latents import LatentCodec, LatentStream, kept_moments
from scoregen.data.stats import measure
from scoregen.data.stream import LabelStream, Stream
from scoregen.denoisers.classifier import NetworkClassifier
from scoregen.denoisers.network import NetworkDenoiser
from scoregen.distillers.base import Distiller
from scoregen.distillers.build import build_distiller
from scoregen.distillers.teacher import follow_teacher
from scoregen.errors import UserError
from scoregen.files import write_whole
from scoregen.model import ModelSpec, build_denoiser, find_model
from scoregen.networks.energy import EnergyNetwork
from scoregen.objectives.base import Objective
from scoregen.objectives.discriminator import DiscriminatorLoss
from scoregen.objectives.kinks import find_kinks
from scoregen.objectives.likelihood import LikelihoodScoreLoss
from scoregen.objectives.multiplicative import MultiplicativeLoss
from scoregen.parallel import Parallel
from scoregen.rng import derive_seed
from scoregen.samplers.fit import fit_sampler
from scoregen.training.checkpoint import CHECKPOINTS, latest_checkpoint
from scoregen.training.hooks import EvaluateHook, GridHook, HeldoutHook, Hook
from scoregen.training.hooks.evaluate import REFERENCES
from scoregen.training.lock import FolderLock
from scoregen.training.loggers import JSONLLogger, Logger
from scoregen.training.options import TrainerOptions
from scoregen.training.phases import Method
from scoregen.training.role import Role
from scoregen.training.step import TrainStep
from scoregen.training.trainer import Trainer
from scoregen.training.weights import load_weights, provenance, read_weights
from scoregen.trust import refuse_foreign

log = logging.getLogger(__name__)

STATS_LIMIT = 10_000  # samples that sigma_data is measured on
SIGMA_DATA_TOLERANCE = 0.25  # relative; beyond it a warning tells the measured value


def build_data(cfg: DictConfig, split: str) -> Dataset:
    """The data set of a configuration; a UserError says what is missing or damaged."""
    data: Dataset = config.instantiate(cfg.data, split=split)
    subset = cfg.trainer.get("subset")
    return data if subset is None or split != "train" else first_samples(data, subset)


class Built(NamedTuple):
    """A method on its device, what its model is built for, and where its batches come from."""

    method: Method
    spec: ModelSpec
    stream: Stream | LatentStream | LabelStream
    inputs: dict[str, str]  # fingerprints of what a resumed run must find unchanged


def build_method(cfg: DictConfig, data: Callable[[], Dataset], device: torch.device) -> Built:
    """The distiller of a configuration where it has one, else its objective; reads data that are needed."""
    augment = config.instantiate(cfg.augment)
    if cfg.get("distiller") is None:
        spec = build_spec(cfg, data(), augment, device)
        step = build_step(cfg, spec, augment)
        if cfg.get("init") is not None and latest_checkpoint(Path(cfg.run_dir) / CHECKPOINTS) is None:
            load_init(step.denoiser, cfg.init)
        step.to(device)
        return Built(step, spec, *_real_data(cfg, data(), step.denoiser, device, {}))
    objective = build_objective(cfg)
    distiller, spec, inputs = build_distiller(cfg, data, augment, objective, device)
    _check_pair(objective, distiller.denoiser, augment, label_dropout=0.0)
    if not distiller.needs_data:
        stream = LabelStream(spec.num_classes, seed=cfg.seed, device=device, dataset=data)
        return Built(distiller, spec, stream, inputs)
    return Built(distiller, spec, *_real_data(cfg, data(), distiller.denoiser, device, inputs))


def load_init(denoiser: NetworkDenoiser, path: str) -> None:
    """Give a denoiser the averaged weights of another run; UserError where they are of another network."""
    found = find_model(Path(path))
    if found is None:
        raise UserError(f"init={path}: no such run folder, checkpoint or weights file")
    load_weights(denoiser, read_weights(found.weights)[0], f"init={path}")


def build_spec(cfg: DictConfig, data: Dataset, augment: Augment, device: torch.device) -> ModelSpec:
    """What a model of these data is built for; where it is one of latents, the data are encoded first."""
    autoencoder = config.instantiate(cfg.get("codec"))
    spec = ModelSpec.of(data, augment, autoencoder)
    if autoencoder is None:
        return spec
    if augment.label_dim:
        raise UserError("codec=autoencoder needs augment=none: images are encoded once, as they are")
    return replace(spec, latents=kept_moments(data, autoencoder, device)[1])


def build_objective(cfg: DictConfig) -> Objective:
    """The objective of a configuration, its own weights drawn from the run's seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(cfg.seed, "objective"))
        objective: Objective = config.instantiate(cfg.objective)
    return objective


def build_step(cfg: DictConfig, spec: ModelSpec, augment: Augment) -> TrainStep:
    """The training step of an objective."""
    objective, denoiser = build_objective(cfg), build_denoiser(cfg, spec)
    label_dropout = cfg.trainer.get("label_dropout", TrainerOptions.label_dropout)
    _check_pair(objective, denoiser, augment, label_dropout)
    _check_derivatives(cfg, objective, denoiser)
    return TrainStep(denoiser, objective, augment, label_dropout=label_dropout)


def _real_data(
    cfg: DictConfig, data: Dataset, denoiser: NetworkDenoiser, device: torch.device, inputs: dict[str, str]
) -> tuple[Stream | LatentStream, dict[str, str]]:
    _check_codec(denoiser, data)
    inputs, codec = {**inputs, "data": data.fingerprint}, denoiser.codec
    if getattr(data, "label", None) is not None:  # else they are known only by reading everything
        inputs["labels"] = labels_fingerprint(data)
    if isinstance(codec, LatentCodec):
        latents = codec.encoded(data, device)
        inputs["autoencoder"] = codec.stats.sha256
        return LatentStream(data, latents, seed=cfg.seed, device=device), inputs
    workers = cfg.trainer.get("workers", TrainerOptions.workers)
    stream = Stream(data, seed=cfg.seed, device=device, workers=workers, codec=codec)
    return stream, inputs


def _check_codec(denoiser: NetworkDenoiser, data: Dataset) -> None:
    if isinstance(denoiser.codec, LogCodec):
        denoiser.codec.check(data)


def _check_pair(
    objective: Objective, denoiser: NetworkDenoiser, augment: Augment, label_dropout: float
) -> None:
    """Refuse to train a classifier or discriminator by another's objective, or a denoiser by theirs."""
    if denoiser.network.role != getattr(objective, "trains", "denoiser"):
        raise UserError(
            f"{type(objective).__name__} does not train {type(denoiser.network).__name__}: "
            "objective=classifier and objective=dlsm go with network=classifier or resnet18, "
            "objective=discriminator with network=discriminator, all others with the other networks"
        )
    if label_dropout and denoiser.network.role != "denoiser":
        raise UserError(
            f"trainer.label_dropout={label_dropout:g}: only denoisers learn what no class is; set it to 0 "
            f"for {type(objective).__name__}"
        )
    if isinstance(objective, DiscriminatorLoss) and augment.label_dim:
        raise UserError("objective=discriminator needs augment=none: generated images are not augmented")
    if isinstance(objective, DiscriminatorLoss) and denoiser.codec != IDENTITY:
        raise UserError("objective=discriminator compares images as they are: choose a precond without codec")
    if isinstance(objective, LikelihoodScoreLoss | MultiplicativeLoss):
        objective.check(denoiser, augment)


def _check_derivatives(cfg: DictConfig, objective: Objective, denoiser: NetworkDenoiser) -> None:
    """Refuse what has no second derivative; warn where a derivative misses kinks or is rounded."""
    base = getattr(objective, "base", objective)
    differentiates = getattr(base, "differentiates", False)
    if differentiates or isinstance(denoiser.network, EnergyNetwork):
        for name, what in {"compile": "torch.compile", "checkpointing": "torch's checkpointing"}.items():
            if cfg.trainer.get(name, False):
                raise UserError(
                    f"trainer.{name}: {what} has no second derivatives, which energy networks and "
                    f"{type(objective).__name__} take; set trainer.{name}=false, or choose objective=lcss"
                )
    if differentiates and (kinks := find_kinks(denoiser)):
        log.warning(
            "%s takes the derivative of the score, but %s has kinks (%s): the trace misses what happens at "
            "them, and the score learned is wrong. Use smooth activations such as silu, or objective=lcss",
            type(objective).__name__, type(denoiser.network).__name__, ", ".join(kinks),
        )  # fmt: skip
    if getattr(base, "subtracts", False) and cfg.precision != "fp32":
        log.warning(
            "%s divides differences of scores at points nearby by their distance, and with them the rounding "
            "of precision=%s; precision=fp32 is safer", type(objective).__name__, cfg.precision,
        )  # fmt: skip


def build_trainer(cfg: DictConfig) -> Trainer:
    """Everything that a run needs, at the newest checkpoint of its folder where there is one.

    Raises UserError where the folder holds a run with another configuration; nothing is written then.
    """
    cfg, run_dir = follow_teacher(cfg), Path(cfg.run_dir)
    _check_same_run(cfg, run_dir)
    parallel = Parallel(cfg.device, deterministic=cfg.deterministic, strategy=cfg.get("parallel", "ddp"))
    data = cache(partial(build_data, cfg, "train"))
    method, spec, stream, inputs = build_method(cfg, data, parallel.device)
    hooks = build_hooks(cfg)
    heldout = build_data(cfg, "test") if _needs_heldout(hooks) else None
    if heldout is not None:
        _check_codec(method.denoiser, heldout)
    twin = deepcopy(method.denoiser).cpu() if parallel.sharded else None
    roles = build_roles(cfg, method, parallel)
    _check_hooks(method, hooks)
    lock = FolderLock(run_dir) if parallel.is_main else None  # from here on there is a folder
    trainer = Trainer(
        options=config.instantiate(cfg.trainer),
        method=method,
        stream=stream,
        inputs=inputs,
        heldout=heldout,
        roles=roles,
        schedule=config.instantiate(cfg.schedule),
        ema=config.instantiate(cfg.ema),
        sampler=fit_sampler(config.instantiate(cfg.sampler), method.denoiser, data, run_dir / REFERENCES),
        hooks=hooks,
        loggers=build_loggers(cfg, run_dir) if parallel.is_main else [],
        parallel=parallel,
        seed=cfg.seed,
        run_dir=run_dir,
        twin=twin,
        lock=lock,
        metadata={"config": config.to_yaml(cfg), "model": spec.to_json(), **inputs, **provenance()},
    )
    trainer.resume()
    if parallel.is_main:
        if trainer.nimg == 0 and "data" in inputs:
            _warn_sigma_data(cfg, encoded(data(), method.denoiser.codec))
        write_whole(run_dir / config.CONFIG, config.to_yaml(cfg).encode())
    return trainer


def build_roles(cfg: DictConfig, method: Method, parallel: Parallel) -> dict[str, Role]:
    """What learns, each with an optimizer."""
    roles = {}
    for name, module in method.roles.items():
        node = {**cfg.optimizer, "lr": cfg.optimizer.lr * method.lr_factors.get(name, 1.0)}
        roles[name] = Role(name, module, partial(_build_optimizer, node), parallel)
    return roles


def _build_optimizer(node: dict[str, Any], params: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    optimizer: torch.optim.Optimizer = config.instantiate(node, params=params)
    return optimizer


def build_hooks(cfg: DictConfig) -> dict[str, Hook]:
    """The hooks by name."""
    hooks: dict[str, Hook | None] = config.instantiate(cfg.hooks)
    return {name: hook for name, hook in hooks.items() if hook is not None}


def build_loggers(cfg: DictConfig, run_dir: Path) -> list[Logger]:
    """The JSON lines that every run writes, and the logger chosen beside them."""
    chosen: Logger = config.instantiate(cfg.logger, run_dir=run_dir)
    return [chosen] if isinstance(chosen, JSONLLogger) else [JSONLLogger(run_dir), chosen]


def tell_loggers(run_dir: Path, nimg: int, values: Mapping[str, float]) -> None:
    """Tell the loggers of a run what was measured later of its model at `nimg`, or warn that it cannot be."""
    cfg = saved_config(run_dir)
    try:
        if cfg is not None:
            refuse_foreign(cfg, str(run_dir))
        loggers = [] if cfg is None else build_loggers(cfg, run_dir)
        if all(isinstance(logger, JSONLLogger) for logger in loggers):
            return
        lock = FolderLock(run_dir)
        for logger in loggers:
            logger.results(nimg, values)
        lock.close()
    except UserError as error:
        log.warning("the results are not in the run's logger, but in the file only: %s", error)


def _check_hooks(method: Method, hooks: dict[str, Hook]) -> None:
    """Refuse to draw from what does not draw, and the held-out loss of a student, which denoises nothing."""
    drawing = (EvaluateHook, GridHook, HeldoutHook)
    active = [name for name, hook in hooks.items() if isinstance(hook, drawing) and hook.every is not None]
    if isinstance(method.denoiser, NetworkClassifier) and active:
        raise UserError(f"hooks.{active[0]} is for models that draw images; set hooks.{active[0]}.every=null")
    if isinstance(method, Distiller) and _needs_heldout(hooks):
        raise UserError(
            "hooks.heldout is for denoisers; a student is judged by its images: set hooks.heldout.every=null "
            "and, for example, hooks.evaluate.every=20000"
        )


def _needs_heldout(hooks: dict[str, Hook]) -> bool:
    return any(isinstance(hook, HeldoutHook) and hook.every is not None for hook in hooks.values())


def _check_same_run(cfg: DictConfig, run_dir: Path) -> None:
    """Refuse to go on with a run whose configuration differs in more than what may change."""
    saved = saved_config(run_dir)
    changes = [] if saved is None else config.diff(saved, cfg, ignore=config.MUTABLE)
    if changes:
        raise UserError(
            f"{run_dir} holds a run with another configuration:\n  "
            + "\n  ".join(changes)
            + "\nChoose another run_dir, or leave these out to go on: "
            + f"python train.py --resume {shlex.quote(str(run_dir))}"
        )


def saved_config(run_dir: Path) -> DictConfig | None:
    """The configuration of the run in a folder; from its weights where the file is damaged; None without."""
    if not (run_dir / CHECKPOINTS).is_dir():
        return None
    try:
        return config.from_yaml((run_dir / config.CONFIG).read_text(), config.CONFIG)
    except (OSError, ValueError):
        found = latest_checkpoint(run_dir / CHECKPOINTS)
        return None if found is None else config.from_yaml(found.metadata("ema")["config"], str(found.path))


def _warn_sigma_data(cfg: DictConfig, data: Dataset) -> None:
    measured = measure(data, limit=STATS_LIMIT).std
    if measured == 0:
        raise UserError(f"all values of {data.name} are equal: there is nothing to learn")
    if abs(cfg.sigma_data / measured - 1) > SIGMA_DATA_TOLERANCE:
        log.warning(
            "sigma_data=%g, but the standard deviation of %s is %.3f as the model sees it: consider "
            "sigma_data=%.2f",
            cfg.sigma_data, data.name, measured, measured,
        )  # fmt: skip
