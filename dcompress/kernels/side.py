"""The side coder's reader in plain Python, and the numbers that all its readers and writers share.

Codebooks, code lengths, classes and table sets are read number by number: see spec section 11. A reader is
started on a byte string, and its state is handed from function to function.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dcompress.kernels.status import ILLEGAL, OK, OUT_OF_RANGE, OVERRUN

__all__ = [
    "CLASS_CONTEXTS",
    "KIND_EXTENT",
    "KIND_GAP",
    "KIND_PARENT",
    "LENGTH_CONTEXTS",
    "MAP_CONTEXTS",
    "NUMBER_CONTEXTS",
    "N_CONTEXTS",
    "SIDE_CEILING",
    "SIDE_FLOOR",
    "SIDE_SHIFTS",
    "TABLE_CONTEXTS",
    "SideState",
    "bytes_used",
    "fold_sign",
    "neighbours",
    "read_bit",
    "read_classes",
    "read_gaps",
    "read_lengths",
    "read_number",
    "read_raw",
    "read_tables",
    "read_unary",
    "start_side",
    "unfold_sign",
]

U8 = NDArray[np.uint8]
U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]

# How far a chance (of a 0, in 1/4096) moves after the n-th bit in its context, and its bounds, so that no
# bit is ever held for impossible.
SIDE_SHIFTS = (1, 2, 2, 3, 3, 3, 4, 4, 4, 4, 4, 4, 5)
SIDE_FLOOR = 32
SIDE_CEILING = 4096 - SIDE_FLOOR

# Contexts: 64 for each kind of number, then those of code lengths, of three kinds of classes, of the lengths
# in table sets, and of the tables that serve contexts.
NUMBER_CONTEXTS = 64
LENGTH_CONTEXTS = 1984
CLASS_CONTEXTS = 2016
TABLE_CONTEXTS = 2208
MAP_CONTEXTS = 2256
N_CONTEXTS = 2288

# The kinds of numbers that stand in long rows.
KIND_GAP = 1
KIND_PARENT = 9
KIND_EXTENT = 10
MAX_GAP_CHANGE = 128
MAX_CLASS_NUMBER = 63
NO_CLASS = -128  # of what is dead
MAX_QUARTERS = 63
MAX_TABLES = 127
QUARTERS_EXPECTED = 24  # of a length in a table set, where nothing is known
NO_QUARTERS = 255  # in the place of a length


def fold_sign(value: int) -> int:
    """Return a signed number as an unsigned one: 0, -1, 1, -2, ... become 0, 1, 2, 3, ..."""
    return 2 * value if value >= 0 else -2 * value - 1


def unfold_sign(folded: int) -> int:
    """Return the signed number that ``fold_sign`` folded."""
    return -(folded + 1) // 2 if folded % 2 else folded // 2


class SideState:
    """Where a reader is: interval, next byte, and the statistics of all contexts."""

    __slots__ = ("chances", "code", "next", "seen", "span")

    def __init__(self, data: U8) -> None:
        self.span = 0xFFFFFFFF
        self.code = int.from_bytes(data[:4].tobytes().ljust(4, b"\0"), "big")
        self.next = 4
        self.chances = [2048] * N_CONTEXTS
        self.seen = [0] * N_CONTEXTS


def start_side(data: U8) -> SideState:
    """Return the state of a reader at the start of ``data``; bytes beyond its end read as 0."""
    return SideState(data)


def bytes_used(state: SideState) -> int:
    """Return how many bytes were read, those beyond the end counted."""
    return state.next


def _normalise(data: U8, state: SideState) -> None:
    while state.span < 1 << 24:
        byte = int(data[state.next]) if state.next < data.size else 0
        state.next += 1
        state.span <<= 8
        state.code = (state.code << 8 | byte) & 0xFFFFFFFF


def read_bit(data: U8, state: SideState, context: int) -> int:
    """Read one bit under the statistics of a context."""
    chance, count = state.chances[context], state.seen[context]
    bound = (state.span >> 12) * chance
    if state.code < bound:
        state.span = bound
        chance += (4096 - chance) >> SIDE_SHIFTS[count]
        state.chances[context] = chance if chance < SIDE_CEILING else SIDE_CEILING
        bit = 0
    else:
        state.code -= bound
        state.span -= bound
        chance -= chance >> SIDE_SHIFTS[count]
        state.chances[context] = chance if chance > SIDE_FLOOR else SIDE_FLOOR
        bit = 1
    if count < len(SIDE_SHIFTS) - 1:
        state.seen[context] = count + 1
    if state.span < 1 << 24:
        _normalise(data, state)
    return bit


def read_unary(data: U8, state: SideState, first: int, n_contexts: int, limit: int) -> int:
    """Read ones and a zero; stop at ``limit + 1``."""
    value = 0
    while value <= limit and read_bit(data, state, first + min(value, n_contexts - 1)):
        value += 1
    return value


def read_raw(data: U8, state: SideState, n_bits: int) -> int:
    """Read up to 64 bits that are equally likely."""
    value = 0
    while n_bits > 0:
        take = min(8, n_bits)
        n_bits -= take
        state.span >>= take
        part = min(state.code // state.span, (1 << take) - 1)
        state.code -= state.span * part
        _normalise(data, state)
        value = value << take | part
    return value


def read_number(data: U8, state: SideState, kind: int) -> int:
    """Read a number below 2**64: its bit length in unary, then its lower bits."""
    n_bits = read_unary(data, state, NUMBER_CONTEXTS * kind, NUMBER_CONTEXTS, 63)
    return 1 << (n_bits - 1) | read_raw(data, state, n_bits - 1) if n_bits else 0


def read_gaps(data: U8, state: SideState, n_first: int, largest: int, values: U64) -> int:
    """Read numbers of at most ``largest``, in two ascending parts, each as its gap from the one before.

    The first ``n_first`` numbers are the first part. Returns OK, OUT_OF_RANGE if the bit length of a gap
    changes too much, or ILLEGAL if a gap or a number is too large (spec 11.3).
    """
    n_bits = 0
    for at in range(values.size):
        folded = read_number(data, state, KIND_GAP)
        if folded > MAX_GAP_CHANGE:
            return OUT_OF_RANGE
        n_bits += unfold_sign(folded)
        if not 0 <= n_bits <= 64:
            return ILLEGAL
        gap = 1 << (n_bits - 1) | read_raw(data, state, n_bits - 1) if n_bits else 0
        value = gap if at in (0, n_first) else int(values[at - 1]) + 1 + gap
        if value > largest:
            return ILLEGAL
        values[at] = value
    return OK


def read_classes(data: U8, state: SideState, first: int, numbers: I64) -> int:
    """Read numbers in unary, each under the set of contexts that the one before picks (spec 11.5).

    The four sets of 16 contexts start at ``first``. The numbers stand for NO_CLASS (0), and for 0, -1, 1,
    -2, ... Returns OK, or OUT_OF_RANGE if one exceeds 63.
    """
    last = 0
    for at in range(numbers.size):
        value = read_unary(data, state, first + 16 * last, 16, MAX_CLASS_NUMBER)
        if value > MAX_CLASS_NUMBER:
            return OUT_OF_RANGE
        numbers[at] = (-(value // 2) if value % 2 == 0 else value // 2) if value else NO_CLASS
        last = min(value, 3)
    return OK


def read_lengths(data: U8, state: SideState, n_columns: int, lengths: U8) -> int:
    """Read code lengths, rows of ``n_columns`` that belong together (spec 11.4); return OK or ILLEGAL."""
    done: list[int] = []
    for at in range(lengths.size):
        used, guess = neighbours(done, at, n_columns)
        if not read_bit(data, state, LENGTH_CONTEXTS + used):
            done.append(0)
            continue
        length = guess
        if read_bit(data, state, LENGTH_CONTEXTS + 4 + used):
            known = int(guess > 0)
            down = bool(known) and read_bit(data, state, LENGTH_CONTEXTS + 8 + used)
            step = 1
            while step < 16 and read_bit(data, state, LENGTH_CONTEXTS + 12 + 7 * known + min(step, 6)):
                step += 1
            length = guess - step if down else guess + step
        if not 0 < length < 16:
            return ILLEGAL
        done.append(length)
    lengths[:] = done
    return OK


def read_tables(data: U8, state: SideState, quarters: U8, choice: U8) -> int:
    """Read the tables of a table set, and which context uses which (spec 11.6).

    Parameters
    ----------
    data, state
        Where to read.
    quarters : ndarray of shape (n_tables, n_symbols), all NO_QUARTERS
        Filled with lengths in quarter bits.
    choice : ndarray of shape (n_quantisers, n_rows, n_classes)
        Filled with tables.

    Returns
    -------
    status : int
        OK; OUT_OF_RANGE if a number is; ILLEGAL if a bucket or a length does not exist; OVERRUN if a table
        does not.
    """
    n_tables, n_symbols = quarters.shape
    extents: list[int] = []
    for number in range(n_tables):
        parent = read_number(data, state, KIND_PARENT)
        folded = read_number(data, state, KIND_EXTENT)
        if parent > number or folded > n_symbols + 1:
            return OUT_OF_RANGE
        extent = unfold_sign(folded)
        extent += extents[number - parent] if parent else 0
        if not 0 <= 2 * extent < n_symbols:
            return ILLEGAL
        extents.append(extent)
        step = 0
        for symbol in range(2 * extent + 1):
            first = TABLE_CONTEXTS + 16 * min(abs(step), 2)
            step = read_unary(data, state, first, 15, MAX_QUARTERS)
            if step > MAX_QUARTERS:
                return OUT_OF_RANGE
            if step and read_bit(data, state, first + 15):
                step = -step
            guess = int(quarters[number - parent, symbol]) if parent else NO_QUARTERS
            if guess == NO_QUARTERS:
                guess = int(quarters[number, symbol - 2]) if symbol >= 3 else QUARTERS_EXPECTED
            if not 0 <= guess + step <= MAX_QUARTERS:
                return ILLEGAL
            quarters[number, symbol] = guess + step
    for rows in choice:
        above = 0
        for row in rows:
            table = above
            for at in range(row.size):
                folded = read_unary(data, state, MAP_CONTEXTS + 16 * (at == 0), 16, 2 * MAX_TABLES)
                if folded > 2 * MAX_TABLES:
                    return OUT_OF_RANGE
                table += unfold_sign(folded)
                if not 0 <= table < n_tables:
                    return OVERRUN
                row[at] = table
            above = int(row[0])
    return OK


def neighbours(lengths: Sequence[int], place: int, n_columns: int) -> tuple[int, int]:
    """Return which neighbours of a code length are used (1 = left, 2 = up) and the guess they make, or 0."""
    left = lengths[place - 1] if place % n_columns else 0
    up = lengths[place - n_columns] if place >= n_columns else 0
    if not left:
        return (2, up) if up else (0, 0)
    if not up:
        return 1, left
    corner = lengths[place - n_columns - 1]
    if not corner:
        return 3, (left + up + 1) // 2
    # The gradient, held between the two neighbours (as LOCO-I guesses pixels).
    low, high = (left, up) if left < up else (up, left)
    guess = left + up - corner
    return 3, low if guess < low else high if guess > high else guess
