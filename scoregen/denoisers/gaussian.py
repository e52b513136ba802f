"""The exact denoiser of Gaussian data."""

from math import inf, prod

import torch
from torch import Tensor, nn

from scoregen.denoisers.base import Cond, expand
from scoregen.errors import UserError


class GaussianDenoiser(nn.Module):
    """Denoises x0 ~ N(mu, Sigma) exactly, in the eigenbasis Sigma = U diag(lambda) U^T.

    D(x; sigma) = mu + U diag(lambda / (lambda + sigma^2)) U^T (x - mu)

    The work is done in the wider of the dtypes of x and mean. Unconditional: class ids are ignored.

    Args:
        mean: mu [*shape].
        variances: lambda, [r] along the eigenvectors, or broadcastable to [*shape] without them.
        eigenvectors: U [d, r] with orthonormal columns, d = prod(shape); None is the identity. Directions
            outside its span have no variance.

    Raises:
        UserError: for a negative variance or eigenvectors that do not fit.

    Source: Wang and Vastola, The Unreasonable Effectiveness of Gaussian Score Approximation for Diffusion
    Models and its Applications, 2024, arXiv 2412.09726.
    """

    mean: Tensor
    variances: Tensor
    eigenvectors: Tensor | None

    def __init__(self, mean: Tensor, variances: Tensor, *, eigenvectors: Tensor | None = None) -> None:
        super().__init__()
        self.shape, self.num_classes = tuple(mean.shape), 0
        self.sigma_min, self.sigma_max = 0.0, inf
        if (variances < 0).any():
            raise UserError(f"GaussianDenoiser: a variance is negative: {float(variances.min()):g}")
        if eigenvectors is None:
            variances = variances.expand(mean.shape).flatten()
        elif eigenvectors.shape != (prod(self.shape), len(variances)):
            raise UserError(
                f"GaussianDenoiser: eigenvectors of shape {tuple(eigenvectors.shape)} do not fit "
                f"{prod(self.shape)} elements and {len(variances)} variances"
            )
        self.register_buffer("mean", mean)
        self.register_buffer("variances", variances)
        self.register_buffer("eigenvectors", eigenvectors)

    @classmethod
    def from_covariance(cls, mean: Tensor, covariance: Tensor) -> "GaussianDenoiser":
        """The denoiser of N(mean [*shape], covariance [d, d]), d = prod(shape)."""
        variances, eigenvectors = torch.linalg.eigh(covariance)
        return cls(mean, variances.clamp(min=0), eigenvectors=eigenvectors)

    def forward(self, x: Tensor, sigma: Tensor, cond: Cond = None) -> Tensor:
        """E[x0 | x] for x [B, *shape] and sigma [] or [B]."""
        dtype = torch.promote_types(x.dtype, self.mean.dtype)
        mean = self.mean.to(dtype).flatten()
        centred = x.to(dtype).flatten(1) - mean
        variances = self.variances.to(dtype)
        shrink = variances / (variances + expand(sigma, centred).to(dtype).square())
        if self.eigenvectors is None:
            denoised = mean + shrink * centred
        else:
            basis = self.eigenvectors.to(dtype)
            denoised = mean + (shrink * (centred @ basis)) @ basis.T
        return denoised.reshape(x.shape).to(x.dtype)
