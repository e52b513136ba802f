"""Training rows as an operand: approximate similarities with a known error bound, and weighted means.

The similarity of a query y and a row x_i is s_i = y^T x_i - ||x_i||^2 / 2 up to a constant of the query, so
that ||y - x_j||^2 - ||y - x_i||^2 = 2 (s_i - s_j).
"""

from collections.abc import Iterator
from math import sqrt
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from scoregen.data.base import to_model_range
from scoregen.denoisers.int8 import MAX_TERMS, has_fast_int8, int8_product

_DIGIT = 127  # a digit lies in [-127, 127]
_ROUNDING = 2.0**-24  # of float32
_BLOCK = 4096  # rows at a time, for the caches

_SPARE = 64  # candidates beyond 2 k that are compared rather than told apart by another digit


class Rows(Protocol):
    """What the empirical denoiser asks of its rows; `part` selects the rows of a class."""

    def similarities(self, query: Tensor, part: slice) -> "Similarities":
        """Of queries [b, d], float32 in the model's range."""
        ...

    def mean(self, weights: Tensor, part: slice) -> Tensor:
        """sum_i w_i x_i / sum_i w_i, [b, d] float32; the largest weight of a query [b, n] is 1."""
        ...

    def gather(self, indices: Tensor) -> Tensor:
        """The rows at indices [k], [k, d] float32 in the model's range."""
        ...


class Similarities(Protocol):
    """Similarities of a block of queries, refined on demand.

    `value` is [b, n] float32; `error` [b] bounds how far a difference of two similarities may be off, and
    `deviation` [b] how far it is off as a rule: its standard deviation over the rows, for errors that point
    in no particular direction.
    """

    value: Tensor
    error: Tensor
    deviation: Tensor

    def refine(self, keep: Tensor) -> bool:
        """Go on with the queries `keep` (indices), more precisely; False where this is all there is."""
        ...


class FloatRows:
    """Rows of any numbers: float32 products of the deviations from their mean.

    Args:
        data: [N, d], uint8 levels or floats in the model's range.
    """

    def __init__(self, data: Tensor) -> None:
        self.data, rows = data, to_model_range(data)
        self.centre = torch.stack([part.double().sum(0) for part in rows.split(_BLOCK)]).sum(0) / len(rows)
        self.centre = self.centre.float()
        self.rows = (rows - self.centre).float()
        self.norms = self.rows.square().sum(1)

    def similarities(self, query: Tensor, part: slice) -> "FloatSimilarities":
        """Of queries [b, d]."""
        return FloatSimilarities(query - self.centre, self.rows[part], self.norms[part])

    def mean(self, weights: Tensor, part: slice) -> Tensor:
        """The weighted means [b, d] of the rows, in float32."""
        return weights @ self.rows[part] / weights.sum(1, keepdim=True) + self.centre

    def gather(self, indices: Tensor) -> Tensor:
        """The rows at indices [k] as they are, [k, d] float32."""
        return to_model_range(self.data[indices]).float()


class FloatSimilarities:
    """One float32 matrix product; the bound is a probabilistic one, sqrt(d) units of rounding a product."""

    def __init__(self, query: Tensor, rows: Tensor, norms: Tensor) -> None:
        self.value = torch.addmm(norms * -0.5, query, rows.T)
        size = query.norm(dim=1) * norms.max().sqrt() + norms.max()
        self.error = 2 * _ROUNDING * sqrt(query.shape[1]) * size
        self.deviation = _ROUNDING * size

    def refine(self, keep: Tensor) -> bool:
        """There is nothing finer than float32 here."""
        return False


class LevelRows:
    """Rows of 256 levels: exact int8 products with queries and weights that are split into int8 digits.

    Args:
        levels: uint8 [N, d]; in the model's range they are u / 127.5 - 1.
    """

    def __init__(self, levels: Tensor) -> None:
        self.rows = (levels ^ 128).view(torch.int8)  # u - 128
        squares = [part.to(torch.int32).square().sum(1) for part in self.rows.split(_BLOCK)]
        self.norms = (torch.cat(squares).double() / 127.5**2).float()
        sums = torch.stack([part.sum(0, dtype=torch.int32) for part in self.rows.split(_BLOCK)]).sum(0)
        centre = (sums / len(levels)).round().to(torch.int8)[:, None]
        inner = torch.cat([int8_product(part, centre)[:, 0] for part in self.rows.split(_BLOCK)])
        self.spreads = self.norms + (centre.float().square().sum() - 2 * inner) / 127.5**2

    def similarities(self, query: Tensor, part: slice) -> "LevelSimilarities":
        """Of queries [b, d]."""
        spread = self.spreads[part].mean().sqrt()  # of the rows about a centre
        return LevelSimilarities(query - 0.5 / 127.5, self.rows[part], self.norms[part], spread)

    def mean(self, weights: Tensor, part: slice) -> Tensor:
        """The weighted means [b, d] of the rows, from as many digits of the weights as each query needs.

        What rounding the weights leaves out stays below 2e-5 of their sum: in a block's sum below the block's
        share of it, and at random, which adds up in squares, over all blocks.
        """
        rows, sums = self.rows[part], torch.zeros(len(weights), self.rows.shape[1])
        mass = torch.zeros(len(weights), 1)
        enough = 2e-5 * weights.sum(1) / len(rows)
        for block, left in zip(rows.split(_BLOCK), weights.split(_BLOCK, 1), strict=True):
            todo, scale, random = torch.arange(len(weights)), digit_scale(left), sqrt(len(block) * len(rows))
            for _ in range(3):
                digit, left = take_digit(left, scale)
                sums.index_add_(0, todo, int8_product(digit, block) * scale)
                mass.index_add_(0, todo, digit.sum(1, True, dtype=torch.int32) * scale)
                off = torch.maximum(left.sum(1).abs() / len(block), left.norm(dim=1) / random)
                more = off > enough[todo]
                if not more.any():
                    break
                if not more.all():
                    todo, left, scale = todo[more], left[more], scale[more]
                scale = scale / (2 * _DIGIT)
        return (sums / mass + 0.5) / 127.5

    def gather(self, indices: Tensor) -> Tensor:
        """The rows at indices [k] in the model's range, [k, d] float32."""
        return (self.rows[indices].float() + 128) / 127.5 - 1


