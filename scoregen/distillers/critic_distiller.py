"""Score distillers with a critic of real and generated samples: DMD2, f-distill, and adversarial SiD."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, Literal

from torch import Tensor, nn

from scoregen.distillers.base import Networks, Rhythm, check_levels
from scoregen.distillers.critics import AdversarialLoss, Critic, CriticHeads, CriticLoss
from scoregen.distillers.f_distill import FDistillLoss, Ratios
from scoregen.distillers.fake_score import FakeScoreDistiller
from scoregen.objectives.base import Loss
from scoregen.parallel import Parallel
from scoregen.ranges import Positive
from scoregen.training.phases import MicroBatch, Phase, measure_whole

QUANTILES = (0.1, 0.5, 0.9)  # of the density ratio, logged


class CriticDistiller(FakeScoreDistiller):
    """Alternates a fake score and a critic with the student, whose loss looks at both and at the teacher.

    The critic is heads on features of a network: of the teacher, which stays as it is, with steps of their
    own; or of the fake score, whose features the critic's loss then shapes too, in one step on the sum of
    both losses.

    Args:
        loss: of the student, from teacher, fake score and critic.
        critic_loss: of the critic.
        features: the network whose features are judged.
        taps: names of these features; null takes all.
        critic_weight: factor on the critic's loss where it is added to the fake score's.
        sigma_init: the noise level that the student starts from.
        rhythm: how the student's steps and the others' follow each other.
        fake_lr, critic_lr: learning rates of fake score and heads, relative to `optimizer.lr`.

    Raises UserError for a teacher without features, and for taps that do not exist.
    """

    needs_data: ClassVar[bool] = True

    def __init__(
        self,
        networks: Networks,
        *,
        loss: FDistillLoss | AdversarialLoss,
        critic_loss: CriticLoss,
        features: Literal["teacher", "fake"] = "teacher",
        taps: Sequence[str] | None = None,
        critic_weight: Positive = 1.0,
        sigma_init: Positive = 2.5,
        rhythm: Rhythm = Rhythm(),  # noqa: B008 - frozen
        fake_lr: Positive = 1.0,
        critic_lr: Positive = 1.0,
    ) -> None:
        super().__init__(networks, sigma_init=sigma_init, rhythm=rhythm)
        self.loss, self.critic_loss, self.critic_weight = loss, critic_loss, critic_weight
        self.fake_lr, self.critic_lr = fake_lr, critic_lr
        self.joint = features == "fake"
        trunk = networks.fake.denoiser if self.joint else networks.teacher
        heads = CriticHeads(trunk, taps=taps)  # refuses a trunk without features
        self.critic = Critic(trunk, heads)  # type: ignore[arg-type]
        self._fake_and_heads = nn.ModuleList([networks.fake, heads])
        check_levels(self.teacher, loss.sigma if isinstance(loss, FDistillLoss) else loss.base.sigma)

    @property
    def companions(self) -> Mapping[str, nn.Module]:
        """The fake score and the heads, in one role where they step together."""
        if self.joint:
            return {"fake": self._fake_and_heads}
        return {"fake": self.networks.fake, "critic": self.critic.heads}

    @property
    def state(self) -> Mapping[str, nn.Module]:
        """With the running means of the ratios."""
        bins = self.loss.bins if isinstance(self.loss, FDistillLoss) else None
        return {**self.companions, **({} if bins is None else {"ratio_bins": bins})}

    @property
    def lr_factors(self) -> Mapping[str, float]:
        """The fake score's and the critic's."""
        return {"fake": self.fake_lr, "critic": self.critic_lr}

    def companion_phases(self) -> Sequence[Phase]:
        """One for both, or each its own."""
        if self.joint:
            return [Phase("fake", self._joint_loss)]
        return [Phase("fake", self.fake_loss), Phase("critic", self._critic_loss)]

    def student_phase(self) -> Phase:
        """Measures the density ratios of the whole batch first, where they weigh the samples."""
        weighs = isinstance(self.loss, FDistillLoss) and self.loss.divergence != "reverse_kl"
        return Phase("student", self.student_loss, self._measure_ratios if weighs else None)

    def student_loss(self, batch: MicroBatch) -> Loss:
        """The configured loss at the student's samples."""
        where = (self.draw(batch), batch.cond, batch.rng("student", "noise"))
        networks = (self.teacher, self.networks.fake.denoiser, self.critic)
        if not isinstance(self.loss, FDistillLoss):
            return self.loss(*networks, *where)
        whole = Ratios(batch.kept["ratio"], batch.kept["sigma"]) if "ratio" in batch.kept else None
        loss = self.loss(*networks, *where, whole)
        return loss if whole is None else replace(loss, logs=loss.logs | _quantiles(whole, loss.sigma))

    def _measure_ratios(self, batches: Sequence[MicroBatch], parallel: Parallel) -> None:
        """Leave the ratios of the global batch in every micro-batch, and take them into the bins."""
        assert isinstance(self.loss, FDistillLoss)
        whole = measure_whole(self._ratios, batches, parallel)
        if self.loss.bins is not None:
            self.loss.bins.update(whole["ratio"], whole["sigma"])
        for batch in batches:
            batch.kept |= whole

    def _ratios(self, batch: MicroBatch) -> Mapping[str, Tensor]:
        assert isinstance(self.loss, FDistillLoss)
        x0 = self.draw(batch)
        return self.loss.measure(self.critic, x0, batch.cond, batch.rng("student", "noise"))._asdict()

    def _critic_loss(self, batch: MicroBatch) -> Loss:
        rng, cond = batch.rng("critic"), batch.cond
        return self.critic_loss(self.critic, batch.x0, cond, self.samples(batch), cond, rng)

    def _joint_loss(self, batch: MicroBatch) -> Loss:
        fake, critic = self.fake_loss(batch), self._critic_loss(batch)
        logs = {**fake.logs, **critic.logs, "denoising": fake.value, "critic": critic.value}
        return Loss(fake.value + self.critic_weight * critic.value, fake.sigma, logs)


def _quantiles(whole: Ratios, like: Tensor) -> dict[str, Tensor]:
    """Quantiles of the density ratio over the global batch, the same for every sample."""
    return {f"ratio_q{round(100 * q)}": whole.ratio.quantile(q).expand_as(like) for q in QUANTILES}
