"""Policy of the context coder: classes of rows, columns and positions, and the tables that they share.

Classes start from mean magnitudes, half an octave each, and are then moved to where their words cost least;
counts of all contexts are clustered into few tables, as many as pay for themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dcompress import kernels
from dcompress.clusters import cluster_contexts, pooled, table_lengths
from dcompress.coding.base import Codebook
from dcompress.coding.context import (
    DEAD,
    Classes,
    Context,
    Geometry,
    Neighbourhood,
    flipped,
    grid_symbols,
)
from dcompress.coding.symbols import N_SYMBOLS, SYMBOL_RAW_BITS
from dcompress.coding.table_set import CANONICAL, PLACES, TURNED, TableSet
from dcompress.grid import GridTensor, neighbourhood_of
from dcompress.prices import Placed, Prices
from dcompress.views import Candidate, View, canonical_view

__all__ = ["ContextModel", "first_classes", "fit_contexts", "fitted_prices"]

_CLASSES_PER_OCTAVE = 2
_LOWEST_OCTAVE = -8  # mean magnitudes below 2**-8 are all alike
_N_CLASSES = 40
_COLUMN_SPAN = 24  # classes that a column or position may add: -12..11
_MIN_ROWS, _MIN_WORDS = 8, 8  # fewer rows say nothing about a column, fewer words too little about a row
_PRIOR = 8.0  # words that the statistics of a whole class count beside those of a context
_COST_UNIT = 256
_PRECISION = 12
_N_CANONICAL = len(CANONICAL)

I64 = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ContextModel:
    """A table set, and how each tensor uses it.

    Attributes
    ----------
    tables : TableSet
        The tables.
    classes : list of Classes
        One for each tensor.
    neighbourhoods : list of Neighbourhood
        Likewise.
    bits : list of float
        What the words of each tensor cost.
    """

    tables: TableSet
    classes: list[Classes]
    neighbourhoods: list[Neighbourhood]
    bits: list[float]

    @property
    def total_bits(self) -> float:
        """What tables and words cost, and about what classes cost."""
        sides = [side for own in self.classes for side in (own.rows, own.columns, own.positions)]
        said = sum(_said(np.bincount(side - side.min())) for side in sides)
        return sum(self.bits) + 8 * len(self.tables.to_bytes()) + said

    def coder(self, number: int, tensor: GridTensor, codebook: Codebook, set_number: int) -> Context:
        """Return the coder of one of the tensors."""
        return Context(
            codebook,
            self.tables,
            set_number,
            tensor.geometry,
            self.classes[number],
            self.neighbourhoods[number],
            tensor.origin,
            tensor.states,
        )


def fit_contexts(candidates: Sequence[Candidate], rounds: int, reach: int = 2) -> ContextModel:
    """Return tables and classes for some tensors, fitted together.

    Parameters
    ----------
    candidates : sequence of Candidate
        At least one.
    rounds : int
        How often rows and columns are moved to better classes; each takes a look at every word.
    reach : int
        Words to the left that count, 0 to 2: few weights may not be worth many contexts.
    """
    seen = [candidate.view(reach) for candidate in candidates]
    neighbourhoods, views = [near for near, _ in seen], [view for _, view in seen]
    classes = [first_classes(candidate.tensor) for candidate in candidates]
    n_quantisers = 2 if any(candidate.tensor.states for candidate in candidates) else 1
    classes, counts = _settle(views, classes, n_quantisers, rounds)
    choice = cluster_contexts(counts)
    if rounds:
        costs = _table_costs(counts, choice)
        for number in range(2):
            classes = [_improve(view, own, costs, number) for view, own in zip(views, classes, strict=True)]
        counts = _count(views, classes, counts.shape[1])
    return _finish(views, classes, neighbourhoods, counts, choice)


def fitted_prices(tensors: Sequence[Placed], rounds: int = 2) -> list[Prices]:
    """Return the prices of tensors under the classes that the context coder would find for them.

    Parameters
    ----------
    tensors : sequence of Placed
        As an earlier pass left them, all with the same number of quantisers.
    rounds : int
        As for `fit_contexts`.
    """
    if not tensors:
        return []
    views, firsts, nears = [], [], []
    for tensor in tensors:
        geometry = Geometry.of(tensor.shape, tensor.places.size)
        grid = tensor.places.astype(np.int16).reshape(geometry.n_rows, geometry.row_words)
        width = tensor.shape[-1] if len(tensor.shape) > 2 else 0
        placed = GridTensor(geometry, grid, 0, 0, width)
        near = neighbourhood_of(placed)
        symbols, _, pairs = grid_symbols(grid, near, 0, 1)
        quantisers = tensor.quantisers.reshape(grid.shape)
        views.append(canonical_view(geometry, symbols, pairs | quantisers << np.uint8(6)))
        firsts.append(first_classes(placed))
        nears.append(near)
    n_quantisers = tensors[0].n_quantisers
    classes, counts = _settle(views, firsts, n_quantisers, rounds)
    costs = _context_costs(counts).transpose(2, 0, 1).reshape(_N_CLASSES, n_quantisers, -1, N_SYMBOLS)
    bits = np.empty((_N_CLASSES, n_quantisers, 64, N_SYMBOLS), np.int32)
    bits[:] = costs[:, :, PLACES]
    turned = np.flatnonzero(TURNED)
    bits[:, :, turned] = bits[:, :, turned][..., flipped(np.arange(N_SYMBOLS, dtype=np.uint8))]
    bits = bits.reshape(_N_CLASSES, n_quantisers, 8, 8, N_SYMBOLS)[:, :, :7, :7]
    return [
        Prices(
            own.rows.astype(np.int32),
            own.along_row(view.geometry).astype(np.int32),
            np.tile(np.abs(near.levels()[::2]).astype(np.uint8), (n_quantisers, 1)),
            near.distance,
            np.ascontiguousarray(bits),
        )
        for view, own, near in zip(views, classes, nears, strict=True)
    ]


def _settle(
    views: Sequence[View], classes: list[Classes], n_quantisers: int, rounds: int
) -> tuple[list[Classes], I64]:
    """Return classes after some rounds of moving them, and the counts of all contexts."""
    counts = _count(views, classes, n_quantisers * _N_CANONICAL)
    for number in range(rounds):
        costs = _context_costs(counts)
        classes = [_improve(view, own, costs, number) for view, own in zip(views, classes, strict=True)]
        counts = _count(views, classes, counts.shape[1])
    return classes, counts


def _said(counts: I64) -> float:
    """Return about how many bits it takes to say which of some values each of many things has."""
    used = counts[counts > 0]
    return float(-(used * np.log2(used / used.sum())).sum()) + 2.0 * used.size


def first_classes(tensor: GridTensor) -> Classes:
    """Return classes by mean magnitude."""
    geometry = tensor.geometry
    sizes = np.abs(tensor.grid).reshape(geometry.n_rows, geometry.n_columns, geometry.n_positions)
    mean = max(float(sizes.mean()), 1e-9)

    def octaves(means: Floats, less: float) -> I64:
        steps = _CLASSES_PER_OCTAVE * (np.log2(means + 0.02) - less)
        return np.round(steps).astype(np.int64)

    by_row = sizes.mean(axis=(1, 2))
    rows = np.clip(octaves(by_row, _LOWEST_OCTAVE), 1, _N_CLASSES - 1)
    if geometry.row_words < _MIN_WORDS:
        rows[:] = int(np.median(rows))
    rows[by_row == 0] = DEAD
    columns = positions = np.zeros(1, np.int64)
    if geometry.n_rows >= _MIN_ROWS:
        around = float(np.log2(mean + 0.02))
        half = _COLUMN_SPAN // 2
        by_column, by_position = sizes.mean(axis=(0, 2)), sizes.mean(axis=(0, 1))
        columns = np.clip(octaves(by_column, around), -half, half - 1)
        columns[by_column == 0] = DEAD
        if geometry.n_positions > 1:
            positions = np.clip(octaves(by_position, around), -half, half - 1)
            positions[by_position == 0] = DEAD
    return Classes(rows, columns, positions)


def _count(views: Sequence[View], classes: Sequence[Classes], n_neighbours: int) -> I64:
    """Return how often each symbol occurs, by class and neighbours."""
    counts = np.zeros((_N_CLASSES, n_neighbours, N_SYMBOLS), np.int64)
    for view, own in zip(views, classes, strict=True):
        kernel = kernels.select(view.symbols.size)
        kernel.context_counts(view.symbols, view.neighbours, own.rows, own.along_row(view.geometry), counts)
    return counts


def _to_costs(chances: Floats) -> NDArray[np.int32]:
    """Return costs in 1/256 bit by neighbours, symbol and class, raw bits included."""
    bits = -np.log2(np.maximum(chances, 1e-6)) + SYMBOL_RAW_BITS
    return np.ascontiguousarray(np.round(bits * _COST_UNIT).astype(np.int32).transpose(1, 2, 0))


def _context_costs(counts: I64) -> NDArray[np.int32]:
    """Return what symbols cost under the statistics of their context, few words leaning on their class."""
    whole = counts.sum(axis=(0, 1)) + 0.5
    by_class = counts.sum(axis=1, keepdims=True) + whole / whole.sum()
    by_class = by_class / by_class.sum(axis=2, keepdims=True)
    leaned = counts + _PRIOR * by_class
    return _to_costs(leaned / leaned.sum(axis=2, keepdims=True))


def _cheapest(costs: I64, lowest: int, before: I64) -> I64:
    """Return the cheapest candidate of each row of costs, the price of saying so included; DEAD stays."""
    alive = before > DEAD
    if not alive.any():
        return before
    some = costs[alive]
    chosen = some.argmin(axis=1)
    for _ in range(3):
        uses = np.bincount(chosen, minlength=costs.shape[1]) + 0.05
        price = np.round(-np.log2(uses / uses.sum()) * _COST_UNIT).astype(np.int64)
        chosen = (some + price).argmin(axis=1)
    after = before.copy()
    after[alive] = chosen + lowest
    return after


def _improve(view: View, classes: Classes, costs: NDArray[np.int32], number: int) -> Classes:
    """Return classes with the rows (even rounds) or columns and positions (odd ones) moved."""
    geometry = view.geometry
    kernel = kernels.select(view.symbols.size)
    none = np.zeros((0, 0), np.int64)
    if number % 2 == 0:
        if geometry.row_words < _MIN_WORDS:
            return classes
        symbols, neighbours, some = view.thinned(rows=False)
        by_row = np.zeros((geometry.n_rows, _N_CLASSES), np.int64)
        # Candidate k is class k: the kernel counts candidates from minus half their number.
        along = np.ascontiguousarray(classes.along_row(geometry)[some]) + _N_CLASSES // 2
        kernel.context_costs(symbols, neighbours, classes.rows, along, costs, by_row, none)
        rows = _cheapest(by_row[:, 1:], 1, classes.rows)
        return Classes(rows, classes.columns, classes.positions)
    if geometry.n_rows < _MIN_ROWS:
        return classes
    half = _COLUMN_SPAN // 2
    symbols, neighbours, some = view.thinned(rows=True)
    some_rows = np.ascontiguousarray(classes.rows[some])

    def costs_beside(others: I64) -> I64:
        totals = np.zeros((geometry.row_words, _COLUMN_SPAN), np.int64)
        kernel.context_costs(symbols, neighbours, some_rows, others, costs, none, totals)
        return totals.reshape(geometry.n_columns, geometry.n_positions, _COLUMN_SPAN)

    positions = np.broadcast_to(classes.positions, geometry.n_positions)
    before = np.broadcast_to(classes.columns, geometry.n_columns)
    columns = classes.columns
    if geometry.n_columns > 1:  # a single one has no class: rows have it all, and no file could say it
        columns = _cheapest(costs_beside(np.tile(positions, geometry.n_columns)).sum(axis=1), -half, before)
    if geometry.n_positions == 1:
        return Classes(classes.rows, columns, classes.positions)
    along = np.repeat(np.broadcast_to(columns, geometry.n_columns), geometry.n_positions)
    totals = costs_beside(along).sum(axis=0)
    return Classes(classes.rows, columns, _cheapest(totals, -half, positions))


def _table_costs(counts: I64, choice: I64) -> NDArray[np.int32]:
    """Return what symbols cost under clustered tables; what a table lacks is dear, not impossible."""
    tables = _pooled(counts, choice) + 0.02
    chances = tables / tables.sum(axis=1, keepdims=True)
    return _to_costs(chances[choice])


def _pooled(counts: I64, choice: I64) -> Floats:
    """Return the counts of every table."""
    return pooled(counts.reshape(-1, N_SYMBOLS).astype(np.float64), choice.reshape(-1))


def _finish(
    views: Sequence[View],
    classes: Sequence[Classes],
    neighbourhoods: list[Neighbourhood],
    counts: I64,
    choice: I64,
) -> ContextModel:
    """Return the model of final classes: tables rebuilt from what they will code, unused classes cut."""
    used = np.flatnonzero(counts[1:].sum(axis=(1, 2))) + 1
    low, high = (int(used[0]) - 1, int(used[-1])) if used.size else (0, 0)
    # ``low`` is taken off the rows, and none of them must fall below 0 by it.
    alive = [own.rows[own.rows > DEAD] for own in classes]
    low = min([low, *(int(rows.min()) for rows in alive if rows.size)])
    counts[low] += counts[0] if low else 0
    choice[low] = choice[0] if low else choice[low]
    counts, choice = counts[low : high + 1], choice[low : high + 1]
    pooled = _pooled(counts, choice)
    kept = np.flatnonzero(pooled.sum(axis=1))
    # A context that never occurs may name a table that is gone.
    renumbered = np.minimum(np.searchsorted(kept, choice), kept.size - 1)
    lengths = np.stack([table_lengths(pooled[table], _PRECISION) for table in kept])
    n_quantisers = choice.shape[1] // _N_CANONICAL
    ordered = renumbered.reshape(-1, n_quantisers, _N_CANONICAL).transpose(1, 2, 0).astype(np.uint8)
    tables = TableSet(_PRECISION, lengths, ordered)
    bits = _PRECISION - np.log2(np.maximum(tables.frequencies, 1)) + SYMBOL_RAW_BITS
    assert not (counts * (tables.frequencies == 0)[renumbered]).any()  # every symbol is in its table
    final = [_cut(own, low) for own in classes]
    spent = []
    for view, own in zip(views, final, strict=True):
        own_counts = _count([view], [own], choice.shape[1])[: choice.shape[0]]
        spent.append(float((own_counts * bits[renumbered]).sum()))
    return ContextModel(tables, final, neighbourhoods, spent)


def _cut(classes: Classes, low: int) -> Classes:
    """Return classes counted from ``low``; side classes that say nothing are left out."""
    rows = np.where(classes.rows > DEAD, classes.rows - low, DEAD)
    sides = []
    for side in (classes.columns, classes.positions):
        if side.size > 1 and not side.any():
            side = np.zeros(1, np.int64)
        sides.append(side)
    return Classes(rows, *sides)
