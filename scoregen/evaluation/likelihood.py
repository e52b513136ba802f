"""The log-likelihood of a denoiser's probability flow, measured against the flow of a Gaussian."""

from collections.abc import Callable
from copy import deepcopy
from math import log, log2, sqrt
from typing import NamedTuple

import torch
from torch import Tensor

from scoregen.denoisers.base import Cond, Denoiser
from scoregen.denoisers.gaussian import GaussianDenoiser
from scoregen.denoisers.moments import Gaussian
from scoregen.errors import UserError
from scoregen.evaluation.ode import DormandPrince, OdeSolver
from scoregen.ranges import Positive, PositiveInt
from scoregen.rng import Rng

BIN = 1 / 127.5  # width of a level of uint8 in the model's range
_ADAPTIVE = DormandPrince()


class LogLikelihood(NamedTuple):
    """log p(x; sigma_min) of each sample."""

    nats: Tensor  # [B] float64
    evaluations: Tensor  # of the denoiser with its derivative, int64 [B]


class FlowLikelihood:
    """Integrates the probability flow from sigma_min to sigma_max along with its change of volume.

    The state y is x carried back to sigma_min by the flow of the Gaussian N(mu, Sigma) with the data's
    moments, and only what the denoiser D does otherwise than that Gaussian's, G, is left to integrate:

    dy / d ln sigma = A^-1 (G - D)(x; sigma),  x = mu + A (y - mu),
    A = ((Sigma + sigma^2) / (Sigma + sigma_min^2))^(1/2),
    log p(x; sigma_min) = log N(y(sigma_max); mu, Sigma + sigma_min^2) + int tr d(G - D)/dx d ln sigma

    This is the likelihood under the prior N(mu, Sigma + sigma_max^2), and exact for Gaussian data however
    coarse the solver. The trace is v^T d(G - D)/dx v averaged over a trajectory's own Rademacher probes v, of
    which G takes most of the variance away; the same randomness gives the same number whatever the batch.

    Args:
        denoiser: D, differentiable.
        prior: the data's Gaussian (`measure_gaussian`), by class for a denoiser that is given classes.
        solver: adaptive with a tolerance, or in fixed steps.
        probes: how many; None takes the exact trace, at d backward passes an evaluation.
        sigma_min, sigma_max: of the flow, clamped to the denoiser's range.

    Raises:
        UserError: a prior of other samples; a denoiser without a derivative.

    Source: Song et al., Score-Based Generative Modeling through Stochastic Differential Equations, 2021,
    arXiv 2011.13456. The Gaussian's part in state, trace and prior is ours.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        prior: Gaussian,
        *,
        solver: OdeSolver = _ADAPTIVE,
        probes: PositiveInt | None = 1,
        sigma_min: Positive = 0.002,
        sigma_max: Positive = 80.0,
    ) -> None:
        if tuple(prior.shape) != tuple(denoiser.shape):
            raise UserError(
                f"a prior of samples {tuple(prior.shape)} does not fit a denoiser of {tuple(denoiser.shape)}"
            )
        self.denoiser, self.prior = denoiser, _in_float64(prior)
        self.solver, self.probes = solver, probes
        self.sigma_min = max(sigma_min, denoiser.sigma_min)
        self.sigma_max = min(sigma_max, denoiser.sigma_max)

    def __call__(self, x: Tensor, rng: Rng, cond: Cond = None) -> LogLikelihood:
        """log p of x [B, *shape] in the model's range, of the classes cond [B]; computed in float64."""
        x, dim = x.double(), x[0].numel()
        low, high = self.sigma_min, self.sigma_max
        probes = self._probes(x, rng)
        start = torch.cat([x.flatten(1), x.new_zeros(len(x), 1)], 1)

        def field(t: Tensor, state: Tensor, rows: Tensor) -> Tensor:
            classes = None if cond is None else cond[rows]
            y = state[:, :-1].reshape(-1, *x.shape[1:])
            slope, trace = self._residual(y, t.exp().clamp(low, high), classes, probes[:, rows])
            # An error of the trace then counts in nats a dimension, as one of y counts by element.
            return torch.cat([slope.flatten(1), trace[:, None] / sqrt(dim)], 1)

        end, evaluations = self.solver(field, start, log(low), log(high))
        y = end[:, :-1].reshape(x.shape)
        nats = self.prior.log_density(y, x.new_tensor(low), cond) + end[:, -1] * sqrt(dim)
        return LogLikelihood(nats, evaluations)

    def _probes(self, x: Tensor, rng: Rng) -> Tensor:
        """Directions [K, B, *shape] of which the mean of v^T J v estimates the trace of J, or is it."""
        dim = x[0].numel()
        if self.probes is None:
            basis = torch.eye(dim, dtype=x.dtype, device=x.device) * sqrt(dim)
            return basis.reshape(dim, 1, *x.shape[1:]).expand(-1, len(x), *x.shape[1:])
        signs = rng.randn(self.probes, *x.shape[1:]).transpose(0, 1).to(x)
        return torch.where(signs < 0, -1.0, 1.0).to(x)

    def _residual(self, y: Tensor, sigma: Tensor, cond: Cond, probes: Tensor) -> tuple[Tensor, Tensor]:
        """dy / d ln sigma and the trace's part, for states y [b, *shape] at sigma [b]."""
        low = y.new_tensor(self.sigma_min)
        x = self.prior.flow(y, low, sigma, cond)
        difference, trace = trace_along(
            lambda x: self.prior(x, sigma, cond) - self._denoise(x, sigma, cond), x, probes
        )
        return self.prior.flow(x + difference, sigma, low, cond) - y, trace

    def _denoise(self, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        denoised: Tensor = self.denoiser(x, sigma, cond).to(x)
        if not denoised.requires_grad:
            raise UserError(f"{type(self.denoiser).__name__} has no derivative, which a likelihood needs")
        return denoised


def trace_along(function: Callable[[Tensor], Tensor], x: Tensor, probes: Tensor) -> tuple[Tensor, Tensor]:
    """f(x) [b, *shape] and the mean over probes v [K, b, *shape] of v^T (df/dx) v, [b].

    The derivative is that of each sample by itself; no graph is kept.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        value = function(x)
        trace = x.new_zeros(len(x))
        for v in probes:
            (pulled,) = torch.autograd.grad(value, x, v, retain_graph=True)
            trace += (pulled * v).flatten(1).sum(1)
    return value.detach(), trace / len(probes)


def dequantise(images: Tensor, rng: Rng) -> Tensor:
    """Spread levels uint8 [B, *shape] uniformly over their bins: (u + U(-1/2, 1/2)) / 127.5 - 1, float64."""
    uniform = torch.special.ndtr(rng.randn(*images.shape[1:], dtype=torch.float64))
    spread: Tensor = (images.to(uniform) + uniform - 0.5) * BIN - 1
    return spread


def bits_per_dimension(nats: Tensor, dim: int, bin_width: float = BIN) -> Tensor:
    """-log2(p(x) w^d) / d for log densities [B] in nats: code length of a cell of width w in each dimension.

    For x = u / 127.5 - 1 the offset -log2 w is 6.9944. On uniformly dequantised x the mean is an upper bound
    of that of the discrete levels. A width of 1 gives the differential value.
    """
    return -nats / (dim * log(2)) - log2(bin_width)


def _in_float64(gaussian: Gaussian) -> Gaussian:
    """A copy whose eigenvectors are orthonormal in float64, not only in the precision they were stored in."""
    precise = deepcopy(gaussian).double()
    for member in precise.modules():
        if isinstance(member, GaussianDenoiser) and (basis := member.eigenvectors) is not None:
            identity = torch.eye(basis.shape[1], dtype=basis.dtype, device=basis.device)
            member.eigenvectors = basis @ (3 * identity - basis.T @ basis) / 2
    return precise
