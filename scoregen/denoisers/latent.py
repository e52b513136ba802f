"""Closed forms in another space: encode the training set once, denoise there, decode the samples."""

import torch
from torch import Tensor, nn

from scoregen.data.codec import Codec
from scoregen.denoisers.base import Cond, Denoiser, denoiser_for_trajectory
from scoregen.denoisers.empirical import EmpiricalDenoiser
from scoregen.denoisers.gaussian import GaussianDenoiser
from scoregen.denoisers.smoothed import training_set
from scoregen.errors import UserError
from scoregen.rng import Rng


class Whitening(nn.Module):
    """Principal components at unit variance: z = Lambda^(-1/2) U^T (x - mu), x = mu + U Lambda^(1/2) z.

    Of data of low rank, decoding leaves out what the kept components do not span.

    Args:
        gaussian: the moments of the data (`scoregen.denoisers.moments.measure_gaussian`).

    Raises:
        UserError: where a component has no variance beyond rounding, or the moments lack eigenvectors.
    """

    def __init__(self, gaussian: GaussianDenoiser) -> None:
        super().__init__()
        v = gaussian.variances
        if gaussian.eigenvectors is None:
            raise UserError("whitening needs moments with eigenvectors")
        varying = int((v > torch.finfo(v.dtype).eps * gaussian.mean.numel() * v.max()).sum())
        if varying < len(v):
            raise UserError(f"{len(v)} components, but the data vary along {varying} only: take no more")
        self.gaussian = gaussian

    def encode(self, x: Tensor) -> Tensor:
        """Samples [B, *shape] as components [B, r]."""
        g = self.gaussian
        assert g.eigenvectors is not None
        z: Tensor = (x - g.mean).flatten(1) @ g.eigenvectors * g.variances.rsqrt()
        return z

    def decode(self, z: Tensor) -> Tensor:
        """Components [B, r] as samples [B, *shape]."""
        g = self.gaussian
        assert g.eigenvectors is not None
        x: Tensor = (z * g.variances.sqrt()) @ g.eigenvectors.T
        return x.view(-1, *g.shape) + g.mean


class Chain:
    """One codec after another: an autoencoder, and the whitening of its latents."""

    def __init__(self, outer: Codec, inner: Codec) -> None:
        self.outer, self.inner = outer, inner

    def encode(self, x: Tensor) -> Tensor:
        """Samples as latents of latents."""
        return self.inner.encode(self.outer.encode(x))

    def decode(self, z: Tensor) -> Tensor:
        """Latents of latents as samples."""
        return self.outer.decode(self.inner.decode(z))


class LatentDenoiser(nn.Module):
    """A denoiser of latents that knows how to decode them; samplers see the latents only.

    Args:
        inner: the denoiser, in latent space.
        codec: whose latents these are.
    """

    def __init__(self, inner: Denoiser, codec: Codec) -> None:
        super().__init__()
        self.inner, self.codec = inner, codec
        self.shape, self.num_classes = inner.shape, inner.num_classes
        self.sigma_min, self.sigma_max = inner.sigma_min, inner.sigma_max

    @property
    def training_set(self) -> EmpiricalDenoiser:
        """The latents of the training set."""
        return training_set(self.inner)

    def for_trajectory(self, rng: Rng) -> "LatentDenoiser":
        """The same with random numbers of each sample's own, where the inner denoiser has any."""
        return LatentDenoiser(denoiser_for_trajectory(self.inner, rng), self.codec)

    def forward(self, x: Tensor, sigma: Tensor, cond: Cond = None) -> Tensor:
        """E[z0 | z] for latents z [B, *shape] at sigma [] or [B]."""
        return self.inner(x, sigma, cond)
