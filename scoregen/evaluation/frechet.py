"""The Frechet distance between two feature distributions, from float64 moments that stream and merge."""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from scoregen.errors import UserError
from scoregen.evaluation.processes import Processes
from scoregen.evaluation.running import Arrays, device_of_sums
from scoregen.rng import generator


@dataclass(frozen=True)
class Gaussian:
    """The normal distribution that a set of features is reduced to.

    Args:
        mean: [d], float64.
        cov: [d, d], float64, unbiased (divisor n - 1).
        n: how many features it was estimated from; None where a foreign file does not say.
    """

    mean: Tensor
    cov: Tensor
    n: int | None = None

    @property
    def dim(self) -> int:
        """The number of features d."""
        return self.mean.numel()

    @property
    def rank(self) -> int:
        """An upper bound of the covariance's rank: min(d, n - 1)."""
        return self.dim if self.n is None else min(self.dim, self.n - 1)

    @cached_property
    def cholesky(self) -> Tensor | None:
        """L with cov = L L^T, kept for the next comparison; None where cov is not positive definite."""
        if self.rank < self.dim:
            return None
        factor: Tensor
        factor, info = torch.linalg.cholesky_ex(self.cov)
        return factor if int(info) == 0 else None

    @cached_property
    def root(self) -> Tensor:
        """R [d, r] with cov = R R^T, r at least the numerical rank; exact for singular covariances.

        Where n tells that the rank r is below d, the range Q [d, r] is found first, from r random mixtures of
        the columns, and R = Q L with L L^T = Q^T cov Q: less than half the time of eigenvectors.
        """
        if self.rank < self.dim:
            return self._root_in_range()
        values, vectors = torch.linalg.eigh(self.cov)
        kept = values > values[-1] * self.dim * torch.finfo(values.dtype).eps
        root: Tensor = vectors[:, kept] * values[kept].sqrt()
        return root

    def _root_in_range(self) -> Tensor:
        columns = torch.randn(self.dim, self.rank, generator=generator("range"), dtype=self.cov.dtype)
        basis: Tensor = torch.linalg.qr(self.cov @ columns).Q
        inner = Gaussian(basis.T @ self.mean, basis.T @ self.cov @ basis)
        return basis @ (inner.root if inner.cholesky is None else inner.cholesky)

    @cached_property
    def spectrum(self) -> Tensor:
        """The eigenvalues of cov, ascending, clipped at 0."""
        values: Tensor = torch.linalg.eigvalsh(self.cov).clamp_min(0.0)
        return values


