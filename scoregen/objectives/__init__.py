"""Training objectives: what `conf/objective` may name."""

from scoregen.objectives.classifier import ClassifierLoss
from scoregen.objectives.denoising import DenoisingLoss, EDMLoss
from scoregen.objectives.discriminator import DiscriminatorLoss
from scoregen.objectives.likelihood import LikelihoodScoreLoss
from scoregen.objectives.multiplicative import MultiplicativeLoss
from scoregen.objectives.uncertainty import UncertaintyLoss

OBJECTIVES = {
    "denoising": EDMLoss,
    "denoising_ve": DenoisingLoss,
    "denoising_vp": DenoisingLoss,
    "denoising_iddpm": DenoisingLoss,
    "denoising_uncertainty": UncertaintyLoss,
    "multiplicative": MultiplicativeLoss,
    "classifier": ClassifierLoss,
    "dlsm": LikelihoodScoreLoss,
    "discriminator": DiscriminatorLoss,
}
