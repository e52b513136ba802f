"""The training loop of every objective: a batch, a step, an average of weights, and the hooks due."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoregen.data.base import Dataset
from scoregen.data.stream import Stream
from scoregen.denoisers.network import NetworkDenoiser
from scoregen.errors import UserError
from scoregen.parallel import Parallel
from scoregen.ranges import Fraction, Positive, PositiveInt
from scoregen.rng import BatchRng, derive_seed
from scoregen.samplers.base import Sampler
from scoregen.training.ema import EMA
from scoregen.training.hooks import CheckpointHook, Hook
from scoregen.training.lock import FolderLock
from scoregen.training.loggers import Logger
from scoregen.training.meters import Meters
from scoregen.training.schedules import Schedule
from scoregen.training.signals import StopSignals
from scoregen.training.state import load_trainer, save_trainer
from scoregen.training.step import TrainStep

SYNC_STEPS = 100  # steps between two looks at a GPU for gradients that are not finite


@dataclass(frozen=True)
class TrainerOptions:
    """Hyper-parameters of the loop; all progress is counted in images.

    Args:
        total: images to train on.
        batch: images per optimizer step, over all processes.
        microbatch: images per forward on one process; null takes the process's whole share. Dropout masks
            depend on it; nothing else does.
        label_dropout: probability of the null class in training.
        clip: largest gradient norm; null does not clip.
        loss_scale: factor on the loss before backward, taken out again after (fp16; EDM uses 100).
        max_skipped: skipped steps in a row after which the run gives up.
        keep: newest checkpoints to keep, beside the best by held-out loss.
        workers: threads that decode ahead, for data sets that are not held in memory.
        compile: whether to compile the network in place.
    """

    total: PositiveInt
    batch: PositiveInt
    microbatch: PositiveInt | None = None
    label_dropout: Fraction = 0.0
    clip: Positive | None = None
    loss_scale: Positive = 1.0
    max_skipped: PositiveInt = 10
    keep: PositiveInt = 3
    workers: PositiveInt = 4
    compile: bool = False


@dataclass
class Trainer:
    """Trains the step's denoiser and objective, and keeps a run folder from which it can always go on.

    Everything that a step does is a function of (seed, nimg) and the weights, so 2N steps equal N + N bit for
    bit, and the number of processes and micro-batches changes nothing but the order of sums (and, where there
    is dropout, its masks: they are drawn for each micro-batch).
    """

    options: TrainerOptions
    step: TrainStep
    stream: Stream
    heldout: Dataset | None
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    ema: EMA
    sampler: Sampler
    hooks: dict[str, Hook]
    loggers: Sequence[Logger]
    parallel: Parallel
    seed: int
    run_dir: Path
    lock: FolderLock | None  # on the run folder, in the main process
    metadata: dict[str, str]  # of every weights file
    nimg: int = 0
    heldout_loss: float | None = None  # at this nimg, by which the best checkpoint is kept
    step_seconds: float = 0.0  # spent in steps by this process

    def __post_init__(self) -> None:
        self.ema.attach(self.denoiser)
        self.meters = Meters(self.parallel)
        self._ended = False
        self._wrapped = self.parallel.wrap(self.step)
        self._base_lrs = [group["lr"] for group in self.optimizer.param_groups]
        if self.options.compile:
            self.denoiser.network.compile()

    @property
    def denoiser(self) -> NetworkDenoiser:
        """The denoiser that is trained."""
        return self.step.denoiser

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
        return float(self._base_lrs[0] * self.schedule(self.nimg))

    def run(self) -> bool:
        """Train until finished or asked to stop by a signal, and save either way; True if finished."""
        for logger in self.loggers:
            logger.start(self.nimg)
        for hook in self.hooks.values():
            hook.start(self)
        with StopSignals() as signals:
            while not self.finished:
                started = time.perf_counter()
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
        """One optimizer step on the global batch that starts at image number `nimg`."""
        batch, self.heldout_loss = self.options.batch, None
        self.step.train()
        self.optimizer.zero_grad(set_to_none=True)
        for rows, is_last in self._microbatches():
            x0, cond = self.stream.batch(self.nimg, batch, rows)
            rng = BatchRng(self.seed, "step", self.nimg, size=batch, rows=rows, device=self.parallel.device)
            # Dropout draws from the global generator: make that, too, a function of (seed, nimg, first row).
            torch.manual_seed(derive_seed(self.seed, "dropout", self.nimg, rows.start))
            with self.parallel.accumulate(self._wrapped, last=is_last):
                loss = self._wrapped(x0, cond, rng)
                scale = self.options.loss_scale * self.parallel.world / batch
                (loss.value.sum() * scale).backward()
            self.meters.add_loss(loss)
        grad_norm, applied = self._apply_gradients()
        self.ema.update(nimg=self.nimg, batch=batch, applied=applied)
        self.meters.add_step(grad_norm, applied)
        self.nimg += batch
        if self.parallel.device.type == "cpu" or self.nimg // batch % SYNC_STEPS == 0:
            self._check_finite()

    def _microbatches(self) -> list[tuple[slice, bool]]:
        """This process's rows of the global batch, piece by piece, and whether a piece is the last."""
        share = self.parallel.rows(self.options.batch)
        size = self.options.microbatch or len(share)
        return [(slice(i, i + size), i + size >= share.stop) for i in range(share.start, share.stop, size)]

    def _apply_gradients(self) -> tuple[Tensor, Tensor]:
        """Step unless a gradient is not finite; returns the gradient norm, and 1 (applied) or 0 (skipped).

        One fused reduction decides, and fused optimizers skip on the device, so that the host need not wait.
        """
        grads = [p.grad for p in self.step.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads) / self.options.loss_scale
        applied = torch.isfinite(norm).to(norm.dtype)
        factor = 1.0 / self.options.loss_scale
        if self.options.clip is not None:
            torch._foreach_mul_(grads, factor * (self.options.clip / norm).clamp(max=1.0))
        elif factor != 1.0:
            torch._foreach_mul_(grads, factor)
        for group, lr in zip(self.optimizer.param_groups, self._base_lrs, strict=True):
            group["lr"] = lr * self.schedule(self.nimg)
        if getattr(self.optimizer, "_step_supports_amp_scaling", False):
            self.optimizer.found_inf = 1 - applied  # type: ignore[attr-defined]  # the protocol of GradScaler
            self.optimizer.step()
        elif applied.item():
            self.optimizer.step()
        return norm, applied

    def _check_finite(self) -> None:
        """Give up where too many steps in a row were skipped; the host's one regular look at the device."""
        skipped = self.meters.skipped_in_a_row
        if skipped < self.options.max_skipped:
            return
        bad = ", ".join(self.meters.bad_levels())
        where = f"the loss is not finite at sigma {bad}" if bad else "the loss is finite, its gradient is not"
        raise UserError(
            f"{skipped} steps in a row had gradients that are not finite and were skipped, up to image "
            f"{self.nimg:,}; {where}. The weights are those before them, the checkpoints whole. Check the "
            "data for NaN, lower optimizer.lr, or use precision=fp32."
        )

    def _run_hooks(self) -> None:
        """Run the hooks whose interval ended with this step, in their order; checkpoints come last."""
        for hook in sorted(self.hooks.values(), key=lambda hook: isinstance(hook, CheckpointHook)):
            if hook.due(self.nimg - self.options.batch, self.nimg):
                hook(self)

    def _run_last_hooks(self) -> None:
        """At the end, run the hooks that are in the middle of an interval; what they log is marked `end`."""
        self._ended = True
        for hook in self.hooks.values():
            if (
                hook.at_end
                and hook.every is not None
                and not hook.due(self.nimg - self.options.batch, self.nimg)
            ):
                hook(self)

    @contextmanager
    def averaged_denoiser(self) -> Iterator[NetworkDenoiser]:
        """The denoiser with its averaged weights, in evaluation mode."""
        with self.ema.swapped(self.denoiser):
            yield self.denoiser.eval()

    def log(self, values: dict[str, Any]) -> None:
        """Write values at the current nimg to every logger; only the main process has loggers."""
        for logger in self.loggers:
            logger.log(self.nimg, values | {"end": True} if self._ended else values)

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
