"""Trellis-coded quantisation in plain Python, and the trellises themselves.

In a trellis two quantisers share a grid of equal steps: Q0, of states with an even number, has the integers
0, +-2, +-4, ...; Q1, of odd ones, has 0, +-1, +-3, ... A weight is coded as its place k in its quantiser:
-1, 0, 1 and so on. The lowest bit of k says which of two states comes next. ``find_path`` finds the path that
costs least in error and bits together (Viterbi's algorithm); ``walk`` follows a path that is there.

Inputs are trusted; ``rate`` checked them. Twins in ``jit_trellis`` give the same integers.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dcompress.constants import TRELLIS_STATES

__all__ = [
    "LEVELS",
    "NO_LEVEL",
    "NO_RING",
    "RING",
    "STATES",
    "TRELLIS_BLOCK",
    "UNREACHED",
    "find_path",
    "preceding",
    "transitions",
    "walk",
]

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]

LEVELS = 7  # signed levels of a neighbour, -3 to 3, counted from 0
NO_LEVEL = 3  # the level of zero, and of what lies before a row
RING = 20  # neighbours that a path remembers, three bits each
TRELLIS_BLOCK = 1 << 15  # weights after which the best path so far is settled

# Ungerboeck's codes for amplitude modulation (1982, table I), by number of states: which bits of the next
# state the quantiser flips, and which the parity of k: bit i of the state is bit i + 1 here.
_CODES = {
    4: (0o5, 0o2),
    8: (0o13, 0o4),
    16: (0o23, 0o4),
    32: (0o45, 0o10),
    64: (0o103, 0o24),
    128: (0o235, 0o126),
    256: (0o515, 0o362),
}
STATES = TRELLIS_STATES
NO_RING = (1 << 3 * RING) // 7 * NO_LEVEL  # that level in every place
_RING_MASK = (1 << 3 * RING) - 1
UNREACHED = 1e300


def transitions(states: int) -> I64:
    """Return which state follows each state after an even k and after an odd one.

    Parameters
    ----------
    states : int
        One of `STATES`; 0 = no trellis: a single state whose quantiser has every integer.

    Returns
    -------
    follow : ndarray of shape (max(states, 1), 2), dtype int64
        Every state follows two others, or one of them twice.

    Notes
    -----
    A systematic feedback shift register: bit i of the next state is bit i + 1 of this one, flipped by the
    quantiser (its lowest bit) and by the parity of k where the code says so; the highest is the quantiser.

    Examples
    --------
    >>> transitions(4).tolist()
    [[0, 1], [2, 3], [1, 0], [3, 2]]
    """
    if not states:
        return np.zeros((1, 2), np.int64)
    feedback, taps = _CODES[states]
    n_bits = states.bit_length() - 1
    follow = np.zeros((states, 2), np.int64)
    for state in range(states):
        low = state & 1
        for parity in range(2):
            shifted = state >> 1 | low << (n_bits - 1)
            for bit in range(n_bits - 1):
                flip = (feedback >> (bit + 1) & low) ^ (taps >> (bit + 1) & parity)
                shifted ^= flip << bit
            follow[state, parity] = shifted
    return follow


def preceding(follow: I64) -> I64:
    """Return which two (state, parity), as twice the state plus the parity, lead to each state."""
    order = np.argsort(follow.reshape(-1), kind="stable")
    return order.reshape(-1, 2)


def walk(grid: I32, follow: I64, lane_starts: I64, places: I32, quantisers: U8) -> int:
    """Write the place k and the quantiser of every grid integer; return how many could be placed.

    Parameters
    ----------
    grid : ndarray of shape (n,), dtype int32
        Grid integers in the order of the path.
    follow : ndarray
        See `transitions`.
    lane_starts : ndarray of shape (n_lanes,), dtype int64
        Ascending, the first one 0: where a path starts anew, from state 0.
    places, quantisers : ndarray of shape (n,), dtypes int32 and uint8
        To be filled.

    Returns
    -------
    n_placed : int
        ``n``, unless an integer is none of the quantiser that its path leads to.
    """
    two = follow.shape[0] > 1
    table = follow.tolist()
    values = grid.tolist()
    ends = [*lane_starts.tolist()[1:], len(values)]
    for start, end in zip(lane_starts.tolist(), ends, strict=True):
        state = 0
        for i in range(start, end):
            value = values[i]
            quantiser = state & 1
            if two:
                if value and (value & 1) != quantiser:
                    return i
                value = (abs(value) + quantiser) // 2 * (1 if value > 0 else -1)
            places[i] = value
            quantisers[i] = quantiser
            state = table[state][value & 1]
    return len(values)


def find_path(
    weights: F32,
    step: float,
    row_words: int,
    follow: I64,
    lane_starts: I64,
    row_class: I32,
    column_class: I32,
    price: F32,
    buckets: U8,
    levels: U8,
    distance: int,
    far: U8,
    grid: I32,
) -> None:
    """Write the grid integers of the cheapest path for weights.

    Parameters
    ----------
    weights : ndarray of shape (n,), dtype float32
        Finite; 0 means a pruned weight, which stays 0.
    step : float
        Of the grid; no weight is more than 4,000 steps from zero.
    row_words : int
        Words of a row: neighbours are looked for in the same row.
    follow, lane_starts : ndarray
        See `transitions` and `walk`. Lanes are of whole rows.
    row_class, column_class : ndarray of dtype int32
        By row, and by place in a row: their sum, held within 0 .. ``n_classes - 1``, is the class.
    price : ndarray of shape (n_classes, n_quantisers, 7, 7, n_symbols), dtype float32
        What a symbol costs, in squared steps, by class, quantiser, level of the weight before and level of
        the weight ``distance`` before. ``n_quantisers`` is 2 in a trellis, or else 1.
    buckets : ndarray of uint8
        Bucket of each magnitude of k; symbols are 0, and by bucket b 2b - 1 above and 2b below 0.
    levels : ndarray of shape (n_quantisers, n_buckets), dtype uint8
        Unsigned level, 0 .. 3, of each bucket.
    distance : int
        How far back the second neighbour is; 0 = it is always at `NO_LEVEL`.
    far : ndarray of shape (n,), dtype uint8
        Level, 0 .. 6, of the weight ``distance`` before. Read only if ``distance`` is above `RING`: up to
        there each path knows its own.
    grid : ndarray of shape (n,), dtype int32
        To be filled.

    Notes
    -----
    The candidates of a state are the two integers of its quantiser around the weight, and 0. Of two equally
    good paths the one from the lower state is kept, and a value other than 0.
    """
    sizes = (np.abs(weights).astype(np.float64) / step).tolist()
    positive = (weights > 0).tolist()
    scales = np.clip(row_class[:, None] + column_class, 0, price.shape[0] - 1).reshape(-1).tolist()
    bucket_of, level_of = buckets.tolist(), levels.tolist()
    quantisers = price.shape[1]
    seconds = far.tolist() if distance > RING else []
    shift = 3 * (distance - 1)
    before = preceding(follow).tolist()
    ends = [*lane_starts.tolist()[1:], weights.size]
    for lane_start, lane_end in zip(lane_starts.tolist(), ends, strict=True):
        costs = [0.0] + [UNREACHED] * (follow.shape[0] - 1)
        rings = [NO_RING] * follow.shape[0]
        for start in range(lane_start, lane_end, TRELLIS_BLOCK):
            block = range(start, min(start + TRELLIS_BLOCK, lane_end))
            trace: list[list[tuple[int, int]]] = []  # by weight and state: where it came from, and k
            for i in block:
                size, sign = sizes[i], positive[i]
                if i % row_words == 0:
                    rings = [NO_RING] * follow.shape[0]
                # By quantiser and parity: magnitude of k, error, symbol, level.
                options = [
                    _option(k, size, quantiser, quantisers, sign, bucket_of, level_of[quantiser])
                    for quantiser in range(quantisers)
                    for k in _candidates(size, quantiser, quantisers)
                ]
                ways: list[tuple[float, int, int]] = []  # by state and parity: cost, magnitude of k, level
                for state, cost in enumerate(costs):
                    quantiser = state & (quantisers - 1)
                    second = NO_LEVEL
                    if distance > RING:
                        second = seconds[i]
                    elif distance:
                        second = rings[state] >> shift & 7
                    prices = price[scales[i], quantiser, rings[state] & 7, second]
                    zero = cost + (size * size + float(prices[0]))
                    for k, error, symbol, level in options[2 * quantiser : 2 * quantiser + 2]:
                        way = cost + (error + float(prices[symbol]))
                        if size == 0 and k:
                            ways.append((UNREACHED, 0, NO_LEVEL))
                        elif not k & 1 and zero < way:
                            ways.append((zero, 0, NO_LEVEL))
                        else:
                            ways.append((way, k, level))
                chosen = [one if ways[one][0] <= ways[other][0] else other for one, other in before]
                trace.append([(slot >> 1, ways[slot][1]) for slot in chosen])
                costs = [ways[slot][0] for slot in chosen]
                rings = [(rings[slot >> 1] << 3 | ways[slot][2]) & _RING_MASK for slot in chosen]
            state = costs.index(min(costs))
            costs = [0.0 if one == state else UNREACHED for one in range(len(costs))]
            for i, came_from in zip(reversed(block), reversed(trace), strict=True):
                state, k = came_from[state]
                value = _grid_size(k, state & (quantisers - 1), quantisers)
                grid[i] = value if positive[i] else -value


def _candidates(size: float, quantiser: int, quantisers: int) -> tuple[int, int]:
    """Return the even and the odd of the two magnitudes of k around a size in steps."""
    low = int((size + quantiser) / quantisers)
    return (low + 1, low) if low & 1 else (low, low + 1)


def _grid_size(k: int, quantiser: int, quantisers: int) -> int:
    """Return the magnitude of the grid integer at a place of a quantiser."""
    return quantisers * k - quantiser if k else 0


def _option(
    k: int, size: float, quantiser: int, quantisers: int, sign: bool, buckets: list[int], levels: list[int]
) -> tuple[int, float, int, int]:
    """Return a candidate: magnitude of k, error, symbol, signed level."""
    away = size - _grid_size(k, quantiser, quantisers)
    bucket = buckets[k]
    level = levels[bucket]
    return k, away * away, 2 * bucket - (sign and k > 0), NO_LEVEL + (level if sign else -level)
