"""The side coder's reader in Numba. See ``side`` for what the functions promise.

A state is one array: interval, code, next byte, then chances and bits seen of all contexts.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from dcompress.kernels.side import (
    KIND_EXTENT,
    KIND_GAP,
    KIND_PARENT,
    LENGTH_CONTEXTS,
    MAP_CONTEXTS,
    MAX_CLASS_NUMBER,
    MAX_GAP_CHANGE,
    MAX_QUARTERS,
    MAX_TABLES,
    N_CONTEXTS,
    NO_CLASS,
    NO_QUARTERS,
    NUMBER_CONTEXTS,
    QUARTERS_EXPECTED,
    SIDE_CEILING,
    SIDE_FLOOR,
    SIDE_SHIFTS,
    TABLE_CONTEXTS,
    neighbours,
    unfold_sign,
)
from dcompress.kernels.status import ILLEGAL, OK, OUT_OF_RANGE, OVERRUN

U64 = np.uint64
_SHIFTS = np.array(SIDE_SHIFTS)
_SETTLED = len(SIDE_SHIFTS) - 1
_FIRST_CHANCE = 3
_FIRST_SEEN = _FIRST_CHANCE + N_CONTEXTS


@njit(cache=True, nogil=True)
def start_side(data):
    """Return the state of a reader at the start of ``data``."""
    state = np.zeros(_FIRST_SEEN + N_CONTEXTS, np.int64)
    state[0] = 0xFFFFFFFF
    for place in range(4):
        state[1] = state[1] << 8 | (np.int64(data[place]) if place < data.size else np.int64(0))
    state[2] = 4
    state[_FIRST_CHANCE:_FIRST_SEEN] = 2048
    return state


def bytes_used(state):
    """Return how many bytes were read, those beyond the end counted."""
    return int(state[2])


@njit(cache=True, nogil=True)
def _normalise(data, state):
    while state[0] < 1 << 24:
        byte = np.int64(data[state[2]]) if state[2] < data.size else np.int64(0)
        state[2] += 1
        state[0] <<= 8
        state[1] = (state[1] << 8 | byte) & 0xFFFFFFFF


@njit(cache=True, nogil=True)
def read_bit(data, state, context):
    """Read one bit under the statistics of a context."""
    chance = state[_FIRST_CHANCE + context]
    count = state[_FIRST_SEEN + context]
    bound = (state[0] >> 12) * chance
    if state[1] < bound:
        state[0] = bound
        state[_FIRST_CHANCE + context] = min(chance + ((4096 - chance) >> _SHIFTS[count]), SIDE_CEILING)
        bit = 0
    else:
        state[1] -= bound
        state[0] -= bound
        state[_FIRST_CHANCE + context] = max(chance - (chance >> _SHIFTS[count]), SIDE_FLOOR)
        bit = 1
    state[_FIRST_SEEN + context] = min(count + 1, _SETTLED)
    if state[0] < 1 << 24:
        _normalise(data, state)
    return bit


@njit(cache=True, nogil=True)
def read_unary(data, state, first, n_contexts, limit):
    """Read ones and a zero; stop at ``limit + 1``."""
    value = 0
    while value <= limit and read_bit(data, state, first + min(value, n_contexts - 1)):
        value += 1
    return value


@njit(cache=True, nogil=True)
def read_raw(data, state, n_bits):
    """Read up to 64 bits that are equally likely."""
    value = U64(0)
    while n_bits > 0:
        take = min(8, n_bits)
        n_bits -= take
        state[0] >>= take
        part = min(state[1] // state[0], (1 << take) - 1)
        state[1] -= state[0] * part
        _normalise(data, state)
        value = value << U64(take) | U64(part)
    return value


@njit(cache=True, nogil=True)
def read_number(data, state, kind):
    """Read a number below 2**64: its bit length in unary, then its lower bits."""
    n_bits = read_unary(data, state, NUMBER_CONTEXTS * kind, NUMBER_CONTEXTS, 63)
    if n_bits == 0:
        return U64(0)
    return U64(1) << U64(n_bits - 1) | read_raw(data, state, n_bits - 1)


_unfolded = njit(cache=True, nogil=True)(unfold_sign)


@njit(cache=True, nogil=True)
def read_gaps(data, state, n_first, largest, values):
    """Read numbers in two ascending parts, each as its gap from the one before; return a status."""
    n_bits = 0
    for at in range(values.size):
        folded = read_number(data, state, KIND_GAP)
        if folded > U64(MAX_GAP_CHANGE):
            return OUT_OF_RANGE
        n_bits += _unfolded(np.int64(folded))
        if n_bits < 0 or n_bits > 64:
            return ILLEGAL
        gap = U64(0)
        if n_bits > 0:
            gap = U64(1) << U64(n_bits - 1) | read_raw(data, state, n_bits - 1)
        least = U64(0)
        if at != 0 and at != n_first:
            if values[at - 1] == U64(largest):
                return ILLEGAL
            least = values[at - 1] + U64(1)
        if gap > U64(largest) - least:  # no sum that could wrap around
            return ILLEGAL
        values[at] = least + gap
    return OK


@njit(cache=True, nogil=True)
def read_classes(data, state, first, numbers):
    """Read numbers in unary, each under the set of contexts that the one before picks; return a status."""
    last = 0
    for at in range(numbers.size):
        value = read_unary(data, state, first + 16 * last, 16, MAX_CLASS_NUMBER)
        if value > MAX_CLASS_NUMBER:
            return OUT_OF_RANGE
        numbers[at] = (value >> 1 if value & 1 else -(value >> 1)) if value else NO_CLASS
        last = min(value, 3)
    return OK


_neighbours = njit(cache=True, nogil=True)(neighbours)


@njit(cache=True, nogil=True)
def read_lengths(data, state, n_columns, lengths):
    """Read code lengths, rows of ``n_columns`` that belong together; return OK or ILLEGAL."""
    done = np.zeros(lengths.size, np.int64)
    for at in range(lengths.size):
        used, guess = _neighbours(done, at, n_columns)
        if not read_bit(data, state, LENGTH_CONTEXTS + used):
            continue
        length = guess
        if read_bit(data, state, LENGTH_CONTEXTS + 4 + used):
            known = 1 if guess > 0 else 0
            down = known == 1 and read_bit(data, state, LENGTH_CONTEXTS + 8 + used) == 1
            step = 1
            while step < 16 and read_bit(data, state, LENGTH_CONTEXTS + 12 + 7 * known + min(step, 6)):
                step += 1
            length = guess - step if down else guess + step
        if not 0 < length < 16:
            return ILLEGAL
        done[at] = length
        lengths[at] = length
    return OK


@njit(cache=True, nogil=True)
def _read_quarters(data, state, quarters):
    """Read the lengths of all tables of a set; return a status."""
    n_tables, n_symbols = quarters.shape
    extents = np.zeros(n_tables, np.int64)
    for number in range(n_tables):
        distance = read_number(data, state, KIND_PARENT)
        folded = read_number(data, state, KIND_EXTENT)
        if distance > U64(number) or folded > U64(n_symbols + 1):
            return OUT_OF_RANGE
        parent = number - np.int64(distance)
        extent = _unfolded(np.int64(folded)) + (extents[parent] if parent < number else 0)
        if extent < 0 or 2 * extent >= n_symbols:
            return ILLEGAL
        extents[number] = extent
        step = 0
        for symbol in range(2 * extent + 1):
            first = TABLE_CONTEXTS + 16 * min(abs(step), 2)
            step = read_unary(data, state, first, 15, MAX_QUARTERS)
            if step > MAX_QUARTERS:
                return OUT_OF_RANGE
            if step and read_bit(data, state, first + 15):
                step = -step
            guess = np.int64(quarters[parent, symbol]) if parent < number else NO_QUARTERS
            if guess == NO_QUARTERS:
                guess = np.int64(quarters[number, symbol - 2]) if symbol >= 3 else QUARTERS_EXPECTED
            if guess + step < 0 or guess + step > MAX_QUARTERS:
                return ILLEGAL
            quarters[number, symbol] = guess + step
    return OK


@njit(cache=True, nogil=True)
def read_tables(data, state, quarters, choice):
    """Read the tables of a table set, and which context uses which; return a status."""
    status = _read_quarters(data, state, quarters)
    if status != OK:
        return status
    for quantiser in range(choice.shape[0]):
        above = 0
        for row in range(choice.shape[1]):
            table = above
            for at in range(choice.shape[2]):
                first = MAP_CONTEXTS + (16 if at == 0 else 0)
                folded = read_unary(data, state, first, 16, 2 * MAX_TABLES)
                if folded > 2 * MAX_TABLES:
                    return OUT_OF_RANGE
                table += _unfolded(folded)
                if table < 0 or table >= quarters.shape[0]:
                    return OVERRUN
                choice[quantiser, row, at] = table
            above = np.int64(choice[quantiser, row, 0])
    return OK
