"""The side coder's writer in plain Python: the other half of ``side``.

A writer is a state that each function takes and gives back; the compiled twin may have moved it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dcompress.kernels.side import (
    KIND_GAP,
    LENGTH_CONTEXTS,
    N_CONTEXTS,
    NUMBER_CONTEXTS,
    SIDE_CEILING,
    SIDE_FLOOR,
    SIDE_SHIFTS,
    fold_sign,
    neighbours,
)

__all__ = [
    "WriterState",
    "shortest",
    "start_writer",
    "write_bit",
    "write_gaps",
    "write_lengths",
    "write_number",
    "write_raw",
    "write_unary",
    "written",
]

U8 = NDArray[np.uint8]
U64 = NDArray[np.uint64]


class WriterState:
    """What is written so far, as one number, and the statistics of all contexts."""

    __slots__ = ("chances", "low", "n_shifted", "seen", "span")

    def __init__(self) -> None:
        self.low = 0
        self.span = 0xFFFFFFFF
        self.n_shifted = 0
        self.chances = [2048] * N_CONTEXTS
        self.seen = [0] * N_CONTEXTS


def start_writer() -> WriterState:
    """Return a writer that has written nothing."""
    return WriterState()


def _normalise(state: WriterState) -> None:
    while state.span < 1 << 24:
        state.low <<= 8
        state.span <<= 8
        state.n_shifted += 1


def write_bit(state: WriterState, context: int, bit: int) -> WriterState:
    """Write one bit under the statistics of a context."""
    chance, count = state.chances[context], state.seen[context]
    bound = (state.span >> 12) * chance
    if bit:
        state.low += bound
        state.span -= bound
        chance -= chance >> SIDE_SHIFTS[count]
        state.chances[context] = chance if chance > SIDE_FLOOR else SIDE_FLOOR
    else:
        state.span = bound
        chance += (4096 - chance) >> SIDE_SHIFTS[count]
        state.chances[context] = chance if chance < SIDE_CEILING else SIDE_CEILING
    if count < len(SIDE_SHIFTS) - 1:
        state.seen[context] = count + 1
    if state.span < 1 << 24:
        _normalise(state)
    return state


def write_raw(state: WriterState, value: int, n_bits: int) -> WriterState:
    """Write the low bits of a value below 2**64, all equally likely, most significant first."""
    value = int(value)
    while n_bits > 0:
        take = min(8, n_bits)
        n_bits -= take
        state.span >>= take
        state.low += state.span * (value >> n_bits & ((1 << take) - 1))
        _normalise(state)
    return state


def write_unary(state: WriterState, first: int, value: int, n_contexts: int) -> WriterState:
    """Write a number as ones and a zero, under contexts ``first`` and up, the last for all the rest."""
    for place in range(value):
        write_bit(state, first + min(place, n_contexts - 1), 1)
    return write_bit(state, first + min(value, n_contexts - 1), 0)


def write_number(state: WriterState, kind: int, value: int) -> WriterState:
    """Write a number below 2**64: its bit length in unary, then its lower bits."""
    n_bits = int(value).bit_length()
    for place in range(n_bits):
        write_bit(state, NUMBER_CONTEXTS * kind + place, 1)
    if n_bits < 64:
        write_bit(state, NUMBER_CONTEXTS * kind + n_bits, 0)
    return write_raw(state, value, max(0, n_bits - 1))


def write_gaps(state: WriterState, n_first: int, values: U64) -> WriterState:
    """Write numbers that ascend in two parts, the first of ``n_first``: what ``read_gaps`` reads."""
    last_bits = 0
    previous = -1
    for at, value in enumerate(values.tolist()):
        gap = value - (-1 if at == n_first else previous) - 1
        previous = value
        n_bits = gap.bit_length()
        change = n_bits - last_bits
        write_number(state, KIND_GAP, fold_sign(change))
        write_raw(state, gap, max(0, n_bits - 1))
        last_bits = n_bits
    return state


def write_lengths(state: WriterState, n_columns: int, lengths: U8) -> WriterState:
    """Write code lengths, rows of ``n_columns`` that belong together: what ``read_lengths`` reads.

    Each length is coded against the one to its left and the one above it, which are mostly close.
    """
    numbers = lengths.tolist()
    for place, length in enumerate(numbers):
        used, guess = neighbours(numbers, place, n_columns)
        write_bit(state, LENGTH_CONTEXTS + used, int(length > 0))
        if length == 0:
            continue
        known = int(guess > 0)
        write_bit(state, LENGTH_CONTEXTS + 4 + used, int(length != guess))
        if length == guess:
            continue
        if known:
            write_bit(state, LENGTH_CONTEXTS + 8 + used, int(length < guess))
        size = abs(length - guess)
        for step in range(1, size):
            write_bit(state, LENGTH_CONTEXTS + 12 + 7 * known + min(step, 6), 1)
        write_bit(state, LENGTH_CONTEXTS + 12 + 7 * known + min(size, 6), 0)
    return state


def shortest(low: int, span: int, n_bytes: int) -> bytes:
    """Return the shortest byte string that stands for a number from ``low`` on, below ``low + span``.

    Any number there will do: the one with most zero bits at its end is taken, and those are left out.
    """
    high = low + span - 1
    n_free = (low ^ high).bit_length()
    if low & ((1 << n_free) - 1):
        low = high >> (n_free - 1) << (n_free - 1)
    return low.to_bytes(n_bytes, "big").rstrip(b"\0")


def written(state: WriterState) -> bytes:
    """Return the shortest byte string that decodes to what was written."""
    return shortest(state.low, state.span, state.n_shifted + 4)
