"""What the page does, without the page: models found, requests answered by the very steps of sample.py."""

import argparse
import logging
import shlex
import shutil
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from scoregen import config
from scoregen.cli.draw import describe_copies, nearest_training_samples, prepare, write_samples
from scoregen.cli.sampler import choose_sampler, choose_source
from scoregen.cli.source import RUNS, Source
from scoregen.demo.film import Frame, film, record, write_strip
from scoregen.demo.request import Limits, Request, parse
from scoregen.errors import UserError
from scoregen.model import pretrained
from scoregen.parallel import Parallel
from scoregen.training.checkpoint import CHECKPOINTS

CLOSED_FORM = "digits in closed form, nothing trained"
MODELS_KEPT = 3  # in memory
ANSWERS_KEPT = 32  # on disk


class Answer(NamedTuple):
    """What a request gets."""

    told: str  # model, sampler, steps, evaluations and seconds
    notes: list[str]  # warnings, and copies of training samples
    command: str  # that draws the same images
    frames: list[Frame]
    grid: Path
    files: list[Path]


class Card(NamedTuple):
    """What the page says of a model before anything is drawn."""

    told: str
    num_classes: int
    sampler: str  # its own
    closed_form: bool


@dataclass(frozen=True)
class _Key:
    """By which a loaded model is known; `stamp` changes when it has been trained further."""

    run: str | None
    data: str | None
    sigma_s: float
    stamp: int


class Studio:
    """Draw for the visitors of the page, one at a time.

    Args:
        runs: folder in which run folders are looked for, as deep as two levels.
        paths: further run folders or weights files to offer.
        device: auto, cpu, cuda or mps.
        limits: of what one request may ask for.
    """

    def __init__(
        self,
        runs: Path = RUNS,
        paths: Sequence[Path] = (),
        device: str = "auto",
        limits: Limits | None = None,
    ) -> None:
        self.limits = limits or Limits()
        self._runs, self._paths, self._device = runs, paths, device
        self._parallel = Parallel(device)
        self._load = lru_cache(MODELS_KEPT)(self._load_model)
        self._busy, self._numbers = threading.Lock(), count()
        self._folder = TemporaryDirectory(prefix="scoregen-demo-")

    @property
    def folder(self) -> Path:
        """Where answers are kept, until the studio is closed."""
        return Path(self._folder.name)

    def models(self) -> list[str]:
        """Paths given, runs found (newest first), models of the package, the digits in closed form."""
        configs = [*self._runs.glob(f"*/{config.CONFIG}"), *self._runs.glob(f"*/*/{config.CONFIG}")]
        found = [file for file in configs if (file.parent / CHECKPOINTS).is_dir() and _draws(file)]
        found.sort(key=lambda file: (file.parent / CHECKPOINTS).stat().st_mtime, reverse=True)
        paths = dict.fromkeys([*map(str, self._paths), *(str(file.parent) for file in found)])
        return [*paths, *pretrained(), CLOSED_FORM]

    def card(self, model: str) -> Card:
        """Load a model and say what it is; UserError where it cannot be."""
        with self._busy:
            source = self._source(parse(self._flags(model)))
            own = config.locate(source.cfg.sampler._target_).__name__
            told = f"{own}, {source.cfg.sampler.steps} steps"
            return Card(source.description, source.denoiser.num_classes, told, model == CLOSED_FORM)

    def draw(self, request: Request) -> Answer:
        """The images asked for, those of the command in the answer bit for bit.

        Raises UserError, with what is allowed, for what sample.py refuses and for what exceeds the limits.
        """
        flags = request.flags(self._flags(request.model), self.limits)
        with self._busy, _noting() as notes:
            args = parse([*flags, *self._on_device()])
            self._check_budget(args)
            source, started = self._source(args), time.perf_counter()
            sampler = choose_sampler(source, args)
            self._check_cost(sampler.nfe())  # before a guided one is counted step by step
            draw, told, manifest = prepare(source, sampler, args, self._parallel)
            self._check_cost(manifest["nfe"])
            samples, recorder = record(draw, range(request.seed, request.seed + request.images))
            seconds = time.perf_counter() - started
            manifest |= nearest_training_samples(source.denoiser, samples, self._parallel.device)
            out = self._next_folder()
            names = [*write_samples(out, manifest, samples), *write_strip(out, draw, recorder)]
        return Answer(
            f"{told}\n{len(samples.seeds)} images in {seconds:.1f} s",
            [*notes, *describe_copies(manifest)],
            shlex.join(["python", "sample.py", *flags, *self._on_device()]),
            film(draw, recorder),
            out / "grid.png",
            [out / name for name in names],
        )

    def close(self) -> None:
        """Delete the answers."""
        self._folder.cleanup()

    def _flags(self, model: str) -> list[str]:
        """How sample.py is told of an offered model; nothing else is read."""
        if model not in (models := self.models()):
            raise UserError(f"{model}: no such model; offered are {', '.join(models)}")
        return ["--data", "digits"] if model == CLOSED_FORM else ["--run", model]

    def _on_device(self) -> list[str]:
        return [] if self._device == "auto" else ["--device", self._device]

    def _source(self, args: argparse.Namespace) -> Source:
        return self._load(_Key(args.run, args.data, args.sigma_s, _stamp(Path(args.run or ""))))

    def _load_model(self, key: _Key) -> Source:
        args = parse([])
        args.run, args.data, args.sigma_s = key.run, key.data, key.sigma_s
        return choose_source(args, self._parallel.device)

    def _check_budget(self, args: argparse.Namespace) -> None:
        """What is said in numbers, before a grid of as many levels is made."""
        for flag in ("steps", "nfe"):
            if (getattr(args, flag) or 0) > self.limits.evaluations:
                raise UserError(f"--{flag} {getattr(args, flag)}: at most {self.limits.evaluations} here")

    def _check_cost(self, nfe: int) -> None:
        if nfe > self.limits.evaluations:
            raise UserError(f"{nfe} network evaluations per image: at most {self.limits.evaluations} here")

    def _next_folder(self) -> Path:
        """A folder for the next answer; the oldest one goes."""
        number = next(self._numbers)
        shutil.rmtree(self.folder / f"{number - ANSWERS_KEPT:06d}", ignore_errors=True)
        return self.folder / f"{number:06d}"


def _stamp(path: Path) -> int:
    """When a run was last saved, or a weights file written; 0 for what is no path."""
    place = path / CHECKPOINTS if path.is_dir() else path
    return place.stat().st_mtime_ns if place.exists() else 0


def _draws(file: Path) -> bool:
    """Whether a run is of a model that draws, not of a classifier or discriminator."""
    try:
        network = config.from_yaml(file.read_text(), str(file)).network
        return bool(config.locate(network._target_).role == "denoiser")
    except (UserError, OSError, ValueError, ImportError, AttributeError):
        return True  # loading it will say what is wrong


@contextmanager
def _noting() -> Iterator[list[str]]:
    """Collect what is warned of in this thread, for the page."""
    notes: list[str] = []
    handler, thread = logging.Handler(logging.WARNING), threading.get_ident()

    def emit(record: logging.LogRecord) -> None:
        if record.thread == thread:
            notes.append(record.getMessage())

    handler.emit = emit  # type: ignore[method-assign]
    logger = logging.getLogger("scoregen")
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always", UserWarning)  # for every visitor, not for the first alone
            yield notes
        notes += [str(warning.message) for warning in warned if warning.category is UserWarning]
    finally:
        logger.removeHandler(handler)
