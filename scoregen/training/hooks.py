"""What happens at intervals of a run: status, sample grids, metrics, checkpoints. Intervals count images."""

import sys
import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import torch

from scoregen.errors import UserError
from scoregen.images import picture, save_png
from scoregen.objectives.base import describe_bin
from scoregen.ranges import PositiveInt
from scoregen.samplers.generate import generate
from scoregen.training.ema import PowerEMA, save_snapshot

if TYPE_CHECKING:
    from scoregen.training.trainer import Trainer


class Hook(ABC):
    """Something done every `every` images and once at the end; null never runs it.

    A hook that remembers must return it from `state`, so that a resumed run goes on as if never stopped.
    """

    def __init__(self, every: PositiveInt | None = None) -> None:
        self.every = every

    def due(self, before: int, nimg: int, finished: bool) -> bool:
        """Whether an interval ends in (before, nimg]; at the end of a run every active hook is due."""
        return self.every is not None and (finished or nimg // self.every > before // self.every)

    def start(self, trainer: "Trainer") -> None:  # noqa: B027 - most hooks need no start
        """Take note that the loop begins."""

    @abstractmethod
    def __call__(self, trainer: "Trainer") -> None:
        """Do it; called in every process."""

    def state(self) -> dict[str, Any]:
        """What must be saved, as plain JSON."""
        return {}

    def load(self, state: dict[str, Any]) -> None:  # noqa: B027 - most hooks have no state
        """Restore what `state` returned."""


class StatusHook(Hook):
    """Log the averages since the last time, print a status line, stop a run that skips its steps."""

    def __init__(self, every: PositiveInt | None = None) -> None:
        super().__init__(every)
        self._since, self._nimg = 0.0, 0

    def start(self, trainer: "Trainer") -> None:
        """Start the clock."""
        self._since, self._nimg = time.perf_counter(), trainer.nimg

    def __call__(self, trainer: "Trainer") -> None:
        averages = trainer.meters.read()
        speed = self._speed(trainer)
        trainer.log({**averages, "lr": trainer.learning_rate, "time": speed})
        if trainer.parallel.is_main:
            print(_status_line(trainer, averages, speed), flush=True)
        if averages.get("skipped_in_a_row", 0) >= trainer.options.max_skipped:
            raise UserError(_diverged(trainer, averages))

    def _speed(self, trainer: "Trainer") -> dict[str, float]:
        seconds, images = time.perf_counter() - self._since, trainer.nimg - self._nimg
        self.start(trainer)
        rate = images / max(seconds, 1e-9)
        return {
            "img_per_s": round(rate, 2),
            "ms_per_step": round(1000 * seconds * trainer.options.batch / max(images, 1), 2),
            "seconds_left": round((trainer.options.total - trainer.nimg) / max(rate, 1e-9), 1),
            "memory_gb": round(_memory_gb(trainer.parallel.device), 2),
        }


def _status_line(trainer: "Trainer", averages: dict[str, Any], speed: dict[str, float]) -> str:
    loss = "-" if averages["loss"] is None else f"{averages['loss']:.4f}"
    skipped = f" skipped {averages['skipped']}" if averages["skipped"] else ""
    left = time.strftime("%H:%M:%S", time.gmtime(speed["seconds_left"]))
    days = int(speed["seconds_left"] // 86400)
    return (
        f"{trainer.nimg:>12,}/{trainer.options.total:,} img  loss {loss}  lr {trainer.learning_rate:.2e}"
        f"  {speed['img_per_s']:,.0f} img/s  {speed['ms_per_step']:,.0f} ms/step"
        f"  left {f'{days}d ' if days else ''}{left}  {speed['memory_gb']:.1f} GB{skipped}"
    )


def _diverged(trainer: "Trainer", averages: dict[str, Any]) -> str:
    bad = [describe_bin(i) for i, n in enumerate(averages["bad_by_sigma"]) if n]
    where = (
        f"the loss is not finite at sigma {', '.join(bad)}" if bad else "the loss is finite, its gradient not"
    )
    return (
        f"{averages['skipped_in_a_row']} steps in a row had gradients that are not finite and were skipped, "
        f"up to image {trainer.nimg:,}; {where}. The weights are those before them, the checkpoints whole. "
        "Check the data for NaN, lower optimizer.lr, or use precision=fp32."
    )


def _memory_gb(device: torch.device) -> float:
    """Peak memory: of the GPU's allocator, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


class ProgressHook(Hook):
    """A progress bar on a terminal; silent elsewhere."""

    def __init__(self, every: PositiveInt | None = 1) -> None:
        super().__init__(every)
        self._bar: Any = None

    def __call__(self, trainer: "Trainer") -> None:
        if not (trainer.parallel.is_main and sys.stderr.isatty()):
            return
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(total=trainer.options.total, unit="img", unit_scale=True, leave=False)
        self._bar.n = trainer.nimg
        self._bar.update(0)
        if trainer.finished:
            self._bar.close()


class GridHook(Hook):
    """Draw images from fixed seeds with the averaged weights: `samples/<nimg>.png`.

    Args:
        every: images between two grids.
        count: how many images, with seeds 0 to count - 1.
        columns: images in a row.
    """

    def __init__(
        self, every: PositiveInt | None = None, count: PositiveInt = 64, columns: PositiveInt = 8
    ) -> None:
        super().__init__(every)
        self.count, self.columns = count, columns

    def __call__(self, trainer: "Trainer") -> None:
        if not trainer.parallel.is_main:
            return
        seeds, device = range(self.count), trainer.parallel.device
        with trainer.averaged_denoiser() as denoiser:
            samples = next(generate(denoiser, trainer.sampler, seeds, batch=self.count, device=device))
        image = picture(samples.x, self.columns)
        save_png(image, trainer.run_dir / "samples" / f"{trainer.nimg:012d}.png")
        trainer.log_image("samples", image)


class CheckpointHook(Hook):
    """Save everything that a resume needs.

    Args:
        every: images between two checkpoints; there is always one at the end and one at a stop signal.
        keep: how many of the newest to keep, beside the best by held-out loss.
    """

    def __init__(self, every: PositiveInt | None = None, keep: PositiveInt = 3) -> None:
        super().__init__(every)
        self.keep = keep

    def due(self, before: int, nimg: int, finished: bool) -> bool:
        """Also at the end of a run whose interval is null."""
        return finished or super().due(before, nimg, finished)

    def __call__(self, trainer: "Trainer") -> None:
        trainer.save()


class EMASnapshotHook(Hook):
    """Store the tracks of a power-function EMA in `ema_snapshots/`, from which any width can be had."""

    def __call__(self, trainer: "Trainer") -> None:
        if isinstance(trainer.ema, PowerEMA) and trainer.parallel.is_main:
            save_snapshot(trainer.run_dir, trainer.ema, nimg=trainer.nimg, metadata=trainer.metadata)
