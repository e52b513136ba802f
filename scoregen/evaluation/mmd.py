"""Kernel distances: the maximum mean discrepancy, KID and CMMD."""

from collections.abc import Callable

import torch
from torch import Tensor

from scoregen.evaluation.result import Score
from scoregen.evaluation.running import device_of_sums
from scoregen.evaluation.store import Sample
from scoregen.rng import generator

Kernel = Callable[[Tensor, Tensor], Tensor]  # [A, d], [B, d] -> [A, B]

KID_SUBSETS, KID_SIZE = 100, 1000
CMMD_SIGMA, CMMD_SCALE = 10.0, 1000.0
_CHUNK = 2048  # rows of a kernel matrix at a time


def cubic(x: Tensor, y: Tensor) -> Tensor:
    """(x . y / d + 1)^3."""
    return (x @ y.T / x.shape[1] + 1).pow(3)


def gaussian(sigma: float) -> Kernel:
    """exp(-|x - y|^2 / (2 sigma^2))."""

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        squares = x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T
        return squares.clamp_min(0).div(-2 * sigma**2).exp()

    return kernel


def squared_mmd(kernel: Kernel, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """MMD^2 of samples x [n, d] and y [m, d]: the unbiased estimate and the V-statistic, float64 scalars.

    V = mean k(x, x') + mean k(y, y') - 2 mean k(x, y) over all pairs; the unbiased one leaves out pairs of a
    sample with itself, which make V too large by O(1/n).

    Source: A. Gretton et al., A Kernel Two-Sample Test, 2012, equations 3 and 5.
    """
    x, y = x.double(), y.double()
    between = _sum(kernel, x, y) / (len(x) * len(y))
    unbiased, v_statistic = -2 * between, -2 * between
    for z in (x, y):
        n, within = len(z), _sum(kernel, z, z)
        unbiased = unbiased + (within - _diagonal(kernel, z)) / (n * (n - 1))
        v_statistic = v_statistic + within / n**2
    return unbiased, v_statistic


def _sum(kernel: Kernel, x: Tensor, y: Tensor) -> Tensor:
    """The sum of k over all pairs, in chunks."""
    return torch.stack([kernel(a, b).sum() for a in x.split(_CHUNK) for b in y.split(_CHUNK)]).sum()


def _diagonal(kernel: Kernel, x: Tensor) -> Tensor:
    """The sum of k(x_i, x_i)."""
    return torch.stack([kernel(a, a).diagonal().sum() for a in x.split(64)]).sum()


def kid(drawn: Sample, real: Sample) -> Score:
    """KID: the mean of the unbiased MMD^2 with the cubic kernel over 100 pairs of random subsets of 1,000.

    The subsets are drawn with fixed seeds; `spread` is the standard deviation over them. Where a side has
    fewer than 1,000 images, subsets have as many as the smaller side.

    Source: M. Binkowski et al., Demystifying MMD GANs, 2018, arXiv 1801.01401.
    """
    x, y = _together(drawn, real)
    size = min(KID_SIZE, len(x), len(y))
    values = []
    for subset in range(KID_SUBSETS):
        g = generator("kid", subset)
        rows = [torch.randperm(len(z), generator=g)[:size].to(z.device) for z in (x, y)]
        values.append(squared_mmd(cubic, x[rows[0]], y[rows[1]])[0])
    mmd = torch.stack(values).cpu()
    note = "" if size == KID_SIZE else f"subsets of {size} images, not {KID_SIZE:,}"
    return Score(float(mmd.mean()), drawn.n, spread=float(mmd.std()), note=note)


def cmmd(drawn: Sample, real: Sample) -> Score:
    """CMMD: 1000 MMD^2 of unit-length features with a Gaussian kernel of sigma = 10, the V-statistic.

    The V-statistic is what is published; it is too large by O(1/n). `unbiased` is without that.

    Source: S. Jayasumana et al., Rethinking FID: Towards a Better Evaluation Metric for Image Generation,
    2024, arXiv 2401.09603.
    """
    x, y = (z.double() / z.double().norm(dim=1, keepdim=True) for z in _together(drawn, real))
    unbiased, v_statistic = squared_mmd(gaussian(CMMD_SIGMA), x, y)
    details = {"unbiased": CMMD_SCALE * float(unbiased)}
    return Score(CMMD_SCALE * float(v_statistic), drawn.n, details=details)


def _together(drawn: Sample, real: Sample) -> tuple[Tensor, Tensor]:
    """The features of both sides on one device that has float64."""
    device = device_of_sums(drawn.features.device)
    return drawn.features.to(device), real.features.to(device)
