"""What evaluate.py judges: the images that a model draws, or those of a set."""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor

from scoregen import config
from scoregen.build import build_data, tell_loggers
from scoregen.cli.sampler import (
    choose_sampler,
    choose_source,
    describe_sampler,
    guide,
    sampler_manifest,
)
from scoregen.cli.sound import load_conditions
from scoregen.cli.source import data_config, need_score
from scoregen.data.cache import cache_folder
from scoregen.errors import UserError
from scoregen.evaluation.evaluator import Evaluator
from scoregen.evaluation.examine import EXAMINATIONS, OF_SCORES, Examine, Subject
from scoregen.evaluation.metrics import METRICS, PUBLISHED_N
from scoregen.evaluation.model import evaluate_model
from scoregen.evaluation.reference import batches
from scoregen.evaluation.result import Record, Result
from scoregen.parallel import Parallel
from scoregen.rng import SampleRng, generator
from scoregen.samplers.base import Sampler
from scoregen.samplers.generate import generate
from scoregen.sobol import SobolLatents
from scoregen.training.hooks.evaluate import REFERENCES

if TYPE_CHECKING:
    from scoregen.cli.source import Source
    from scoregen.data.base import Dataset

Start = Callable[[Sequence[int], torch.device | str], SampleRng]  # seeds and device to their latents
IMAGES_BATCH = 256
NO_RUN = "--report is of a run folder: give one with --run"


@dataclass(frozen=True)
class Candidate:
    """Something that metrics judge, any number of times.

    Args:
        description: for the reader, before work begins.
        manifest: what records say of it, besides the seeds.
        num: images each time.
        judge: the results of the k-th time.
        examine: that of a metric of the model itself, where there is a model.
        report: writes the report of the run, where there is a run.
        tell: lets the loggers of the run know of results, where there is a run.
        data: the real images to compare with where none are named; None says that there are none.
        folder: where results go.
        cache: where statistics of real images are kept.
    """

    description: str
    manifest: Mapping[str, Any]
    num: int
    judge: Callable[[Evaluator, int], dict[str, Result]]
    examine: Callable[[Examine, int], Result]
    report: Callable[[], Path]
    tell: Callable[[Sequence[Record]], None]
    data: "Callable[[], Dataset | None]"
    folder: Path
    cache: Path | None


def choose_candidate(args: argparse.Namespace, metrics: list[str], parallel: Parallel) -> Candidate:
    """What the flags name: a set of images, or a model.

    Raises UserError, before anything is drawn, where metrics or a report are asked for that it cannot have.
    """
    return _images(args, metrics, parallel) if args.images else _model(args, metrics, parallel)


@dataclass(frozen=True)
class _Model:
    """A model under the flags of the command line: what is drawn from it the k-th time, how it is judged."""

    source: "Source"
    sampler: Sampler
    args: argparse.Namespace
    parallel: Parallel
    num: int

    def seeds(self, k: int) -> range:
        """Those of the k-th time."""
        return range(self.args.seed + k * self.num, self.args.seed + (k + 1) * self.num)

    def start(self, k: int) -> Start:
        """Where the latents of the k-th time come from."""
        if self.args.latents == "normal":
            return SampleRng
        return SobolLatents(self.source.denoiser.shape, scramble=k)

    def judge(self, evaluator: Evaluator, k: int) -> dict[str, Result]:
        """The results of images drawn for it."""
        return evaluate_model(
            evaluator,
            self.source.denoiser,
            self.sampler,
            self.seeds(k),
            batch=self.args.batch,
            parallel=self.parallel,
            label=self.args.label,
            start=self.start(k),
        )

    def draw(self, k: int) -> Iterator[Tensor]:
        """This process's images of the k-th time, in batches."""
        drawn = generate(
            self.source.denoiser,
            self.sampler,
            self.seeds(k)[self.parallel.rank :: self.parallel.world],
            batch=self.args.batch,
            device=self.parallel.device,
            label=self.args.label,
            start=self.start(k),
        )
        return (samples.images for samples in drawn)

    def examine(self, examination: Examine, k: int) -> Result:
        """The result of a metric of the model itself."""
        data, draw = partial(build_data, self.source.cfg), partial(self.draw, k)
        size, seed = (self.num, self.args.batch), self.seeds(k).start
        where = (self.parallel.device, self.parallel)
        return examination(Subject(self.source.denoiser, data, draw, *size, seed, *where, self.sampler))

    def report(self) -> Path:
        """Write the report of the run."""
        from scoregen.report.run import write_report

        how = describe_sampler(self.sampler, self.source.denoiser)
        told, where = load_conditions(self.source), self.parallel.device
        return write_report(
            self.source, self.sampler, how, batch=self.args.batch, device=where, conditions=told
        )

    def tell(self, records: Sequence[Record]) -> None:
        """Let the loggers of the run know."""
        if self.source.run_dir is not None:
            values = {record["name"]: record["value"] for record in records}
            tell_loggers(self.source.run_dir, self.source.manifest["nimg"], values)


