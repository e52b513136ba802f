"""Denoisers, classifiers and discriminators in closed form, for the laws of guidance."""

from dataclasses import replace
from math import inf

import pytest
import torch
from torch import Tensor

from scoregen.denoisers.base import Cond, Denoiser
from scoregen.denoisers.gaussian import GaussianDenoiser
from scoregen.denoisers.mixture import GaussianMixtureDenoiser, log_membership
from scoregen.rng import BatchRng, generator
from scoregen.samplers import SAMPLERS
from scoregen.samplers.base import Sampler

SIGMA = torch.tensor(0.7, dtype=torch.float64)
WIDE = GaussianMixtureDenoiser(torch.zeros(1, 2).double(), torch.ones(1).double())
EVERY_SAMPLER = pytest.mark.parametrize("name", SAMPLERS)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator("guidance"), dtype=torch.float64)


def gaussian(mean: float, variance: float) -> GaussianDenoiser:
    return GaussianDenoiser(
        torch.full((1,), mean, dtype=torch.float64), torch.tensor(variance, dtype=torch.float64)
    )


def log_densities(mixture: GaussianMixtureDenoiser, x: Tensor, sigma: Tensor, cond: Cond = None) -> Tensor:
    """log p(x, k; sigma) up to a constant for each component k of the class, [B, K]."""
    total = mixture.variances + sigma.reshape(-1, 1).square()
    distance = (x[:, None] - mixture.means).square().sum(-1)
    logits = mixture.log_weights - distance / (2 * total) - x.shape[1] / 2 * total.log()
    return logits + log_membership(cond, mixture.labels, mixture.num_classes)


class BayesClassifier:
    """The exact classifier of a labelled mixture."""

    shape, num_classes = (2,), 2

    def __init__(self, mixture: GaussianMixtureDenoiser) -> None:
        self.mixture = mixture

    def __call__(self, x: Tensor, sigma: Tensor, cond: Cond = None) -> Tensor:
        classes = [torch.full((len(x),), y) for y in range(self.num_classes)]
        return torch.stack([log_densities(self.mixture, x, sigma, y).logsumexp(1) for y in classes], 1)


class Ratio:
    """The exact discriminator of two mixtures, or one of an offset from it, that counts its calls."""

    shape, num_classes = (2,), 0

    def __init__(self, p: GaussianMixtureDenoiser, q: GaussianMixtureDenoiser, offset: float = 0.0) -> None:
        self.p, self.q, self.offset, self.sigmas = p, q, offset, []

    def __call__(self, x: Tensor, sigma: Tensor, cond: Cond = None) -> Tensor:
        self.sigmas.append(float(sigma.max()))
        ratio = log_densities(self.p, x, sigma).logsumexp(1) - log_densities(self.q, x, sigma).logsumexp(1)
        return ratio + self.offset


class GaussianRatio:
    """The exact discriminator of N(0, 1) against N(0.6, 2)."""

    shape, num_classes = (1,), 0

    def __call__(self, x: Tensor, sigma: Tensor, cond: Cond = None) -> Tensor:
        p = torch.distributions.Normal(0.0, (1 + sigma**2).sqrt())
        q = torch.distributions.Normal(0.6, (2 + sigma**2).sqrt())
        return p.log_prob(x) - q.log_prob(x)


class Blind:
    """An unconditional denoiser, which refuses class ids."""

    num_classes, sigma_min, sigma_max = 0, 0.0, inf

    def __init__(self, inner: Denoiser) -> None:
        self.inner, self.shape = inner, inner.shape

    def __call__(self, x: Tensor, sigma: Tensor, cond: Cond = None) -> Tensor:
        assert cond is None
        return self.inner(x, sigma)


class Recorder:
    """A denoiser that notes the size of each batch that it is asked for."""

    def __init__(self, inner: Denoiser) -> None:
        self.inner, self.shape, self.num_classes = inner, inner.shape, inner.num_classes
        self.sigma_min, self.sigma_max, self.batches = inner.sigma_min, inner.sigma_max, []

    def __call__(self, x: Tensor, sigma: Tensor, cond: Cond = None) -> Tensor:
        self.batches.append(len(x))
        return self.inner(x, sigma, cond)


class Classes:
    """Class y is N((y + 1) delta, 1), no class is N(0, 1): data of equal variances, on a line."""

    shape, num_classes, sigma_min, sigma_max = (1,), 2, 0.0, inf

    def __init__(self, delta: float) -> None:
        self.delta = delta

    def __call__(self, x: Tensor, sigma: Tensor, cond: Cond = None) -> Tensor:
        assert cond is not None
        mean = torch.where(cond < self.num_classes, (cond + 1) * self.delta, 0.0)[:, None]
        return mean + (x - mean) / (1 + sigma.square())


def sampler_of(name: str) -> Sampler:
    return replace(SAMPLERS[name](steps=1 if name == "one_step" else 6), state_dtype="float64")


def draw(name: str, denoiser: Denoiser) -> Tensor:
    cond = torch.tensor([0, 1, 1, 0, 2])
    return sampler_of(name)(denoiser, normal(5, 2), cond, BatchRng("draw", size=5))
