"""The flags of sample.py and evaluate.py that choose a sampler and guidance, and what results say of them."""

import argparse
import logging
from dataclasses import fields, is_dataclass, replace
from math import isinf
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any

from scoregen import config
from scoregen.errors import UserError

if TYPE_CHECKING:
    import torch

    from scoregen.cli.source import Source
    from scoregen.denoisers.base import Denoiser
    from scoregen.samplers.base import Sampler


ESTIMATORS = ("exact", "neighbours", "importance")


def add_sampler_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of sample.py and evaluate.py that choose a model and a sampler."""
    samplers = config.groups()["sampler"]
    parser.add_argument(
        "--run", metavar="PATH", help="a run folder or a .safetensors file (default: the latest run)"
    )
    parser.add_argument("--data", metavar="NAME", help="instead of a run: a data set in closed form")
    parser.add_argument("--estimator", choices=ESTIMATORS, default="exact", help="of --data (default exact)")
    parser.add_argument("--sigma-s", type=float, default=2.0, metavar="S", help="smoothing of --data (2)")
    parser.add_argument("--sampler", metavar="NAME", help=f"{', '.join(samplers)} (default: the run's)")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--steps", type=int, help="solver steps")
    budget.add_argument("--nfe", type=int, help="budget of network evaluations an image, instead of --steps")
    parser.add_argument("--class", type=int, dest="label", metavar="ID", help="class of every image")
    parser.add_argument("--batch", type=int, default=64, help="images drawn at a time (default 64)")
    parser.add_argument("--device", help="auto, cpu, cuda, mps (default auto)")
    guidance = parser.add_argument_group("guidance")
    guidance.add_argument("--guidance", type=float, default=1.0, metavar="W", help="weight; 1 is none")
    guidance.add_argument("--guidance-interval", metavar="LOW,HIGH", help="guide at these noise levels only")
    guidance.add_argument("--autoguidance", metavar="PATH", help="guide by this weaker model instead")
    guidance.add_argument("--classifier", metavar="PATH", help="a run of digits_classifier or alike")
    guidance.add_argument("--classifier-weight", type=float, default=1.0, metavar="W", help="0 is none")
    guidance.add_argument("--discriminator", metavar="PATH", help="a run of digits_discriminator or alike")
    guidance.add_argument("--discriminator-weight", type=float, default=1.0, metavar="W", help="0 is none")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="a setting of the sampler")


def choose_source(args: argparse.Namespace, device: "torch.device") -> "Source":
    """The model that the flags name: a run, a weights file, or a data set in closed form."""
    from scoregen.cli.source import closed_form_source, find_source

    if args.data is None:
        return find_source(args.run, device)
    if args.run is not None:
        raise UserError("--run and --data: give one of them, a trained model or a data set")
    if args.sigma_s < 0:
        raise UserError(f"--sigma-s {args.sigma_s:g}: at least 0")
    return closed_form_source(args.data, device, estimator=args.estimator, sigma_s=args.sigma_s)


def choose_sampler(source: "Source", args: argparse.Namespace) -> "Sampler":
    """The run's sampler, or the one named, with the settings and the budget of the command line."""
    from scoregen.samplers.consistency import ConsistencySampler
    from scoregen.samplers.fit import fit_sampler
    from scoregen.samplers.generate import steps_for_nfe
    from scoregen.samplers.one_step import OneStepSampler
    from scoregen.validation import check_choice

    settings = [*args.overrides, *([] if args.steps is None else [f"steps={args.steps}"])]
    if args.sampler:
        cfg, problems = config.choose("sampler", args.sampler, settings)
    else:
        cfg, problems = config.adjust(source.cfg.sampler, settings)
    config.refuse(problems + check_choice(cfg, "sampler"))
    sampler = fit_sampler(config.instantiate(cfg), source.denoiser, source.data, source.cache)
    if source.cfg.get("distiller") is not None and not isinstance(
        sampler, OneStepSampler | ConsistencySampler
    ):
        logging.getLogger(__name__).warning(
            "%s is a student, made to draw in one step; %s asks it at noise levels that it never learned",
            source.run_dir or "this model", type(sampler).__name__
        )  # fmt: skip
    return sampler if args.nfe is None else replace(sampler, steps=steps_for_nfe(sampler, args.nfe))


def guide(source: "Source", args: argparse.Namespace, device: "torch.device") -> "Denoiser":
    """The model with the guidance that the flags ask for; the model itself where they ask for none."""
    from scoregen.cli.source import load_judge, load_source
    from scoregen.denoisers.guidance import build_guidance

    if args.guidance != 1 and not args.autoguidance:
        _warn_untrained_null_class(source)
    weaker = load_source(Path(args.autoguidance), device).denoiser if args.autoguidance else None
    weight = args.discriminator_weight
    return build_guidance(
        source.denoiser,
        weight=args.guidance,
        interval=_parse_interval(args.guidance_interval),
        weaker=weaker,
        classifier=load_judge(Path(args.classifier), device) if args.classifier else None,
        classifier_weight=args.classifier_weight,
        discriminator=load_judge(Path(args.discriminator), device) if args.discriminator else None,
        discriminator_weights=(weight, weight),
    )


def _warn_untrained_null_class(source: "Source") -> None:
    if source.run_dir and source.denoiser.num_classes and not source.cfg.trainer.get("label_dropout"):
        logging.getLogger(__name__).warning(
            "%s was trained with trainer.label_dropout=0: it has never seen the null class that "
            "classifier-free guidance compares with", source.run_dir
        )  # fmt: skip


def _parse_interval(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        raise UserError(f"--guidance-interval {text}: give two noise levels, for example 0.2,5") from None
    return low, high


def describe_sampler(sampler: "Sampler", denoiser: "Denoiser") -> str:
    """Name, steps and cost: `HeunSampler: 18 steps, 35 network evaluations per image`."""
    from scoregen.denoisers.guidance import count_evaluations

    nfe = count_evaluations(sampler, denoiser)
    return f"{type(sampler).__name__}: {sampler.steps} steps, {nfe} network evaluations per image"


def sampler_manifest(sampler: "Sampler", denoiser: "Denoiser", args: argparse.Namespace) -> dict[str, Any]:
    """What a result file says of its sampler, its guidance, and the network evaluations a sample."""
    from scoregen.denoisers.guidance import count_evaluations

    flags = ("guidance", "guidance_interval", "autoguidance", "classifier", "discriminator", "label")
    chosen = {flag: value for flag in flags if (value := getattr(args, flag)) is not None}
    if args.guidance == 1:  # none
        del chosen["guidance"]
    weights = {
        f"{judge}_weight": getattr(args, f"{judge}_weight")
        for judge in ("classifier", "discriminator")
        if judge in chosen
    }
    nfe = count_evaluations(sampler, denoiser)
    return {"sampler": _plain(sampler), "steps": sampler.steps, "nfe": nfe, **chosen, **weights}


def _plain(value: Any) -> Any:
    """Hyper-parameters as JSON has them: dataclasses with their class, inf as a word, others by class."""
    if is_dataclass(value):
        settings = {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
        return {"class": type(value).__name__, **settings}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, float) and isinf(value):
        return str(value)
    return value if isinstance(value, str | int | float | NoneType) else type(value).__name__
