"""The training set itself as a denoiser."""

from collections.abc import Iterator
from math import inf, log

import torch
from torch import Tensor, nn

from scoregen.data.base import to_model_range
from scoregen.denoisers.base import SIGMA_TINY, Cond, is_traced
from scoregen.denoisers.mixture import count_classes
from scoregen.denoisers.rows import (
    Rows,
    Similarities,
    as_rows,
    nearest_rows,
    squared_distance,
    weighted_mean,
)
from scoregen.ranges import Positive
from scoregen.rng import Rng

_DROPPED = 1e-6  # of the posterior mass at most is left out
_NEGLIGIBLE = -80.0  # logits below it would only slow the processor down with denormal numbers
_FEW = 96  # rows of a query that are summed one by one
_SAMPLE = 1024  # values that tell where there are more
_KNOWN = 1e-4  # nats, the standard deviation of the logits' errors where many rows share the mass


class EmpiricalDenoiser(nn.Module):
    """Denoises x0 ~ U{x_1, ..., x_N} exactly: what training reaches by memorising the data.

    D(x; sigma) = sum_i softmax_i(-||x - x_i||^2 / (2 sigma^2)) x_i

    Given a class, x0 is of the data of that class, and only these are visited. Queries in float64, and those
    whose gradients are asked for, are computed in float64 throughout; others to well within 1e-4, by matrix
    products of known error, which tell the rows that can matter: where these are few, they are summed by
    direct differences, and where they are many, all rows are, by another matrix product.

    Errors e_i of the logits move D by Cov_w(x, e), in a pixel at most the standard deviation of the pixel
    times that of e (Cauchy and Schwarz, over the posterior weights w). The latter is kept below 1e-4, for e
    of no particular direction and the spread of all data, of which the posterior's is less on average.

    Args:
        data: [N, *shape], uint8 levels of images or floats in the model's range; kept sorted by class.
        labels: class ids int64 [N]; None is unconditional.
        memory: working memory in MiB, beside the data and one copy of them.

    Raises:
        UserError: for labels that skip a class.

    Source: Scarvelis, Saez de Ocariz Borde and Solomon, Closed-Form Diffusion Models, 2023, arXiv 2310.12395.
    """

    data: Tensor
    order: Tensor

    def __init__(self, data: Tensor, labels: Tensor | None = None, *, memory: Positive = 256.0) -> None:
        super().__init__()
        self.shape, self.num_classes = tuple(data.shape[1:]), count_classes(labels)
        self.sigma_min, self.sigma_max = 0.0, inf
        self.memory = memory
        order = torch.arange(len(data)) if labels is None else labels.argsort(stable=True)
        self.register_buffer("data", data if labels is None else data[order])
        self.register_buffer("order", order)
        counts = [] if labels is None else labels.bincount().tolist()
        ends = torch.tensor([0, *counts]).cumsum(0).tolist()
        self._rows: tuple[Tensor, Rows] | None = None
        self.parts = [slice(*ends[i : i + 2]) for i in range(len(counts))] + [slice(0, len(data))]

    @property
    def rows(self) -> Rows:
        """The data as an operand, made when first asked for and again after a move to another device."""
        if self._rows is None or self._rows[0] is not self.data:
            self._rows = (self.data, as_rows(self.data.flatten(1)))
        return self._rows[1]

    def forward(self, x: Tensor, sigma: Tensor, cond: Cond = None) -> Tensor:
        """E[x0 | x] for x [B, *shape], sigma [] or [B], cond [B]."""
        query, out = x.flatten(1), torch.empty_like(x.flatten(1))
        exactly = x.dtype == torch.float64 or is_traced(x)
        denoise = self._in_float64 if exactly else self._in_float32
        sigma = sigma.double().expand(len(x)).clamp(min=SIGMA_TINY)
        for part, members in self.groups(len(x), cond):
            for block in members.split(self.block(part)):
                out[block] = denoise(query[block], sigma[block], part).to(x.dtype)
        return out.reshape(x.shape)

    def groups(self, count: int, cond: Cond) -> Iterator[tuple[slice, Tensor]]:
        """The rows of each class that is asked for, and the indices of the queries that ask."""
        everything = torch.arange(count, device=self.data.device)
        if cond is None or not self.num_classes:
            yield self.parts[-1], everything
            return
        for label in cond.unique().tolist():
            yield self.parts[label], everything[cond == label]

    def draw(self, rng: Rng, cond: Cond = None) -> Tensor:
        """One training sample for each row of the rng, uniformly from all or from its class: [B, *shape]."""
        uniform = torch.special.ndtr(rng.randn(dtype=torch.float64))
        index = torch.empty_like(uniform, dtype=torch.long)
        for part, members in self.groups(len(uniform), cond):
            count = part.stop - part.start
            index[members] = part.start + (uniform[members] * count).long().clamp(max=count - 1)
        return to_model_range(self.data[index])

    def nearest(self, x: Tensor, cond: Cond = None) -> tuple[Tensor, Tensor]:
        """How far x [B, *shape] is from the training set: Euclidean distances [B], and whose they are, [B].

        The indices count as the data were given. Given a class, only its samples are looked at.
        """
        distance = torch.empty(len(x), dtype=torch.float64, device=x.device)
        index = torch.empty(len(x), dtype=torch.long, device=x.device)
        for part, members in self.groups(len(x), cond):
            for block in members.split(self.block(part)):
                near = nearest_rows(self.rows, x[block].flatten(1).float(), part, 1)
                distance[block], index[block] = near.squares[:, 0].sqrt(), self.order[near.indices[:, 0]]
        return distance, index

    def block(self, part: slice) -> int:
        """How many queries the working memory holds, at 16 bytes a query and row."""
        return max(1, int(self.memory * 2**16 / (part.stop - part.start)))

    def _in_float64(self, query: Tensor, sigma: Tensor, part: slice) -> Tensor:
        """The running log-sum-exp over chunks of rows, in float64: [b, d]."""
        query, variance = query.double(), sigma[:, None].square()
        top = torch.full_like(query[:, :1], torch.finfo(torch.float64).min)
        mass, total = torch.zeros_like(top), torch.zeros_like(query)
        chunk = max(1, int(self.memory * 2**20 / 8 / (query.shape[1] + 2 * len(query))))
        for data in self.data[part].split(chunk):
            rows = to_model_range(data.flatten(1)).double()
            logits = (query @ rows.T - rows.square().sum(1) / 2) / variance  # less a constant of the query
            new_top = torch.maximum(top, logits.amax(1, keepdim=True))
            weights, keep = (logits - new_top).exp(), (top - new_top).exp()
            mass = mass * keep + weights.sum(1, keepdim=True)
            total, top = total * keep + weights @ rows, new_top
        return total / mass

    def _in_float32(self, query: Tensor, sigma: Tensor, part: slice) -> Tensor:
        """Refine similarities until few rows can matter or the weights of many are known well: [b, d]."""
        out = torch.empty(query.shape, device=query.device)
        query, variance, todo = (
            query.float(),
            sigma.square().float(),
            torch.arange(len(query), device=query.device),
        )
        similar = self.rows.similarities(query, part)
        while len(todo):
            few = torch.zeros_like(todo, dtype=torch.bool)
            for i, mean in self.means_of_few(similar, query[todo], variance[todo], part):
                out[todo[i]], few[i] = mean, True
            known = ~few & (similar.deviation <= _KNOWN * variance[todo])
            if known.any():
                value = similar.value if known.all() else similar.value[known]
                out[todo[known]] = self._of_many(value, variance[todo[known]], part)
            keep = (~few & ~known).nonzero().flatten()
            todo = todo[keep]
            if len(todo) and not similar.refine(keep):
                out[todo] = self._in_float64(query[todo], sigma[todo], part).float()
                break
        return out

    def means_of_few(
        self, similar: Similarities, query: Tensor, variance: Tensor, part: slice, most: int = _FEW
    ) -> Iterator[tuple[int, Tensor]]:
        """The queries of [b, d] for which at most a few rows can matter, and their posterior means [d].

        The similarities tell these rows, with a part of 1e-6 of the mass at most left out; they are summed by
        direct differences.
        """
        reach = log((part.stop - part.start) / _DROPPED) + similar.error / variance
        floor = similar.value.amax(1) - reach * variance
        for i, above in few_above(similar.value, floor, min(most, _FEW)):
            rows = self.rows.gather(part.start + above)
            logits = squared_distance(query[i], rows) / (-2 * variance[i].double())
            yield i, weighted_mean(rows, logits.softmax(0))

    def _of_many(self, similarity: Tensor, variance: Tensor, part: slice) -> Tensor:
        """The posterior means over all rows of a class, [b, d], from similarities [b, n], overwritten."""
        logits = similarity.sub_(similarity.amax(1, keepdim=True))
        logits = logits.div_(variance[:, None]).clamp_(min=_NEGLIGIBLE)
        return self.rows.mean(logits.exp_(), part)


def few_above(value: Tensor, floor: Tensor, most: int) -> Iterator[tuple[int, Tensor]]:
    """The queries with at most so many of their values [b, n] at or above floor [b], and which these are."""
    hopeful = (value[:, :_SAMPLE] >= floor[:, None]).sum(1) <= most  # others have too many here already
    for i in hopeful.nonzero().flatten().tolist():
        above = (value[i] >= floor[i]).nonzero().flatten()
        if len(above) <= most:
            yield i, above
