"""Integer matrix products: exact, and faster than float32 by far where the CPU has int8 dot products."""

from functools import cache

import torch
from torch import Tensor

MAX_TERMS = 2**31 // 128**2  # products of two int8 that a 32-bit sum holds at least, less one


@cache
def has_fast_int8() -> bool:
    """Whether the CPU multiplies int8 matrices exactly in 32 bits (AVX-512 VNNI or AMX).

    Older CPUs sum pairs of products in 16 bits, which saturates.
    """
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and torch.cpu._is_vnni_supported()


def int8_product(a: Tensor, b: Tensor) -> Tensor:
    """a [n, k] @ b [k, m] of int8 as int32, exact for k < 2^17."""
    assert a.shape[1] < MAX_TERMS
    return torch._int_mm(a, b)
