"""Where a teacher comes from: a run folder, a weights file, or the closed form of the run's data."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import nn

from scoregen.data.base import Dataset, to_model_range
from scoregen.data.toys import ring_means
from scoregen.denoisers.base import Denoiser
from scoregen.denoisers.classifier import NetworkClassifier
from scoregen.denoisers.mixture import GaussianMixtureDenoiser
from scoregen.denoisers.moments import measure_gaussian
from scoregen.denoisers.network import NetworkDenoiser, Precision
from scoregen.denoisers.training_set import TrainingSetDenoiser
from scoregen.errors import UserError
from scoregen.model import ModelSpec, StoredModel, find_model

CLOSED_FORMS = ("gaussian", "mixture", "training_set")


@dataclass(frozen=True)
class Teacher:
    """A frozen denoiser, and what a resumed run knows it by."""

    denoiser: Denoiser
    digest: str
    spec: ModelSpec | None  # of its network, where it is one

    @property
    def network(self) -> NetworkDenoiser | None:
        """The denoiser where it is a network, whose weights a student can start from."""
        return self.denoiser if isinstance(self.denoiser, NetworkDenoiser) else None


def find_teacher(name: str) -> StoredModel | None:
    """The stored model of that path, None for the name of a closed form; UserError for anything else."""
    if name in CLOSED_FORMS:
        return None
    found = find_model(Path(name))
    if found is None:
        raise UserError(
            f"teacher={name}: no such run folder or weights file, and no closed form; give the path of a "
            f"trained model, or one of {', '.join(CLOSED_FORMS)}"
        )
    if "distiller" in found.cfg:
        raise UserError(f"teacher={name} is itself a student; give the model that it was distilled from")
    return found


def follow_teacher(cfg: DictConfig) -> DictConfig:
    """The configuration with network, preconditioner and codec of the teacher, where it has a network.

    Dropout stays the run's own.
    """
    if cfg.get("distiller") is None:
        return cfg
    cfg = deepcopy(cfg)
    found = None if cfg.teacher is None else find_teacher(cfg.teacher)
    if found is not None:
        dropout = cfg.network.get("dropout")
        cfg.network, cfg.precond, cfg.sigma_data = found.cfg.network, found.cfg.precond, found.cfg.sigma_data
        cfg.codec = found.cfg.get("codec")
        if dropout is not None and "dropout" in cfg.network:
            cfg.network.dropout = dropout
        # A converted weights file need not know what it was trained on; its shape is compared later.
        if found.run_dir is not None and cfg.data._target_ != found.cfg.data._target_:
            raise UserError(
                f"teacher={cfg.teacher} was trained on {found.cfg.data._target_}, this run names "
                f"{cfg.data._target_}; choose the `data` of the teacher"
            )
    return cfg


def load_teacher(cfg: DictConfig, data: Callable[[], Dataset], device: torch.device) -> Teacher:
    """The teacher of a run, frozen, on the device, in the precision of `teacher_precision`."""
    found = find_teacher(cfg.teacher)
    denoiser: Denoiser
    if found is None:
        denoiser, digest = _closed_form(cfg, data()), f"{cfg.teacher} of {data().fingerprint}"
    else:
        denoiser, digest = _network(found, cfg.teacher_precision), found.digest
    if isinstance(denoiser, nn.Module):
        denoiser = denoiser.to(device).eval().requires_grad_(False)
    return Teacher(denoiser, digest, None if found is None else found.spec)


def _network(found: StoredModel, precision: Precision) -> NetworkDenoiser:
    denoiser = found.load()
    if isinstance(denoiser, NetworkClassifier):
        raise UserError(f"teacher={found.weights} is a classifier or discriminator, not a model that draws")
    denoiser.precision = precision
    return denoiser


def _closed_form(cfg: DictConfig, data: Dataset) -> Denoiser:
    """The Gaussian of the data's moments, by class where there are classes; its samples; or its exact law."""
    if cfg.teacher == "gaussian":
        return measure_gaussian(data, per_class=data.num_classes > 0)
    if cfg.teacher == "training_set":
        samples = data.fetch(torch.arange(len(data)))
        return TrainingSetDenoiser(to_model_range(samples.x), samples.label)
    if "components" not in cfg.data:
        raise UserError(
            f"teacher=mixture is the exact law of data=mixture, and {data.name} has none; give "
            "teacher=gaussian or teacher=training_set"
        )
    means, labels = ring_means(cfg.data.components, cfg.data.std), torch.arange(cfg.data.components)
    variance = torch.tensor(cfg.data.std**2, dtype=means.dtype)
    return GaussianMixtureDenoiser(
        means.float(), variance.float(), labels=labels if data.num_classes else None
    )
