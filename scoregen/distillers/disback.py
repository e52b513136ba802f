"""Distribution backtracking: the student follows the teacher's way to the student's samples, backwards."""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from scoregen.denoisers.base import Denoiser
from scoregen.denoisers.network import NetworkDenoiser
from scoregen.distillers.base import Networks, Rhythm
from scoregen.distillers.generator import GeneratorLoss, mean_over_elements, perturb
from scoregen.distillers.score_distiller import ScoreDistiller
from scoregen.errors import UserError
from scoregen.parallel import Parallel
from scoregen.ranges import Fraction, Positive, PositiveInt
from scoregen.training.phases import MicroBatch, Phase, measure_whole
from scoregen.training.weights import load_weights, read_weights, write_weights

TARGETS = "targets"  # folder in a run
AVERAGE = 0.5  # weight of the past in the adaptive rule's running mean


@dataclass(frozen=True)
class Backtracking:
    """When the way is recorded and when the next target is due, in images; they are seen by whole steps.

    Args:
        record: images on which the teacher degrades to the denoiser of the untrained student's samples.
        targets: N, the recorded denoisers with the teacher, the last one of the way left out.
        interval: images with each target; with the adaptive rule, between two looks.
        threshold: the next target comes when the running mean of |D_i - D_f| falls below this share of its
            value just after the last switch; null switches at each interval.

    Source: Zhang et al., Distribution Backtracking Builds a Faster Convergence Trajectory for Diffusion
    Distillation, 2024, arXiv 2408.15991; the adaptive rule is ours.
    """

    record: PositiveInt = 640_000
    targets: PositiveInt = 10
    interval: PositiveInt = 128_000
    threshold: Fraction | None = None

    def check(self, batch: int) -> None:
        """UserError where steps of so many images are too long to see each target of the way."""
        last = (self.record - 1) // batch * batch  # begins the last step of the recording
        if self.recorded(last, last).stop < self.targets:
            raise UserError(
                f"distiller.backtracking.record={self.record} is too short for {self.targets} targets in "
                f"steps of {batch} images: take at least {self.targets * batch}, or fewer targets"
            )

    def recorded(self, nimg: int, batch: int) -> range:
        """The numbers k = 1 ... N - 1 of the targets that are complete as the step at nimg images begins."""
        before, now = (self.targets * n // self.record for n in (nimg - batch, nimg))
        return range(max(before, 0) + 1, min(now, self.targets - 1) + 1)


class Targets(nn.Module):
    """Denoisers recorded in a folder, one of them in memory, and which; number 0 is the teacher.

    Args:
        teacher: the end of the way.
        network: built like the recorded ones.
        folder: for their weights.
        first: the number to begin with.
    """

    index: Tensor  # of the target
    looks: Tensor  # intervals that have passed
    average: Tensor  # running mean of |D_i - D_f|; NaN where nothing was measured yet
    reference: Tensor  # its value just after the last switch

    def __init__(self, teacher: Denoiser, network: NetworkDenoiser, folder: Path, first: int) -> None:
        super().__init__()
        self.folder = folder
        self._held = (teacher, deepcopy(network).requires_grad_(False).eval())  # not of the state
        self._loaded: int | None = None
        for name, value in {"index": first, "looks": 0, "average": nan, "reference": nan}.items():
            self.register_buffer(name, torch.tensor(value))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Stay on the CPU: the host asks for the numbers in every step."""
        return self

    def path(self, k: int) -> Path:
        """The weights of target k."""
        return self.folder / f"{k:03d}.safetensors"

    def record(self, k: int, network: NetworkDenoiser) -> None:
        """Write target k."""
        write_weights(self.path(k), network.state_dict(), {"target": str(k)})

    def current(self) -> Denoiser:
        """The target of now, read from its file where it is not in memory yet."""
        k, (teacher, network) = int(self.index), self._held
        if k == 0:
            return teacher
        if self._loaded != k:
            load_weights(network, read_weights(self.path(k))[0], str(self.path(k)))
            self._loaded = k
        return network

    def look(self, difference: float, threshold: float) -> None:
        """Take up a measured |D_i - D_f|; go to the next target where the running mean has fallen enough."""
        if self.average.isnan():
            self.average.fill_(difference)
            self.reference.fill_(difference)
            return
        self.average.lerp_(torch.tensor(difference), 1 - AVERAGE)
        if self.average < threshold * self.reference:
            self.index -= 1
            self.average.fill_(nan)


class DisBackDistiller(ScoreDistiller):
    """Records how the teacher degrades on the untrained student's samples, and follows that way backwards.

    First the fake score alone learns, from the teacher's weights, the samples of the student as it starts,
    and N - 1 states of it are stored in the run folder. Then a `ScoreDistiller` runs whose teacher is the
    last of these, then the one before, ..., and at last the teacher itself; its fake score goes on from where
    the recording ended. The end of the recording is no target: it is the fake score, and would not move
    the student.

    Args:
        backtracking: when that happens.
        loss, sigma_init, rhythm, fake_lr, checkpointing: as in ScoreDistiller.

    Raises UserError for a closed form as the teacher, which has no weights to degrade.
    Source: Zhang et al., Distribution Backtracking Builds a Faster Convergence Trajectory for Diffusion
    Distillation, 2024, arXiv 2408.15991.
    """

    def __init__(
        self,
        networks: Networks,
        *,
        loss: GeneratorLoss,
        backtracking: Backtracking,
        sigma_init: Positive = 2.5,
        rhythm: Rhythm = Rhythm(),  # noqa: B008 - frozen
        fake_lr: Positive = 1.0,
        checkpointing: bool = False,
    ) -> None:
        if not isinstance(networks.teacher, NetworkDenoiser):
            raise UserError("DisBack degrades the teacher's network: give a trained model, not a closed form")
        self.backtracking = backtracking
        self.targets = Targets(
            networks.teacher, networks.fake.denoiser, networks.folder / TARGETS, backtracking.targets - 1
        )
        super().__init__(
            networks,
            loss=loss,
            sigma_init=sigma_init,
            rhythm=rhythm,
            fake_lr=fake_lr,
            checkpointing=checkpointing,
        )

    @property
    def teacher(self) -> Denoiser:
        """The target of now."""
        return self.targets.current()

    @property
    def state(self) -> Mapping[str, nn.Module]:
        """With the number of the target."""
        return {**self.companions, "targets": self.targets}

    def phases(self, step: int, nimg: int) -> Sequence[Phase]:
        """The fake score alone while the way is recorded, then those of a ScoreDistiller."""
        if nimg < self.backtracking.record:
            return [Phase("fake", self.fake_loss, self._record)]
        return super().phases(step, nimg)

    def student_phase(self) -> Phase:
        """Chooses the target first."""
        return Phase("student", self.student_loss, self._choose)

    def _record(self, batches: Sequence[MicroBatch], parallel: Parallel) -> None:
        """Store the fake score where a target is complete."""
        for k in self.backtracking.recorded(batches[0].nimg, batches[0].size):
            if parallel.is_main:
                self.targets.record(k, self.networks.fake.denoiser)
            parallel.barrier()

    def _choose(self, batches: Sequence[MicroBatch], parallel: Parallel) -> None:
        """Go to the next target where it is due."""
        plan, targets = self.backtracking, self.targets
        if int(targets.index):
            plan.check(batches[0].size)
        passed = (batches[0].nimg - plan.record) // plan.interval
        if passed == int(targets.looks):
            return
        targets.looks.fill_(passed)
        if plan.threshold is None:
            targets.index.fill_(max(plan.targets - 1 - passed, 0))
        elif int(targets.index):
            difference = measure_whole(self._difference, batches, parallel)["difference"]
            targets.look(float(difference.mean()), plan.threshold)

    def _difference(self, batch: MicroBatch) -> Mapping[str, Tensor]:
        """The mean over elements of |D_i - D_f|, at the points of the student's loss."""
        noised = perturb(self.draw(batch), self.loss.sigma, batch.rng("student", "noise"))
        where = (noised.x, noised.sigma, batch.cond)
        difference = self.teacher(*where) - self.networks.fake.denoiser(*where)
        return {"difference": mean_over_elements(difference.abs())}
