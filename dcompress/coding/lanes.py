"""Symbols of a chunk, cut into lanes: independent stretches that are decoded side by side (spec 10.5)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dcompress import kernels
from dcompress.constants import LANE_THRESHOLD, N_LANES
from dcompress.cursor import Cursor, write_varint
from dcompress.errors import CorruptError
from dcompress.kernels.status import OK, OVERRUN, PADDING, SHORT, SURPLUS

__all__ = ["check_status", "lane_counts", "pack_lanes", "read_lanes"]

_FAULTS = {
    SHORT: ("code stream too short", "STR-01"),
    SURPLUS: ("code stream too long", "STR-02"),
    PADDING: ("padding bits are not zero", "STR-03"),
    OVERRUN: ("zero run passes the end of its chunk or lane", "RUN-01"),
}


def lane_counts(n_symbols: int) -> NDArray[np.int64]:
    """Return the symbols of each lane: one lane below LANE_THRESHOLD symbols, otherwise N_LANES.

    Examples
    --------
    >>> lane_counts(1030).tolist()
    [258, 258, 258, 256]
    """
    if n_symbols < LANE_THRESHOLD:
        return np.array([n_symbols], np.int64)
    share = -(-n_symbols // N_LANES)
    counts = np.full(N_LANES, share, np.int64)
    counts[-1] = n_symbols - share * (N_LANES - 1)
    return counts


def pack_lanes(
    values: NDArray[np.uint64], widths: NDArray[np.uint8], extras: list[int] | None = None
) -> bytes:
    """Return lane sizes and lane bytes of packed symbols.

    Parameters
    ----------
    values : ndarray of shape (n_symbols,), dtype uint64
        Bits of each symbol, at the low end.
    widths : ndarray of shape (n_symbols,), dtype uint8
        How many bits, 0..56.
    extras : list of int, optional
        One number for each lane but the first, written after the lane sizes.
    """
    stops = np.cumsum(lane_counts(values.size))
    pack = kernels.select(values.size).pack_bits
    lanes = [
        pack(values[start:stop], widths[start:stop]).tobytes()
        for start, stop in zip([0, *stops[:-1]], stops, strict=True)
    ]
    head = bytearray()
    for lane in lanes:
        write_varint(head, len(lane))
    for number in extras or []:
        write_varint(head, number)
    return bytes(head) + b"".join(lanes)


def read_lanes(
    cursor: Cursor, n_lanes: int, n_extras: int = 0
) -> tuple[NDArray[np.uint8], NDArray[np.int64], list[int]]:
    """Read what ``pack_lanes`` wrote: the stream, where each lane ends within it, and the extras.

    Raises
    ------
    TruncatedError
        The lanes are longer than what is left of the chunk (FRM-01).
    """
    sizes = [cursor.varint(cursor.remaining) for _ in range(n_lanes)]
    extras = [cursor.varint() for _ in range(n_extras)]
    stream = np.frombuffer(cursor.take(sum(sizes)), np.uint8)
    return stream, np.cumsum(np.array(sizes, np.int64)), extras


def check_status(status: int) -> None:
    """Raise the error that a kernel's status stands for.

    Raises
    ------
    CorruptError
        The stream is too short (STR-01) or too long (STR-02), padding is not zero (STR-03), a run passes
        the end (RUN-01).
    """
    if status != OK:
        message, rule = _FAULTS[status]
        raise CorruptError(message, rule=rule)
