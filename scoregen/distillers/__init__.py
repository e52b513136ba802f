"""One-step distillation: what `conf/distiller` may name."""

from scoregen.distillers.critic_distiller import CriticDistiller
from scoregen.distillers.duel import MismatchDistiller, RatioDistiller
from scoregen.distillers.score_distiller import ScoreDistiller

DISTILLERS = {
    "diff_instruct": ScoreDistiller,
    "dmd2": CriticDistiller,
    "f_distill": CriticDistiller,
    "ratio": RatioDistiller,
    "sid": ScoreDistiller,
    "sim": ScoreDistiller,
    "smm": MismatchDistiller,
}
