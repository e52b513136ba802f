"""From a configuration to a distiller: its teacher, the student, and the fake score."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import torch
from omegaconf import DictConfig

from scoregen import config
from scoregen.data.augment import Augment
from scoregen.data.base import Dataset
from scoregen.data.codec import codec_of
from scoregen.denoisers.network import NetworkDenoiser
from scoregen.distillers.base import Distiller, Networks, freeze_unused, probe
from scoregen.distillers.teacher import CLOSED_FORMS, Teacher, load_teacher
from scoregen.errors import UserError
from scoregen.model import ModelSpec, build_denoiser
from scoregen.objectives.base import Objective
from scoregen.rng import derive_seed
from scoregen.training.step import TrainStep
from scoregen.training.weights import load_weights


def build_distiller(
    cfg: DictConfig,
    data: Callable[[], Dataset],
    augment: Augment,
    objective: Objective,
    device: torch.device,
) -> tuple[Distiller, ModelSpec, dict[str, str]]:
    """The distiller on the device, what its student is built for, and the teacher's fingerprint.

    Raises UserError for a teacher that is missing, or does not fit the data or the method.
    """
    kind: type[Distiller] = config.locate(cfg.distiller._target_)
    if cfg.teacher is None and kind.needs_teacher:
        raise UserError(
            f"{kind.__name__} needs a teacher: give teacher=RUN, the folder of a trained model, a weights "
            f"file, or a closed form of the data ({', '.join(CLOSED_FORMS)})"
        )
    teacher = None if cfg.teacher is None else load_teacher(cfg, data, device)
    spec = _student_spec(cfg, teacher, data, augment)
    autoencoder = config.instantiate(cfg.get("codec"))
    if autoencoder is not None and spec.latents is None:
        raise UserError("codec=autoencoder: distillation of latents needs a teacher that was trained on them")
    if spec.cond_shape:
        raise UserError("distillation is for models that are told a class or nothing, not of sound")
    if kind.label_dim:
        spec = replace(spec, augment_dim=kind.label_dim)
    if kind.needs_data:
        _check_data(spec, ModelSpec.of(data(), augment, autoencoder), data().name)
    student = _student(cfg, spec, teacher).to(device)
    if teacher is not None and codec_of(teacher.denoiser) != student.codec:
        raise UserError(
            f"teacher={cfg.teacher} is of the data as they are, the student's precond works on "
            f"{student.codec}: choose a precond without codec, or a teacher that was trained with it"
        )
    fake = TrainStep(deepcopy(student), objective, augment).to(device)
    fake.denoiser.precision = cfg.teacher_precision
    labels = torch.zeros(1, kind.label_dim, device=device) if kind.label_dim else None
    freeze_unused(student, student(*probe(student), labels))
    if not augment.label_dim:
        freeze_unused(fake.denoiser, fake.denoiser(*probe(student)))
    networks = Networks(student, None if teacher is None else teacher.denoiser, fake, Path(cfg.run_dir))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(cfg.seed, "distiller"))  # a critic's heads draw their weights
        distiller: Distiller = config.instantiate(cfg.distiller, networks=networks)
    for module in distiller.state.values():
        module.to(device)
    return distiller, spec, {} if teacher is None else {"teacher": teacher.digest}


def _student_spec(
    cfg: DictConfig, teacher: Teacher | None, data: Callable[[], Dataset], augment: Augment
) -> ModelSpec:
    """That of the teacher's network, so that its weights fit; else of what the teacher or the data are."""
    if teacher is None:
        return ModelSpec.of(data(), augment)
    if teacher.spec is None:
        return ModelSpec(teacher.denoiser.shape, teacher.denoiser.num_classes, augment.label_dim)
    if augment.label_dim not in (0, teacher.spec.augment_dim):
        raise UserError(
            f"teacher={cfg.teacher} was not trained with this `augment`, whose labels its network would have "
            "to take; set augment=none"
        )
    return teacher.spec


def _check_data(spec: ModelSpec, of_data: ModelSpec, name: str) -> None:
    """Refuse data of another shape or number of classes than the teacher's."""
    theirs, ours = (spec.shape, spec.num_classes), (of_data.shape, of_data.num_classes)
    if theirs != ours:
        raise UserError(
            f"the teacher is of samples of shape {theirs[0]} and {theirs[1]} classes, {name} has shape "
            f"{ours[0]} and {ours[1]} classes; choose the `data` that the teacher was trained on"
        )


def _student(cfg: DictConfig, spec: ModelSpec, teacher: Teacher | None) -> NetworkDenoiser:
    """Built as configured, with the weights of the teacher's network where it has one.

    What maps labels starts at zero where the student is told other things than the teacher was.
    """
    student = build_denoiser(cfg, spec)
    if teacher is None or teacher.network is None:
        return student
    weights, own = teacher.network.state_dict(), student.state_dict()
    if spec.augment_dim != getattr(teacher.network.network, "augment_dim", 0):
        weights = {key: value for key, value in weights.items() if "map_augment" not in key}
        weights |= {key: torch.zeros_like(value) for key, value in own.items() if "map_augment" in key}
    load_weights(student, weights, f"teacher={cfg.teacher}")
    return student
