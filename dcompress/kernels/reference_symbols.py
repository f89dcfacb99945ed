"""Huffman symbols and fixed-width labels in NumPy: see ``reference``."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dcompress.kernels.status import OK, PADDING, SHORT, SURPLUS

__all__ = [
    "SymbolTable",
    "decode_symbols",
    "end_status",
    "hop",
    "lane_streams",
    "package_merge",
    "symbol_table",
    "unpack_fixed",
    "windows_at",
]

U8 = NDArray[np.uint8]
I64 = NDArray[np.int64]
Unsigned = NDArray[np.unsignedinteger[Any]]


class SymbolTable(NamedTuple):
    """Code length and symbol for every window of ``max_length`` bits."""

    lengths: U8
    symbols: NDArray[np.uint16]
    max_length: int


def symbol_table(lengths: U8, symbols: NDArray[np.uint16], max_length: int, width: int) -> SymbolTable:
    """Return the table that ``decode_symbols`` wants; ``width`` is the bytes of an output symbol."""
    del width
    return SymbolTable(lengths, symbols, max_length)


def windows_at(lane: U8, n_bits: int) -> NDArray[np.uint16]:
    """Return the ``n_bits`` (at most 16) bits that start at each bit of ``lane``; zeros beyond its end."""
    padded = np.zeros(lane.size + 2, np.uint32)
    padded[: lane.size] = lane
    words = (padded[:-2] << 16) | (padded[1:-1] << 8) | padded[2:]
    shifts = np.arange(24 - n_bits, 16 - n_bits, -1, dtype=np.uint32)
    windows = (words[:, None] >> shifts) & np.uint32((1 << n_bits) - 1)
    return windows.astype(np.uint16).reshape(-1)


def hop(steps: bytes, count: int) -> tuple[list[int], int]:
    """Hop ``count`` times from bit 0 by ``steps[bit]``; return the starts and the end, -1 if short."""
    starts = []
    bit = 0
    try:
        for _ in range(count):
            starts.append(bit)
            bit += steps[bit]
    except IndexError:
        return starts, -1
    return starts, bit


def end_status(lane: U8, end: int) -> int:
    """Return the status of a lane that was read up to bit ``end``."""
    n_bits = 8 * lane.size
    if end < 0 or end > n_bits:
        return SHORT
    if n_bits - end >= 8:
        return SURPLUS
    if end % 8 and int(lane[-1]) & ((1 << (n_bits - end)) - 1):
        return PADDING
    return OK


def lane_streams(stream: U8, lane_ends: I64) -> list[U8]:
    """Cut a stream into its lanes."""
    return [stream[first:last] for first, last in zip([0, *lane_ends[:-1]], lane_ends, strict=True)]


def package_merge(counts: I64, limit: int) -> U8:
    """Return the code lengths, of at most ``limit`` bits, that cost least; counts ascend, two at least.

    Package-merge: Larmore and Hirschberg 1990. Where a leaf and a package are equal, the leaf comes first.
    """
    n = counts.size
    # leaf_counts[k][m]: how many of the m cheapest items at depth k (from the bottom) are leaves.
    leaf_counts = []
    packages = counts[:0]
    for _ in range(limit):
        items = np.concatenate([counts, packages])
        ranks = np.argsort(items, kind="stable")
        leaf_counts.append(np.concatenate([[0], np.cumsum(ranks < n)]))
        items = items[ranks]
        packages = items[: items.size // 2 * 2].reshape(-1, 2).sum(axis=1)
    lengths = np.zeros(n, np.uint8)
    taken = 2 * n - 2
    for table in reversed(leaf_counts):
        n_leaves = int(table[taken])
        lengths[:n_leaves] += 1
        taken = 2 * (taken - n_leaves)
    return lengths


def decode_symbols(stream: U8, lane_ends: I64, lane_counts: I64, table: SymbolTable, out: Unsigned) -> int:
    """Decode Huffman symbols, lane after lane, into ``out``; return a status."""
    filled = 0
    for lane, count in zip(lane_streams(stream, lane_ends), lane_counts.tolist(), strict=True):
        windows = windows_at(lane, table.max_length)
        starts, end = hop(table.lengths[windows].tobytes(), count)
        status = end_status(lane, end)
        if status != OK:
            return status
        out[filled : filled + count] = table.symbols[windows[starts]]
        filled += count
    return OK


def unpack_fixed(stream: U8, n_bits: int, out: Unsigned) -> None:
    """Unpack ``out.size`` fixed-width values of 1..16 bits; the stream has exactly their bytes."""
    bits = np.unpackbits(stream, count=out.size * n_bits).reshape(out.size, n_bits)
    values = np.zeros(out.size, np.uint16)
    for column in range(n_bits):
        values = (values << np.uint16(1)) | bits[:, column]
    out[:] = values
