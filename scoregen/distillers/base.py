"""What every distiller is: a method whose model is a one-step student."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from scoregen.denoisers.base import Cond, Denoise, Denoiser
from scoregen.denoisers.network import NetworkDenoiser
from scoregen.diffusion.noise import SigmaDistribution
from scoregen.errors import UserError
from scoregen.objectives.base import Loss
from scoregen.ranges import PositiveInt
from scoregen.rng import BatchRng
from scoregen.training.phases import MicroBatch, Phase
from scoregen.training.step import TrainStep


@dataclass(frozen=True)
class Networks:
    """What a distiller starts from; the framework fills it in.

    Args:
        student: a copy of the teacher's network where it has one, else drawn from the run's seed.
        teacher: any denoiser, closed forms too, its parameters frozen; None where the run names none.
        fake: another copy, with the configured objective and augmentation, which train it as the denoiser of
            what the student generates.
        folder: where a distiller may keep files: the run's.
    """

    student: NetworkDenoiser
    teacher: Denoiser | None
    fake: TrainStep
    folder: Path

    def need_teacher(self) -> Denoiser:
        """The teacher; UserError where there is none."""
        if self.teacher is None:
            raise UserError("this distiller needs a teacher: give teacher=RUN, or the name of a closed form")
        return self.teacher


def generate(student: Denoise, shape: Sequence[int], sigma: float, cond: Cond, rng: BatchRng) -> Tensor:
    """A one-step generator's samples g(z) = D(sigma z; sigma), z ~ N(0, I), [B, *shape]."""
    noise = sigma * rng.randn(*shape)
    return student(noise, torch.full((len(noise),), sigma, device=noise.device), cond)


@dataclass(frozen=True)
class Rhythm:
    """Which steps the student moves in, and in which order: by default in all, after the others.

    Args:
        every: the student moves in each `every`-th step only.
        exclusive: the others rest in the steps in which the student moves.
        shared: the student moves first, and the others learn on the samples that it moved by; else on fresh
            ones.
    """

    every: PositiveInt = 1
    exclusive: bool = False
    shared: bool = False

    def __call__(self, step: int, student: Phase, others: Sequence[Phase]) -> Sequence[Phase]:
        """The phases of a step, in order."""
        if step % self.every:
            return others
        if self.exclusive:
            return [student]
        return [student, *others] if self.shared else [*others, student]


class Distiller(ABC):
    """Trains a one-step student g(z) = D_g(sigma_init z; sigma_init), z ~ N(0, I).

    A subclass says which networks learn beside the student, and what each phase's loss is. Losses are pure
    functions of denoisers and tensors, in files of their own.

    Args:
        networks: filled in by the framework.
        sigma_init: the noise level that the student starts from; it is sampled from there, too.
        rhythm: how the student's steps and the others' follow each other.
        checkpointing: whether `lean` recomputes.

    Raises UserError for a teacher that does not know sigma_init.
    """

    needs_data: ClassVar[bool]  # whether its losses look at real data
    needs_teacher: ClassVar[bool] = True
    label_dim: ClassVar[int] = 0  # numbers that the student is told beside noise level and class

    def __init__(
        self,
        networks: Networks,
        *,
        sigma_init: float,
        rhythm: Rhythm = Rhythm(),
        checkpointing: bool = False,
    ) -> None:
        self.networks, self.sigma_init = networks, sigma_init
        self.rhythm, self.checkpointing = rhythm, checkpointing
        if networks.teacher is not None:
            check_level(networks.teacher, sigma_init, "distiller.sigma_init")

    @property
    def student(self) -> NetworkDenoiser:
        """The generator's network D_g."""
        return self.networks.student

    @property
    def denoiser(self) -> NetworkDenoiser:
        """The student."""
        return self.student

    @property
    def roles(self) -> Mapping[str, nn.Module]:
        """The student, and what learns beside it."""
        return {"student": self.student, **self.companions}

    @property
    def companions(self) -> Mapping[str, nn.Module]:
        """What learns beside the student."""
        return {}

    @property
    def state(self) -> Mapping[str, nn.Module]:
        """All modules but the student that change."""
        return self.companions

    @property
    def lr_factors(self) -> Mapping[str, float]:
        """Learning rates by role relative to the student's, where they differ."""
        return {}

    def phases(self, step: int, nimg: int) -> Sequence[Phase]:
        """What the step number `step`, which begins at image number `nimg`, does, in this order."""
        return self.rhythm(step, self.student_phase(), self.companion_phases())

    def student_phase(self) -> Phase:
        """The student's."""
        return Phase("student", self.student_loss)

    def companion_phases(self) -> Sequence[Phase]:
        """Those of what learns beside the student."""
        return []

    @abstractmethod
    def student_loss(self, batch: MicroBatch) -> Loss:
        """The student's loss, per sample."""

    def generate(self, batch: MicroBatch, stream: str) -> Tensor:
        """The student's samples [B, *shape] from the noise of a stream, with their graph."""
        shape, rng = self.student.shape, batch.rng(stream)
        return generate(self.student, shape, self.sigma_init, batch.cond, rng)

    def draw(self, batch: MicroBatch) -> Tensor:
        """The student's samples [B, *shape] to move it by, with their graph."""
        if not self.rhythm.shared:
            return self.generate(batch, "student")
        x0 = self.generate(batch, "samples")
        batch.kept["samples"] = x0.detach()
        return x0

    def samples(self, batch: MicroBatch) -> Tensor:
        """Samples without a graph, for the others to learn on: the same for all phases of a step."""
        if "samples" not in batch.kept:
            with torch.no_grad():
                batch.kept["samples"] = self.generate(batch, "samples")
        return batch.kept["samples"]

    def lean(self, network: Denoise) -> Denoise:
        """The network as it is, or keeping no activations for backward but its inputs."""
        if not self.checkpointing or not torch.is_grad_enabled():
            return network
        return partial(checkpoint, network, use_reentrant=False)


def check_level(teacher: Denoiser, sigma: float, where: str) -> None:
    """UserError where the teacher is not good for the noise level that a setting asks for."""
    if not teacher.sigma_min <= sigma <= teacher.sigma_max:
        raise UserError(
            f"{where}={sigma:g}: the teacher is good for noise levels {teacher.sigma_min:g} to "
            f"{teacher.sigma_max:g} only; choose a level within, or another teacher"
        )


def check_levels(teacher: Denoiser, sigma: SigmaDistribution) -> None:
    """UserError where the teacher is not good for all levels of a loss's distribution."""
    for level in sigma.quantile(torch.tensor([1e-3, 1 - 1e-3], dtype=torch.float64)).tolist():
        check_level(teacher, level, f"distiller.loss.sigma ({type(sigma).__name__})")


def probe(denoiser: NetworkDenoiser) -> tuple[Tensor, Tensor, Cond]:
    """One sample, noise level and class that the denoiser can be asked for."""
    device = next(denoiser.parameters()).device
    cond = torch.zeros(1, dtype=torch.long, device=device) if denoiser.num_classes else None
    return torch.zeros(1, *denoiser.shape, device=device), torch.ones(1, device=device), cond


def freeze_unused(module: nn.Module, output: Tensor) -> None:
    """Freeze the parameters that `output` does not depend on: all others of a role get a gradient each step.

    Processes that average gradients wait for every parameter that is not frozen.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    gradients: Sequence[Tensor | None] = torch.autograd.grad(output.sum(), parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is None:
            parameter.requires_grad_(False)
