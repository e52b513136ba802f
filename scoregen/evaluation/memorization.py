"""Whether a model returns its training set: distances of samples to it, and what is read off them."""

from dataclasses import dataclass
from functools import cached_property
from math import sqrt

import torch
from torch import Tensor

from scoregen.denoisers.rows import Nearest, Rows, as_rows, nearest_rows
from scoregen.detection.roc import separate
from scoregen.errors import UserError
from scoregen.images import make_grid
from scoregen.rng import generator

RATIO = (
    1 / 3
)  # of the distances to the two nearest; remembered as the convention of Yoon et al. and Gu et al.
COMPONENTS, CELLS = 64, 3  # of C_T, as in dgm-eval
_LEAST = 20  # samples of each kind that a cell of C_T needs
_MEMORY = 2**24  # numbers in a block of distances


@dataclass(frozen=True)
class Copies:
    """What the distances of n samples to the training set say.

    Args:
        ratio: share of the samples whose nearest training sample is at most a third as far as the next one.
        authentic: share that is farther from its nearest training sample than that is from its own nearest:
            AuthPct / 100; independent draws of the same distribution come to about one half.
        c_t: how much farther from the training set samples are than held-out data, in standard errors of the
            rank test, averaged over cells; well below 0 tells copying, above it underfitting.
        distances: to the nearest training samples, [n] float64, and whose they are, `indices` [n].
    """

    ratio: float
    authentic: float
    c_t: float | None
    distances: Tensor
    indices: Tensor


class TrainingSet:
    """Training samples as points, in pixels or in features, that samples are compared with.

    Args:
        train: [N, ...], uint8 levels of images or floats.
        held_out: of the same distribution, [M, ...], for C_T; None does without.
        seed: of the cells.

    Raises:
        UserError: fewer than three training samples.

    Source: ratio: see `RATIO`; Alaa et al., How Faithful is your Synthetic Data?, 2022, arXiv 2102.08921
    (AuthPct); Meehan, Chaudhuri and Dasgupta, A Non-Parametric Test to Detect Data-Copying in Generative
    Models, 2020, arXiv 2004.05675 (C_T); both as dgm-eval defines them.
    """

    def __init__(self, train: Tensor, held_out: Tensor | None = None, *, seed: int = 0) -> None:
        if len(train) < 3:
            raise UserError(f"{len(train)} training samples: copies can be told from 3 on")
        self.rows, self.count = as_rows(train.flatten(1)), len(train)
        self.train, self.held_out, self.seed = train, held_out, seed

    def __call__(self, samples: Tensor) -> Copies:
        """Compare samples [n, ...] of the same space, n > 0: floats in the model's range, or features."""
        return self.judge(self.place(samples))

    def place(self, samples: Tensor) -> Tensor:
        """Where each sample lies, by itself: [n, 6] float64, rows that processes may share out.

        The distances to the nearest two training samples, the index of the nearest, its distance to its own
        nearest, and the cell and the distance that C_T takes.
        """
        near = _nearest(self.rows, samples.flatten(1).float(), self.count, 2)
        own = self._own_distance(near.indices[:, 0])
        columns = [near.squares.sqrt(), near.indices[:, :1].double(), own[:, None]]
        if self.cells is None:
            columns.append(own.new_zeros(len(samples), 2))
        else:
            cell, distance = self.cells.place(samples)
            columns += [cell[:, None].double(), distance[:, None]]
        return torch.cat(columns, 1)

    def judge(self, places: Tensor) -> Copies:
        """What the places [n, 6] of all samples say."""
        first, second, index, own, cell, distance = places.unbind(1)
        return Copies(
            ratio=float((first <= RATIO * second).double().mean()),
            authentic=float((first > own).double().mean()),
            c_t=None if self.cells is None else self.cells.statistic(cell, distance),
            distances=first,
            indices=index.long(),
        )

    @cached_property
    def cells(self) -> "Cells | None":
        """What C_T is computed in, made when first asked for."""
        return None if self.held_out is None else Cells(self.train, self.held_out, seed=self.seed)

    def _own_distance(self, indices: Tensor) -> Tensor:
        """How far the training samples at indices [n] are from their own nearest, [n]."""
        asked, place = indices.unique(return_inverse=True)
        near = _nearest(self.rows, self.rows.gather(asked), self.count, 2)
        return near.squares[:, 1].sqrt()[place]


