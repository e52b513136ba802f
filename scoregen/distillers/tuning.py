"""Distillers of one network, which learns on real data to go far in one step."""

from typing import ClassVar

import torch
from torch import Tensor

from scoregen.denoisers.base import Cond, expand
from scoregen.distillers.base import Distiller, Networks
from scoregen.distillers.consistency import ConsistencyLoss
from scoregen.distillers.meanflow import MeanFlowLoss
from scoregen.objectives.base import Loss
from scoregen.ranges import Positive, PositiveInt
from scoregen.training.phases import MicroBatch

SCALES = tuple(2.0**-k for k in range(8))  # of the features of r


class ConsistencyDistiller(Distiller):
    """Tunes the student to one answer along each trajectory; it can be sampled in a few steps, too.

    Args:
        loss: of the student.
        sigma_init: the noise level that the student starts from.
        stages: how often the step between neighbouring levels is shortened.
        stage_images: images in each stage; the last one has no end.
        teacher_steps: the neighbour lies a step of the teacher's flow away (distillation), not on the line to
            the data (tuning).

    Raises UserError for steps of a teacher where there is none.
    """

    needs_data: ClassVar[bool] = True
    needs_teacher: ClassVar[bool] = False

    def __init__(
        self,
        networks: Networks,
        *,
        loss: ConsistencyLoss,
        sigma_init: Positive = 80.0,
        stages: PositiveInt = 1,
        stage_images: PositiveInt = 1_000_000,
        teacher_steps: bool = False,
    ) -> None:
        super().__init__(networks, sigma_init=sigma_init)
        self.loss, self.stages, self.stage_images = loss, stages, stage_images
        self.teacher = networks.need_teacher() if teacher_steps else None

    def student_loss(self, batch: MicroBatch) -> Loss:
        """The consistency loss at real data."""
        stage = min(batch.nimg // self.stage_images, self.stages - 1)
        rng = batch.rng("student")
        return self.loss(self.student, batch.x0, batch.cond, rng, stage=stage, teacher=self.teacher)


class MeanFlowDistiller(Distiller):
    """Teaches the student the average velocity of the flow from time t to r, which it is told beside t.

    u(x, r, t) = (x - D(x / (1 - t); t / (1 - t), f(r))) / t, with features f_k(r) = r / (r + 2^-k) in place
    of augmentation labels. f(0) = 0: told nothing, the student goes all the way. The form of u and f is ours,
    so that a student starts from a teacher and is sampled like every other.

    Args:
        loss: of the student.
        sigma_init: the noise level that the student starts from.
        teacher_velocity: the teacher's velocity in the loss, not that of each sample.

    Raises UserError for the velocity of a teacher where there is none.
    """

    needs_data: ClassVar[bool] = True
    needs_teacher: ClassVar[bool] = False
    label_dim: ClassVar[int] = len(SCALES)

    def __init__(
        self,
        networks: Networks,
        *,
        loss: MeanFlowLoss,
        sigma_init: Positive = 80.0,
        teacher_velocity: bool = False,
    ) -> None:
        super().__init__(networks, sigma_init=sigma_init)
        self.loss = loss
        self.teacher = networks.need_teacher() if teacher_velocity else None

    def student_loss(self, batch: MicroBatch) -> Loss:
        """The MeanFlow loss at real data."""
        return self.loss(self.velocity, batch.x0, batch.cond, batch.rng("student"), self.teacher)

    def velocity(self, x: Tensor, r: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """u(x, r, t), [B, *shape]."""
        scales = torch.tensor(SCALES, dtype=r.dtype, device=r.device)
        features = r[:, None] / (r[:, None] + scales)
        end: Tensor = self.student(x / expand(1 - t, x), t / (1 - t), cond, features)
        return (x - end) / expand(t, x)
