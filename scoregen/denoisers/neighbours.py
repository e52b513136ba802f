"""The empirical denoiser from a part of the training set: nearest neighbours and random others."""

from abc import ABC, abstractmethod
from copy import copy
from math import log
from typing import Self

import torch
from torch import Tensor, nn

from scoregen.denoisers.base import SIGMA_TINY, Cond, is_traced, settled_rows
from scoregen.denoisers.empirical import EmpiricalDenoiser
from scoregen.denoisers.rows import Similarities, nearest_rows, squared_distance, weighted_mean
from scoregen.errors import UserError
from scoregen.ranges import NonNegativeInt, PositiveInt
from scoregen.rng import Rng, generator

REACH = 40.0  # nats below the nearest row, where a row no longer matters


class NeighbourEstimate(nn.Module, ABC):
    """Estimates a posterior mean over the training set from the K nearest samples and some random ones.

    The randomness is settled once for all calls, and by `for_trajectory` for every sample by itself, so that
    a solver sees one smooth field.

    Args:
        training_set: the exact denoiser, whose data these are.
        neighbours: K, at most the size of the smallest class.
        settled: the random numbers behind the estimates, [1 or B, ...].

    Raises:
        UserError: where K is more than there are samples, in any class.
    """

    def __init__(self, training_set: EmpiricalDenoiser, neighbours: int, settled: Tensor) -> None:
        super().__init__()
        self.training_set, self.neighbours, self.settled = training_set, neighbours, settled
        self.shape, self.num_classes = training_set.shape, training_set.num_classes
        self.sigma_min, self.sigma_max = training_set.sigma_min, training_set.sigma_max
        sizes = [part.stop - part.start for part in training_set.parts]
        if neighbours > min(sizes):
            where = "the data have" if len(sizes) == 1 else f"class {sizes.index(min(sizes))} has"
            raise UserError(
                f"neighbours={neighbours}, but {where} only {min(sizes)} samples: take at most as many"
            )

    @abstractmethod
    def settle(self, rng: Rng) -> Tensor:
        """Random numbers for each row of the rng, [B, ...]."""

    @abstractmethod
    def estimate(
        self,
        query: Tensor,
        variance: Tensor,
        indices: Tensor,
        squares: Tensor,
        settled: Tensor,
        part: slice,
    ) -> Tensor:
        """The mean [d] for one query [d] from its neighbours [K], nearest first, and their squared distances.

        `part` are the rows of its class.
        """

    def for_trajectory(self, rng: Rng) -> Self:
        """The same with random numbers of each sample's own, for the rows of the rng."""
        drawn = copy(self)
        drawn.settled = self.settle(rng)
        return drawn

    def forward(self, x: Tensor, sigma: Tensor, cond: Cond = None) -> Tensor:
        """An estimate of E[x0 | x] for x [B, *shape], sigma [] or [B], cond [B]; float32 inside."""
        query, out = x.flatten(1).float(), torch.empty_like(x.flatten(1))
        seen, rows = query.detach(), self.training_set.rows
        variance = sigma.double().expand(len(x)).clamp(min=SIGMA_TINY).square()
        settled = settled_rows(self.settled.to(x.device), len(x))
        for part, members in self.training_set.groups(len(x), cond):
            for block in members.split(self.training_set.block(part)):
                similar = rows.similarities(seen[block], part)
                rest = block if is_traced(x) else self._of_few(similar, query, variance, part, block, out)
                if not len(rest):
                    continue
                if len(rest) < len(block):
                    similar = rows.similarities(seen[rest], part)
                near = nearest_rows(rows, seen[rest], part, self.neighbours, similar)
                for row, indices, squares in zip(rest.tolist(), near.indices, near.squares, strict=True):
                    if is_traced(x):
                        squares = squared_distance(query[row], rows.gather(indices))
                    mean = self.estimate(query[row], variance[row], indices, squares, settled[row], part)
                    out[row] = mean.to(x.dtype)
        return out.reshape(x.shape)

    def _of_few(
        self,
        similar: Similarities,
        query: Tensor,
        variance: Tensor,
        part: slice,
        block: Tensor,
        out: Tensor,
    ) -> Tensor:
        """Fill in the queries for which no more than K rows can matter, and return the others of the block.

        Their estimate is the exact mean, told by one look at the similarities.
        """
        rest = torch.ones_like(block, dtype=torch.bool)
        few = self.training_set.means_of_few(
            similar, query[block], variance[block].float(), part, self.neighbours
        )
        for i, mean in few:
            out[block[i]], rest[i] = mean.to(out), False
        return block[rest]


