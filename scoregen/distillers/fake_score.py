"""What distillers with a fake score share: the denoiser of the student's own samples, beside the teacher."""

from scoregen.denoisers.base import Denoiser
from scoregen.distillers.base import Distiller
from scoregen.objectives.base import Loss
from scoregen.ranges import Positive
from scoregen.training.phases import MicroBatch


class FakeScoreDistiller(Distiller):
    """Trains a fake score, which starts as a copy of the student, by the run's `objective` and `augment`."""

    fake_lr: Positive  # learning rate of the fake score, relative to `optimizer.lr`

    @property
    def teacher(self) -> Denoiser:
        """What the student is drawn to."""
        return self.networks.need_teacher()

    def fake_loss(self, batch: MicroBatch) -> Loss:
        """The objective of the fake score at the student's samples."""
        loss: Loss = self.networks.fake(self.samples(batch), batch.cond, batch.rng("fake"))
        return loss
