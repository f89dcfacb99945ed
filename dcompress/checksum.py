"""The checksum of stored bytes and of decoded words (spec section 12).

A sum of 32-bit words, each times a multiplier of its place. Unlike a CRC it runs at the speed of memory in
Numba and plain C, and partial sums of the chunks of a tensor add up. Every single flipped bit in the first
12 GiB changes it.
"""

from __future__ import annotations

import numpy as np

from dcompress import kernels

__all__ = ["checksum", "fold", "partial_sum"]


def fold(total: int) -> int:
    """Return the 32-bit checksum of a sum of parts: its low half plus its high half."""
    total &= 0xFFFFFFFFFFFFFFFF
    return (total + (total >> 32)) & 0xFFFFFFFF


def partial_sum(data: bytes | memoryview | np.ndarray, first_byte: int = 0, work: int | None = None) -> int:
    """Return the sum over one stretch of bytes that starts at ``first_byte``, a multiple of 4.

    Parameters
    ----------
    data : bytes-like or ndarray
        The stretch; its length must be a multiple of 4 unless it is the last.
    first_byte : int
        Where the stretch starts.
    work : int, optional
        Symbols in the whole call, by which kernels are chosen.
    """
    flat = data.view(np.uint8) if isinstance(data, np.ndarray) else np.frombuffer(data, np.uint8)
    kernel = kernels.select(flat.size // 8 if work is None else work)
    return int(kernel.partial_checksum(flat, first_byte // 4))


def checksum(data: bytes | memoryview, work: int | None = None) -> int:
    """Return the checksum of a byte string.

    Examples
    --------
    >>> hex(checksum(b"dcompress"))
    '0x3b227ad7'
    """
    return fold(partial_sum(data, 0, work))
