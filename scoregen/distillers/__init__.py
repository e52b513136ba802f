"""One-step distillation: what `conf/distiller` may name."""

from scoregen.distillers.critic_distiller import CriticDistiller
from scoregen.distillers.disback import DisBackDistiller
from scoregen.distillers.duel import MismatchDistiller, RatioDistiller
from scoregen.distillers.score_distiller import ScoreDistiller
from scoregen.distillers.tuning import ConsistencyDistiller, MeanFlowDistiller

DISTILLERS = {
    "diff_instruct": ScoreDistiller,
    "disback": DisBackDistiller,
    "dmd2": CriticDistiller,
    "ect": ConsistencyDistiller,
    "f_distill": CriticDistiller,
    "meanflow": MeanFlowDistiller,
    "ratio": RatioDistiller,
    "sid": ScoreDistiller,
    "sida": CriticDistiller,
    "sim": ScoreDistiller,
    "smm": MismatchDistiller,
}
