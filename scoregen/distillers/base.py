"""What every distiller is: a method whose model is a one-step student."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from scoregen.denoisers.base import Cond, Denoise, Denoiser
from scoregen.denoisers.network import NetworkDenoiser
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
    """

    student: NetworkDenoiser
    teacher: Denoiser | None
    fake: TrainStep


def generate(student: Denoise, shape: Sequence[int], sigma: float, cond: Cond, rng: BatchRng) -> Tensor:
    """A one-step generator's samples g(z) = D(sigma z; sigma), z ~ N(0, I), [B, *shape]."""
    noise = sigma * rng.randn(*shape)
    return student(noise, torch.full((len(noise),), sigma, device=noise.device), cond)


class Distiller(ABC):
    """Trains a one-step student g(z) = D_g(sigma_init z; sigma_init), z ~ N(0, I).

    A subclass says which networks learn beside the student, and what each phase's loss is. Losses are pure
    functions of denoisers and tensors, in files of their own.

    Args:
        networks: filled in by the framework.
        sigma_init: the noise level that the student starts from; it is sampled from there, too.
    """

    needs_data: ClassVar[bool]  # whether its losses look at real data
    needs_teacher: ClassVar[bool] = True

    def __init__(self, networks: Networks, *, sigma_init: float) -> None:
        self.student, self.sigma_init = networks.student, sigma_init

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

    @abstractmethod
    def phases(self, step: int) -> Sequence[Phase]:
        """What the step number `step` does, in this order."""

    def generate(self, batch: MicroBatch, stream: str = "student") -> Tensor:
        """The student's samples [B, *shape] from the noise of a stream, with their graph."""
        shape, rng = self.student.shape, batch.rng(stream)
        return generate(self.student, shape, self.sigma_init, batch.cond, rng)

    def samples(self, batch: MicroBatch) -> Tensor:
        """The student's samples without a graph: the same for all phases of a step that ask."""
        if "samples" not in batch.kept:
            with torch.no_grad():
                batch.kept["samples"] = self.generate(batch, "samples")
        return batch.kept["samples"]
