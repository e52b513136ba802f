"""The training loop of every method: a batch, its phases, an average of weights, and the hooks due."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoregen.data.base import Dataset
from scoregen.data.latents import LatentStream
from scoregen.data.stream import LabelStream, Stream
from scoregen.denoisers.network import NetworkDenoiser
from scoregen.parallel import Parallel
from scoregen.samplers.base import Sampler
from scoregen.sharding import gathered
from scoregen.training.ema import EMA
from scoregen.training.hooks import CheckpointHook, Hook
from scoregen.training.lock import FolderLock
from scoregen.training.loggers import Logger
from scoregen.training.meters import read_meters
from scoregen.training.options import TrainerOptions
from scoregen.training.phases import Method, MicroBatch, Phase
from scoregen.training.role import Role
from scoregen.training.schedules import Schedule
from scoregen.training.signals import StopSignals
from scoregen.training.state import load_trainer, save_trainer

SYNC_STEPS = 100  # steps between two looks at a GPU for gradients that are not finite


@dataclass
class Trainer:
    """Trains the roles of a method, phase by phase, and keeps a run folder from which it can always go on.

    Everything that a step does is a function of (seed, nimg) and the weights, so 2N steps equal N + N bit for
    bit, and the number of processes and micro-batches changes nothing but the order of sums (and, where there
    is dropout, its masks: they are drawn for each micro-batch).
    """

    options: TrainerOptions
    method: Method
    stream: Stream | LatentStream | LabelStream
    inputs: dict[str, str]  # fingerprints of what a resumed run must find unchanged
    heldout: Dataset | None
    roles: dict[str, Role]  # the model's is the first
    schedule: Schedule
    ema: EMA
    sampler: Sampler
    hooks: dict[str, Hook]
    loggers: Sequence[Logger]
    parallel: Parallel
    seed: int
    run_dir: Path
    twin: NetworkDenoiser | None  # of the denoiser, on the host, where processes hold parts of its weights
    lock: FolderLock | None  # on the run folder, in the main process
    metadata: dict[str, str]  # of every weights file
    nimg: int = 0
    averaged_to: int = 0  # nimg after the last step of the model, which the average follows
    heldout_loss: float | None = None  # at this nimg, by which the best checkpoint is kept
    step_seconds: float = 0.0  # spent in steps by this process
    data_seconds: float = 0.0  # of these, waiting for data
    ended: bool = False

    def __post_init__(self) -> None:
        self.ema.attach(self.denoiser)
        self.model = next(iter(self.roles.values()))
        compile = self.options.compile
        for role in self.roles.values():
            if self.options.checkpointing:
                role.recompute()
            if compile:
                role.compile(compile if isinstance(compile, str) else None)

    @property
    def denoiser(self) -> NetworkDenoiser:
        """The denoiser that is trained and sampled from."""
        return self.method.denoiser

    @property
    def stop_reason(self) -> str | None:
        """Why a hook ends the run before all images are used, if one does."""
        return next((hook.stop_reason for hook in self.hooks.values() if hook.stop_reason), None)

    @property
    def finished(self) -> bool:
        """Whether the images are used up or a hook has stopped the run."""
        return self.nimg >= self.options.total or self.stop_reason is not None

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step."""
        return float(self.model.lr * self.schedule(self.nimg))

    def run(self) -> bool:
        """Train until finished or asked to stop by a signal, and save either way; True if finished."""
        for logger in self.loggers:
            logger.start(self.nimg)
        for hook in self.hooks.values():
            hook.start(self)
        with StopSignals() as signals:
            while not self.finished:
                started = time.perf_counter()
                with self.parallel.repeatable():
                    self.train_step()
                self.step_seconds += time.perf_counter() - started
                self._run_hooks()
                if self.parallel.any(signals.received) and not self.finished:
                    self.save()
                    return False
        self.save()
        self._run_last_hooks()
        return True

    def train_step(self) -> None:
        """The phases of the step whose global batch starts at image number `nimg`."""
        batch, self.heldout_loss = self.options.batch, None
        if self.options.compile == "reduce-overhead":  # what CUDA graphs gave in the last step is done with
            torch.compiler.cudagraph_mark_step_begin()
        pieces = self._micro_batches()
        for phase in self.method.phases(self.nimg // batch, self.nimg):
            applied = self._run_phase(phase, pieces)
            if phase.role == self.model.name:
                self.ema.update(
                    nimg=self.averaged_to, batch=self.nimg + batch - self.averaged_to, applied=applied
                )
                self.averaged_to = self.nimg + batch
        self.nimg += batch
        if self.parallel.device.type == "cpu" or self.nimg // batch % SYNC_STEPS == 0:
            self._check_finite()

    def _micro_batches(self) -> list[MicroBatch]:
        """This process's rows of the global batch, piece by piece."""
        batch, share = self.options.batch, self.parallel.rows(self.options.batch)
        size, started = self.options.microbatch or len(share), time.perf_counter()
        pieces = [
            MicroBatch(*self.stream.batch(self.nimg, batch, rows), self.seed, self.nimg, batch, rows)
            for rows in (slice(i, i + size) for i in range(share.start, share.stop, size))
        ]
        self.data_seconds += time.perf_counter() - started
        return pieces

    def _run_phase(self, phase: Phase, pieces: Sequence[MicroBatch]) -> Tensor:
        """One optimizer step of one role; returns 1, or 0 where its gradient was not finite."""
        for name, role in self.roles.items():
            role.activate(name == phase.role)
        role, options = self.roles[phase.role], self.options
        if phase.prepare is not None:
            phase.prepare(pieces, self.parallel)
        for piece in pieces:
            # Dropout draws from the global generator: make that, too, a function of (seed, nimg, first row).
            torch.manual_seed(piece.dropout_seed(*([] if role is self.model else [role.name])))
            scale = options.loss_scale * self.parallel.world / options.batch
            role.backward(phase.loss, piece, scale, last=piece is pieces[-1])
        return role.apply(self.schedule(self.nimg), clip=options.clip, loss_scale=options.loss_scale)

    def _check_finite(self) -> None:
        """Give up where a role skips too many steps in a row; the host's one regular look at the device."""
        for role in self.roles.values():
            role.check_finite(self.options.max_skipped, self.nimg)

    def _run_hooks(self) -> None:
        """Run the hooks whose interval ended with this step, in their order; checkpoints come last."""
        for hook in sorted(self.hooks.values(), key=lambda hook: isinstance(hook, CheckpointHook)):
            if hook.due(self.nimg - self.options.batch, self.nimg):
                hook(self)

    def _run_last_hooks(self) -> None:
        """At the end, run the hooks that are in the middle of an interval; what they log is marked `end`."""
        self.ended = True
        for hook in self.hooks.values():
            unfinished = hook.every is not None and not hook.due(self.nimg - self.options.batch, self.nimg)
            if hook.at_end and unfinished:
                hook(self)

    @contextmanager
    def averaged_denoiser(self) -> Iterator[NetworkDenoiser]:
        """The denoiser with its averaged weights, in evaluation mode."""
        if self.twin is None:
            with self.ema.swapped(self.denoiser):
                yield self.denoiser.eval()
            return
        self.twin.load_state_dict(gathered(self.ema.weights()["ema"]))
        yield self.twin.to(self.parallel.device).eval()
        self.twin.to("cpu")

    def read_meters(self) -> dict[str, Any]:
        """Averages since the last reading: the model's by their names, another role's as `role/name`."""
        named = {"" if role is self.model else name: role.meters for name, role in self.roles.items()}
        return read_meters(named)

    def log(self, values: dict[str, Any]) -> None:
        """Write values at the current nimg to every logger; only the main process has loggers."""
        for logger in self.loggers:
            logger.log(self.nimg, values | {"end": True} if self.ended else values)

    def log_image(self, name: str, image: Tensor) -> None:
        """Write an image uint8 [C, H, W] to every logger."""
        for logger in self.loggers:
            logger.image(self.nimg, name, image.permute(1, 2, 0).numpy())

    def save(self) -> None:
        """Write a checkpoint from which `resume` goes on exactly; called in every process."""
        save_trainer(self)

    def resume(self) -> None:
        """Go on from the newest whole checkpoint, if there is one; called in every process."""
        load_trainer(self)

    def close(self) -> None:
        """Close the loggers, let the folder go, and leave the process group."""
        for logger in self.loggers:
            logger.close()
        if self.lock is not None:
            self.lock.close()
        self.parallel.close()
