"""The sums that the training log is made of: kept on the device, read once per logging interval."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from scoregen.objectives.base import SIGMA_BINS, Loss, describe_bin, sigma_bins
from scoregen.parallel import Parallel


class Meters:
    """Running sums of losses by noise level, gradient norms and skipped steps, without a host sync.

    `local` holds sums over the samples of this process (they add up over processes); `shared` holds what
    every process computes alike, because gradients are averaged before they are looked at.
    """

    def __init__(self, parallel: Parallel) -> None:
        self._parallel = parallel
        self._dtype = torch.float32 if parallel.device.type == "mps" else torch.float64
        self.reset()
        self._streak, self._bad_step, self._bad_streak = (
            self._zeros(),
            self._zeros(SIGMA_BINS),
            self._zeros(SIGMA_BINS),
        )

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=self._dtype, device=self._parallel.device)

    def reset(self) -> None:
        """Start afresh, but for the skipped steps in a row."""
        self._local = {name: self._zeros(SIGMA_BINS) for name in ("loss", "count", "bad")}
        self._shared = {name: self._zeros() for name in ("grad_norm", "steps", "skipped")}

    def add_loss(self, loss: Loss) -> None:
        """Add the samples of one micro-batch."""
        sums = sigma_bins(loss)
        for name, total in sums.items():
            self._local.setdefault(name, self._zeros(SIGMA_BINS)).add_(total)
        self._bad_step += sums["bad"]

    def add_step(self, grad_norm: Tensor, applied: Tensor) -> None:
        """Add one optimizer step; `applied` is 1, or 0 where the gradient was not finite."""
        self._streak = (self._streak + 1) * (1 - applied)
        self._bad_streak = (self._bad_streak + self._bad_step) * (1 - applied)
        self._bad_step = torch.zeros_like(self._bad_step)
        self._shared["grad_norm"] += torch.where(applied > 0, grad_norm, 0)
        self._shared["steps"] += applied
        self._shared["skipped"] += 1 - applied

    @property
    def skipped_in_a_row(self) -> int:
        """The steps skipped since the last that was not; a host sync."""
        return int(self._streak)

    def bad_levels(self) -> list[str]:
        """The noise levels at which losses were not finite in these steps, over all processes."""
        return [
            describe_bin(i) for i, count in enumerate(self._parallel.sum(self._bad_streak.clone())) if count
        ]

    def state(self) -> dict[str, Tensor]:
        """The sums of all processes, to be saved; they are moved to the main process on the way."""
        self.gather()
        if not self._parallel.is_main:
            self._local = {name: torch.zeros_like(total) for name, total in self._local.items()}
        return {**self._local, **self._shared, "streak": self._streak}

    def load(self, state: dict[str, Tensor]) -> None:
        """Restore what `state` returned."""
        self.reset()
        state = {name: value.to(self._parallel.device) for name, value in state.items()}
        self._streak = state.pop("streak")
        for name in self._shared:
            self._shared[name] = state.pop(name)
        share = 1 if self._parallel.is_main else 0
        self._local = {name: total * share for name, total in state.items()}

    def gather(self) -> dict[str, Tensor]:
        """The sums of all processes since `reset`."""
        for total in self._local.values():
            self._parallel.sum(total)
        return self._local | self._shared


def read_meters(meters: Mapping[str, Meters]) -> dict[str, Any]:
    """Averages over all processes since the last reading; one host sync, and a fresh start.

    What the meters named `fake` have summed goes by `fake/loss` and so on, those named "" by `loss`.
    """
    sums = {name: meter.gather() for name, meter in meters.items()}
    flat = [total.reshape(-1) for group in sums.values() for total in group.values()]
    values = torch.cat(flat).tolist()
    summary: dict[str, Any] = {}
    for name, group in sums.items():
        lists: dict[str, list[float]] = {}
        for key, total in group.items():
            lists[key], values = values[: total.numel()], values[total.numel() :]
        prefix = f"{name}/" if name else ""
        summary |= {f"{prefix}{key}": value for key, value in _summary(lists).items()}
        meters[name].reset()
    return summary


def _summary(sums: dict[str, list[float]]) -> dict[str, Any]:
    """Averages from sums, rounded to 8 digits: the order of float64 additions must not show."""
    count, steps = sum(sums["count"]), sums["steps"][0]
    summary: dict[str, Any] = {
        "loss": _ratio(sum(sums["loss"]), count),
        "loss_by_sigma": _ratios(sums["loss"], sums["count"]),
        "grad_norm": _ratio(sums["grad_norm"][0], steps),
        "skipped": int(sums["skipped"][0]),
    }
    for name in (name for name in sums if name.startswith("log/")):
        summary[name[4:]] = _ratio(sum(sums[name]), count)
        summary[f"{name[4:]}_by_sigma"] = _ratios(sums[name], sums["count"])
    if summary["skipped"]:
        summary["bad_by_sigma"] = [int(n) for n in sums["bad"]]
    return summary


def _ratios(totals: list[float], counts: list[float]) -> list[float | None]:
    return [_ratio(total, count) for total, count in zip(totals, counts, strict=True)]


def _ratio(total: float, count: float) -> float | None:
    return float(f"{total / count:.8g}") if count else None
