"""Initial noise that fills space evenly: quasi-random latents for estimates with less variance."""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor
from torch.quasirandom import SobolEngine

from scoregen.errors import UserError
from scoregen.rng import SampleRng


class SobolLatents:
    """Give the sample of seed i the i-th point of a scrambled Sobol sequence as its initial noise.

    The points are mapped by the inverse normal distribution function. Over random scrambles each is standard
    normal, but those of different seeds depend on one another: averages over seeds 0 ... 2^m - 1 vary less,
    and what is extrapolated from subsets of them is biased (docs/evaluation.md).

    Args:
        shape: of one sample; at most 21,201 numbers.
        scramble: seed of the scramble; another one gives an independent set of points.

    Source: A. B. Owen, Randomly permuted (t, m, s)-nets and (t, s)-sequences, 1995 (remembered); for latents
    M. J. Chong and D. Forsyth, 2020, arXiv 1911.07023.

    Raises:
        UserError: a sample has more numbers than the sequence has dimensions.
    """

    def __init__(self, shape: Sequence[int], scramble: int = 0) -> None:
        self.shape = tuple(shape)
        size = prod(self.shape)
        if size > SobolEngine.MAXDIM:
            raise UserError(
                f"Sobol latents have up to {SobolEngine.MAXDIM:,} numbers a sample; these have {size:,}"
            )
        self._engine = SobolEngine(size, scramble=True, seed=scramble)

    def __call__(self, seeds: Sequence[int], device: torch.device | str = "cpu") -> SampleRng:
        """Generators for these seeds whose first normals are the seeds' points."""
        return _SobolRng(seeds, device, self.points(seeds).to(device))

    def points(self, seeds: Sequence[int]) -> Tensor:
        """Standard normals [B, *shape], float32."""
        if not seeds:
            return torch.empty(0, *self.shape)
        low = min(seeds)
        if low < self._engine.num_generated:
            self._engine.reset()
        self._engine.fast_forward(low - self._engine.num_generated)
        uniforms = self._engine.draw(max(seeds) - low + 1, dtype=torch.float64)
        chosen = uniforms[[seed - low for seed in seeds]]
        # The engine's points are multiples of 2^-30 and may be 0: take the middles of their cells.
        normals: Tensor = torch.special.ndtri(chosen + 2.0**-31)
        return normals.float().reshape(len(seeds), *self.shape)


class _SobolRng(SampleRng):
    """The generators of each seed, with given normals before their own."""

    def __init__(self, seeds: Sequence[int], device: torch.device | str, first: Tensor) -> None:
        super().__init__(seeds, device)
        self._first: Tensor | None = first

    def randn(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """The given normals at the first call, then the generators' own, [B, *shape]."""
        if self._first is None:
            return super().randn(*shape, dtype=dtype)
        first, self._first = self._first, None
        assert first.shape[1:] == shape, "the first draw is the initial noise"
        return first.to(dtype)