class NeighbourDenoiser(NeighbourEstimate):
    """Estimates the posterior mean from the K nearest training samples and L random others.

    D(x; sigma) = sum_i w_i e_i x_i / sum_i w_i e_i,  e_i = exp(-||x - x_i||^2 / (2 sigma^2)),
    w_i = 1 for neighbours and (N - K) / L for the others, drawn without replacement

    With K + L = N this is exact. Without others (L = 0) it is badly biased where sigma is larger than the
    distances between neighbours; with few of them it is noisy there.

    Args:
        training_set: the exact denoiser, whose data these are.
        neighbours: K, at most the size of the smallest class.
        others: L; where there are fewer, all of them.
        seed: of the others where no trajectory has drawn its own.

    Raises:
        UserError: where K is more than there are samples, in any class.

    Source: Scarvelis, Saez de Ocariz Borde and Solomon, Closed-Form Diffusion Models, 2023, arXiv 2310.12395,
    by an idea of Karppa et al. (DEANN); the weights as secondary sources report them.
    """

    def __init__(
        self,
        training_set: EmpiricalDenoiser,
        *,
        neighbours: PositiveInt = 15,
        others: NonNegativeInt = 15,
        seed: int = 0,
    ) -> None:
        keys = torch.randn(1, len(training_set.data), generator=generator("others", seed))
        super().__init__(training_set, neighbours, keys)
        self.others = others

    def settle(self, rng: Rng) -> Tensor:
        """The keys by which others are taken, [B, N]."""
        return rng.randn(len(self.training_set.data))

    def estimate(
        self,
        query: Tensor,
        variance: Tensor,
        indices: Tensor,
        squares: Tensor,
        settled: Tensor,
        part: slice,
    ) -> Tensor:
        """The weighted mean [d] of the neighbours and of the others whose keys are highest."""
        rows, logits = self.terms(query, variance, indices, squares, settled, part)
        return weighted_mean(rows, logits.softmax(0))

    def terms(
        self,
        query: Tensor,
        variance: Tensor,
        indices: Tensor,
        squares: Tensor,
        settled: Tensor,
        part: slice,
    ) -> tuple[Tensor, Tensor]:
        """The rows that are summed, at most K + L, and log w_i e_i; those that cannot matter are left out."""
        count = part.stop - part.start - self.neighbours
        others = min(self.others, count)
        logits = squares / (-2 * variance)
        floor = logits[0] - REACH
        rows = self.training_set.rows.gather(indices[logits >= floor])
        if not others or logits[-1] + log(count) < floor:  # no other is nearer than the last neighbour
            return rows, logits[logits >= floor]
        first = part.start + settled[part].topk(others + self.neighbours).indices
        drawn = self.training_set.rows.gather(first[~torch.isin(first, indices)][:others])
        further = squared_distance(query, drawn) / (-2 * variance) + log(count / others)
        return torch.cat([rows, drawn]), torch.cat([logits[logits >= floor], further])


class ImportanceDenoiser(NeighbourEstimate):
    """Estimates the posterior mean by self-normalised importance sampling around the nearest neighbours.

    D(x; sigma) = sum_r x_{i_r} e_{i_r} / q_{i_r} / sum_r e_{i_r} / q_{i_r},  i_1, ..., i_R ~ q,
    q_i proportional to e_i for the K nearest neighbours and to the farthest one's e_K for all others

    Args:
        training_set: the exact denoiser, whose data these are.
        neighbours: K, at most the size of the smallest class.
        draws: R.
        seed: of the draws where no trajectory has its own.

    Raises:
        UserError: where K is more than there are samples, in any class.

    Source: Niedoba et al., Nearest Neighbour Score Estimators for Diffusion Generative Models, ICML 2024, and
    its code.
    """

    def __init__(
        self,
        training_set: EmpiricalDenoiser,
        *,
        neighbours: PositiveInt = 200,
        draws: PositiveInt = 200,
        seed: int = 0,
    ) -> None:
        uniform = torch.rand(1, draws, generator=generator("draws", seed), dtype=torch.float64)
        super().__init__(training_set, neighbours, uniform)
        self.draws = draws

    def settle(self, rng: Rng) -> Tensor:
        """The uniform numbers behind the draws, [B, R]."""
        uniform: Tensor = torch.special.ndtr(rng.randn(self.draws, dtype=torch.float64))
        return uniform

    def estimate(
        self,
        query: Tensor,
        variance: Tensor,
        indices: Tensor,
        squares: Tensor,
        settled: Tensor,
        part: slice,
    ) -> Tensor:
        """The self-normalised mean [d] of the draws."""
        count = part.stop - part.start - self.neighbours
        logits = squares / (-2 * variance)
        tail = logits[-1:] + torch.tensor(float(count), device=logits.device).log()
        mass = torch.cat([logits, tail]).softmax(0)
        edges = mass.cumsum(0)
        near = indices[torch.searchsorted(edges[:-1], settled).clamp(max=self.neighbours - 1)]
        is_near = (settled < edges[-2]) | (count == 0)
        rank = ((settled - edges[-2]) / mass[-1].clamp(min=1e-300) * count).long()
        others = part.start + skip_over(rank.clamp(0, max(count - 1, 0)), indices - part.start)
        index, place = torch.where(is_near, near, others).unique(return_inverse=True)
        rows = self.training_set.rows.gather(index)
        excess = squared_distance(query, rows) / (-2 * variance) - logits[-1]  # log of e / q for the others
        weights = torch.where(is_near, 0.0, excess[place]).softmax(0)
        return weighted_mean(rows, weights.new_zeros(len(index)).index_add(0, place, weights))


def skip_over(rank: Tensor, taken: Tensor) -> Tensor:
    """The rank-th of the numbers from 0 up that are not among `taken` [K], for ranks [R]."""
    free_below = taken.sort().values - torch.arange(len(taken), device=taken.device)
    index: Tensor = rank + torch.searchsorted(free_below, rank, right=True)
    return index
