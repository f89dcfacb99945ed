"""Trellis-coded quantisation with error feedback, in Numba. See ``feedback``; the integers are the same."""

from __future__ import annotations

import numpy as np
from numba import njit

from dcompress.kernels.trellis import LEVELS, NO_LEVEL, NO_RING, RING, UNREACHED, preceding

_RING_MASK = (1 << 3 * RING) - 1


def feed_path(
    values,
    targets,
    kept,
    rows,
    lane_ends,
    begin,
    end,
    group_of,
    spread,
    worth,
    follow,
    row_class,
    column_class,
    price,
    buckets,
    levels,
    distance,
    far,
    states,
    rings,
    grid,
):
    """Write the grid integers of the cheapest paths through some columns, errors fed along each row."""
    _feed_path(
        values,
        targets,
        kept,
        rows,
        lane_ends,
        begin,
        end,
        group_of,
        spread,
        worth,
        preceding(follow),
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
        states,
        rings,
        grid,
    )


@njit(cache=True, nogil=True)
def _feed_path(
    values,
    targets,
    kept,
    rows,
    lane_ends,
    begin,
    end,
    group_of,
    spread,
    worth,
    before,
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
    lane_states,
    lane_rings,
    grid,
):
    n_states = before.shape[0]
    mask = quantisers - 1
    half = 1.0 / quantisers  # exactly
    period = worth.shape[1]
    costs = np.empty(n_states)
    rings = np.empty(n_states, np.int64)
    new_rings = np.empty(n_states, np.int64)
    # What each path makes of the columns ahead, and what it will.
    ahead = np.zeros((n_states, period))
    new_ahead = np.zeros((n_states, period))
    # By state and parity: cost, level, grid integer.
    ways = np.empty(2 * n_states)
    ranks = np.empty(2 * n_states, np.int64)
    places = np.empty(2 * n_states, np.int64)
    longest = 0
    start = 0
    for stop in lane_ends:
        if stop - start > longest:
            longest = stop - start
        start = stop
    trace = np.empty((longest * (end - begin), n_states), np.uint16)
    trace_grid = np.empty((longest * (end - begin), n_states), np.int16)
    near = 0 < distance <= RING
    shift = 3 * (distance - 1) if near else 0
    start = 0
    for lane in range(lane_ends.size):
        stop = lane_ends[lane]
        if start == stop:
            continue
        costs[:] = UNREACHED
        costs[lane_states[lane]] = 0.0
        rings[:] = lane_rings[lane]
        i = 0
        for at in range(start, stop):
            row = rows[at]
            group = group_of[row]
            if begin == 0:
                rings[:] = NO_RING
            for column in range(begin, end):
                own = (column - begin) % period
                if own == 0:
                    for state in range(n_states):
                        for k in range(period):
                            ahead[state, k] = values[row, column + k]
                scale = min(max(row_class[row] + column_class[column], 0), n_classes - 1)
                base = scale * quantisers * LEVELS * LEVELS
                second = np.int64(NO_LEVEL)
                if distance > RING:
                    second = np.int64(far[row, column])
                pruned = not kept[row, column]
                target = targets[row, column]
                weight = worth[group, own]
                share = spread[group, own, own + 1 :]
                for state in range(n_states):
                    cost = costs[state]
                    slot = 2 * state
                    ways[slot + 1] = UNREACHED
                    if cost >= UNREACHED:
                        ways[slot] = UNREACHED
                        continue
                    quantiser = state & mask
                    value = ahead[state, own]
                    size = abs(value)
                    positive = 1 if value > 0 else 0
                    ring = rings[state]
                    if near:
                        second = ring >> shift & 7
                    place = (base + (quantiser * LEVELS + (ring & 7)) * LEVELS + second) * n_symbols
                    ways[slot] = cost + (weight * (size * size) + price[place])
                    ranks[slot] = NO_LEVEL
                    places[slot] = 0
                    if pruned:
                        continue
                    low = np.int64((size + quantiser) * half)
                    for wanted in (low, low + 1):
                        k = min(max(wanted, 1), buckets.size - 1)
                        whole = quantisers * k - quantiser
                        away = size - whole
                        bucket = np.int64(buckets[k])
                        way = cost + (weight * (away * away) + price[place + 2 * bucket - positive])
                        slot = 2 * state + (k & 1)
                        if way < ways[slot]:
                            level = np.int64(levels[quantiser, bucket])
                            ways[slot] = way
                            ranks[slot] = NO_LEVEL + level if positive else NO_LEVEL - level
                            places[slot] = whole if positive else -whole
                for state in range(n_states):
                    slot = before[state, 0]
                    other = before[state, 1]
                    if ways[other] < ways[slot]:
                        slot = other
                    costs[state] = ways[slot]
                    trace[i, state] = slot
                    if ways[slot] >= UNREACHED:
                        continue
                    old = slot >> 1
                    new_rings[state] = rings[old] << 3 | ranks[slot]
                    trace_grid[i, state] = places[slot]
                    error = target - places[slot]
                    _feed(new_ahead[state, own + 1 :], ahead[old, own + 1 :], error, share)
                rings, new_rings = new_rings, rings
                ahead, new_ahead = new_ahead, ahead
                i += 1
        state = 0
        for other in range(1, n_states):
            if costs[other] < costs[state]:
                state = other
        lane_states[lane] = state
        lane_rings[lane] = rings[state] & _RING_MASK
        for at in range(stop - 1, start - 1, -1):
            row = rows[at]
            for column in range(end - 1, begin - 1, -1):
                i -= 1
                grid[row, column] = trace_grid[i, state]
                state = np.int64(trace[i, state]) >> 1
        start = stop


@njit(cache=True, nogil=True)
def _feed(after, before, error, share):
    # From 0 and of three views: so that the compiler makes vector instructions of it.
    for k in range(share.size):
        after[k] = before[k] + error * share[k]


@njit(cache=True, nogil=True)
def feed_labels(values, targets, kept, begin, end, group_of, spread, codebooks, book_of, places):
    """Write the places of the nearest centroids in some columns, errors fed along each row."""
    n_centroids = codebooks.shape[1]
    middles = (codebooks[:, :-1] + codebooks[:, 1:]) / 2
    ahead = np.empty(end - begin)
    for row in range(values.shape[0]):
        group, book = group_of[row], book_of[row]
        for column in range(begin, end):
            ahead[column - begin] = values[row, column]
        for column in range(begin, end):
            own = column - begin
            error = targets[row, column]
            places[row, column] = -1
            if kept[row, column]:
                value = ahead[own]
                low, high = 0, n_centroids - 1
                while low < high:
                    half = (low + high) // 2
                    if value > middles[book, half]:
                        low = half + 1
                    else:
                        high = half
                places[row, column] = low
                error -= codebooks[book, low]
            _feed(ahead[own + 1 :], ahead[own + 1 :], error, spread[group, own, own + 1 :])
