"""Time the Frechet distance of 2048 features against SciPy's sqrtm and torchmetrics, and print errors and
ratios.

    python -m benchmarks.frechet [--dim 2048] [--repeats 3] [--threads 1]

CPU seconds, interleaved, medians. The error is relative, against the exact value of a pair of covariances
with shared eigenvectors; `decades` is the spread of their spectra.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor

from scoregen.evaluation.frechet import Gaussian, Moments, frechet_distance


def pair(dim: int, decades: float) -> tuple[Gaussian, Gaussian, float]:
    """Two Gaussians with common eigenvectors, and their exact distance |d|^2 + sum (sqrt l - sqrt l')^2."""
    g = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(dim, dim, generator=g, dtype=torch.float64))[0]
    first = torch.logspace(0, -decades, dim, dtype=torch.float64)
    second = first * torch.empty(dim, dtype=torch.float64).uniform_(0.5, 2.0, generator=g)
    means = torch.randn(2, dim, generator=g, dtype=torch.float64) * 0.01
    exact = (means[0] - means[1]).square().sum() + (first.sqrt() - second.sqrt()).square().sum()
    a, b = (
        Gaussian(m, (c + c.T) / 2)
        for m, c in zip(means, ((basis * v) @ basis.T for v in (first, second)), strict=True)
    )
    return a, b, float(exact)


def deficient(dim: int) -> tuple[Gaussian, Gaussian]:
    """Moments of fewer samples than features, on both sides."""
    g = torch.Generator().manual_seed(1)
    sides = []
    for scale in (1.0, 1.3):
        moments = Moments(dim)
        moments.update(scale * torch.randn(dim // 2, dim, generator=g, dtype=torch.float64))
        sides.append(moments.summary())
    return sides[0], sides[1]


def with_scipy(a: Gaussian, b: Gaussian) -> float:
    """The usual route of pytorch-fid, clean-fid and EDM."""
    from scipy.linalg import sqrtm

    root = torch.from_numpy(sqrtm((a.cov @ b.cov).numpy()).real)
    return float((a.mean - b.mean).square().sum() + a.cov.trace() + b.cov.trace() - 2 * root.trace())


def with_torchmetrics(a: Gaussian, b: Gaussian) -> float:
    """Eigenvalues of the unsymmetric product, as in torchmetrics and torch-fidelity."""
    from torchmetrics.image.fid import _compute_fid

    value: Tensor = _compute_fid(a.mean, a.cov, b.mean, b.cov)
    return float(value)


def fresh(g: Gaussian) -> Gaussian:
    """The same Gaussian without its cached factors."""
    return Gaussian(g.mean, g.cov, g.n)


def main() -> None:
    """Print one table for full-rank pairs and one for rank-deficient ones."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for decades in (3.0, 6.0, 9.0):
        a, b, exact = pair(args.dim, decades)
        print(f"\nfull rank, spectra over {decades:g} decades, {args.dim} features, exact {exact:.6f}")
        report(a, b, exact, args.repeats)
    a, b = deficient(args.dim)
    exact = float(
        (a.mean - b.mean).square().sum()
        + a.cov.trace()
        + b.cov.trace()
        - 2 * torch.linalg.svdvals(a.root.T @ b.root).sum()
    )
    print(
        f"\nrank-deficient, n = {args.dim // 2} on both sides, {args.dim} features, nuclear norm {exact:.6f}"
    )
    report(a, b, exact, args.repeats)


def report(a: Gaussian, b: Gaussian, exact: float, repeats: int) -> None:
    """Time every route on one pair."""
    cached = fresh(b)
    frechet_distance(a, cached)
    routes: dict[str, Callable[[], float]] = {
        "scoregen": lambda: frechet_distance(fresh(a), fresh(b)),
        "scoregen, reference cached": lambda: frechet_distance(fresh(a), cached),
        "torchmetrics": lambda: with_torchmetrics(a, b),
        "scipy sqrtm": lambda: with_scipy(a, b),
    }
    times: dict[str, list[float]] = {name: [] for name in routes}
    values: dict[str, float] = {}
    for _ in range(repeats):
        for name, route in routes.items():
            start = time.process_time()
            values[name] = route()
            times[name].append(time.process_time() - start)
    base = median(times["scoregen"])
    print(f"{'route':28s} {'s':>8s} {'ratio':>7s} {'relative error':>15s}")
    for name in routes:
        error = abs(values[name] - exact) / exact
        print(f"{name:28s} {median(times[name]):8.2f} {median(times[name]) / base:7.1f} {error:15.1e}")


if __name__ == "__main__":
    main()
