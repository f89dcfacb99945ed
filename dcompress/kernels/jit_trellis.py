"""Trellis-coded quantisation in Numba. See ``trellis`` for what it does; the integers are the same."""

from __future__ import annotations

import numpy as np
from numba import njit

from dcompress.kernels.trellis import LEVELS, NO_LEVEL, NO_RING, RING, TRELLIS_BLOCK, UNREACHED, preceding


@njit(cache=True, nogil=True)
def walk(grid, follow, lane_starts, places, quantisers):
    """Write the place k and the quantiser of every grid integer; return how many could be placed."""
    two = follow.shape[0] > 1
    for lane in range(lane_starts.size):
        state = 0
        end = lane_starts[lane + 1] if lane + 1 < lane_starts.size else grid.size
        for i in range(lane_starts[lane], end):
            value = grid[i]
            quantiser = state & 1
            if two:
                if value and (value & 1) != quantiser:
                    return i
                size = (abs(value) + quantiser) >> 1
                value = size if value > 0 else -size
            places[i] = value
            quantisers[i] = quantiser
            state = follow[state, value & 1]
    return grid.size


def find_path(
    weights,
    step,
    row_words,
    follow,
    lane_starts,
    row_class,
    column_class,
    price,
    buckets,
    levels,
    distance,
    far,
    grid,
):
    """Write the grid integers of the cheapest path for weights."""
    _find_path(
        weights,
        float(step),
        row_words,
        preceding(follow),
        lane_starts,
        row_class,
        column_class,
        price.reshape(-1),
        price.shape[0],
        price.shape[1],
        price.shape[-1],
        buckets,
        levels,
        distance,
        far,
        grid,
    )


@njit(cache=True, nogil=True)
def _find_path(
    weights,
    step,
    row_words,
    before,
    lane_starts,
    row_class,
    column_class,
    price,
    n_classes,
    quantisers,
    n_symbols,
    buckets,
    levels,
    distance,
    far,
    grid,
):
    n_states = before.shape[0]
    mask = quantisers - 1
    costs = np.empty(n_states)
    rings = np.empty(n_states, np.int64)
    new_rings = np.empty(n_states, np.int64)
    # By state and parity: cost, level, whether zero is the better even one.
    ways = np.empty(2 * n_states)
    ranks = np.empty(2 * n_states, np.int64)
    zeros = np.zeros(2 * n_states, np.uint8)
    trace = np.empty((TRELLIS_BLOCK, n_states), np.uint8)
    # By quantiser and parity: error, symbol, level.
    errors = np.empty(4)
    symbols = np.empty(4, np.int64)
    ahead = np.empty(4, np.int64)
    near = 0 < distance <= RING
    shift = 3 * (distance - 1) if near else 0
    for lane in range(lane_starts.size):
        lane_end = lane_starts[lane + 1] if lane + 1 < lane_starts.size else weights.size
        start = lane_starts[lane]
        costs[:] = UNREACHED
        costs[0] = 0.0
        while start < lane_end:
            end = min(start + TRELLIS_BLOCK, lane_end)
            row = start // row_words
            column = start % row_words
            for i in range(start, end):
                if column == 0:
                    rings[:] = NO_RING
                scale = min(max(row_class[row] + column_class[column], 0), n_classes - 1)
                column += 1
                if column == row_words:
                    column = 0
                    row += 1
                weight = weights[i]
                size = abs(np.float64(weight)) / step
                nothing = size * size
                positive = 1 if weight > 0 else 0
                for quantiser in range(quantisers):
                    low = np.int64((size + quantiser) / quantisers)
                    for k in range(low, low + 2):
                        option = 2 * quantiser + (k & 1)
                        away = size - (quantisers * k - quantiser if k else 0)
                        bucket = np.int64(buckets[k])
                        level = np.int64(levels[quantiser, bucket])
                        errors[option] = away * away
                        symbols[option] = 2 * bucket - positive if k else 0
                        ahead[option] = NO_LEVEL + level if positive else NO_LEVEL - level
                base = scale * quantisers * LEVELS * LEVELS
                second = np.int64(NO_LEVEL)
                if distance > RING:
                    second = np.int64(far[i])
                pruned = weight == 0
                for state in range(n_states):
                    quantiser = state & mask
                    ring = rings[state]
                    if near:
                        second = ring >> shift & 7
                    place = (base + (quantiser * LEVELS + (ring & 7)) * LEVELS + second) * n_symbols
                    cost = costs[state]
                    option = 2 * quantiser
                    zero = cost + (nothing + price[place])
                    way = cost + (errors[option] + price[place + symbols[option]])
                    better = zero < way
                    ways[2 * state] = zero if better else way
                    zeros[2 * state] = 2 if better else 0
                    ranks[2 * state] = NO_LEVEL if better else ahead[option]
                    way = cost + (errors[option + 1] + price[place + symbols[option + 1]])
                    ways[2 * state + 1] = UNREACHED if pruned else way
                    ranks[2 * state + 1] = ahead[option + 1]
                row_trace = trace[i - start]
                for state in range(n_states):
                    slot = before[state, 0]
                    other = before[state, 1]
                    later = ways[other] < ways[slot]
                    slot = other if later else slot
                    costs[state] = ways[slot]
                    new_rings[state] = rings[slot >> 1] << 3 | ranks[slot]
                    row_trace[state] = zeros[slot] | later
                rings, new_rings = new_rings, rings
            state = 0
            for other in range(1, n_states):
                if costs[other] < costs[state]:
                    state = other
            for other in range(n_states):
                costs[other] = 0.0 if other == state else UNREACHED
            for i in range(end - 1, start - 1, -1):
                how = trace[i - start, state]
                slot = before[state, how & 1]
                state = slot >> 1
                quantiser = state & mask
                size = abs(np.float64(weights[i])) / step
                k = np.int64((size + quantiser) / quantisers)
                if (k ^ slot) & 1:
                    k += 1
                if how & 2:
                    k = 0
                value = quantisers * k - quantiser if k else 0
                grid[i] = value if weights[i] > 0 else -value
            start = end