class Moments:
    """Running sums of features: n, sum f and sum f f^T, all float64, so that merging is adding.

    float32 sums are useless here: with mean 100 and standard deviation 0.01 the variance drowns.

    Args:
        dim: the number of features d.
        device: where the features come out; the sums live there, or on the CPU where it has no float64.
    """

    keys: ClassVar[tuple[str, ...]] = ("mu", "sigma")

    def __init__(self, dim: int, device: torch.device | str = "cpu") -> None:
        device = device_of_sums(device)
        self.n = torch.zeros((), dtype=torch.float64, device=device)
        self.sum = torch.zeros(dim, dtype=torch.float64, device=device)
        self.outer = torch.zeros(dim, dim, dtype=torch.float64, device=device)

    def update(self, features: Tensor, index: np.ndarray | None = None) -> None:
        """Add features [B, d]; B may be 0. Sums do not depend on which images they are of."""
        block = features.to(self.sum.device, torch.float64)
        self.n += len(block)
        self.sum += block.sum(0)
        self.outer.addmm_(block.T, block)

    def state(self) -> tuple[Tensor, Tensor, Tensor]:
        """(n [], sum [d], outer [d, d]): what checkpoints store and processes add up."""
        return self.n, self.sum, self.outer

    @classmethod
    def of_state(cls, state: tuple[Tensor, Tensor, Tensor]) -> "Moments":
        """The moments that `state()` came from."""
        moments = cls.__new__(cls)
        moments.n, moments.sum, moments.outer = state
        return moments

    def merge(self, other: "Moments") -> "Moments":
        """The moments of both sets together; associative and commutative."""
        ours, theirs = self.state(), other.state()
        return Moments.of_state((ours[0] + theirs[0], ours[1] + theirs[1], ours[2] + theirs[2]))

    def reduce(self, processes: Processes) -> "Moments":
        """The moments over all processes, on every one of them."""
        n, total, outer = (processes.sum(tensor.clone()) for tensor in self.state())
        return Moments.of_state((n, total, outer))

    def summary(self) -> Gaussian:
        """The mean and the unbiased covariance, on the CPU.

        Raises:
            UserError: fewer than two features.
            ValueError: a feature is not finite.
        """
        n, total, outer = (t.cpu() for t in self.state())
        count = int(n)
        if count < 2:
            raise UserError(f"a Frechet distance needs at least 2 images on each side, not {count}")
        if not (torch.isfinite(total).all() and torch.isfinite(outer).all()):
            raise ValueError(f"among {count} features some are not finite (NaN or infinity)")
        mean = total / count
        cov = (outer - count * torch.outer(mean, mean)) / (count - 1)
        return Gaussian(mean, (cov + cov.T) / 2, count)

    @staticmethod
    def write(summary: Gaussian) -> dict[str, np.ndarray]:
        """EDM's layout: `mu` [d] and `sigma` [d, d]."""
        return {"mu": summary.mean.numpy(), "sigma": summary.cov.numpy()}

    @staticmethod
    def read(arrays: Arrays, n: int | None) -> Gaussian:
        """`mu` and `sigma`."""
        mean, cov = (torch.from_numpy(np.asarray(arrays[key], dtype=np.float64)) for key in ("mu", "sigma"))
        finite = bool(torch.isfinite(mean).all() and torch.isfinite(cov).all())
        if mean.ndim != 1 or cov.shape != (len(mean), len(mean)) or not finite:
            raise ValueError(
                f"mu {tuple(mean.shape)} and sigma {tuple(cov.shape)} are not a finite mean [d] and "
                "covariance [d, d]"
            )
        return Gaussian(mean, cov, n)


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """Compute |mu_a - mu_b|^2 + tr(S_a) + tr(S_b) - 2 tr((S_a S_b)^(1/2)), clipped at 0.

    The last trace is the sum of the square roots of the eigenvalues of L^T S L, where L L^T is the Cholesky
    factorisation of one covariance and S the other: symmetric, so no complex matrix square root is taken.
    Where neither covariance is positive definite (n <= d, dead features) L becomes the root R [d, r] of one,
    S = R R^T, so that singular covariances are exact too. The factor of `b`, by convention the reference, is
    cached in `b`.

    Source: D. C. Dowson and B. V. Landau, The Frechet distance between multivariate normal distributions,
    1982 (remembered, not read); M. Heusel et al., GANs Trained by a Two Time-Scale Update Rule Converge to a
    Local Nash Equilibrium, 2017, arXiv 1706.08500.

    Raises:
        ValueError: the dimensions differ.
    """
    if a.dim != b.dim:
        raise ValueError(f"the distributions have {a.dim} and {b.dim} features; they must be equally many")
    means = (a.mean - b.mean).square().sum()
    traces = a.cov.trace() + b.cov.trace()
    return max(0.0, float(means + traces - 2 * _trace_of_root(a, b)))


def _trace_of_root(a: Gaussian, b: Gaussian) -> Tensor:
    """tr((S_a S_b)^(1/2))."""
    if b.cholesky is not None:
        product = _congruence(b.cholesky, a.cov)
    elif a.cholesky is not None:
        product = _congruence(a.cholesky, b.cov)
    else:
        product = b.root.T @ a.cov @ b.root
    values: Tensor = torch.linalg.eigvalsh(product)
    # All but the top eigenvalues, as many as the smaller rank, are rounding, and their roots would add up.
    rank = min(a.rank, b.rank, len(values))
    return values[len(values) - rank :].clamp_min(0.0).sqrt().sum()


def _congruence(factor: Tensor, cov: Tensor, block: int = 256) -> Tensor:
    """The lower triangle of L^T S L, all that eigvalsh reads: half the work, as L is triangular."""
    dim = len(cov)
    product = torch.zeros_like(cov)
    for start in range(0, dim, block):
        stop = min(start + block, dim)
        rows = factor[start:, start:stop].T @ cov[start:]
        product[start:stop, :stop] = rows @ factor[:, :stop]
    return product


def finite_sample_bias(reference: Gaussian, n: int) -> float:
    """Estimate what n perfect samples score, to leading order in 1/n.

    E[FID] = tr(S)/n + 1/(2 (n - 1)) sum_ij l_i l_j (1 + delta_ij) / (l_i + l_j), with l the eigenvalues of
    the reference's covariance S, for normal features and an exact reference (derived, checked by simulation).
    For n below the number of features it is off by up to a third.
    """
    values = reference.spectrum
    values = values[values > 0]
    pairs = torch.outer(values, values) / (values[:, None] + values[None, :])
    return float(values.sum() / n + (pairs.sum() + pairs.diagonal().sum()) / (2 * (n - 1)))
