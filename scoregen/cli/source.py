"""Where the entries get their denoiser: a run folder, a weights file, or the embedded data in closed form."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from scoregen import config
from scoregen.build import build_data
from scoregen.data.base import Dataset
from scoregen.data.codec import IDENTITY, codec_of
from scoregen.data.digits import load_digits
from scoregen.data.sources import KINDS
from scoregen.denoisers.base import Denoiser
from scoregen.denoisers.classifier import NetworkClassifier
from scoregen.denoisers.closed_form import Estimator, closed_form_denoiser
from scoregen.denoisers.empirical import EmpiricalDenoiser
from scoregen.errors import UserError
from scoregen.model import PRETRAINED, find_model, pretrained
from scoregen.training.checkpoint import CHECKPOINTS
from scoregen.training.hooks.evaluate import REFERENCES
from scoregen.training.summary import SUMMARY

RUNS = Path("runs")


@dataclass(frozen=True)
class Source:
    """A denoiser ready to sample from, its configuration, and what it is, for people and for manifests."""

    denoiser: Denoiser
    cfg: DictConfig
    description: str
    manifest: dict[str, Any]
    data: Callable[[], Dataset]  # reads the training data
    run_dir: Path | None = None

    @property
    def cache(self) -> Path | None:
        """Where statistics of the training data are kept."""
        return None if self.run_dir is None else self.run_dir / REFERENCES


def find_source(path: str | None, device: torch.device) -> Source:
    """The model at `path`; without one that of the latest finished run, else the embedded data themselves."""
    if path is not None:
        return load_source(Path(path), device)
    of_sweeps = RUNS.glob(f"*_sweep/*/{SUMMARY}")
    finished = [*RUNS.glob(f"*/{SUMMARY}"), *of_sweeps]
    finished.sort(key=lambda file: file.stat().st_mtime, reverse=True)
    for summary in finished:
        source = _load(summary.parent, device)
        if not isinstance(source.denoiser, NetworkClassifier):
            return source
    return _embedded_source(device)


def load_source(path: Path, device: torch.device) -> Source:
    """The averaged weights of a run's newest whole checkpoint, or those in a safetensors file."""
    source = _load(path, device)
    if isinstance(source.denoiser, NetworkClassifier):
        raise UserError(f"{path} is a classifier or discriminator: it guides a model, but draws none")
    return source


def need_score(source: Source, purpose: str) -> None:
    """UserError unless the model is a score of its data as they are, at every noise level."""
    if source.cfg.get("distiller") is not None:
        what = "a student, which denoises at no noise level: give the model that it was distilled from"
    elif codec_of(source.denoiser) != IDENTITY:
        what = f"of codes, not of the data ({codec_of(source.denoiser)}): give a model without a codec"
    elif getattr(source.denoiser, "cond_shape", ()):
        what = "told more than a class: give a model of images or points"
    else:
        return
    raise UserError(f"{purpose} asks the score of the data; {source.description} is {what}")


def load_judge(path: Path, device: torch.device) -> NetworkClassifier:
    """The classifier or discriminator of a run or a weights file, for guidance."""
    judge = _load(path, device).denoiser
    if not isinstance(judge, NetworkClassifier):
        raise UserError(f"{path} is a model that draws images, not a classifier or discriminator")
    return judge


def _load(path: Path, device: torch.device) -> Source:
    found = find_model(path)
    if found is None:
        runs = sorted([*RUNS.glob(f"*/{CHECKPOINTS}"), *RUNS.glob(f"*_sweep/*/{CHECKPOINTS}")])
        known = ", ".join(str(path.parent) for path in runs) or "none yet"
        ready = ", ".join(pretrained())
        raise UserError(f"--run {path}: no such folder or file; runs here: {known}; in the package: {ready}")
    packaged = found.weights.parent == PRETRAINED  # named as it is given: where the package lies says nothing
    weights, nimg, digest = str(path if packaged else found.weights), found.nimg, found.digest
    return Source(
        found.load().to(device),
        found.cfg,
        f"{weights} ({nimg:,} images, sha256 {digest})",
        {"run": str(path), "weights": weights, "weights_sha256": digest, "nimg": nimg},
        lambda: build_data(found.cfg, "train"),
        found.run_dir,
    )


def closed_form_source(
    name: str, device: torch.device, *, estimator: Estimator = "exact", sigma_s: float = 2.0
) -> Source:
    """A data set as a model, with no training: by the name of its configuration, or images at a path."""
    cfg = data_config(name)
    choice, problems = config.choose("sampler", "closed_form")
    config.refuse(problems)
    cfg.sampler = choice
    data = build_data(cfg, "train")
    denoiser = closed_form_denoiser(data, estimator=estimator, sigma_s=sigma_s)
    return Source(
        denoiser.to(device) if isinstance(denoiser, torch.nn.Module) else denoiser,
        cfg,
        f"closed form of {data.name}: {len(data):,} training samples, {estimator}, smoothed by {sigma_s:g}",
        {"closed_form": name, "estimator": estimator, "sigma_s": sigma_s, "data_sha256": data.fingerprint},
        lambda: data,
    )


def data_config(name: str) -> DictConfig:
    """The configuration with the data set of that name, or with the images at that path."""
    if name in config.groups()["data"]:
        cfg, problems = config.compose([f"data={name}"])
    elif Path(name).exists():
        kind = KINDS.get(Path(name).suffix, "folder")
        cfg, problems = config.compose([f"data={kind}", f"data.root={name}"])
    else:
        known = ", ".join(config.groups()["data"])
        raise UserError(f"{name}: no such file or folder, and no data set of that name; known: {known}")
    config.refuse(problems)
    return cfg


def _embedded_source(device: torch.device) -> Source:
    """The embedded digits as an exact denoiser: no training, and no image that is not one of them."""
    cfg, _ = config.compose([])
    data = load_digits()
    return Source(
        EmpiricalDenoiser(data.x, data.label).to(device),
        cfg,
        f"no finished run under {RUNS}/: sampling the closed form of the {len(data):,} embedded training "
        "digits, which needs no training and can only return those; `python train.py` trains a model",
        {"run": None, "weights": "closed form of the embedded digits", "data_sha256": data.fingerprint},
        lambda: data,
    )
