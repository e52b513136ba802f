"""Randomness as a function of (seed, nimg) in training and of the sample's own seed in sampling.

Nobody draws from the global generator. A training step draws for the whole global batch and keeps the rows
of this process and micro-batch, so that one process and four see the same numbers; a sample draws from a
generator of its own, so that it does not depend on its neighbours.
"""

import hashlib
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Generator, Tensor

from scoregen.parallel import send


def derive_seed(*key: int | str) -> int:
    """A 63-bit seed from a key such as (seed, "step", nimg): equal keys give equal seeds on every machine."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(*key: int | str, device: torch.device | str = "cpu") -> Generator:
    """A fresh generator on `device` whose stream is a function of `key` alone."""
    return torch.Generator(device).manual_seed(derive_seed(*key))


class Rng(Protocol):
    """What a sampler needs: independent standard normals for each row of a batch."""

    def randn(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard normals [B, *shape]."""
        ...

    def randn_like(self, x: Tensor) -> Tensor:
        """Standard normals of the shape and dtype of x [B, ...]."""
        ...


class BatchRng:
    """Draws for a global batch of `size` samples and returns the `rows` held here.

    `key` names the stream, by convention (seed, purpose, nimg); a new object replays the stream from its
    start, and every micro-batch and process makes the same calls in the same order.
    """

    def __init__(
        self, *key: int | str, size: int, rows: slice = slice(None), device: torch.device | str = "cpu"
    ) -> None:
        self.size, self.rows, self.device = size, rows, device
        self._generator = generator(*key, device=device)
        self._host_generator = generator(*key, "stratified")

    def randn(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard normals [B, *shape]."""
        return torch.randn(self.size, *shape, generator=self._generator, device=self.device, dtype=dtype)[
            self.rows
        ]

    def randn_like(self, x: Tensor) -> Tensor:
        """Standard normals of the shape and dtype of x [B, ...]."""
        return self.randn(*x.shape[1:], dtype=x.dtype)

    def rand(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Uniforms in [0, 1), [B, *shape]."""
        return torch.rand(self.size, *shape, generator=self._generator, device=self.device, dtype=dtype)[
            self.rows
        ]

    def stratified(self) -> Tensor:
        """Uniforms [B] in (0, 1), one in each of the global batch's equal strata, in random order.

        They are drawn on the CPU in float64, which inverse distribution functions want and MPS lacks.
        """
        strata = torch.randperm(self.size, generator=self._host_generator)
        within = torch.rand(self.size, generator=self._host_generator, dtype=torch.float64)
        u = ((strata + within) / self.size).clamp(1e-7, 1 - 1e-7)[self.rows]
        return send(u.float() if torch.device(self.device).type == "mps" else u, self.device)


class SampleRng:
    """One generator per sample, seeded with the sample's own seed: row i depends on seeds[i] only.

    The generators live on the CPU whatever the device: CPU and GPU give different streams for one seed.
    Order of draws by convention: initial noise, class label, step noises.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.seeds, self.device = tuple(map(int, seeds)), device
        self._generators = [torch.Generator().manual_seed(seed % 2**32) for seed in self.seeds]

    def randn(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard normals [B, *shape]."""
        drawn = torch.empty(len(self.seeds), *shape, dtype=dtype)
        for row, g in zip(drawn, self._generators, strict=True):
            row.normal_(generator=g)
        return send(drawn, self.device)

    def randn_like(self, x: Tensor) -> Tensor:
        """Standard normals of the shape and dtype of x [B, ...]."""
        return self.randn(*x.shape[1:], dtype=x.dtype)

    def randint(self, high: int) -> Tensor:
        """Integers [B] in [0, high)."""
        rows = [torch.randint(high, (), generator=g) for g in self._generators]
        return (
            torch.stack(rows).to(self.device)
            if rows
            else torch.empty(0, dtype=torch.long, device=self.device)
        )
