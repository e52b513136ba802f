"""Distillers without a teacher's score: the student against one that sees real and generated samples."""

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

from torch import Tensor, nn

from scoregen.distillers.base import Distiller, Networks, Rhythm, freeze_unused, probe
from scoregen.distillers.critics import Critic, CriticHeads, CriticLoss
from scoregen.distillers.ratio import ClassRatioLoss
from scoregen.distillers.score_mismatch import MismatchLoss, ScoreMismatchLoss
from scoregen.objectives.base import Loss
from scoregen.ranges import Positive
from scoregen.training.phases import MicroBatch, Phase


class Duel(Distiller):
    """Alternates an opponent with the student; a teacher gives both their first weights, if there is one."""

    needs_data: ClassVar[bool] = True
    needs_teacher: ClassVar[bool] = False

    name: ClassVar[str]  # of the opponent's role
    module: nn.Module  # what the opponent learns with
    opponent: Callable[..., Tensor]  # (x, sigma, cond) -> its judgement
    loss: Callable[..., Loss]  # (opponent, x0, cond, rng)
    opponent_loss: Callable[..., Loss]  # (opponent, real, real_cond, generated, cond, rng)
    opponent_lr: float

    @property
    def companions(self) -> Mapping[str, nn.Module]:
        """The opponent."""
        return {self.name: self.module}

    @property
    def lr_factors(self) -> Mapping[str, float]:
        """The opponent's."""
        return {self.name: self.opponent_lr}

    def companion_phases(self) -> Sequence[Phase]:
        """The opponent's."""
        return [Phase(self.name, self._opponent_loss)]

    def student_loss(self, batch: MicroBatch) -> Loss:
        """The configured loss at the student's samples."""
        return self.loss(self.opponent, self.draw(batch), batch.cond, batch.rng("student", "noise"))

    def _opponent_loss(self, batch: MicroBatch) -> Loss:
        cond, rng = batch.cond, batch.rng(self.name)
        return self.opponent_loss(self.opponent, batch.x0, cond, self.samples(batch), cond, rng)


class RatioDistiller(Duel):
    """Follows the density ratio that a critic learns, trunk and heads: teacher-free, and as GANs do.

    Args:
        loss: of the student, from the critic.
        critic_loss: of the critic.
        taps: names of the features that the heads judge; null takes all.
        sigma_init: the noise level that the student starts from.
        rhythm: how the student's steps and the critic's follow each other.
        critic_lr: learning rate of the critic, relative to `optimizer.lr`.

    Raises UserError for a network without features, and for taps that do not exist.
    """

    name: ClassVar[str] = "critic"

    def __init__(
        self,
        networks: Networks,
        *,
        loss: ClassRatioLoss,
        critic_loss: CriticLoss,
        taps: Sequence[str] | None = None,
        sigma_init: Positive = 2.5,
        rhythm: Rhythm = Rhythm(),  # noqa: B008 - frozen
        critic_lr: Positive = 1.0,
    ) -> None:
        super().__init__(networks, sigma_init=sigma_init, rhythm=rhythm)
        trunk = networks.fake.denoiser
        heads = CriticHeads(trunk, taps=taps).to(next(trunk.parameters()).device)
        self.module, self.opponent = nn.ModuleList([trunk, heads]), Critic(trunk, heads)
        freeze_unused(self.module, self.opponent(*probe(trunk)))
        self.loss, self.opponent_loss, self.opponent_lr = loss, critic_loss, critic_lr


class MismatchDistiller(Duel):
    """Plays the student against a noise prediction that is right on real samples and mismatched on its own.

    Args:
        loss: of the student.
        mismatch_loss: of the noise prediction.
        sigma_init: the noise level that the student starts from.
        rhythm: how the student's steps and the others' follow each other.
        mismatch_lr: learning rate of the noise prediction, relative to `optimizer.lr`.
    """

    name: ClassVar[str] = "mismatch"

    def __init__(
        self,
        networks: Networks,
        *,
        loss: ScoreMismatchLoss,
        mismatch_loss: MismatchLoss,
        sigma_init: Positive = 2.5,
        rhythm: Rhythm = Rhythm(),  # noqa: B008 - frozen
        mismatch_lr: Positive = 1.0,
    ) -> None:
        super().__init__(networks, sigma_init=sigma_init, rhythm=rhythm)
        self.module = self.opponent = networks.fake.denoiser
        self.loss, self.opponent_loss, self.opponent_lr = loss, mismatch_loss, mismatch_lr
