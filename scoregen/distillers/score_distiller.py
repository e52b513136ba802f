"""Distillers that follow the difference of two scores, the teacher's and that of the student's samples."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import nn

from scoregen.distillers.base import Networks, Rhythm, check_levels
from scoregen.distillers.fake_score import FakeScoreDistiller
from scoregen.distillers.generator import GeneratorLoss
from scoregen.objectives.base import Loss
from scoregen.ranges import Positive
from scoregen.training.phases import MicroBatch, Phase


class ScoreDistiller(FakeScoreDistiller):
    """Alternates a fake score, the denoiser of the student's samples, with the student.

    The fake score starts as a copy of the student and learns by the run's `objective` and `augment`.

    Args:
        loss: of the student, from teacher and fake score.
        sigma_init: the noise level that the student starts from.
        rhythm: how the student's steps and the others' follow each other.
        fake_lr: learning rate of the fake score, relative to `optimizer.lr`.
        checkpointing: recompute the activations of teacher and fake score in the student's backward, for
            losses that pass through them: memory of one network instead of three, for two more forwards.

    Raises UserError for a teacher that does not know all levels that the loss draws.
    """

    needs_data: ClassVar[bool] = False

    def __init__(
        self,
        networks: Networks,
        *,
        loss: GeneratorLoss,
        sigma_init: Positive = 2.5,
        rhythm: Rhythm = Rhythm(),  # noqa: B008 - frozen
        fake_lr: Positive = 1.0,
        checkpointing: bool = False,
    ) -> None:
        super().__init__(networks, sigma_init=sigma_init, rhythm=rhythm, checkpointing=checkpointing)
        self.loss, self.fake_lr = loss, fake_lr
        check_levels(networks.need_teacher(), loss.sigma)

    @property
    def companions(self) -> Mapping[str, nn.Module]:
        """The fake score."""
        return {"fake": self.networks.fake}

    @property
    def lr_factors(self) -> Mapping[str, float]:
        """The fake score's."""
        return {"fake": self.fake_lr}

    def companion_phases(self) -> Sequence[Phase]:
        """The fake score's."""
        return [Phase("fake", self.fake_loss)]

    def student_loss(self, batch: MicroBatch) -> Loss:
        """The configured loss at the student's samples."""
        teacher, fake = self.lean(self.teacher), self.lean(self.networks.fake.denoiser)
        return self.loss(teacher, fake, self.draw(batch), batch.cond, batch.rng("student", "noise"))
