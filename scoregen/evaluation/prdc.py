"""Precision, recall, density and coverage: where the samples lie in balls around their neighbours."""

from dataclasses import dataclass

import torch
from torch import Tensor

from scoregen.errors import UserError
from scoregen.evaluation.result import Score
from scoregen.evaluation.running import device_of_sums
from scoregen.evaluation.store import Sample

PRECISION_K, DENSITY_K = 3, 5
_CHUNK = 1024  # rows of a distance matrix at a time


@dataclass(frozen=True)
class Manifolds:
    """The four scores of one comparison."""

    precision: Score
    recall: Score
    density: Score
    coverage: Score


def compare_manifolds(drawn: Sample, real: Sample) -> Manifolds:
    """Compare by balls around each sample, as far as its k-th nearest neighbour on its own side.

    Precision: the share of generated samples in the ball of any real one (k = 3); recall: with the sides
    exchanged. Density: in how many real balls a generated sample lies, over k (k = 5); coverage: the share of
    real balls that hold a generated sample (k = 5). Balls are closed, as in the first source's and in
    torch-fidelity's code; the `prdc` package leaves their border out.

    Source: T. Kynkaanniemi et al., Improved Precision and Recall Metric for Assessing Generative Models,
    2019, arXiv 1904.06991; M. F. Naeem et al., Reliable Fidelity and Diversity Metrics for Generative Models,
    2020, arXiv 2002.09797.

    Raises:
        UserError: a side has no k-th neighbour.
    """
    device = device_of_sums(drawn.features.device)
    x, y = (sample.features.to(device, torch.float64) for sample in (real, drawn))
    if min(len(x), len(y)) <= DENSITY_K:
        raise UserError(f"precision, recall, density and coverage need more than {DENSITY_K} images a side")
    radii, drawn_radii = squared_radii(x, (PRECISION_K, DENSITY_K)), squared_radii(y, (PRECISION_K,))
    precise = torch.zeros(len(y), dtype=torch.bool, device=device)
    recalled, covered, in_balls = [], [], []
    for start in range(0, len(x), _CHUNK):
        rows = slice(start, start + _CHUNK)
        squares = squared_distances(x[rows], y)  # real by generated
        dense = squares <= radii[rows, 1:]
        precise |= (squares <= radii[rows, :1]).any(0)
        recalled.append((squares <= drawn_radii[:, 0]).any(1))
        covered.append(dense.any(1))
        in_balls.append(dense.sum())
    density = torch.stack(in_balls).sum() / (DENSITY_K * len(y))
    shares = (part.double().mean() for part in (precise, torch.cat(recalled), torch.cat(covered)))
    precision, recall, coverage = (Score(float(share), drawn.n) for share in shares)
    return Manifolds(precision, recall, Score(float(density), drawn.n), coverage)


def squared_radii(x: Tensor, ks: tuple[int, ...]) -> Tensor:
    """Squared distances [n, len(ks)] of each of x [n, d] to its k-th nearest other sample, for each k."""
    picks = torch.tensor(ks, device=x.device)  # the smallest distance is that to itself
    rows = []
    for start in range(0, len(x), _CHUNK):
        squares = squared_distances(x[start : start + _CHUNK], x)
        rows.append(squares.topk(max(ks) + 1, largest=False, sorted=True).values[:, picks])
    return torch.cat(rows)


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """|x_i - y_j|^2 [n, m] of float64 x [n, d] and y [m, d]."""
    return (x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T).clamp_min(0)
