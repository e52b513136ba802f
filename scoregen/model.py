"""Networks as stored: what a weights file says of its network, and the denoiser built and read from it."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import torch
from omegaconf import DictConfig

from scoregen import config
from scoregen.data.augment import Augment
from scoregen.data.autoencoder import Autoencoder
from scoregen.data.base import Dataset
from scoregen.data.codec import IDENTITY
from scoregen.data.latents import LatentCodec, LatentStats
from scoregen.denoisers.classifier import NetworkClassifier
from scoregen.denoisers.hyvarinen import HyvarinenDenoiser
from scoregen.denoisers.network import NetworkDenoiser
from scoregen.diffusion.precond import HyvarinenPrecond
from scoregen.errors import UserError
from scoregen.rng import derive_seed
from scoregen.training.checkpoint import CHECKPOINTS, check_undamaged, latest_checkpoint
from scoregen.training.weights import load_weights, read_weights, weights_hash
from scoregen.trust import refuse_foreign

AVERAGED = "ema.safetensors"  # of a checkpoint
PRETRAINED = Path(__file__).parent / "pretrained"  # weights that come with the package


@dataclass(frozen=True)
class ModelSpec:
    """What a network is built for beyond its configuration; kept in the metadata of its weights."""

    shape: tuple[int, ...]
    num_classes: int = 0
    augment_dim: int = 0
    cond_shape: tuple[int, ...] = ()  # of what it is told of one sample, other than a class
    latents: LatentStats | None = None  # of a model of latents: of its training set

    @classmethod
    def of(cls, data: Dataset, augment: Augment, autoencoder: Autoencoder | None = None) -> Self:
        """For samples and classes of `data`, or their latents, told about what `augment` does."""
        shape, told = tuple(data.shape), tuple(getattr(data, "cond_shape", ()))
        if autoencoder is not None:
            shape = autoencoder.code_shape(shape)
        return cls(shape, data.num_classes, augment.label_dim, told)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote."""
        fields = json.loads(text)
        shapes = {key: tuple(value) for key, value in fields.items() if key.endswith("shape")}
        latents = fields.get("latents")
        stats = None if latents is None else LatentStats.of(**latents)
        return cls(**{**fields, **shapes, "latents": stats})

    def to_json(self) -> str:
        """As text for metadata."""
        return json.dumps(asdict(self))


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
    denoiser = wrap(
        network,
        precond,
        shape=spec.shape,
        num_classes=spec.num_classes,
        cond_shape=spec.cond_shape,
        precision=cfg.precision,
    )
    if spec.latents is not None:
        if denoiser.codec is not IDENTITY:
            raise UserError("codec=autoencoder needs a precond without a codec of its own, for example edm")
        denoiser.codec = LatentCodec(config.instantiate(cfg.codec), spec.latents)
    if cfg.get("distiller") is not None:
        # No sampler may start a student above the level that it was distilled at.
        denoiser.sigma_max = min(denoiser.sigma_max, cfg.distiller.sigma_init)
    return denoiser


@dataclass(frozen=True)
class StoredModel:
    """A weights file and the configuration that stands in it."""

    weights: Path
    cfg: DictConfig
    spec: ModelSpec
    nimg: int
    run_dir: Path | None  # where the file is the newest of a run

    @property
    def digest(self) -> str:
        """By which manifests name the weights."""
        return weights_hash(self.weights)

    def load(self) -> NetworkDenoiser:
        """The denoiser, on the CPU, in evaluation mode; its weights take no gradients."""
        denoiser = build_denoiser(self.cfg, self.spec)
        load_weights(denoiser, read_weights(self.weights)[0], str(self.weights))
        if isinstance(denoiser.codec, LatentCodec):
            denoiser.codec.check()
        return denoiser.eval().requires_grad_(False)


def pretrained() -> list[str]:
    """The models that come with the package, as `load_model` takes them."""
    return [f"pretrained/{file.stem}" for file in sorted(PRETRAINED.glob("*.safetensors"))]


def load_model(path: str | Path) -> NetworkDenoiser:
    """The denoiser of a run folder, a weights file or `pretrained/NAME`, on the CPU, ready to be asked.

    Raises UserError where there is none, or nothing can be read there.
    """
    found = find_model(Path(path))
    if found is None:
        raise UserError(f"{path}: no such run folder or weights file, nor one of {', '.join(pretrained())}")
    return found.load()


def _advice(folder: Path) -> str:
    """What to do about a folder that holds no checkpoint."""
    if (folder / "config.json").exists() or (folder / "unet").is_dir():
        return f"it is of diffusers; convert it: python -m scoregen.export.foreign {folder} --out OUT"
    runs = ", ".join(str(path.parent) for path in sorted(folder.glob(f"*/{CHECKPOINTS}")))
    return f"give one of the runs in it: {runs}" if runs else "give a run of train.py or a .safetensors file"


def find_model(path: Path) -> StoredModel | None:
    """The averaged weights of a run's newest whole checkpoint, or of one, or a safetensors file.

    None for no such path. `pretrained/NAME` is a model of the package, unless there is such a path here.

    Raises UserError where nothing can be read there.
    """
    if not path.exists() and str(path) in pretrained():
        path = PRETRAINED / f"{path.name}.safetensors"
    run_dir, weights = None, path / AVERAGED if path.is_dir() else path
    if path.is_dir() and not weights.exists():
        found = latest_checkpoint(path / CHECKPOINTS)
        if found is None:
            raise UserError(f"{path} holds no checkpoint; {_advice(path)}")
        run_dir, weights = path, found.path / AVERAGED
    elif not weights.exists():
        return None
    else:
        check_undamaged(weights)
    metadata = read_weights(weights)[1]
    if not {"config", "model"} <= metadata.keys():
        raise UserError(
            f"{weights} does not say which network it is of; give weights that train.py has written"
        )
    cfg = config.from_yaml(metadata["config"], str(weights))
    refuse_foreign(cfg, str(weights))
    spec = ModelSpec.from_json(metadata["model"])
    return StoredModel(weights, cfg, spec, int(metadata.get("nimg", 0)), run_dir)
