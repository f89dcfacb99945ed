"""Words of the float dtypes that stages 1 and 2 work on, as values and back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dcompress.constants import DType
from dcompress.stages import Words

__all__ = ["SHAREABLE", "FloatArray", "blocks", "count_nonfinite", "energy", "narrow", "widen"]

FloatArray = NDArray[np.floating[Any]]

# Dtypes that can be pruned and shared, with the mask of their exponent bits.
SHAREABLE = {
    "float64": 0x7FF0_0000_0000_0000,
    "float32": 0x7F80_0000,
    "float16": 0x7C00,
    "bfloat16": 0x7F80,
}

_BLOCK = 1 << 18  # elements worked on at once: temporaries stay in the cache


def energy(values: NDArray[np.float64]) -> float:
    """Return the sum of squares: without BLAS, whose last bits depend on its threads."""
    return float(np.square(values).sum())


def blocks(n: int) -> Iterator[slice]:
    """Yield slices that cut ``range(n)`` into stretches that fit the cache."""
    for start in range(0, n, _BLOCK):
        yield slice(start, min(start + _BLOCK, n))


def widen(words: Words, dtype: DType) -> FloatArray:
    """Return the values of the words of a shareable dtype: float64 for float64, float32 for the others."""
    if dtype.name == "float64":
        return words.view(np.float64)
    if dtype.name == "float32":
        return words.view(np.float32)
    if dtype.name == "float16":
        return words.view(np.float16).astype(np.float32)
    wide = words.astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)


def narrow(values: FloatArray, dtype: DType) -> Words:
    """Return values as words of a shareable dtype: to nearest, ties to even, saturating, -0.0 as 0.0."""
    if dtype.name == "float64":
        return np.asarray(values + 0.0, np.float64).view(np.uint64)
    limit = float(np.finfo(np.float16 if dtype.name == "float16" else np.float32).max)
    values = np.clip(values, -limit, limit)
    if dtype.name == "float16":
        return (values.astype(np.float16) + np.float16(0)).view(np.uint16)
    bits: NDArray[np.uint32] = (values.astype(np.float32) + np.float32(0)).view(np.uint32)
    if dtype.name == "float32":
        return bits
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1))) >> 16
    rounded -= (rounded & np.uint32(0x7FFF)) == 0x7F80  # the largest finite word is one below infinity
    rounded[rounded == 0x8000] = 0
    return rounded.astype(np.uint16)


def count_nonfinite(words: Words, dtype: DType) -> int:
    """Return how many words of a shareable dtype are NaN or infinite."""
    exponent = words.dtype.type(SHAREABLE[dtype.name])
    return sum(int(np.count_nonzero((words[part] & exponent) == exponent)) for part in blocks(words.size))
