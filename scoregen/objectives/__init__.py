"""Training objectives: what `conf/objective` may name."""

from scoregen.objectives.absolute import AbsoluteNoiseLoss
from scoregen.objectives.classifier import ClassifierLoss
from scoregen.objectives.denoising import DenoisingLoss, EDMLoss
from scoregen.objectives.discriminator import DiscriminatorLoss
from scoregen.objectives.implicit import ImplicitLoss, NonNegativeLoss
from scoregen.objectives.lcss import LCSSLoss
from scoregen.objectives.likelihood import LikelihoodScoreLoss
from scoregen.objectives.multiplicative import MultiplicativeLoss
from scoregen.objectives.sliced import FiniteDifferenceLoss, SlicedLoss, SlicedVRLoss
from scoregen.objectives.uncertainty import UncertaintyLoss

OBJECTIVES = {
    "denoising": EDMLoss,
    "denoising_ve": DenoisingLoss,
    "denoising_vp": DenoisingLoss,
    "denoising_iddpm": DenoisingLoss,
    "denoising_flow": DenoisingLoss,
    "denoising_uncertainty": UncertaintyLoss,
    "multiplicative": MultiplicativeLoss,
    "lcss": LCSSLoss,
    "ssm": SlicedLoss,
    "ssm_vr": SlicedVRLoss,
    "fd_ssm": FiniteDifferenceLoss,
    "implicit": ImplicitLoss,
    "implicit_nonnegative": NonNegativeLoss,
    "wavegrad": AbsoluteNoiseLoss,
    "classifier": ClassifierLoss,
    "dlsm": LikelihoodScoreLoss,
    "discriminator": DiscriminatorLoss,
}
