"""From a validated configuration to objects: the one place that knows which group needs what from another."""

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import torch
from omegaconf import DictConfig

from scoregen import config
from scoregen.data.augment import Augment
from scoregen.data.base import Dataset
from scoregen.data.codec import IDENTITY, LogCodec, encoded
from scoregen.data.stats import measure
from scoregen.data.stream import Stream
from scoregen.denoisers.classifier import NetworkClassifier
from scoregen.denoisers.hyvarinen import HyvarinenDenoiser
from scoregen.denoisers.network import NetworkDenoiser
from scoregen.diffusion.precond import HyvarinenPrecond
from scoregen.errors import UserError
from scoregen.networks.energy import EnergyNetwork
from scoregen.objectives.base import Objective
from scoregen.objectives.discriminator import DiscriminatorLoss
from scoregen.objectives.kinks import find_kinks
from scoregen.objectives.likelihood import LikelihoodScoreLoss
from scoregen.objectives.multiplicative import MultiplicativeLoss
from scoregen.parallel import Parallel
from scoregen.rng import derive_seed
from scoregen.samplers.fit import fit_sampler
from scoregen.training.checkpoint import latest_checkpoint
from scoregen.training.hooks import EvaluateHook, GridHook, HeldoutHook, Hook
from scoregen.training.hooks.evaluate import REFERENCES
from scoregen.training.lock import FolderLock
from scoregen.training.loggers import JSONLLogger, Logger
from scoregen.training.phases import Method
from scoregen.training.role import Role
from scoregen.training.step import TrainStep
from scoregen.training.trainer import Trainer
from scoregen.training.weights import provenance, write_whole

log = logging.getLogger(__name__)

CONFIG = "config.yaml"
STATS_LIMIT = 10_000  # samples that sigma_data is measured on
SIGMA_DATA_TOLERANCE = 0.25  # relative; beyond it a warning tells the measured value


@dataclass(frozen=True)
class ModelSpec:
    """What a network is built for beyond its configuration; kept in the metadata of its weights."""

    shape: tuple[int, ...]
    num_classes: int = 0
    augment_dim: int = 0
    cond_shape: tuple[int, ...] = ()  # of what it is told of one sample, other than a class

    @classmethod
    def of(cls, data: Dataset, augment: Augment) -> Self:
        """For samples and classes of `data`, told about what `augment` does."""
        shape, told = tuple(data.shape), tuple(getattr(data, "cond_shape", ()))
        return cls(shape, data.num_classes, augment.label_dim, told)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote."""
        fields = json.loads(text)
        shapes = {key: tuple(value) for key, value in fields.items() if key.endswith("shape")}
        return cls(**{**fields, **shapes})

    def to_json(self) -> str:
        """As text for metadata."""
        return json.dumps(asdict(self))


def build_data(cfg: DictConfig, split: str) -> Dataset:
    """The data set of a configuration; a UserError says what is missing or damaged."""
    data: Dataset = config.instantiate(cfg.data, split=split)
    return data


def build_denoiser(cfg: DictConfig, spec: ModelSpec) -> NetworkDenoiser:
    """The network denoiser of a configuration, its weights drawn from the run's seed."""
    if len(spec.shape) == 3 and spec.shape[1] != spec.shape[2]:
        raise UserError(
            f"the images have {spec.shape[1]} x {spec.shape[2]} pixels, networks take square ones: make them "
            "so with python -m scoregen.data.prepare SRC --out OUT.zip --crop center --resolution N"
        )
    precond = config.instantiate(cfg.precond)
    channels = spec.shape[0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(cfg.seed, "weights"))
        network = config.instantiate(
            cfg.network,
            resolution=spec.shape[-1],
            channels=channels,
            out_channels=channels * precond.channel_factor,
            num_classes=spec.num_classes,
            augment_dim=spec.augment_dim,
        )
    learned = HyvarinenDenoiser if isinstance(precond, HyvarinenPrecond) else NetworkDenoiser
    wrap = learned if network.role == "denoiser" else NetworkClassifier
    return wrap(
        network,
        precond,
        shape=spec.shape,
        num_classes=spec.num_classes,
        cond_shape=spec.cond_shape,
        precision=cfg.precision,
    )


def build_step(cfg: DictConfig, spec: ModelSpec, augment: Augment) -> TrainStep:
    """The training step of a configuration."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(cfg.seed, "objective"))
        objective = config.instantiate(cfg.objective)
    denoiser = build_denoiser(cfg, spec)
    _check_pair(objective, denoiser, augment)
    _check_derivatives(cfg, objective, denoiser)
    return TrainStep(denoiser, objective, augment, label_dropout=cfg.trainer.get("label_dropout", 0.0))


def _check_pair(objective: Objective, denoiser: NetworkDenoiser, augment: Augment) -> None:
    """Refuse to train a classifier or discriminator by another's objective, or a denoiser by theirs."""
    if denoiser.network.role != getattr(objective, "trains", "denoiser"):
        raise UserError(
            f"{type(objective).__name__} does not train {type(denoiser.network).__name__}: "
            "objective=classifier and objective=dlsm go with network=classifier or resnet18, "
            "objective=discriminator with network=discriminator, all others with the other networks"
        )
    if isinstance(objective, DiscriminatorLoss) and augment.label_dim:
        raise UserError("objective=discriminator needs augment=none: generated images are not augmented")
    if isinstance(objective, DiscriminatorLoss) and denoiser.codec != IDENTITY:
        raise UserError("objective=discriminator compares images as they are: choose a precond without codec")
    if isinstance(objective, LikelihoodScoreLoss | MultiplicativeLoss):
        objective.check(denoiser, augment)


