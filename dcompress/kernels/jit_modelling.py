"""Coding of context-coded symbols in Numba, and the counts that classes are found by.

See ``reference_context`` for what the functions promise.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from dcompress.kernels.reference_context import LOWEST_STATE

U64 = np.uint64
_ONE = U64(1)


@njit(cache=True, nogil=True)
def encode_contexts(tables, symbols, raws, starts, frequencies, raw_bits, n_lanes, precision):
    """Return the words of a chunk, the states of its lanes before them."""
    n_rows, width = tables.shape
    states = np.full(n_lanes, LOWEST_STATE, np.uint32)
    words = np.empty(2 * tables.size + 2 * n_lanes, np.uint16)
    place = words.size
    shift = np.uint32(32 - precision)
    for group in range((n_rows - 1) // n_lanes, -1, -1):
        first = group * n_lanes
        n = min(n_lanes, n_rows - first)
        for column in range(width - 1, -1, -1):
            for lane in range(n - 1, -1, -1):
                x = U64(states[lane])
                symbol = symbols[first + lane, column]
                table = tables[first + lane, column]
                n_bits = U64(raw_bits[symbol])
                if n_bits:
                    if x >= _ONE << (U64(32) - n_bits):
                        place -= 1
                        words[place] = x & U64(0xFFFF)
                        x >>= U64(16)
                    x = x << n_bits | U64(raws[first + lane, column])
                frequency = U64(frequencies[table, symbol])
                if x >= frequency << U64(shift):
                    place -= 1
                    words[place] = x & U64(0xFFFF)
                    x >>= U64(16)
                quotient = np.uint32(x) // np.uint32(frequency)
                rest = x - U64(quotient) * frequency
                states[lane] = (U64(quotient) << U64(precision)) + rest + U64(starts[table, symbol])
    for lane in range(n_lanes - 1, -1, -1):
        place -= 2
        words[place] = states[lane] & 0xFFFF
        words[place + 1] = states[lane] >> 16
    return words[place:].copy()


@njit(cache=True, nogil=True)
def context_counts(symbols, neighbours, row_classes, column_classes, counts):
    """Add to ``counts`` (class, neighbours, symbol) the words of a matrix of symbols."""
    top = counts.shape[0] - 1
    for row in range(symbols.shape[0]):
        for column in range(symbols.shape[1]):
            c = min(max(row_classes[row] + column_classes[column], 0), top)
            counts[c, neighbours[row, column], symbols[row, column]] += 1


@njit(cache=True, nogil=True)
def context_costs(symbols, neighbours, row_classes, column_classes, costs, by_row, by_column):
    """Add what each row, and each column, would cost in each of the classes that it could have."""
    for row in range(symbols.shape[0]):
        for column in range(symbols.shape[1]):
            cost = costs[neighbours[row, column], symbols[row, column]]
            if by_row.size:
                _add(by_row[row], cost, column_classes[column])
            if by_column.size:
                _add(by_column[column], cost, row_classes[row] + column_classes[column])


@njit(cache=True, nogil=True)
def _add(totals, cost, middle):
    """Add what a word costs in the classes around ``middle``, those beyond the ends being like the last."""
    n = totals.size
    first = middle - n // 2
    low = min(max(-first, 0), n)
    high = max(min(cost.size - first, n), low)
    for k in range(low):
        totals[k] += cost[0]
    for k in range(low, high):
        totals[k] += cost[first + k]
    for k in range(high, n):
        totals[k] += cost[cost.size - 1]
