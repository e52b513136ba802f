"""What a run will cost, before it is paid for: parameters, FLOPs, memory, time. Built on the meta device."""

from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from omegaconf import DictConfig
from torch import Tensor

from scoregen import config
from scoregen.build import build_data
from scoregen.distillers.teacher import follow_teacher
from scoregen.model import ModelSpec, build_denoiser
from scoregen.parallel import world_size
from scoregen.training.loggers import read_log

BACKWARD = 2.0  # a backward costs about two forwards
RATES = (1e12, 1e13, 1e14)  # assumed sustained FLOP/s where no measured speed is known


@dataclass(frozen=True)
class Cost:
    """Counts for one training image and one process."""

    parameters: int
    forward_flops: float
    activation_bytes: float


def plan(cfg: DictConfig) -> str:
    """A readable estimate of the run that a validated configuration describes; nothing is trained."""
    cfg, data = follow_teacher(cfg), build_data(cfg, "train")
    spec = ModelSpec.of(data, config.instantiate(cfg.augment), config.instantiate(cfg.get("codec")))
    cost = measure(cfg, spec)
    options, steps = cfg.trainer, -(-cfg.trainer.total // cfg.trainer.batch)
    micro = options.get("microbatch") or options.batch // world_size()
    tracks = len(cfg.ema.get("sigma_rels", [0]))
    image_flops = cost.forward_flops * (1 + BACKWARD)
    total_flops = image_flops * options.total
    rows = [
        ("data", f"{data.name}: {len(data):,} samples of {'x'.join(map(str, data.shape))}"),
        ("parameters", f"{cost.parameters:,}"),
        ("FLOPs an image", f"{_si(cost.forward_flops)}FLOP forward, {_si(image_flops)}FLOP in training"),
        ("memory", f"{_memory(cost, micro, tracks)} per process at {micro} images a forward, estimated"),
        ("steps", f"{steps:,} of {options.batch} images: {options.total:,} images"),
        ("whole run", f"{_si(total_flops)}FLOP"),
        ("speed", _speed(cfg, total_flops)),
    ]
    if cfg.get("distiller") is not None:
        several = "a distiller takes several networks, each with such costs: docs/distillation.md"
        rows = [row for row in rows if row[0] not in ("memory", "whole run", "speed")] + [("note", several)]
    return "\n".join(f"{name:<16}{text}" for name, text in rows)


def measure(cfg: DictConfig, spec: ModelSpec) -> Cost:
    """Count on the meta device: parameters, FLOPs of one forward, bytes kept for its backward."""
    from torch.utils.flop_counter import FlopCounterMode

    batch = 2
    with torch.device("meta"):
        denoiser = build_denoiser(cfg, spec)
        x, sigma = torch.empty(batch, *spec.shape), torch.ones(batch)
        cond = torch.zeros(batch, dtype=torch.long) if spec.num_classes else None
        cond = torch.zeros(batch, *spec.cond_shape) if spec.cond_shape else cond
        labels = torch.zeros(batch, spec.augment_dim) if spec.augment_dim else None
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        return tensor

    weights = {p.untyped_storage()._cdata for p in denoiser.parameters()}
    counter = FlopCounterMode(display=False)
    with counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        denoiser(x, sigma, cond, labels)
    activations = sum(size for storage, size in kept.items() if storage not in weights)
    return Cost(
        parameters=sum(p.numel() for p in denoiser.parameters()),
        forward_flops=counter.get_total_flops() / batch,
        activation_bytes=activations / batch,
    )


def _memory(cost: Cost, microbatch: int, tracks: int) -> str:
    """Weights, gradients, two Adam moments and the EMA tracks in float32, and the activations kept."""
    fixed = cost.parameters * 4 * (4 + tracks)
    return f"{_si(fixed + cost.activation_bytes * microbatch)}B"


def _speed(cfg: DictConfig, total_flops: float) -> str:
    """Hours at the speed that this run folder's log shows, else at round rates."""
    rates = [row["time"]["img_per_s"] for row in read_log(Path(cfg.run_dir)) if "time" in row]
    if rates:
        rate = median(rates)
        whole = _duration(cfg.trainer.total / rate)
        return f"{rate:,.1f} img/s in the log of {cfg.run_dir}: {whole} for the whole run"
    assumed = ", ".join(f"{_duration(total_flops / rate)} at {_si(rate)}FLOP/s" for rate in RATES)
    return f"not measured here yet; the whole run takes {assumed}"


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.0f} s"


def _si(value: float) -> str:
    for prefix, size in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {prefix}"
    return f"{value:.3g} "
