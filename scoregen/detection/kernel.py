"""A kernel learned to tell two sets of images apart by their maximum mean discrepancy."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scoregen.errors import UserError
from scoregen.ranges import Positive, PositiveInt
from scoregen.rng import generator

_FEATURES = 300
_TINY = 1e-8  # beneath the root of the variance


class DeepKernel(nn.Module):
    """k(a, b) = ((1 - q) exp(-||phi(a) - phi(b)||^2 / w0) + q) exp(-||a - b||^2 / w).

    phi is two convolutions of stride 2 and a linear layer; q, w0, w are learned along with it. The widths
    start at the median squared distances of `typical` images, q at 0.01.

    Args:
        shape: of an image, [C, H, W].
        seed: of the weights of phi.

    Source: Zhang et al., Detecting Adversarial Data by Probing Multiple Perturbations Using Expected
    Perturbation Score, 2023, arXiv 2305.16035, after Liu et al., Learning Deep Kernels for Non-Parametric
    Two-Sample Tests, 2020, arXiv 2002.09116. The start of the widths is ours, and a group norm for its
    batch norm.
    """

    def __init__(self, shape: tuple[int, ...], *, seed: int = 0) -> None:
        super().__init__()
        channels, height, width = shape
        pixels = ((height + 3) // 4) * ((width + 3) // 4)
        self.first = nn.Conv2d(channels, 16, 3, stride=2, padding=1)
        self.second = nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.norm = nn.GroupNorm(4, 32)
        self.out = nn.Linear(32 * pixels, _FEATURES)
        g = generator("kernel", seed)
        for layer in (self.first, self.second, self.out):
            nn.init.kaiming_uniform_(layer.weight, generator=g)
            layer.register_parameter("bias", nn.Parameter(torch.zeros(len(layer.weight))))
        self.logit_q = nn.Parameter(torch.tensor(0.01).logit())
        self.log_w0 = nn.Parameter(torch.zeros(()))
        self.log_w = nn.Parameter(torch.zeros(()))

    @torch.no_grad()
    def set_widths(self, typical: Tensor) -> None:
        """Start the widths at the median squared distances of images [n, C, H, W], n > 1."""
        for parameter, x in ((self.log_w0, self.features(typical)), (self.log_w, typical.flatten(1))):
            squares = _squares(x, x)
            parameter.copy_(squares[~torch.eye(len(x), dtype=torch.bool)].median().clamp(min=1e-30).log())

    def features(self, x: Tensor) -> Tensor:
        """phi(x), [n, 300]."""
        h = F.leaky_relu(self.first(x), 0.2)
        h = self.norm(F.leaky_relu(self.second(h), 0.2))
        out: Tensor = self.out(h.flatten(1))
        return out

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """k(a_i, b_j), [n, m], of images [n, C, H, W] and [m, C, H, W]."""
        near = (-_squares(self.features(a), self.features(b)) / self.log_w0.exp()).exp()
        q = self.logit_q.sigmoid()
        return ((1 - q) * near + q) * (-_squares(a.flatten(1), b.flatten(1)) / self.log_w.exp()).exp()


def _squares(a: Tensor, b: Tensor) -> Tensor:
    """||a_i - b_j||^2, [n, m], of rows [n, d] and [m, d]: expanded about their mean, and never negative."""
    centre = b.mean(0, keepdim=True)
    a, b = a - centre, b - centre
    return (a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T).clamp(min=0)


def discrepancy(xx: Tensor, yy: Tensor, xy: Tensor) -> tuple[Tensor, Tensor]:
    """The unbiased squared MMD of paired samples and the estimate of its variance where they differ, [] each.

    MMD^2 = sum_{i != j} h_ij / (n (n - 1)),  h_ij = k(x_i, x_j) + k(y_i, y_j) - k(x_i, y_j) - k(x_j, y_i);
    4 (mean_i (mean_j h_ij)^2 - (mean_ij h_ij)^2) / n is the variance, here without its 1 / n.

    Args:
        xx, yy, xy: kernel matrices [n, n].
    """
    h, n = xx + yy - xy - xy.T, len(xx)
    h = h - h.diagonal().diag()
    rows = h.mean(1)
    return h.sum() / (n * (n - 1)), 4 * (rows.square().mean() - rows.mean().square())


def fit_kernel(
    inliers: Tensor,
    outliers: Tensor,
    *,
    epochs: PositiveInt = 60,
    batch: PositiveInt = 250,
    lr: Positive = 2e-3,
    seed: int = 0,
) -> DeepKernel:
    """The kernel that maximises MMD^2 / sqrt(variance) between inliers and outliers, [n, C, H, W] each.

    Raises:
        UserError: fewer than four images on a side, or images that are not finite.
    """
    _check(inliers, outliers)
    kernel = DeepKernel(tuple(inliers.shape[1:]), seed=seed).to(inliers.device)
    kernel.set_widths(torch.cat([inliers[:batch], outliers[:batch]]))
    optimizer = torch.optim.Adam(kernel.parameters(), lr=lr)
    for x, y in _pairs(inliers, outliers, epochs, batch, seed):
        value, variance = discrepancy(kernel(x, x), kernel(y, y), kernel(x, y))
        optimizer.zero_grad()
        (-value / (variance + _TINY).sqrt()).backward()
        optimizer.step()
    return kernel.eval().requires_grad_(False)


def _pairs(x: Tensor, y: Tensor, epochs: int, batch: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of equal size from both sets, each in an order of its own."""
    g, n = generator("kernel pairs", seed), min(len(x), len(y))
    batch = min(batch, n)
    for _ in range(epochs):
        orders = [torch.randperm(len(z), generator=g)[:n].to(z.device) for z in (x, y)]
        for start in range(0, n - batch + 1, batch):
            a, b = (order[start : start + batch] for order in orders)
            yield x[a], y[b]


def _check(inliers: Tensor, outliers: Tensor) -> None:
    if min(len(inliers), len(outliers)) < 4 or inliers.ndim != 4:
        raise UserError(
            f"a kernel is learned from 4 images at least on each side, got {tuple(inliers.shape)} and "
            f"{tuple(outliers.shape)}"
        )
    if not (inliers.isfinite().all() and outliers.isfinite().all()):
        raise UserError(
            "scores are not finite: the model has diverged, or its range does not reach down there"
        )