class Cells:
    """The k-means cells of the training set in its first principal components, for the statistic C_T.

    Over cells p with at least 20 samples and 20 held-out ones, weighted by their shares of the held-out data,
    C_T = mean of Z_p,  Z = (U - n m / 2) / sqrt(n m (n + m + 1) / 12)
    with U the pairs of n samples and m held-out ones in which the sample is farther from the training set.
    """

    def __init__(self, train: Tensor, held_out: Tensor, *, seed: int = 0) -> None:
        flat = _in_range(train)
        self.mean = flat.mean(0)
        self.axes = principal_axes(flat - self.mean, min(COMPONENTS, *flat.shape), seed=seed)
        points = (flat - self.mean) @ self.axes
        self.rows, self.count = as_rows(points), len(points)
        self.centres = k_means(points, CELLS, seed=seed)
        self.reference = self.place(held_out)

    def place(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """The cells [n] of samples [n, ...] and their distances [n] to the training set."""
        points = (_in_range(samples) - self.mean) @ self.axes
        near = _nearest(self.rows, points, self.count, 1)
        return torch.cdist(points, self.centres).argmin(1), near.squares[:, 0].sqrt()

    def statistic(self, cell: Tensor, distance: Tensor) -> float:
        """C_T of samples in these cells [n] at these distances [n]; NaN where all cells have too few."""
        cell_held, distance_held = self.reference
        total = weight = 0.0
        for k in range(CELLS):
            ours, theirs = distance[cell == k], distance_held[cell_held == k]
            if min(len(ours), len(theirs)) >= _LEAST:
                total += len(theirs) * rank_test(theirs, ours)
                weight += len(theirs)
        return total / weight if weight else float("nan")


def rank_test(reference: Tensor, values: Tensor) -> float:
    """The standard score of the Mann-Whitney test that values [n] exceed a reference [m]; ties count half."""
    n, m = len(values), len(reference)
    return (separate(reference, values).auroc - 0.5) * n * m / sqrt(n * m * (n + m + 1) / 12)


def principal_axes(x: Tensor, count: int, *, seed: int = 0, iterations: int = 8) -> Tensor:
    """About the first `count` principal axes [d, count] of centred rows x [n, d], by subspace iteration."""
    axes = torch.randn(x.shape[1], count, generator=generator("axes", seed)).to(x)
    for _ in range(iterations):
        axes = torch.linalg.qr(x.T @ (x @ axes)).Q
    return axes


def k_means(x: Tensor, count: int, *, seed: int = 0, iterations: int = 50) -> Tensor:
    """The centres [count, d] that Lloyd's iteration reaches on x [n, d] from random rows."""
    centres = x[torch.randperm(len(x), generator=generator("k-means", seed))[:count]]
    for _ in range(iterations):
        cell = torch.cdist(x, centres).argmin(1)
        moved = torch.stack([x[cell == k].mean(0) if (cell == k).any() else centres[k] for k in range(count)])
        if torch.equal(moved, centres):
            break
        centres = moved
    return centres


def closest_pairs(samples: Tensor, copies: Copies, train: Tensor, count: int = 16) -> Tensor:
    """A picture of the `count` samples nearest to training images, each above its own: uint8 [C, H, W].

    Args:
        samples, train: images uint8 [n, C, H, W] and [N, C, H, W].
        copies: of these samples and this training set.
    """
    order = copies.distances.argsort()[:count]
    pairs = torch.cat([samples[order], train[copies.indices[order]]])
    return make_grid(pairs, columns=len(order))


def _in_range(x: Tensor) -> Tensor:
    from scoregen.data.base import to_model_range

    return to_model_range(x).flatten(1).float()


def _nearest(rows: Rows, query: Tensor, count: int, k: int) -> Nearest:
    """`nearest_rows` among all `count` rows, in blocks that fit the memory."""
    found = [nearest_rows(rows, block, slice(0, count), k) for block in query.split(max(1, _MEMORY // count))]
    return Nearest(torch.cat([f.indices for f in found]), torch.cat([f.squares for f in found]))
