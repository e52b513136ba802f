"""A mixture of Gaussians by expectation and maximisation, its size chosen by cross-validation."""

from collections.abc import Mapping, Sequence
from math import inf, log, pi
from typing import Self

import torch
from torch import Generator, Tensor, nn

from scoregen.detection.base import Detector, Standard, check_features
from scoregen.rng import generator

SIZES = tuple(range(2, 21, 2))
_FOLDS = 5
_ITERATIONS, _GAIN = 100, 1e-4  # of the mean log-likelihood, below which no more is gained
_RIDGE = 1e-6  # added to variances of standardised features


class Mixture(nn.Module):
    """The density sum_k w_k N(x; mu_k, C_k C_k^T).

    Args:
        log_weights: ln w [K]. means: mu [K, L]. factors: C [K, L, L], lower triangular.
    """

    log_weights: Tensor
    means: Tensor
    factors: Tensor

    def __init__(self, log_weights: Tensor, means: Tensor, factors: Tensor) -> None:
        super().__init__()
        self.register_buffer("log_weights", log_weights)
        self.register_buffer("means", means)
        self.register_buffer("factors", factors)

    def joint(self, x: Tensor) -> Tensor:
        """ln w_k N(x; mu_k, C_k C_k^T), [n, K], of x [n, L]."""
        offset = (x - self.means[:, None]).mT  # [K, L, n]
        white = torch.linalg.solve_triangular(self.factors, offset, upper=False)
        logs = self.factors.diagonal(dim1=1, dim2=2).log().sum(1)
        constant = self.log_weights - logs - x.shape[1] / 2 * log(2 * pi)
        logits: Tensor = (constant[:, None] - white.square().sum(1) / 2).mT
        return logits

    def log_density(self, x: Tensor) -> Tensor:
        """ln p(x) [n] of x [n, L]."""
        return self.joint(x).logsumexp(1)


def fit_mixture(x: Tensor, size: int, g: Generator) -> Mixture:
    """The mixture of `size` components that expectation and maximisation reach on x [n, L], float64.

    They start from the cells of k-means++ seeds, and end where an iteration gains less than 1e-4 nats.
    """
    cells = torch.cdist(x, _spread_seeds(x, size, g)).argmin(1)
    mixture, before = _maximise(x, nn.functional.one_hot(cells, size).double()), -inf
    for _ in range(_ITERATIONS):
        joint = mixture.joint(x)
        total = joint.logsumexp(1, keepdim=True)
        if float(total.mean()) - before < _GAIN:
            break
        before = float(total.mean())
        mixture = _maximise(x, (joint - total).exp())
    return mixture


def _spread_seeds(x: Tensor, size: int, g: Generator) -> Tensor:
    """Rows of x, each next one drawn with probability proportional to its squared distance to those drawn."""
    seeds = [x[int(torch.randint(len(x), (), generator=g))]]
    squares = (x - seeds[0]).square().sum(1)
    for _ in range(size - 1):
        seeds.append(x[int(torch.multinomial(squares + 1e-300, 1, generator=g))])
        squares = torch.minimum(squares, (x - seeds[-1]).square().sum(1))
    return torch.stack(seeds)


def _maximise(x: Tensor, responsibility: Tensor) -> Mixture:
    """The mixture that responsibilities [n, K] make most likely, but for a small ridge on the variances."""
    mass = responsibility.sum(0).clamp(min=1e-10)
    means = responsibility.mT @ x / mass[:, None]
    offset = x - means[:, None]  # [K, n, L]
    covariance = (offset * responsibility.mT[..., None]).mT @ offset / mass[:, None, None]
    covariance = covariance + _RIDGE * torch.eye(x.shape[1], dtype=x.dtype)
    return Mixture((mass / mass.sum()).log(), means, torch.linalg.cholesky(covariance))


def choose_size(x: Tensor, sizes: Sequence[int], g: Generator) -> int:
    """The number of components with the highest mean log-likelihood of held-out fifths of x [n, L]."""
    fold = torch.randperm(len(x), generator=g) % _FOLDS
    scores = [
        sum(float(fit_mixture(x[fold != k], size, g).log_density(x[fold == k]).sum()) for k in range(_FOLDS))
        for size in sizes
    ]
    return sizes[scores.index(max(scores))]


class MixtureDetector(Detector):
    """Scores a feature vector by -ln p under a mixture of full Gaussians, fitted to standardised inliers.

    The number of components, of 2, 4, ..., 20, is the one that held-out inliers are likeliest under.

    Source: Mahmood, Oliva and Styner, Multiscale Score Matching for Out-of-Distribution Detection, 2021,
    arXiv 2010.13132 (its code; 10 folds there).
    """

    def __init__(self, standard: Standard, mixture: Mixture) -> None:
        super().__init__()
        self.standard, self.mixture = standard, mixture

    @classmethod
    def fit(cls, features: Tensor, *, seed: int = 0, sizes: Sequence[int] = SIZES) -> Self:
        """Choose a size and fit with it, on all inliers [n, L]."""
        check_features(features, _FOLDS * (features.shape[1] + 1))
        standard, g = Standard(features.double()), generator("mixture", seed)
        x = standard(features)
        return cls(standard, fit_mixture(x, choose_size(x, sizes, g), g))

    @classmethod
    def restore(cls, tensors: Mapping[str, Tensor]) -> Self:
        """The detector whose `state_dict` this is."""
        standard = Standard(tensors["standard.mean"].expand(2, -1))
        standard.load_state_dict({name: tensors[f"standard.{name}"] for name in ("mean", "std")})
        names = ("log_weights", "means", "factors")
        return cls(standard, Mixture(*(tensors[f"mixture.{name}"] for name in names)))

    def forward(self, features: Tensor) -> Tensor:
        """-ln p [m] of features [m, L]."""
        return -self.mixture.log_density(self.standard(features))