def _check_derivatives(cfg: DictConfig, objective: Objective, denoiser: NetworkDenoiser) -> None:
    """Refuse to compile what is differentiated twice; warn where a derivative misses kinks."""
    differentiates = getattr(getattr(objective, "base", objective), "differentiates", False)
    if cfg.trainer.get("compile", False) and (differentiates or isinstance(denoiser.network, EnergyNetwork)):
        raise UserError(
            "trainer.compile=true: torch.compile has no second derivatives, which energy networks and "
            f"{type(objective).__name__} take; set trainer.compile=false, or choose objective=lcss"
        )
    if differentiates and (kinks := find_kinks(denoiser)):
        log.warning(
            "%s takes the derivative of the score, but %s has kinks (%s): the trace misses what happens at "
            "them, and the score learned is wrong. Use smooth activations such as silu, or objective=lcss",
            type(objective).__name__, type(denoiser.network).__name__, ", ".join(kinks),
        )  # fmt: skip


def build_trainer(cfg: DictConfig) -> Trainer:
    """Everything that a run needs, at the newest checkpoint of its folder where there is one.

    Raises UserError where the folder holds a run with another configuration; nothing is written then.
    """
    run_dir = Path(cfg.run_dir)
    _check_same_run(cfg, run_dir)
    parallel = Parallel(cfg.device)
    data, augment = build_data(cfg, "train"), config.instantiate(cfg.augment)
    spec = ModelSpec.of(data, augment)
    step = build_step(cfg, spec, augment).to(parallel.device)
    codec, hooks = step.denoiser.codec, build_hooks(cfg)
    heldout = build_data(cfg, "test") if _needs_heldout(hooks) else None
    for split in (data, heldout):
        if isinstance(codec, LogCodec) and split is not None:
            codec.check(split)
    lock = FolderLock(run_dir) if parallel.is_main else None
    options = config.instantiate(cfg.trainer)
    trainer = Trainer(
        options=options,
        method=step,
        stream=Stream(data, seed=cfg.seed, device=parallel.device, workers=options.workers, codec=codec),
        heldout=heldout,
        roles=build_roles(cfg, step, parallel),
        schedule=config.instantiate(cfg.schedule),
        ema=config.instantiate(cfg.ema),
        sampler=fit_sampler(
            config.instantiate(cfg.sampler), step.denoiser, lambda: data, run_dir / REFERENCES
        ),
        hooks=hooks,
        loggers=build_loggers(cfg, run_dir) if parallel.is_main else [],
        parallel=parallel,
        seed=cfg.seed,
        run_dir=run_dir,
        lock=lock,
        metadata={"config": config.to_yaml(cfg), "model": spec.to_json(), **provenance()},
    )
    _check_hooks(step.denoiser, hooks)
    trainer.resume()
    if parallel.is_main:
        if trainer.nimg == 0:
            _warn_sigma_data(cfg, encoded(data, codec))
        write_whole(run_dir / CONFIG, config.to_yaml(cfg).encode())
    return trainer


def build_roles(cfg: DictConfig, method: Method, parallel: Parallel) -> dict[str, Role]:
    """What learns, each with an optimizer."""
    return {
        name: Role(
            name,
            module,
            config.instantiate(cfg.optimizer, params=[p for p in module.parameters() if p.requires_grad]),
            parallel,
        )
        for name, module in method.roles.items()
    }


def build_hooks(cfg: DictConfig) -> dict[str, Hook]:
    """The hooks by name."""
    hooks: dict[str, Hook | None] = config.instantiate(cfg.hooks)
    return {name: hook for name, hook in hooks.items() if hook is not None}


def build_loggers(cfg: DictConfig, run_dir: Path) -> list[Logger]:
    """The JSON lines that every run writes, and the logger chosen beside them."""
    chosen: Logger = config.instantiate(cfg.logger, run_dir=run_dir)
    return [chosen] if isinstance(chosen, JSONLLogger) else [JSONLLogger(run_dir), chosen]


def _check_hooks(denoiser: NetworkDenoiser, hooks: dict[str, Hook]) -> None:
    """Refuse to draw from what does not draw."""
    drawing = (EvaluateHook, GridHook, HeldoutHook)
    active = [name for name, hook in hooks.items() if isinstance(hook, drawing) and hook.every is not None]
    if isinstance(denoiser, NetworkClassifier) and active:
        raise UserError(f"hooks.{active[0]} is for models that draw images; set hooks.{active[0]}.every=null")


def _needs_heldout(hooks: dict[str, Hook]) -> bool:
    return any(isinstance(hook, HeldoutHook) and hook.every is not None for hook in hooks.values())


def _check_same_run(cfg: DictConfig, run_dir: Path) -> None:
    """Refuse to go on with a run whose configuration differs in more than what may change."""
    saved = _saved_config(run_dir)
    changes = [] if saved is None else config.diff(saved, cfg, ignore=config.MUTABLE)
    if changes:
        raise UserError(
            f"{run_dir} holds a run with another configuration:\n  "
            + "\n  ".join(changes)
            + "\nChoose another run_dir, or repeat the command that started this run to resume it."
        )


def _saved_config(run_dir: Path) -> DictConfig | None:
    """The configuration of the run in a folder; from its weights where the file is damaged; None without."""
    if not (run_dir / "checkpoints").is_dir():
        return None
    try:
        return config.from_yaml((run_dir / CONFIG).read_text(), CONFIG)
    except (OSError, ValueError):
        found = latest_checkpoint(run_dir / "checkpoints")
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
