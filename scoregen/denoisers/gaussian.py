"""The exact denoiser of Gaussian data, and the exact solution of its probability flow."""

from collections.abc import Callable, Iterator, Sequence
from math import inf, log, pi, prod

import torch
from torch import Tensor, nn

from scoregen.denoisers.base import Cond, expand
from scoregen.errors import UserError


class GaussianDenoiser(nn.Module):
    """Denoises x0 ~ N(mu, Sigma) exactly, Sigma = U diag(lambda) U^T + tail (I - U U^T).

    D(x; sigma) = mu + f(lambda) along each eigenvector + f(tail) in the rest, of x - mu,
    f(lambda) = lambda / (lambda + sigma^2)

    The tail is that of probabilistic PCA: the mean variance of the directions that were left out. The work
    is done in the wider of the dtypes of x and mean. Unconditional: class ids are ignored.

    Args:
        mean: mu [*shape].
        variances: lambda, [r] along the eigenvectors, or broadcastable to [*shape] without them.
        eigenvectors: U [d, r] with orthonormal columns, d = prod(shape); None is the identity.
        tail: variance of the directions outside the span of the eigenvectors.

    Raises:
        UserError: for a negative variance or eigenvectors that do not fit.

    Source: Wang and Vastola, The Unreasonable Effectiveness of Gaussian Score Approximation for Diffusion
    Models and its Applications, 2024, arXiv 2412.09726. The tail is ours, after Tipping and Bishop,
    Probabilistic Principal Component Analysis, 1999.
    """

    mean: Tensor
    variances: Tensor
    eigenvectors: Tensor | None
    tail: Tensor

    def __init__(
        self,
        mean: Tensor,
        variances: Tensor,
        *,
        eigenvectors: Tensor | None = None,
        tail: float | Tensor = 0.0,
    ) -> None:
        super().__init__()
        self.shape, self.num_classes = tuple(mean.shape), 0
        self.sigma_min, self.sigma_max = 0.0, inf
        tail = torch.as_tensor(tail, dtype=variances.dtype)
        lowest = min(float(variances.min()) if variances.numel() else 0.0, float(tail))
        if lowest < 0:
            raise UserError(f"GaussianDenoiser: a variance is negative: {lowest:g}")
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
        self.register_buffer("tail", tail)

    @classmethod
    def from_covariance(
        cls, mean: Tensor, covariance: Tensor, *, rank: int | None = None
    ) -> "GaussianDenoiser":
        """The denoiser of N(mean [*shape], covariance [d, d]), d = prod(shape).

        With a rank below d only the largest variances keep their directions, the others share their mean.
        """
        variances, eigenvectors = torch.linalg.eigh(covariance)
        variances, rank = variances.clamp(min=0), len(variances) if rank is None else rank
        rest, kept = variances.tensor_split([len(variances) - rank])
        tail = rest.mean() if len(rest) else 0.0
        return cls(mean, kept, eigenvectors=eigenvectors[:, len(rest) :], tail=tail)

    def forward(self, x: Tensor, sigma: Tensor, cond: Cond = None) -> Tensor:
        """E[x0 | x] for x [B, *shape] and sigma [] or [B]."""
        noise = expand(sigma, x.flatten(1)).to(self._dtype(x)).square()
        tiny = torch.finfo(noise.dtype).tiny  # without noise, a direction without variance gives its mean
        return self._scaled(x, lambda variance: variance / (variance + noise).clamp(min=tiny))

    def flow(self, x: Tensor, sigma: Tensor, sigma_next: Tensor, cond: Cond = None) -> Tensor:
        """Carry x [B, *shape] along the probability flow from sigma to sigma_next, [] or [B], exactly.

        x' = mu + sqrt((lambda + sigma'^2) / (lambda + sigma^2)) of x - mu, along each eigenvector; sigma > 0.
        """
        dtype = self._dtype(x)
        before = expand(sigma, x.flatten(1)).to(dtype).square()
        after = expand(sigma_next, x.flatten(1)).to(dtype).square()
        return self._scaled(x, lambda variance: ((variance + after) / (variance + before)).sqrt())

    def element_variances(self) -> Tensor:
        """The variance of each element: the diagonal of Sigma, [*shape]."""
        if self.eigenvectors is None:
            return self.variances.view(self.shape)
        diagonal = self.tail + self.eigenvectors.square() @ (self.variances - self.tail)
        return diagonal.clamp(min=0).view(self.shape)

    def log_density(self, x: Tensor, sigma: Tensor, cond: Cond = None) -> Tensor:
        """log N(x; mu, Sigma + sigma^2 I) of x [B, *shape] in nats, [B]; sigma > 0 is [] or [B]."""
        noise = expand(sigma, x.flatten(1)).to(self._dtype(x)).square()
        white = self._scaled(x, lambda variance: (variance + noise).rsqrt()) - self.mean
        rest = x[0].numel() - self.variances.numel()
        logs = (self.variances + noise).log().sum(1) + rest * (self.tail + noise[:, 0]).log()
        return -(white.flatten(1).square().sum(1) + logs + x[0].numel() * log(2 * pi)) / 2

    def _dtype(self, x: Tensor) -> torch.dtype:
        return torch.promote_types(x.dtype, self.mean.dtype)

    def _scaled(self, x: Tensor, factor: Callable[[Tensor], Tensor]) -> Tensor:
        """mu + factor(variance) times the deviation x - mu, direction by direction."""
        dtype = self._dtype(x)
        mean = self.mean.to(dtype).flatten()
        centred = x.to(dtype).flatten(1) - mean
        along = factor(self.variances.to(dtype))
        if self.eigenvectors is None:
            moved = mean + along * centred
        else:
            basis, rest = self.eigenvectors.to(dtype), factor(self.tail.to(dtype))
            moved = mean + rest * centred + ((along - rest) * (centred @ basis)) @ basis.T
        return moved.reshape(x.shape).to(x.dtype)


