"""Training objectives: what `conf/objective` may name."""

from scoregen.objectives.denoising import DenoisingLoss, EDMLoss
from scoregen.objectives.uncertainty import UncertaintyLoss

OBJECTIVES = {
    "denoising": EDMLoss,
    "denoising_ve": DenoisingLoss,
    "denoising_vp": DenoisingLoss,
    "denoising_iddpm": DenoisingLoss,
    "denoising_uncertainty": UncertaintyLoss,
}
