"""Denoising score matching: the weighted squared error of the denoiser, in the forms of EDM, VP and VE.

Source: Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models, 2022,
arXiv 2206.00364.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from scoregen.denoisers.base import Cond, Denoise, expand
from scoregen.diffusion.noise import LogNormalSigma, SigmaDistribution
from scoregen.objectives.base import Loss
from scoregen.ranges import Positive
from scoregen.rng import BatchRng

Weight = Callable[[Tensor], Tensor]  # lambda(sigma), [B] -> [B]


@dataclass(frozen=True)
class EDMWeight:
    """lambda(sigma) = (sigma^2 + sd^2) / (sigma sd)^2 = 1 / c_out^2: at first, all sigma weigh the same."""

    sigma_data: Positive = 0.5

    def __call__(self, sigma: Tensor) -> Tensor:
        """lambda at sigma [B]."""
        return (sigma.square() + self.sigma_data**2) / (sigma * self.sigma_data).square()


@dataclass(frozen=True)
class InverseVarianceWeight:
    """lambda(sigma) = 1 / sigma^2: the squared error of the noise prediction, unweighted."""

    def __call__(self, sigma: Tensor) -> Tensor:
        """lambda at sigma [B]."""
        return sigma.square().reciprocal()


@dataclass(frozen=True)
class VelocityWeight:
    """lambda(sigma) = ((1 + sigma) / sigma)^2: the squared error of a flow's velocity, unweighted."""

    def __call__(self, sigma: Tensor) -> Tensor:
        """lambda at sigma [B]."""
        return (1 + sigma.reciprocal()).square()


@dataclass(frozen=True)
class DenoisingLoss:
    """The mean over elements of lambda(sigma) (D(x0 + sigma n; sigma) - x0)^2, n ~ N(0, I).

    Karras et al. backpropagate the sum over the d elements instead: no difference to Adam, but a gradient
    clip or a weight decay of theirs is d times too large here.

    Args:
        sigma: the distribution of the noise level; draws are stratified over the global batch.
        weight: lambda.
    """

    sigma: SigmaDistribution
    weight: Weight

    def __call__(self, denoiser: Denoise, x0: Tensor, cond: Cond, rng: BatchRng) -> Loss:
        """The loss at clean data x0 [B, *shape] with class ids cond [B]."""
        sigma = self.sigma.quantile(rng.stratified()).to(x0)
        noise = rng.randn_like(x0)
        denoised = denoiser(x0 + expand(sigma, x0) * noise, sigma, cond)
        error = (denoised - x0).square().flatten(1).mean(1)
        return Loss(self.weight(sigma) * error, sigma)


@dataclass(frozen=True)
class EDMLoss:
    """`DenoisingLoss` of EDM: ln sigma ~ N(p_mean, p_std^2) and `EDMWeight`."""

    p_mean: float = -1.2
    p_std: Positive = 1.2
    sigma_data: Positive = 0.5

    def __call__(self, denoiser: Denoise, x0: Tensor, cond: Cond, rng: BatchRng) -> Loss:
        """The loss at clean data x0 [B, *shape] with class ids cond [B]."""
        loss = DenoisingLoss(LogNormalSigma(self.p_mean, self.p_std), EDMWeight(self.sigma_data))
        return loss(denoiser, x0, cond, rng)
