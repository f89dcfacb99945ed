"""The side coder's writer in Numba. See ``side_writing`` for what the functions promise.

A state is one array: interval, low end, bytes written, then chances and bits seen of all contexts, then the
bytes, one in each place. It is moved to a larger array when it is full.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from dcompress.kernels.side import (
    KIND_GAP,
    LENGTH_CONTEXTS,
    N_CONTEXTS,
    NUMBER_CONTEXTS,
    SIDE_CEILING,
    SIDE_FLOOR,
    SIDE_SHIFTS,
    neighbours,
)
from dcompress.kernels.side_writing import shortest

U64 = np.uint64
_SHIFTS = np.array(SIDE_SHIFTS)
_SETTLED = len(SIDE_SHIFTS) - 1
_FIRST_CHANCE = 3
_FIRST_SEEN = _FIRST_CHANCE + N_CONTEXTS
_FIRST_BYTE = _FIRST_SEEN + N_CONTEXTS
_START_BYTES = 256
_ROOM = 160  # more bytes than any number takes


@njit(cache=True, nogil=True)
def start_writer():
    """Return a writer that has written nothing."""
    state = np.zeros(_FIRST_BYTE + _START_BYTES, np.int64)
    state[0] = 0xFFFFFFFF
    state[_FIRST_CHANCE:_FIRST_SEEN] = 2048
    return state


@njit(cache=True, nogil=True)
def _roomy(state, n_bytes):
    """Return a state with room for so many bytes more."""
    size = _FIRST_BYTE + state[2] + n_bytes
    if size <= state.size:
        return state
    larger = np.zeros(2 * size, np.int64)
    larger[: state.size] = state
    return larger


@njit(cache=True, nogil=True)
def _normalise(state):
    """Move bytes out that are settled, but for carries, which run back through them."""
    if state[1] > 0xFFFFFFFF:
        state[1] &= 0xFFFFFFFF
        place = _FIRST_BYTE + state[2] - 1
        while state[place] == 255:
            state[place] = 0
            place -= 1
        state[place] += 1
    while state[0] < 1 << 24:
        state[_FIRST_BYTE + state[2]] = state[1] >> 24
        state[2] += 1
        state[1] = (state[1] << 8) & 0xFFFFFFFF
        state[0] <<= 8


@njit(cache=True, nogil=True)
def _bit(state, context, bit):
    chance = state[_FIRST_CHANCE + context]
    count = state[_FIRST_SEEN + context]
    bound = (state[0] >> 12) * chance
    if bit:
        state[1] += bound
        state[0] -= bound
        state[_FIRST_CHANCE + context] = max(chance - (chance >> _SHIFTS[count]), SIDE_FLOOR)
    else:
        state[0] = bound
        state[_FIRST_CHANCE + context] = min(chance + ((4096 - chance) >> _SHIFTS[count]), SIDE_CEILING)
    state[_FIRST_SEEN + context] = min(count + 1, _SETTLED)
    _normalise(state)


@njit(cache=True, nogil=True)
def _raw(state, value, n_bits):
    while n_bits > 0:
        take = min(8, n_bits)
        n_bits -= take
        state[0] >>= take
        state[1] += state[0] * np.int64(value >> U64(n_bits) & U64((1 << take) - 1))
        _normalise(state)


@njit(cache=True, nogil=True)
def _unary(state, first, value, n_contexts):
    for place in range(value):
        _bit(state, first + min(place, n_contexts - 1), 1)
    _bit(state, first + min(value, n_contexts - 1), 0)


@njit(cache=True, nogil=True)
def _bit_length(value):
    n_bits = 0
    while value != U64(0):
        value >>= U64(1)
        n_bits += 1
    return n_bits


@njit(cache=True, nogil=True)
def _number(state, kind, value):
    n_bits = _bit_length(value)
    first = NUMBER_CONTEXTS * kind
    for place in range(n_bits):
        _bit(state, first + place, 1)
    if n_bits < 64:
        _bit(state, first + n_bits, 0)
    _raw(state, value, n_bits - 1)


@njit(cache=True, nogil=True)
def write_bit(state, context, bit):
    """Write one bit under the statistics of a context."""
    state = _roomy(state, _ROOM)
    _bit(state, context, bit)
    return state


@njit(cache=True, nogil=True)
def write_raw(state, value, n_bits):
    """Write the low bits of a value, all equally likely, most significant first."""
    state = _roomy(state, _ROOM)
    _raw(state, U64(value), n_bits)
    return state


@njit(cache=True, nogil=True)
def write_unary(state, first, value, n_contexts):
    """Write a number as ones and a zero."""
    state = _roomy(state, _ROOM + value)
    _unary(state, first, value, n_contexts)
    return state


@njit(cache=True, nogil=True)
def write_number(state, kind, value):
    """Write a number below 2**64: its bit length in unary, then its lower bits."""
    state = _roomy(state, _ROOM)
    _number(state, kind, U64(value))
    return state


@njit(cache=True, nogil=True)
def write_gaps(state, n_first, values):
    """Write numbers that ascend in two parts, each as its gap from the one before."""
    last_bits = 0
    for at in range(values.size):
        state = _roomy(state, _ROOM)
        gap = values[at] if at == 0 or at == n_first else values[at] - values[at - 1] - U64(1)
        n_bits = _bit_length(gap)
        change = n_bits - last_bits
        _number(state, KIND_GAP, U64(2 * change if change >= 0 else -2 * change - 1))
        _raw(state, gap, n_bits - 1)
        last_bits = n_bits
    return state


_neighbours = njit(cache=True, nogil=True)(neighbours)


@njit(cache=True, nogil=True)
def write_lengths(state, n_columns, lengths):
    """Write code lengths, rows of ``n_columns`` that belong together."""
    numbers = lengths.astype(np.int64)
    for place in range(numbers.size):
        state = _roomy(state, _ROOM)
        length = numbers[place]
        used, guess = _neighbours(numbers, place, n_columns)
        _bit(state, LENGTH_CONTEXTS + used, 1 if length > 0 else 0)
        if length == 0:
            continue
        known = 1 if guess > 0 else 0
        _bit(state, LENGTH_CONTEXTS + 4 + used, 1 if length != guess else 0)
        if length == guess:
            continue
        if known:
            _bit(state, LENGTH_CONTEXTS + 8 + used, 1 if length < guess else 0)
        size = abs(length - guess)
        for step in range(1, size):
            _bit(state, LENGTH_CONTEXTS + 12 + 7 * known + min(step, 6), 1)
        _bit(state, LENGTH_CONTEXTS + 12 + 7 * known + min(size, 6), 0)
    return state


def written(state):
    """Return the shortest byte string that decodes to what was written."""
    n_bytes = int(state[2])
    stored = state[_FIRST_BYTE : _FIRST_BYTE + n_bytes].astype(np.uint8).tobytes()
    low = int.from_bytes(stored, "big") << 32
    return shortest(low + int(state[1]), int(state[0]), n_bytes + 4)
