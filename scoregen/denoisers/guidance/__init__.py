"""Guidance: denoisers around denoisers, for every sampler, around each other, and below teleportation."""

from scoregen.denoisers.base import Denoiser
from scoregen.denoisers.guidance.base import Guidance, Interval, Judge, evaluations
from scoregen.denoisers.guidance.cost import count_evaluations
from scoregen.denoisers.guidance.gradient import ClassifierGuidance, DiscriminatorGuidance
from scoregen.denoisers.guidance.reference import Autoguidance, ClassifierFreeGuidance
from scoregen.errors import UserError

__all__ = [
    "Autoguidance",
    "ClassifierFreeGuidance",
    "ClassifierGuidance",
    "DiscriminatorGuidance",
    "Guidance",
    "Interval",
    "Judge",
    "build_guidance",
    "count_evaluations",
    "evaluations",
]


def build_guidance(
    denoiser: Denoiser,
    *,
    weight: float = 1.0,
    interval: Interval | None = None,
    weaker: Denoiser | None = None,
    classifier: Judge | None = None,
    classifier_weight: float = 1.0,
    discriminator: Judge | None = None,
    discriminator_weights: tuple[float, float] = (1.0, 1.0),
) -> Denoiser:
    """The denoiser with all the guidance asked for; the denoiser itself where none is.

    Args:
        denoiser: the one to guide.
        weight: of classifier-free guidance, or of autoguidance where there is a `weaker` one; 1 is none.
        interval: (sigma_low, sigma_high] of that guidance; None is everywhere.
        weaker: the reference of autoguidance.
        classifier, classifier_weight: 0 is none.
        discriminator, discriminator_weights: w_1 and w_2 of discriminator guidance; (0, 0) is none. (1, 1)
            suits every sampler. The published (2, 0) is for Heun, whose two slopes are averaged; a sampler
            of one evaluation a step would be guided twice as much.

    The corrections by gradients come last, so that `weight` does not multiply them and the discriminator
    judges a batch once. Raises UserError for parts that do not fit, and for an interval or a weaker model
    with the weight 1, which would not show.
    """
    if weight == 1 and (interval is not None or weaker is not None):
        raise UserError("guidance weight 1 guides nothing; give a weight above 1, for example --guidance 1.5")
    if weight != 1:
        denoiser = (
            ClassifierFreeGuidance(denoiser, weight, interval)
            if weaker is None
            else Autoguidance(denoiser, weaker, weight, interval)
        )
    if classifier is not None:
        denoiser = ClassifierGuidance(denoiser, classifier, classifier_weight)
    if discriminator is not None:
        denoiser = DiscriminatorGuidance(denoiser, discriminator, *discriminator_weights)
    return denoiser
