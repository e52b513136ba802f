"""Training of a discriminator of real and generated samples, whose gradient corrects the generator."""

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from scoregen.data.arrays import load_arrays
from scoregen.data.base import to_model_range
from scoregen.denoisers.base import Cond, Denoise, expand
from scoregen.diffusion.noise import SigmaDistribution
from scoregen.errors import UserError
from scoregen.networks.base import Role
from scoregen.objectives.base import Loss
from scoregen.rng import BatchRng


class DiscriminatorLoss(nn.Module):
    """The binary cross-entropy of noisy real samples x (1) and generated ones y (0), for the logit L.

    (-log d(x + sigma n; sigma) - log(1 - d(y + sigma m; sigma))) / 2,  d = sigmoid(L),  n, m ~ N(0, I)

    Its minimiser is L = log p(x; sigma) / q(x; sigma). Each real sample meets one generated sample, drawn
    afresh, at the same noise level. The share of right answers is logged as `accuracy`: 0.5 says that the
    discriminator finds no difference. For augment=none, since generated samples are taken as they are.

    Args:
        generated: the samples.npz of `sample.py`, or its like; about as many as there are real ones.
        sigma: the distribution of the noise level; draws are stratified over the global batch.
        conditional: whether the discriminator is told the class; the file must hold labels then.

    Raises UserError where the file is missing, has no labels, or holds samples of another shape.
    Source: Kim et al., Refining Generative Process with Discriminator Guidance in Score-based Diffusion
    Models, 2023, arXiv 2211.17091. Theirs is a head on frozen features of an ImageNet classifier.
    """

    trains: ClassVar[Role] = "discriminator"

    generated: Tensor
    labels: Tensor | None

    def __init__(self, generated: str, sigma: SigmaDistribution, *, conditional: bool = False) -> None:
        super().__init__()
        try:
            data = load_arrays(path=generated, conditional=conditional, test_fraction=0.0)
        except UserError as error:
            raise UserError(
                f"objective.generated={generated}: {error}\nDraw samples of the model to be guided first, "
                "python sample.py --run RUN --seeds 0-49999 --out DIR, and give DIR/samples.npz"
            ) from error
        self.sigma = sigma
        self.register_buffer("generated", data.x, persistent=False)
        self.register_buffer("labels", data.label, persistent=False)

    def forward(self, denoiser: Denoise, x0: Tensor, cond: Cond, rng: BatchRng) -> Loss:
        """The loss of a discriminator, which takes the denoiser's place, at real x0 of classes cond [B]."""
        if x0.shape[1:] != self.generated.shape[1:]:
            raise UserError(
                f"objective.generated holds samples of shape {tuple(self.generated.shape[1:])}, the data are "
                f"of shape {tuple(x0.shape[1:])}: draw them from a model of the same data"
            )
        sigma = self.sigma.quantile(rng.stratified()).to(x0)
        drawn, classes = self._draw(cond, rng)
        real = denoiser(x0 + expand(sigma, x0) * rng.randn_like(x0), sigma, cond).reshape(-1)
        fake = denoiser(drawn + expand(sigma, x0) * rng.randn_like(x0), sigma, classes).reshape(-1)
        right = ((real > 0).float() + (fake < 0).float()) / 2
        return Loss((F.softplus(-real) + F.softplus(fake)) / 2, sigma, {"accuracy": right})

    def _draw(self, cond: Cond, rng: BatchRng) -> tuple[Tensor, Cond]:
        """Generated samples [B, *shape] and their class ids [B]."""
        count = len(self.generated)
        index = (rng.rand() * count).long().clamp(max=count - 1)
        drawn = to_model_range(self.generated[index])
        if cond is None or self.labels is None:
            return drawn, None
        return drawn, self.labels[index]
