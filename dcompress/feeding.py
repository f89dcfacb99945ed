"""Error feedback through the kernels: the grid integers, or the centroids, of a tensor with `Feedback`."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
from numpy.typing import NDArray

from dcompress import kernels
from dcompress.blas import one_blas_thread
from dcompress.coding.symbols import BUCKET_OF
from dcompress.feedback import F64, I32, I64, Feedback, Mask
from dcompress.kernels.trellis import NO_RING, RING
from dcompress.prices import Layout, Prices

__all__ = ["fed_grid", "fed_places"]

_LANES = 64  # that one thread takes at a time
_WINDOW = 128  # columns that a path feeds on its own; what lies further gets the sum of a window's errors


@one_blas_thread()
def fed_grid(
    fed: Feedback,
    step: float,
    most: int,
    order: Layout,
    follow: I64,
    prices: Prices,
    table: NDArray[np.float32],
    far: NDArray[np.uint8],
    threads: int = 1,
) -> I32:
    """Return the grid integers of a tensor that are cheapest in output error and bits, errors fed on.

    Parameters
    ----------
    fed : Feedback
        The tensor.
    step : float
        Of the grid.
    most : int
        Largest grid integer, about: it is bounded so that a tensor keeps its range.
    order : Layout
        Rows as they are coded, along which the trellis walks.
    follow : ndarray
        Its `transitions`.
    prices, table, far
        Classes and levels, what symbols cost in squared steps, levels of far neighbours: as for
        `dcompress.kernels.trellis.find_path`, the last in the order of the tensor.
    threads : int
        That share the lanes; the integers are the same.

    Returns
    -------
    grid : ndarray of shape (n,), dtype int32
        In the order of the tensor.
    """
    buckets = BUCKET_OF[: max(1, most // table.shape[1]) + 1]
    walk = _Walk(fed, step, order, follow, prices, table, far, buckets)
    return walk.along_rows(threads) if fed.moments.layout == "rows" else walk.across_rows()


class _Walk:
    """A tensor on its way through the kernels."""

    def __init__(
        self,
        fed: Feedback,
        step: float,
        order: Layout,
        follow: I64,
        prices: Prices,
        table: NDArray[np.float32],
        far: NDArray[np.uint8],
        buckets: NDArray[np.uint8],
    ) -> None:
        self._fed = fed
        self._moments = fed.moments
        self._step = step
        self._order = order
        n_lanes = order.lane_starts.size
        self._ends = np.append(order.lane_starts[1:], order.rows.size)
        self._states = np.zeros(n_lanes, np.int64)
        self._rings = np.full(n_lanes, NO_RING, np.int64)
        self._follow, self._prices, self._table, self._buckets = follow, prices, table, buckets
        self._far = far
        self._worth = fed.worth()
        self._kernel = kernels.select(100 * fed.targets.size)

    def along_rows(self, threads: int) -> I32:
        """Settle a tensor whose rows are outputs: errors are fed along the rows of the path."""
        n_columns = self._fed.targets.shape[2]
        targets = self._fed.targets.reshape(-1, n_columns)
        kept = self._fed.kept.reshape(-1, n_columns)
        grid = np.zeros(targets.shape, np.int32)
        settle = partial(self._settle_lanes, targets, kept, self._spreads(n_columns), grid)
        n_lanes = self._order.lane_starts.size
        parts = [slice(first, min(first + _LANES, n_lanes)) for first in range(0, n_lanes, _LANES)]
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(settle, parts))
        return grid.reshape(-1)

    def _spreads(self, n_columns: int) -> list[tuple[slice, F64]]:
        """Return windows, and how the errors of each are spread over it and all that follows."""
        if not self._fed.factors:
            return [(slice(0, n_columns), np.zeros((1, 1, 1)))]
        windows = [slice(at, min(at + _WINDOW, n_columns)) for at in range(0, n_columns, _WINDOW)]
        return [(window, self._fed.spread(window, slice(window.start, n_columns))) for window in windows]

    def _settle_lanes(
        self, targets: F64, kept: Mask, spreads: list[tuple[slice, F64]], grid: I32, lanes: slice
    ) -> None:
        """Settle the rows of some lanes: all at once, or if they are long one of each lane at a time."""
        n_group_rows = max(1, len(targets) // self._moments.n_groups)
        for rows, ends, own_lanes in self._turns(lanes, at_once=len(spreads) == 1):
            groups = rows // n_group_rows
            wanted = targets[rows] / self._step
            values, found = wanted.copy(), np.zeros(wanted.shape, np.int32)
            arrays = values, wanted, kept[rows], found
            for window, spread in spreads:
                n_own = window.stop - window.start
                if self._fed.factors:
                    own = groups, spread[:, :, :n_own], self._worth[:, window]
                else:
                    own = np.arange(rows.size), np.zeros((rows.size, 1, 1)), self._worth[rows]
                self._call(arrays, rows, ends, own_lanes, window, *own)
                if window.stop < wanted.shape[1]:
                    errors = wanted[:, window] - found[:, window]
                    _pass_on(errors, values[:, window.stop :], groups, spread[:, :, n_own:])
            grid[rows] = found

    def _turns(self, lanes: slice, *, at_once: bool) -> Iterator[tuple[I64, I64, I64]]:
        """Yield rows, where among them the rows of each lane end, and these lanes."""
        starts, ends = self._order.lane_starts[lanes], self._ends[lanes]
        if at_once:
            yield self._order.rows[starts[0] : ends[-1]], ends - starts[0], np.arange(lanes.start, lanes.stop)
            return
        for turn in range(int((ends - starts).max(initial=0))):
            still = np.flatnonzero(starts + turn < ends)
            yield self._order.rows[starts[still] + turn], np.arange(1, still.size + 1), still + lanes.start

    def across_rows(self) -> I32:
        """Settle a tensor whose rows are inputs: errors are fed to the rows below, and within a kernel."""
        moments = self._moments
        n_groups, n_outputs, n_columns = self._fed.targets.shape
        n_rows = moments.shape[0]
        width = n_columns * n_groups // n_rows  # columns of the matrix in a row of the tensor
        lane_of = np.empty(n_rows, np.int64)
        for lane, (start, end) in enumerate(zip(self._order.lane_starts, self._ends, strict=True)):
            lane_of[self._order.rows[start:end]] = lane
        grid = np.zeros((n_rows, n_outputs * width), np.int32)
        group_rows = n_rows // n_groups
        step = max(1, _WINDOW // width)
        for group in range(n_groups):
            targets, kept = self._fed.targets[group] / self._step, self._fed.kept[group]
            values = targets.copy()
            for first in range(0, group_rows, step):
                last = min(first + step, group_rows)
                block = slice(first * width, last * width)
                spread = self._fed.spread(block, slice(block.start, n_columns))[group]
                for row in range(first, last):
                    here = slice(row * width, (row + 1) * width)
                    whole = np.zeros((1, n_outputs * width), np.int32)
                    arrays = (
                        np.ascontiguousarray(values[:, here]).reshape(1, -1),
                        np.ascontiguousarray(targets[:, here]).reshape(1, -1),
                        np.ascontiguousarray(kept[:, here]).reshape(1, -1),
                        whole,
                    )
                    at = slice(here.start - block.start, here.stop - block.start)
                    number = np.array([group * group_rows + row])
                    self._call(
                        arrays,
                        number,
                        np.ones(1, np.int64),
                        lane_of[number],
                        slice(0, n_outputs * width),
                        np.zeros(1, np.int64),
                        spread[None, at, at],
                        self._worth[group : group + 1, here],
                    )
                    grid[number] = whole
                    errors = targets[:, here] - whole.reshape(n_outputs, width)
                    values[:, here.stop : block.stop] += (
                        errors @ spread[at, at.stop : block.stop - block.start]
                    )
                done = grid[group * group_rows + first : group * group_rows + last]
                settled = done.reshape(last - first, n_outputs, width).transpose(1, 0, 2)
                errors = targets[:, block] - settled.reshape(n_outputs, -1)
                values[:, block.stop :] += errors @ spread[:, block.stop - block.start :]
        return grid.reshape(-1)

    def _call(
        self,
        arrays: tuple[F64, F64, Mask, I32],
        rows: I64,
        ends: I64,
        lanes: I64,
        window: slice,
        groups: I64,
        spread: F64,
        worth: F64,
    ) -> None:
        """Settle some columns of some rows of the tensor, lane after lane."""
        values, targets, kept, grid = arrays
        states, rings = self._states[lanes], self._rings[lanes]
        self._kernel.feed_path(
            values,
            targets,
            kept,
            np.arange(rows.size),
            ends,
            window.start,
            window.stop,
            groups,
            np.ascontiguousarray(spread),
            np.ascontiguousarray(worth),
            self._follow,
            self._prices.row_class[rows],
            self._prices.column_class,
            self._table,
            self._buckets,
            self._prices.levels,
            self._prices.distance,
            self._far[rows] if self._prices.distance > RING else self._far,
            states,
            rings,
            grid,
        )
        self._states[lanes], self._rings[lanes] = states, rings


@one_blas_thread()
def fed_places(fed: Feedback, codebooks: F64, book_of: I64) -> I32:
    """Return the place in its codebook of every weight, errors fed on.

    Parameters
    ----------
    fed : Feedback
        The tensor.
    codebooks : ndarray of shape (n_books, n_centroids), dtype float64
        Ascending; rows that are shorter end with infinite values.
    book_of : ndarray of shape (n_groups * n_outputs,), dtype int64
        Which codebook the weights of an output take.

    Returns
    -------
    places : ndarray in the shape of the tensor, dtype int32
        -1 where a weight is pruned.
    """
    n_columns = fed.targets.shape[2]
    targets, kept = fed.targets.reshape(-1, n_columns), fed.kept.reshape(-1, n_columns)
    values, places = targets.copy(), np.zeros(targets.shape, np.int32)
    groups = np.arange(len(targets)) // max(1, len(targets) // fed.targets.shape[0])
    if not fed.factors:
        return _nearest(targets, kept, codebooks, book_of).reshape(fed.moments.shape)
    kernel = kernels.select(20 * targets.size)
    for begin in range(0, n_columns, _WINDOW):
        window = slice(begin, min(begin + _WINDOW, n_columns))
        spread = fed.spread(window, slice(begin, n_columns))
        own = np.ascontiguousarray(spread[:, :, : window.stop - begin])
        kernel.feed_labels(values, targets, kept, begin, window.stop, groups, own, codebooks, book_of, places)
        chosen = codebooks[book_of[:, None], places[:, window]]
        errors = targets[:, window] - np.where(kept[:, window], chosen, 0.0)
        _pass_on(errors, values[:, window.stop :], groups, spread[:, :, window.stop - begin :])
    return fed.moments.weight(places.reshape(fed.targets.shape))


def _pass_on(errors: F64, values: F64, groups: I64, spread: F64) -> None:
    """Add the errors of a window to the values that follow it, each row by the spread of its group."""
    for group in np.unique(groups):
        here = groups == group
        values[here] += errors[here] @ spread[group]


def _nearest(targets: F64, kept: Mask, codebooks: F64, book_of: I64) -> I32:
    """Return places of nearest centroids."""
    places = np.full(targets.shape, -1, np.int32)
    for book, codebook in enumerate(codebooks):
        here = (book_of == book)[:, None] & kept
        places[here] = np.searchsorted((codebook[:-1] + codebook[1:]) / 2, targets[here])
    return places
