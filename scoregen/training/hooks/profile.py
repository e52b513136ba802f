"""Where the time of a training step goes: `python train.py debug=profile`."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.profiler import ProfilerActivity, profile

from scoregen.errors import UserError
from scoregen.files import write_whole
from scoregen.machine import machine_name, matrix_rate, peak_memory_gb, synchronize
from scoregen.ranges import PositiveInt
from scoregen.training.hooks.base import Hook
from scoregen.training.phases import MicroBatch, Phase

if TYPE_CHECKING:
    from scoregen.training.trainer import Trainer

PROFILE = "profile.txt"
COUNTED = 2  # images on which FLOPs are counted: they are linear in their number
NAME = 80  # characters of a kernel's name, which may have thousands
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Profile:
    """What was measured of a window of steps on all processes.

    Args:
        title: what ran where. images: of a step, over all processes. steps: in the window.
        seconds: of the window. data_seconds: of these, the host's in the data stream.
        image_flops: of one training image. rate: FLOP/s of this machine's matrix products, all processes.
        memory_gb: peak of one process. operators: (name, share of the time), largest first, of all.
    """

    title: str
    images: int
    steps: int
    seconds: float
    data_seconds: float
    image_flops: float
    rate: float
    memory_gb: float
    operators: Sequence[tuple[str, float]]

    @property
    def images_per_second(self) -> float:
        """Training images a second."""
        return self.images * self.steps / self.seconds

    @property
    def flops_per_second(self) -> float:
        """Of matrix products, convolutions and attention; all else is not counted."""
        return self.image_flops * self.images_per_second

    def table(self, top: int) -> str:
        """The readable table, with the `top` operators and the sum of all others."""
        step = self.seconds / self.steps
        share = self.flops_per_second / self.rate
        rows = [
            ("speed", f"{self.images_per_second:,.1f} img/s, {1e3 * step:,.1f} ms a step"),
            ("arithmetic", f"{self.image_flops / 1e9:.4g} GFLOP an image, {_tera(self.flops_per_second)}"),
            ("share of peak", f"{share:.1%} of {_tera(self.rate)}, the matrix products of this machine"),
            ("data wait", f"{self.data_seconds / self.seconds:.1%} of a step"),
            ("peak memory", f"{self.memory_gb:.2f} GB a process"),
        ]
        shown, others = self.operators[:top], sum(part for _, part in self.operators[top:])
        operators = [*shown, (f"{max(len(self.operators) - top, 0)} others", others)]
        lines = [f"{name:<15}{text}" for name, text in rows]
        lines += ["", "share of time  operator", *(f"{part:>13.1%}  {name}" for name, part in operators)]
        return "\n".join([self.title, *lines])


def _tera(flops: float) -> str:
    return f"{flops / 1e12:.4g} TFLOP/s"


class ProfileHook(Hook):
    """Measure some steps of a run, print where their time goes, write `profile.txt` and end the run.

    First `warmup` steps pass, then `steps` are timed, then `traced` ones run under torch.profiler, whose own
    cost is thereby in no other figure. FLOPs are those of the forwards and backwards of every phase, counted
    beside the steps on a few images, without compilation and without a trace in what is trained: the run goes
    on later, without this hook, as if it had never been there.

    Args:
        warmup: steps before the measurement; compilation is among them.
        steps: that are timed.
        traced: steps under torch.profiler after these.
        top: operators in the table; on a GPU, kernels.

    Raises UserError where the run has too few steps left.
    """

    def __init__(
        self,
        *,
        warmup: PositiveInt = 10,
        steps: PositiveInt = 20,
        traced: PositiveInt = 3,
        top: PositiveInt = 10,
    ) -> None:
        super().__init__(every=1)  # one image: every step
        self.warmup, self.steps, self.traced, self.top = warmup, steps, traced, top
        self._step = 0  # steps since the start
        self._flops: list[float] = []  # of an image in each step but the first
        self._known: dict[tuple[str, ...], float] = {}
        self._stop_reason: str | None = None

    @property
    def stop_reason(self) -> str | None:
        """That the profile is written."""
        return self._stop_reason

    def start(self, trainer: "Trainer") -> None:
        """Refuse a run that ends before the profile does."""
        needed = self.warmup + self.steps + self.traced
        left = -(-(trainer.options.total - trainer.nimg) // trainer.options.batch)
        if left < needed:
            raise UserError(
                f"a profile takes {needed} steps (warmup + steps + traced), but the run has {left} left: "
                f"raise trainer.total, now {trainer.options.total}, or lower hooks.profile.steps"
            )

    def __call__(self, trainer: "Trainer") -> None:
        self._step += 1
        timed, device = self.warmup + self.steps, trainer.parallel.device
        if self._step < timed:
            self._flops.append(self._count_next(trainer))
        waited = synchronize(device) if self._step in (self.warmup, timed) else 0.0
        if self._step == self.warmup:
            self._begin = trainer.step_seconds, trainer.data_seconds
        elif self._step == timed:
            self._end = trainer.step_seconds + waited, trainer.data_seconds
            self._memory = peak_memory_gb(device)
            self._tracer = _tracer(device)
            self._tracer.start()
        elif self._step == timed + self.traced:
            synchronize(device)
            self._tracer.stop()
            self._report(trainer)

    def _count_next(self, trainer: "Trainer") -> float:
        """FLOPs an image of the step to come; a step of the same roles costs the same."""
        phases = trainer.method.phases(trainer.nimg // trainer.options.batch, trainer.nimg)
        roles = tuple(phase.role for phase in phases)
        if roles not in self._known:
            self._known[roles] = count_flops(trainer, phases)
        return self._known[roles]

    def _report(self, trainer: "Trainer") -> None:
        world, options = trainer.parallel.world, trainer.options
        device, precision = trainer.parallel.device, trainer.denoiser.precision
        seconds, data_seconds = (end - begin for begin, end in zip(self._begin, self._end, strict=True))
        window = self._flops[self.warmup - 1 :]
        how = f"{precision}{', compiled' * bool(options.compile)}, {world} process{'es' * (world > 1)}"
        measured = Profile(
            title=f"{self.steps} steps of {options.batch} images, {how} on {machine_name(device)}",
            images=options.batch,
            steps=self.steps,
            seconds=seconds,
            data_seconds=data_seconds,
            image_flops=sum(window) / len(window),
            rate=world * matrix_rate(device, DTYPES[precision]),
            memory_gb=self._memory,
            operators=_shares(self._tracer, device),
        )
        if trainer.parallel.is_main:
            table = measured.table(self.top)
            print(table, flush=True)
            write_whole(trainer.run_dir / PROFILE, f"{table}\n".encode())
        self._stop_reason = f"profiled, {trainer.run_dir / PROFILE}"


def count_flops(trainer: "Trainer", phases: Sequence[Phase]) -> float:
    """FLOPs an image of the forwards and backwards of the next step's phases; nothing is changed by it."""
    from torch.utils.flop_counter import FlopCounterMode

    share, nimg, batch = trainer.parallel.rows(trainer.options.batch), trainer.nimg, trainer.options.batch
    rows = slice(share.start, min(share.start + COUNTED, share.stop))
    piece = MicroBatch(*trainer.stream.batch(nimg, batch, rows), trainer.seed, nimg, batch, rows)
    # A compiled network would hide its operators; and some methods keep averages, which must not move here.
    with (
        torch.compiler.set_stance("force_eager"),
        _kept_buffers(trainer),
        FlopCounterMode(display=False) as counter,
    ):
        for phase in phases:
            for name, role in trainer.roles.items():
                role.activate(name == phase.role)
            if phase.prepare is not None:
                phase.prepare([piece], trainer.parallel)
            learning = [p for p in trainer.roles[phase.role].module.parameters() if p.requires_grad]
            torch.autograd.grad(phase.loss(piece).value.sum(), learning, allow_unused=True)
    return float(counter.get_total_flops()) / len(piece.x0)


@contextmanager
def _kept_buffers(trainer: "Trainer") -> Iterator[None]:
    """Give the buffers of everything that a method changes their values back at the end."""
    modules = (*trainer.method.roles.values(), *trainer.method.state.values())
    kept = [(buffer, buffer.clone()) for module in modules for buffer in module.buffers()]
    yield
    for buffer, before in kept:
        buffer.copy_(before)


def _tracer(device: torch.device) -> profile:
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # or it tells stderr that it starts and stops
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    return profile(activities=activities)


def _shares(tracer: profile, device: torch.device) -> list[tuple[str, float]]:
    """The share of each kernel in the GPU's time, or of each operator in the CPU's, largest first."""
    events = tracer.key_averages()
    if device.type == "cuda":
        kernels = [e for e in events if e.device_type.name == "CUDA" and not e.is_user_annotation]
        times = {e.key[:NAME]: 0.0 for e in kernels}
        for e in kernels:
            times[e.key[:NAME]] += e.self_device_time_total
    else:
        times = {e.key: e.self_cpu_time_total for e in events}
    total = sum(times.values())
    return sorted(((name, t / total) for name, t in times.items()), key=lambda pair: -pair[1])
