"""Quantisation with error feedback, in plain Python: what a weight loses moves what is not yet settled.

A layer's output changes by ``sum((E R)**2)``: ``E`` are the errors of its weights, a row for each output, and
``R`` is upper triangular, ``R R^T`` the second moments of its inputs. The term of column j depends on the
errors of columns 0 .. j alone; so when a row is settled from left to right, each error adds to the values of
the later columns: ``spread[j, k] = R[j, k] / R[k, k]``, and ``worth[k] = R[k, k]**2``.

Inputs are trusted; ``dcompress.feedback`` checked them. Twins in ``jit_feedback`` give the same integers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dcompress.kernels.trellis import NO_LEVEL, NO_RING, RING, UNREACHED, preceding

__all__ = ["feed_labels", "feed_path"]

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]
Mask = NDArray[np.bool_]

_RING_MASK = (1 << 3 * RING) - 1


def feed_path(
    values: F64,
    targets: F64,
    kept: Mask,
    rows: I64,
    lane_ends: I64,
    begin: int,
    end: int,
    group_of: I64,
    spread: F64,
    worth: F64,
    follow: I64,
    row_class: I32,
    column_class: I32,
    price: F32,
    buckets: U8,
    levels: U8,
    distance: int,
    far: U8,
    states: I64,
    rings: I64,
    grid: I32,
) -> None:
    """Write the grid integers of the cheapest paths through some columns, errors fed along each row.

    Parameters
    ----------
    values : ndarray of shape (n_rows, row_words), dtype float64
        In steps: what the weights should be, errors of earlier calls added.
    targets : ndarray of shape (n_rows, row_words), dtype float64
        In steps: what they should be without any error.
    kept : ndarray of shape (n_rows, row_words), dtype bool
        False for a pruned weight, which becomes 0; its error is fed on like any other.
    rows : ndarray of dtype int64
        Rows in the order of the paths.
    lane_ends : ndarray of shape (n_lanes,), dtype int64
        Where in ``rows`` each lane's end.
    begin, end : int
        Columns of each row to go through.
    group_of : ndarray of shape (n_rows,), dtype int64
        Which group of ``spread`` and ``worth`` a row belongs to.
    spread : ndarray of shape (n_groups, period, period), dtype float64
        How much of the error of one column is added to the value of another. ``period`` divides the number
        of columns: errors go no farther than that, and then it starts again.
    worth : ndarray of shape (n_groups, period), dtype float64
        Of a squared step of error in a column.
    follow, row_class, column_class, price, buckets, levels, distance
        See `dcompress.kernels.trellis.find_path`.
    far : ndarray of shape (n_rows, row_words), dtype uint8
        As there; of any shape if it is not read.
    states, rings : ndarray of shape (n_lanes,), dtype int64
        Where each lane's path begins, changed to where it ends: state of the trellis, and levels of what
        comes before ``begin`` in the row.
    grid : ndarray of shape (n_rows, row_words), dtype int32
        Filled in these rows and columns.

    Notes
    -----
    Every path has errors of its own, and so values of its own. Candidates are the two integers of the
    quantiser around a value, and 0; of two equally good paths that from the lower state is kept.
    """
    before = preceding(follow).tolist()
    quantisers = price.shape[1]
    start = 0
    for lane, stop in enumerate(lane_ends.tolist()):
        if start == stop:
            continue
        costs = [UNREACHED] * follow.shape[0]
        costs[int(states[lane])] = 0.0
        rows_here = rows[start:stop].tolist()
        paths: list[list[int]] = [[] for _ in costs]
        own_rings = [int(rings[lane])] * len(costs)
        ahead = [values[0, :0]] * len(costs)
        for row in rows_here:
            if begin == 0:
                own_rings = [NO_RING] * len(costs)
            for column in range(begin, end):
                own = (column - begin) % worth.shape[1]
                if own == 0:
                    ahead = [values[row, column : column + worth.shape[1]]] * len(costs)
                scale = min(max(int(row_class[row] + column_class[column]), 0), price.shape[0] - 1)
                weight = float(worth[group_of[row], own])
                ways = []
                for state, cost in enumerate(costs):
                    ring = own_rings[state]
                    second = NO_LEVEL
                    if distance > RING:
                        second = int(far[row, column])
                    elif distance:
                        second = ring >> 3 * (distance - 1) & 7
                    quantiser = state & (quantisers - 1)
                    ways += _ways(
                        cost,
                        float(ahead[state][own]),
                        bool(kept[row, column]),
                        weight,
                        quantiser,
                        quantisers,
                        price[scale, quantiser, ring & 7, second],
                        buckets,
                        levels,
                    )
                chosen = [one if ways[one][0] <= ways[other][0] else other for one, other in before]
                share = spread[group_of[row], own]
                costs = [ways[slot][0] for slot in chosen]
                own_rings = [
                    (own_rings[slot >> 1] << 3 | NO_LEVEL + ways[slot][2]) & _RING_MASK for slot in chosen
                ]
                paths = [[*paths[slot >> 1], ways[slot][1]] for slot in chosen]
                errors = [targets[row, column] - ways[slot][1] for slot in chosen]
                ahead = [
                    _fed(ahead[slot >> 1], own, error, share)
                    for slot, error in zip(chosen, errors, strict=True)
                ]
        state = costs.index(min(costs))
        states[lane], rings[lane] = state, own_rings[state]
        grid[rows_here, begin:end] = np.array(paths[state], np.int32).reshape(len(rows_here), end - begin)
        start = stop


def _fed(ahead: F64, own: int, error: float, share: F64) -> F64:
    """Return the values ahead with the error of one column added to those after it."""
    result = ahead.copy()
    result[own + 1 :] += error * share[own + 1 :]
    return result


def _ways(
    cost: float,
    value: float,
    kept: bool,
    weight: float,
    quantiser: int,
    quantisers: int,
    prices: F32,
    buckets: U8,
    levels: U8,
) -> list[tuple[float, int, int]]:
    """Return cost, grid integer and signed level of the best even and the best odd place."""
    size, sign = abs(value), 1 if value > 0 else -1
    ways = [(UNREACHED, 0, 0), (UNREACHED, 0, 0)]
    if cost >= UNREACHED:
        return ways
    ways[0] = cost + (weight * (size * size) + float(prices[0])), 0, 0
    low = int((size + quantiser) / quantisers)
    for wanted in (low, low + 1) if kept else ():
        k = min(max(wanted, 1), buckets.size - 1)
        whole = quantisers * k - quantiser
        away = size - whole
        bucket = int(buckets[k])
        way = cost + (weight * (away * away) + float(prices[2 * bucket - (value > 0)]))
        if way < ways[k & 1][0]:
            ways[k & 1] = way, sign * whole, sign * int(levels[quantiser, bucket])
    return ways


def feed_labels(
    values: F64,
    targets: F64,
    kept: Mask,
    begin: int,
    end: int,
    group_of: I64,
    spread: F64,
    codebooks: F64,
    book_of: I64,
    places: I32,
) -> None:
    """Write the places of the nearest centroids in some columns, errors fed along each row.

    Parameters
    ----------
    values, targets, kept, begin, end, group_of, spread
        As for `feed_path`, in the unit of the codebooks; ``period`` is the number of columns.
    codebooks : ndarray of shape (n_books, n_centroids), dtype float64
        Ascending in each row.
    book_of : ndarray of shape (n_rows,), dtype int64
        Which codebook a row belongs to.
    places : ndarray of shape (n_rows, row_words), dtype int32
        Filled in these columns with places in the codebook; of two equally near the lower. -1 where pruned.
    """
    rows: Any = np.arange(len(values))
    ahead = values[:, begin:end].copy()
    for column in range(begin, end):
        own = column - begin
        books = codebooks[book_of]
        middles = (books[:, :-1] + books[:, 1:]) / 2
        place = (ahead[:, own, None] > middles).sum(1)
        here = kept[:, column]
        places[:, column] = np.where(here, place, -1)
        error = targets[:, column] - np.where(here, books[rows, place], 0.0)
        ahead[:, own + 1 :] += error[:, None] * spread[group_of, own, own + 1 :]