class LevelSimilarities:
    """One int8 digit of the query after the other; the bound is that of Cauchy and Schwarz on the rest."""

    def __init__(self, query: Tensor, rows: Tensor, norms: Tensor, spread: Tensor) -> None:
        self.rows, self.digits = rows, list(split_digits(query, 3))
        self.value = torch.empty(len(query), len(rows))
        self.value[:] = norms * -0.5
        self.rest = [rest.norm(dim=1) for _, _, rest in self.digits]
        self.radius, self.spread = norms.max().sqrt(), spread / sqrt(query.shape[1])
        self.rounding = 4 * _ROUNDING * (query.norm(dim=1) * self.radius + self.radius**2)
        self.keep, self.used = torch.arange(len(query)), 0
        self.refine(self.keep)

    def refine(self, keep: Tensor) -> bool:
        """Add the next digit's product for the queries `keep`; False after the last."""
        if self.used == len(self.digits):
            return False
        if len(keep) < len(self.value):
            self.value, self.keep = self.value[keep], self.keep[keep]
        digit, scale, _ = self.digits[self.used]
        digit, scale = digit[self.keep], scale[self.keep] / 127.5
        for rows, value in zip(self.rows.split(_BLOCK), self.value.split(_BLOCK, 1), strict=True):
            value.addcmul_(int8_product(digit, rows.T), scale)
        rest, rounding = self.rest[self.used][self.keep], self.rounding[self.keep]
        self.error = 2 * rest * self.radius + rounding
        self.deviation = rest * self.spread + rounding / 16  # a few units in the last place of its values
        self.used += 1
        return True


def as_rows(data: Tensor) -> Rows:
    """The operand of data [N, d]: int8 products for levels where the CPU has fast ones, else float32."""
    levels_on_cpu = data.dtype == torch.uint8 and data.device.type == "cpu"
    return (
        LevelRows(data)
        if levels_on_cpu and has_fast_int8() and data.shape[1] < MAX_TERMS
        else FloatRows(data)
    )


def split_digits(x: Tensor, count: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Digits int8 [b, d], their scales [b, 1] and what is left of x then: x = sum digit scale + rest.

    Every digit leaves 254 times less.
    """
    scale = digit_scale(x)
    for _ in range(count):
        digit, x = take_digit(x, scale)
        yield digit, scale, x
        scale = scale / (2 * _DIGIT)


def digit_scale(x: Tensor) -> Tensor:
    """The unit of the first digit of each row of x [b, d], [b, 1]."""
    return x.abs().amax(1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny) / _DIGIT


def take_digit(x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """The digit int8 [b, d] of x in units of scale [b, 1], and the rest of x, at most half a unit."""
    digit = (x / scale).round_()
    return digit.to(torch.int8), torch.addcmul(x, digit, scale, value=-1)


def squared_distance(query: Tensor, rows: Tensor) -> Tensor:
    """||query - x_i||^2 by direct differences, [k] float64, for query [d] and rows [k, d]."""
    norm: Tensor = torch.linalg.vector_norm(rows - query, dim=1, dtype=torch.float64)
    return norm.square()


def weighted_mean(rows: Tensor, weights: Tensor) -> Tensor:
    """sum_i w_i x_i, [d], for weights [k] that sum to 1; the rows' common offset costs no digits."""
    mean: Tensor = rows[0] + weights.to(rows) @ (rows - rows[0])
    return mean


class Nearest(NamedTuple):
    """The k rows nearest to each of b queries, nearest first."""

    indices: Tensor  # [b, k]
    squares: Tensor  # squared distances, [b, k] float64


def nearest_rows(
    rows: Rows, query: Tensor, part: slice, k: int, similar: Similarities | None = None
) -> Nearest:
    """The k rows of `part` nearest to each query [b, d] float32, told apart by direct differences.

    Similarities, those given or fresh ones, say which rows may be among them, and are refined while these are
    many more than k.
    """
    similar = rows.similarities(query, part) if similar is None else similar
    todo = torch.arange(len(query), device=query.device)
    indices = torch.empty(len(query), k, dtype=torch.long, device=query.device)
    squares = torch.empty(len(query), k, dtype=torch.float64, device=query.device)
    more = True
    while len(todo):
        near = similar.value >= (similar.value.topk(k).values[:, -1] - similar.error)[:, None]
        count = near.sum(1, dtype=torch.int32)
        done = count <= 2 * k + _SPARE if more else torch.ones_like(todo, dtype=torch.bool)
        for i in done.nonzero().flatten().tolist():
            candidates = part.start + near[i].nonzero().flatten()
            found = squared_distance(query[todo[i]], rows.gather(candidates)).topk(k, largest=False)
            indices[todo[i]], squares[todo[i]] = candidates[found.indices], found.values
        keep = (~done).nonzero().flatten()
        todo = todo[keep]
        more = similar.refine(keep) if len(todo) else False
    return Nearest(indices, squares)
