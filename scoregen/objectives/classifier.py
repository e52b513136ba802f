"""Training of a noise-conditional classifier, whose gradient guides samples towards a class."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from scoregen.denoisers.base import Cond, Denoise, expand
from scoregen.diffusion.noise import SigmaDistribution
from scoregen.errors import UserError
from scoregen.networks.base import Role
from scoregen.objectives.base import Loss
from scoregen.rng import BatchRng


@dataclass(frozen=True)
class ClassifierLoss:
    """The cross-entropy -log p(y | x0 + sigma n; sigma), n ~ N(0, I).

    Its minimiser is Bayes' classifier at every noise level. The share of right answers is logged as
    `accuracy`.

    Args:
        sigma: the distribution of the noise level; draws are stratified over the global batch.

    Source: Dhariwal and Nichol, Diffusion Models Beat GANs on Image Synthesis, 2021, arXiv 2105.05233.
    """

    sigma: SigmaDistribution

    trains: ClassVar[Role] = "classifier"

    def __call__(self, denoiser: Denoise, x0: Tensor, cond: Cond, rng: BatchRng) -> Loss:
        """The loss of a classifier, in the denoiser's place, at x0 [B, *shape] of the classes cond [B]."""
        if cond is None:
            raise UserError("objective=classifier needs data with classes; set data.conditional=true")
        sigma = self.sigma.quantile(rng.stratified()).to(x0)
        logits = denoiser(x0 + expand(sigma, x0) * rng.randn_like(x0), sigma)
        value = F.cross_entropy(logits, cond, reduction="none")
        return Loss(value, sigma, {"accuracy": (logits.argmax(1) == cond).to(torch.float32)})