def _model(args: argparse.Namespace, metrics: list[str], parallel: Parallel) -> Candidate:
    source = choose_source(args, parallel.device)
    for name in OF_SCORES.intersection(metrics):
        need_score(source, name)
    if args.report and source.run_dir is None:
        raise UserError(NO_RUN)
    sampler = choose_sampler(source, args)
    source = replace(source, denoiser=guide(source, args, parallel.device))
    num = args.num or PUBLISHED_N
    if args.latents == "sobol":
        refuse_extrapolation(metrics)
        SobolLatents(source.denoiser.shape)
    manifest = {
        "seeds": f"{args.seed}-{args.seed + num * args.repeats - 1}",
        "latents": "" if args.latents == "normal" else "scrambled Sobol",
        **source.manifest,
        **sampler_manifest(sampler, source.denoiser, args),
    }
    described = f"{source.description}\n{describe_sampler(sampler, source.denoiser)}"
    if not OF_SCORES.issuperset(metrics):
        cost = args.repeats * num * sampler.nfe()
        described += f"\n{args.repeats} x {num:,} images: {cost:,} evaluations"
    model, folder = _Model(source, sampler, args, parallel, num), source.run_dir or Path()
    ways = (model.judge, model.examine, model.report, model.tell)
    return Candidate(described, manifest, num, *ways, source.data, folder, source.cache)


def refuse_extrapolation(metrics: list[str]) -> None:
    """UserError for metrics whose line is about independent draws."""
    wrong = [name for name in metrics if name in METRICS and METRICS[name].extrapolates]
    if wrong:
        raise UserError(
            f"{', '.join(wrong)} extrapolates from independent draws, which parts of a quasi-random "
            "sequence are not: drop --latents sobol, or ask for the metric at n"
        )


def _images(args: argparse.Namespace, metrics: list[str], parallel: Parallel) -> Candidate:
    if args.report:
        raise UserError(NO_RUN)
    if of_models := [name for name in metrics if name in EXAMINATIONS]:
        raise UserError(f"{', '.join(of_models)} examines a model, not images: give --run, or leave it out")
    data = open_images(args.images)
    num = args.num or len(data) // args.repeats
    if num * args.repeats > len(data):
        raise UserError(f"--num {num} x --repeats {args.repeats}: {args.images} has {len(data):,} images")
    chosen = num * args.repeats < len(data) or args.repeats > 1

    def judge(evaluator: Evaluator, k: int) -> dict[str, Result]:
        order = torch.arange(len(data))
        if chosen:
            order = torch.randperm(len(data), generator=generator("images", args.seed))
        return evaluator(_share(data, order[k * num : (k + 1) * num], parallel))

    manifest = {"images": args.images, "images_fingerprint": data.fingerprint}
    if chosen:
        manifest["subset"] = f"seed {args.seed}"
    described = f"{args.images}: {args.repeats} x {num:,} of {len(data):,} images"

    def refused(*_: Any) -> NoReturn:
        raise AssertionError("images have neither a model nor a run")

    cache = cache_folder(REFERENCES)
    ways = (judge, refused, refused, lambda _: None)
    return Candidate(described, manifest, num, *ways, lambda: None, Path(), cache)


@dataclass(frozen=True)
class _Chosen:
    """Some images of a data set, in a given order."""

    data: "Dataset"
    order: Tensor

    @property
    def name(self) -> str:
        return self.data.name

    @property
    def fingerprint(self) -> str:
        return self.data.fingerprint

    def __len__(self) -> int:
        return len(self.order)

    def fetch(self, indices: Tensor) -> Any:
        return self.data.fetch(self.order[indices])


def _share(data: "Dataset", order: Tensor, parallel: Parallel) -> Iterator[Tensor]:
    return batches(_Chosen(data, order), parallel.rank, parallel.world, IMAGES_BATCH)


def open_images(name: str) -> "Dataset":
    """All images of a folder, a zip, or an .npz, .npy, .parquet or .tar; or a data set, NAME or NAME:test.

    Raises:
        UserError: there is no such thing, or an image is broken or of another size.
    """
    data_set, _, split = name.partition(":")
    if data_set in config.groups()["data"]:
        if split not in ("", "train", "test"):
            raise UserError(f"{name}: after the colon comes train or test")
        return build_data(data_config(data_set), "test" if split == "test" else "train")
    cfg = data_config(name)
    cfg.data.test_fraction = 0.0
    return build_data(cfg, "train")


def open_reference(name: str | None, candidate: Candidate) -> "Dataset | Path | None":
    """What --reference means: statistics in a file, images at a path, a data set, or the training data."""
    if name is None:
        return candidate.data()
    return Path(name) if Path(name).suffix == ".npz" and not _holds_images(Path(name)) else open_images(name)


def _holds_images(path: Path) -> bool:
    """Whether an .npz has arrays of images, not statistics."""
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as file:
            return "meta" not in file and "mu" not in file
    except (OSError, ValueError):
        return False  # reading it as statistics says what is wrong
