"""Context-coded symbols in Numba. See ``reference_context`` for what the functions promise.

Eight rows are decoded side by side; they share the column, so that its class is looked up once for all.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from dcompress.kernels.reference_context import (
    FLIP,
    INVALID,
    LEVEL_STRIDE,
    LOWEST_STATE,
    NO_LEVEL,
    PADDING_WORDS,
    WIDE,
)
from dcompress.kernels.status import OK, OUT_OF_RANGE, SHORT, SURPLUS, UNFINISHED

U64 = np.uint64
I64 = np.int64
_ONE = U64(1)
_THREE = U64(3)
_KIND = U64(FLIP - 1)
_FLIP = U64(FLIP)
_LOWEST = U64(LOWEST_STATE)
_LEFT = U64(NO_LEVEL << 3)
_ABOVE = U64(NO_LEVEL)
_LEVEL = U64(WIDE - 1)
_WIDE = U64(WIDE)
_BAD = U64(INVALID)
_ENDED = U64(2 * INVALID)  # in the levels seen: the words were used up before the symbols


# A function with a branch counts references to every array it is given, each time: so _take has none, and
# the rare symbols with raw bits are left to _read_raw.
@njit(cache=True, nogil=True)
def _take(x, trellis, place, at, words, contexts, span, slots, values, levels, after, precision):
    """Decode one symbol; return coder state, trellis state, place, word, level, and the symbol."""
    quantiser = trellis & _ONE
    context = U64(contexts[at + quantiser * span])
    entry = U64(slots[(context & _KIND) << precision | (x & ((_ONE << precision) - _ONE))])
    x = (entry >> U64(12) & U64(0x1FFF)) * (x >> precision) + (entry & U64(0xFFF))
    refilled = x << U64(16) | U64(words[place])
    short = x < _LOWEST
    kind = entry >> U64(25)
    symbol = quantiser << U64(8) | kind | (context & _FLIP)
    follow = trellis if after is None else U64(after[trellis << _ONE | ((kind + _ONE) >> _ONE & _ONE)])
    x = refilled if short else x
    return x, follow, place + U64(short), values[symbol], U64(levels[symbol]), symbol


@njit(cache=True, nogil=True)
def _read_raw(x, trellis, place, level, symbol, words, raw_bits, bases, lookup, origin, after):
    """Read the raw bits of a symbol; return coder state, trellis state, place, word and level."""
    kind = symbol & _KIND
    n_bits = U64(raw_bits[kind])
    raw = x & ((_ONE << n_bits) - _ONE)
    magnitude = I64(bases[kind]) + I64(raw)
    x >>= n_bits
    if x < _LOWEST:
        x = x << U64(16) | U64(words[place])
        place += _ONE
    quantiser = symbol >> U64(8)
    if after is not None:
        magnitude = 2 * magnitude - I64(quantiser)
        trellis = U64(after[trellis << _ONE | (raw & _ONE)])
    negative = (kind & _ONE == U64(0)) != (symbol & _FLIP != U64(0))
    label = origin - magnitude if negative else origin + magnitude
    level &= _LEVEL
    if label < 0 or label >= lookup.size:
        level |= _BAD
        label = 0
    return x, trellis, place, lookup[U64(label)], level


@njit(cache=True, nogil=True)
def _decode_rows(n_lanes, row, xs, trellis, place, words, rows, columns, tables, recent, out):
    """Decode one row for each of some lanes; return place in the words, and the levels or-ed."""
    contexts, span, slots, values = tables.contexts, U64(tables.span), tables.tables, tables.values
    levels, raw_bits, bases, lookup = tables.levels, tables.raw_bits, tables.bases, tables.lookup
    origin, after = tables.origin, tables.successors
    precision = U64(tables.precision)
    limit = U64(words.size - PADDING_WORDS)
    seen = U64(0)
    left = np.full(n_lanes, _LEFT)
    for column in range(columns.size):
        if place > limit:
            return place, _ENDED
        for lane in range(n_lanes):
            above = _ABOVE
            if column >= tables.distance:
                above = U64(recent[(column - tables.distance) * 8 + lane]) >> _THREE & U64(7)
            at = rows[row + lane] + columns[column] + left[lane] + above
            state = trellis[lane]
            x, follow, place, word, level, symbol = _take(
                xs[lane], state, place, at, words, contexts, span, slots, values, levels, after, precision
            )
            if level & _WIDE:
                x, follow, place, word, level = _read_raw(
                    x, state, place, level, symbol, words, raw_bits, bases, lookup, origin, after
                )
            xs[lane], trellis[lane] = x, follow
            seen |= level
            left[lane] = level & _LEVEL
            recent[column * 8 + lane] = level
            out[(row + lane) * columns.size + column] = word
    return place, seen


# Each lane is spelled out: only then do the states of all eight stay in registers.
# fmt: off
@njit(cache=True, nogil=True)
def _decode_eights(n_groups, xs, trellis, place, words, rows, columns, tables, recent, out):
    """Decode groups of eight rows; return place in the words, and the levels or-ed."""
    contexts, span, slots, values = tables.contexts, U64(tables.span), tables.tables, tables.values
    levels, raw_bits, bases, lookup = tables.levels, tables.raw_bits, tables.bases, tables.lookup
    origin, after = tables.origin, tables.successors
    precision = U64(tables.precision)
    limit = U64(words.size - PADDING_WORDS)
    width = U64(columns.size)
    distance = U64(tables.distance)
    seen = U64(0)
    x0, x1, x2, x3, x4, x5, x6, x7 = xs[0], xs[1], xs[2], xs[3], xs[4], xs[5], xs[6], xs[7]
    t0, t1, t2, t3 = trellis[0], trellis[1], trellis[2], trellis[3]
    t4, t5, t6, t7 = trellis[4], trellis[5], trellis[6], trellis[7]
    for group in range(n_groups):
        r = U64(8 * group)
        r0, r1, r2, r3 = rows[r], rows[r + _ONE], rows[r + U64(2)], rows[r + U64(3)]
        r4, r5, r6, r7 = rows[r + U64(4)], rows[r + U64(5)], rows[r + U64(6)], rows[r + U64(7)]
        a0 = a1 = a2 = a3 = a4 = a5 = a6 = a7 = _LEFT
        at = r * width
        for column in range(columns.size):
            if place > limit:
                return place, _ENDED
            c = columns[U64(column)] + _ABOVE
            b0 = b1 = b2 = b3 = b4 = b5 = b6 = b7 = U64(0)
            if U64(column) >= distance:
                far = (U64(column) - distance) << _THREE
                c -= _ABOVE
                b0, b1 = U64(recent[far]) >> _THREE, U64(recent[far + _ONE]) >> _THREE
                b2, b3 = U64(recent[far + U64(2)]) >> _THREE, U64(recent[far + U64(3)]) >> _THREE
                b4, b5 = U64(recent[far + U64(4)]) >> _THREE, U64(recent[far + U64(5)]) >> _THREE
                b6, b7 = U64(recent[far + U64(6)]) >> _THREE, U64(recent[far + U64(7)]) >> _THREE
            state = t0
            x0, t0, place, w0, a0, symbol = _take(
                x0, t0, place, r0 + c + a0 + b0,
                words, contexts, span, slots, values, levels, after, precision,
            )
            if a0 & _WIDE:
                x0, t0, place, w0, a0 = _read_raw(
                    x0, state, place, a0, symbol, words, raw_bits, bases, lookup, origin, after
                )
            state = t1
            x1, t1, place, w1, a1, symbol = _take(
                x1, t1, place, r1 + c + a1 + b1,
                words, contexts, span, slots, values, levels, after, precision,
            )
            if a1 & _WIDE:
                x1, t1, place, w1, a1 = _read_raw(
                    x1, state, place, a1, symbol, words, raw_bits, bases, lookup, origin, after
                )
            state = t2
            x2, t2, place, w2, a2, symbol = _take(
                x2, t2, place, r2 + c + a2 + b2,
                words, contexts, span, slots, values, levels, after, precision,
            )
            if a2 & _WIDE:
                x2, t2, place, w2, a2 = _read_raw(
                    x2, state, place, a2, symbol, words, raw_bits, bases, lookup, origin, after
                )
            state = t3
            x3, t3, place, w3, a3, symbol = _take(
                x3, t3, place, r3 + c + a3 + b3,
                words, contexts, span, slots, values, levels, after, precision,
            )
            if a3 & _WIDE:
                x3, t3, place, w3, a3 = _read_raw(
                    x3, state, place, a3, symbol, words, raw_bits, bases, lookup, origin, after
                )
            state = t4
            x4, t4, place, w4, a4, symbol = _take(
                x4, t4, place, r4 + c + a4 + b4,
                words, contexts, span, slots, values, levels, after, precision,
            )
            if a4 & _WIDE:
                x4, t4, place, w4, a4 = _read_raw(
                    x4, state, place, a4, symbol, words, raw_bits, bases, lookup, origin, after
                )
            state = t5
            x5, t5, place, w5, a5, symbol = _take(
                x5, t5, place, r5 + c + a5 + b5,
                words, contexts, span, slots, values, levels, after, precision,
            )
            if a5 & _WIDE:
                x5, t5, place, w5, a5 = _read_raw(
                    x5, state, place, a5, symbol, words, raw_bits, bases, lookup, origin, after
                )
            state = t6
            x6, t6, place, w6, a6, symbol = _take(
                x6, t6, place, r6 + c + a6 + b6,
                words, contexts, span, slots, values, levels, after, precision,
            )
            if a6 & _WIDE:
                x6, t6, place, w6, a6 = _read_raw(
                    x6, state, place, a6, symbol, words, raw_bits, bases, lookup, origin, after
                )
            state = t7
            x7, t7, place, w7, a7, symbol = _take(
                x7, t7, place, r7 + c + a7 + b7,
                words, contexts, span, slots, values, levels, after, precision,
            )
            if a7 & _WIDE:
                x7, t7, place, w7, a7 = _read_raw(
                    x7, state, place, a7, symbol, words, raw_bits, bases, lookup, origin, after
                )
            seen |= a0 | a1 | a2 | a3 | a4 | a5 | a6 | a7
            near = U64(column) << _THREE
            recent[near], recent[near + _ONE] = a0, a1
            recent[near + U64(2)], recent[near + _THREE] = a2, a3
            recent[near + U64(4)], recent[near + U64(5)] = a4, a5
            recent[near + U64(6)], recent[near + U64(7)] = a6, a7
            p = at + U64(column)
            out[p], out[p + width] = w0, w1
            p += width << _ONE
            out[p], out[p + width] = w2, w3
            p += width << _ONE
            out[p], out[p + width] = w4, w5
            p += width << _ONE
            out[p], out[p + width] = w6, w7
        if seen & _BAD:
            return place, seen
    xs[0], xs[1], xs[2], xs[3], xs[4], xs[5], xs[6], xs[7] = x0, x1, x2, x3, x4, x5, x6, x7
    trellis[0], trellis[1], trellis[2], trellis[3] = t0, t1, t2, t3
    trellis[4], trellis[5], trellis[6], trellis[7] = t4, t5, t6, t7
    return place, seen
# fmt: on


@njit(cache=True, nogil=True)
def decode_contexts(words, states, rows, columns, tables, out):
    """Decode a chunk of whole rows; return OK or what is wrong."""
    n_lanes = states.size
    xs = states.copy()
    trellis = np.zeros(n_lanes, np.uint64)
    recent = np.zeros(8 * columns.size, np.uint8)
    place = U64(0)
    seen = U64(0)
    row = 0
    if n_lanes == 8:
        row = rows.size // 8 * 8
        place, seen = _decode_eights(row // 8, xs, trellis, place, words, rows, columns, tables, recent, out)
    while row < rows.size and seen < _BAD:
        n = min(n_lanes, rows.size - row)
        place, more = _decode_rows(n, row, xs, trellis, place, words, rows, columns, tables, recent, out)
        seen |= more
        row += n
    if seen & _ENDED or place > U64(words.size - PADDING_WORDS):
        return SHORT
    if seen & _BAD:
        return OUT_OF_RANGE
    if place < U64(words.size - PADDING_WORDS):
        return SURPLUS
    for lane in range(n_lanes):
        if xs[lane] != _LOWEST:
            return UNFINISHED
    return OK


@njit(cache=True, nogil=True)
def table_slots(frequencies, precision):
    """Return what is looked up by table and slot: symbol, frequency, offset."""
    slots = np.empty(frequencies.shape[0] << precision, np.uint32)
    at = 0
    for table in range(frequencies.shape[0]):
        for symbol in range(frequencies.shape[1]):
            frequency = frequencies[table, symbol]
            for offset in range(frequency):
                slots[at + offset] = symbol << 25 | frequency << 12 | offset
            at += frequency
    return slots


@njit(cache=True, nogil=True)
def symbol_values(lookup, origin, levels, raw_bits, bases, two):
    """Return word and level by quantiser, flip and symbol."""
    values = np.zeros(4 * FLIP, lookup.dtype)
    codes = np.full(4 * FLIP, INVALID, np.uint8)
    for quantiser in range(2):
        for flip in range(2):
            first = (2 * quantiser + flip) * FLIP
            for symbol in range(levels.size):
                magnitude = I64(bases[symbol])
                if two:
                    magnitude = max(0, 2 * magnitude - quantiser)
                elif quantiser:
                    magnitude = 0
                positive = (symbol & 1) != flip
                place = origin + magnitude if positive else origin - magnitude
                wrong = place < 0 or place >= lookup.size
                values[first + symbol] = lookup[0 if wrong else place]
                level = (-levels[symbol] if flip else levels[symbol]) + NO_LEVEL
                more = WIDE if raw_bits[symbol] > 0 else INVALID if wrong else 0
                codes[first + symbol] = level << 3 | more
    return values, codes


@njit(cache=True, nogil=True)
def _bounds(classes, least):
    """Return the smallest and largest class, those below ``least`` taken for it."""
    low = max(classes[0], least)
    high = low
    for number in classes:
        low = min(low, max(number, least))
        high = max(high, number)
    return low, high


@njit(cache=True, nogil=True)
def class_bases(rows, columns):
    """Return the bases of rows and columns, and the smallest and largest sum of their classes."""
    least_row = -1 - max(0, _bounds(columns, columns[0])[1])
    row_low, row_high = _bounds(rows, least_row)
    least_column = -1 - max(0, row_high)
    column_low, column_high = _bounds(columns, least_column)
    row_bases = np.empty(rows.size, np.uint64)
    column_bases = np.empty(columns.size, np.uint64)
    for at in range(rows.size):
        row_bases[at] = LEVEL_STRIDE * (max(rows[at], least_row) - row_low)
    for at in range(columns.size):
        column_bases[at] = LEVEL_STRIDE * (max(columns[at], least_column) - column_low)
    return row_bases, column_bases, row_low + column_low, row_high + column_high