class ClassGaussianDenoiser(nn.Module):
    """Denoises data that are Gaussian within each class; without a class, or with the null class, all data.

    Args:
        classes: one Gaussian for each class id from 0 up.
        whole: the Gaussian of all data.
    """

    def __init__(self, classes: Sequence[GaussianDenoiser], whole: GaussianDenoiser) -> None:
        super().__init__()
        self.members = nn.ModuleList([*classes, whole])
        self.shape, self.num_classes = whole.shape, len(classes)
        self.sigma_min, self.sigma_max = 0.0, inf

    def forward(self, x: Tensor, sigma: Tensor, cond: Cond = None) -> Tensor:
        """E[x0 | x, class] for x [B, *shape], sigma [] or [B], cond [B]."""
        sigma, out = sigma.expand(len(x)), torch.empty_like(x)
        for member, rows in self._members(x, cond):
            out[rows] = member(x[rows], sigma[rows])
        return out

    def flow(self, x: Tensor, sigma: Tensor, sigma_next: Tensor, cond: Cond = None) -> Tensor:
        """Carry x [B, *shape] along each class's own probability flow from sigma to sigma_next, [] or [B]."""
        sigma, sigma_next, out = sigma.expand(len(x)), sigma_next.expand(len(x)), torch.empty_like(x)
        for member, rows in self._members(x, cond):
            out[rows] = member.flow(x[rows], sigma[rows], sigma_next[rows])
        return out

    def log_density(self, x: Tensor, sigma: Tensor, cond: Cond = None) -> Tensor:
        """log p(x; sigma) within each class, of x [B, *shape] in nats, [B]; sigma > 0 is [] or [B]."""
        sigma, out = sigma.expand(len(x)), x.new_empty(len(x))
        for member, rows in self._members(x, cond):
            out[rows] = member.log_density(x[rows], sigma[rows]).to(out)
        return out

    def _members(self, x: Tensor, cond: Cond) -> Iterator[tuple[GaussianDenoiser, Tensor]]:
        """Each Gaussian that is asked for, and the rows of the batch that ask."""
        if cond is None:
            cond = torch.full((len(x),), self.num_classes, device=x.device)
        for index in cond.unique().tolist():
            member = self.members[index]
            assert isinstance(member, GaussianDenoiser)
            yield member, (cond == index).nonzero().flatten()
