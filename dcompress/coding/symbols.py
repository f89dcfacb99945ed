"""Symbols of signed grid integers: small magnitudes on their own, larger ones in buckets with raw bits.

Magnitudes 0 to 7 are buckets of their own. Above that an octave has four buckets: a magnitude of L bits
keeps its two bits below the leading one and leaves the L - 3 bits below those raw. Symbol 0 is zero; bucket
b is symbol 2b - 1 where the integer is positive and 2b where it is negative.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "BUCKET_BASES",
    "BUCKET_OF",
    "BUCKET_RAW_BITS",
    "MAX_MAGNITUDE",
    "N_BUCKETS",
    "N_SYMBOLS",
    "SYMBOL_BASES",
    "SYMBOL_RAW_BITS",
    "grid_of",
    "symbol_of",
]

Integers = NDArray[np.integer[Any]]

_OWN = 8  # magnitudes that are buckets of their own, zero among them
_MAX_BITS = 12
N_BUCKETS = _OWN + 4 * (_MAX_BITS - 3)
N_SYMBOLS = 2 * N_BUCKETS - 1
MAX_MAGNITUDE = (1 << _MAX_BITS) - 1


def _raw_bits() -> NDArray[np.uint8]:
    """Return the raw bits of every bucket."""
    buckets = np.arange(N_BUCKETS)
    return np.where(buckets < _OWN, 0, buckets // 4 - 1).astype(np.uint8)


def _bases() -> NDArray[np.uint16]:
    """Return the smallest magnitude of every bucket."""
    buckets = np.arange(N_BUCKETS)
    return np.where(buckets < _OWN, buckets, (4 + buckets % 4) << BUCKET_RAW_BITS).astype(np.uint16)


# By bucket: raw bits and smallest magnitude; by magnitude, 0 to MAX_MAGNITUDE: bucket; by symbol, the same.
BUCKET_RAW_BITS = _raw_bits()
BUCKET_BASES = _bases()
BUCKET_OF = (np.searchsorted(BUCKET_BASES, np.arange(MAX_MAGNITUDE + 1), side="right") - 1).astype(np.uint8)
SYMBOL_RAW_BITS = BUCKET_RAW_BITS[(np.arange(N_SYMBOLS) + 1) // 2]
SYMBOL_BASES = BUCKET_BASES[(np.arange(N_SYMBOLS) + 1) // 2]


def symbol_of(grid: Integers) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
    """Return symbols and raw values of signed integers.

    Parameters
    ----------
    grid : ndarray of int, any shape
        Of magnitude at most ``MAX_MAGNITUDE``.

    Returns
    -------
    symbols : ndarray of uint8, in the shape of ``grid``
        0 .. ``N_SYMBOLS - 1``.
    raw : ndarray of uint16, in the shape of ``grid``
        What the raw bits hold: magnitude less the smallest one of its bucket.

    Examples
    --------
    >>> symbols, raw = symbol_of(np.array([0, 1, -1, 7, -9]))
    >>> symbols.tolist(), raw.tolist()
    ([0, 1, 2, 13, 16], [0, 0, 0, 0, 1])
    """
    magnitudes = np.abs(grid)
    buckets = BUCKET_OF[magnitudes]
    symbols = 2 * buckets - (grid > 0)
    return symbols.astype(np.uint8), (magnitudes - BUCKET_BASES[buckets]).astype(np.uint16)


def grid_of(symbols: Integers, raw: Integers) -> NDArray[np.int32]:
    """Return the signed integers of symbols and raw values: the inverse of `symbol_of`.

    Examples
    --------
    >>> grid_of(np.array([0, 1, 2, 13, 16]), np.array([0, 0, 0, 0, 1])).tolist()
    [0, 1, -1, 7, -9]
    """
    wide = symbols.astype(np.int32)
    magnitudes = BUCKET_BASES[(wide + 1) // 2].astype(np.int32) + raw
    return np.where(wide & 1, magnitudes, -magnitudes).astype(np.int32)
