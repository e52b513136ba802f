"""The status line and the progress bar."""

import sys
import time
from typing import TYPE_CHECKING, Any

from scoregen.machine import peak_memory_gb
from scoregen.ranges import PositiveInt
from scoregen.training.hooks.base import Hook

if TYPE_CHECKING:
    from scoregen.training.trainer import Trainer


class StatusHook(Hook):
    """Log the averages since the last time, and print a status line."""

    def __init__(self, every: PositiveInt | None = None) -> None:
        super().__init__(every)
        self._seconds, self._nimg = 0.0, 0

    def start(self, trainer: "Trainer") -> None:
        """Take the time; steps count, hooks do not."""
        self._seconds, self._nimg = trainer.step_seconds, trainer.nimg

    def __call__(self, trainer: "Trainer") -> None:
        averages = trainer.read_meters()
        speed = self._speed(trainer)
        trainer.log({**averages, "lr": trainer.learning_rate, "time": speed})
        if trainer.parallel.is_main:
            print(_status_line(trainer, averages, speed), flush=True)

    def _speed(self, trainer: "Trainer") -> dict[str, float]:
        seconds, images = trainer.step_seconds - self._seconds, trainer.nimg - self._nimg
        self.start(trainer)
        rate = images / max(seconds, 1e-9)
        return {
            "img_per_s": round(rate, 2),
            "ms_per_step": round(1000 * seconds * trainer.options.batch / max(images, 1), 2),
            "seconds_left": round(max(trainer.options.total - trainer.nimg, 0) / max(rate, 1e-9), 1),
            "memory_gb": round(peak_memory_gb(trainer.parallel.device), 2),
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
