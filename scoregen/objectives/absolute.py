"""The absolute error of the noise prediction, WaveGrad's loss."""

from dataclasses import dataclass

from torch import Tensor

from scoregen.denoisers.base import Cond, Denoise, expand
from scoregen.diffusion.noise import SigmaDistribution
from scoregen.objectives.base import Loss
from scoregen.rng import BatchRng


@dataclass(frozen=True)
class AbsoluteNoiseLoss:
    """The mean over elements of |n - e|, e = (x - D(x; sigma)) / sigma, x = x0 + sigma n, n ~ N(0, I).

    Its minimiser is the median of the noise given x, which for Gaussian data is the mean, the optimum of
    squares. That it trains a vocoder more stably than squares is remembered from the paper.

    Args:
        sigma: the distribution of the noise level; draws are stratified over the global batch.

    Source: Chen et al., WaveGrad: Estimating Gradients for Waveform Generation, 2020, arXiv 2009.00713.
    """

    sigma: SigmaDistribution

    def __call__(self, denoiser: Denoise, x0: Tensor, cond: Cond, rng: BatchRng) -> Loss:
        """The loss at clean data x0 [B, *shape] with conditions cond."""
        sigma = self.sigma.quantile(rng.stratified()).to(x0)
        noise = rng.randn_like(x0)
        denoised = denoiser(x0 + expand(sigma, x0) * noise, sigma, cond)
        return Loss((denoised - x0).abs().flatten(1).mean(1) / sigma, sigma)
