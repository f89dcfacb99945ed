"""Contexts into tables: those with like statistics share one, and every table pays for itself."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dcompress.coding.symbols import BUCKET_BASES, N_SYMBOLS
from dcompress.coding.table_set import ABSENT, MAX_LENGTH

__all__ = ["cluster_contexts", "pooled", "table_lengths"]

_START_TABLES = 48
_TABLE_BITS = 8.0  # what a table costs, and each of its symbols
_SYMBOL_BITS = 2.5
_STAY_BITS = 0.3  # to say that a context has the table of the class before, or another one
_MOVE_BITS = 2.0
_UNIT = 256.0
_SYMBOL_MAGNITUDES = BUCKET_BASES[(np.arange(N_SYMBOLS) + 1) // 2].astype(np.float64)
_SYMBOL_SIGNS = np.where(np.arange(N_SYMBOLS) % 2 == 1, 1.0, -1.0) * (np.arange(N_SYMBOLS) > 0)

I64 = NDArray[np.int64]
Floats = NDArray[np.float64]


def _entropy(counts: Floats) -> Floats:
    """Return the bits of counts along the last axis under their own statistics."""
    total = counts.sum(axis=-1)
    inner = (counts * np.log2(np.maximum(counts, 1))).sum(axis=-1)
    return np.asarray(np.rint(_UNIT * (total * np.log2(np.maximum(total, 1)) - inner)) / _UNIT)


def cluster_contexts(counts: I64) -> I64:
    """Return a table number for each context, shape (n_classes, n_neighbours)."""
    nodes = counts.reshape(-1, N_SYMBOLS).astype(np.float64)
    used = np.flatnonzero(nodes.sum(axis=1))
    some = nodes[used]
    totals = some.sum(axis=1)
    sizes = (some @ _SYMBOL_MAGNITUDES) / totals
    signs = (some @ _SYMBOL_SIGNS) / totals
    order = np.lexsort((sizes, np.round(signs * 2)))
    # The first tables hold about equally many bits each.
    weight = np.cumsum(_entropy(some[order]) + 1)
    member = np.empty(used.size, np.int64)
    member[order] = (weight / weight[-1] * (_START_TABLES - 1e-9)).astype(np.int64)
    member = _reassign(some, member, 6)
    tables = pooled(some, member)
    alive, tables = _merge(tables)
    member = _reassign(some, alive[member], 3)
    # Tables in the order of their magnitudes, so that neighbouring classes have neighbouring tables.
    tables = pooled(some, member)
    rank = np.argsort(np.argsort((tables @ _SYMBOL_MAGNITUDES) / tables.sum(axis=1), kind="stable"))
    ordered = np.zeros_like(tables)
    ordered[rank] = tables
    return _smooth(counts, ordered)


def pooled(nodes: Floats, member: I64) -> Floats:
    """Return the counts of every table: those of its members, whole numbers, so exact in whatever order."""
    is_member = (np.arange(int(member.max()) + 1)[:, None] == member).astype(np.float64)
    return np.asarray(is_member @ nodes)


def _costs(tables: Floats) -> Floats:
    """Return what symbols cost under tables, in 1/256 bit; what a table lacks is dear, not impossible."""
    leaned = tables + 0.02
    return np.asarray(np.rint(-_UNIT * np.log2(leaned / leaned.sum(axis=1, keepdims=True))))


def _smooth(counts: I64, tables: Floats) -> I64:
    """Return a table for each context: the cheapest, the price of saying that it is not the last one's too.

    Tables are written class by class, each after the one before (spec 9.8): a path through the classes.
    """
    costs = counts.transpose(1, 0, 2).astype(np.float64) @ _costs(tables).T  # neighbours, class, table
    places = np.arange(tables.shape[0])
    away = np.abs(places[:, None] - places)
    moves = np.rint(_UNIT * np.where(away == 0, _STAY_BITS, _MOVE_BITS + away))
    n_classes = costs.shape[1]
    came = np.zeros(costs.shape, np.int64)
    total = costs[:, 0]
    for number in range(1, n_classes):
        ways = total[:, :, None] + moves
        came[:, number] = ways.argmin(axis=1)
        total = ways.min(axis=1) + costs[:, number]
    choice = np.empty(costs.shape[:2], np.int64)
    choice[:, -1] = total.argmin(axis=1)
    for number in range(n_classes - 1, 0, -1):
        choice[:, number - 1] = np.take_along_axis(came[:, number], choice[:, number, None], 1)[:, 0]
    return np.ascontiguousarray(choice.T)


def _reassign(nodes: Floats, member: I64, rounds: int) -> I64:
    """Return members moved to the tables under which they cost least; empty tables are left out."""
    for _ in range(rounds):
        _, member = np.unique(member, return_inverse=True)
        tables = pooled(nodes, member)
        # Costs are whole numbers of 1/256 bit: then sums are exact, whatever their order, on every machine.
        costs = nodes @ _costs(tables).T
        member = costs.argmin(axis=1)
    return np.asarray(np.unique(member, return_inverse=True)[1])


def _merge(tables: Floats) -> tuple[I64, Floats]:
    """Merge tables as long as that costs less than a table; return where each went, and what is left."""
    n_tables = tables.shape[0]
    tables = tables.copy()
    went = np.arange(n_tables)
    alive = list(range(n_tables))
    own = _entropy(tables)

    def losses(one: int) -> Floats:
        others = np.array([other for other in alive if other != one])
        loss = np.full(n_tables, np.inf)
        if others.size:
            loss[others] = _entropy(tables[others] + tables[one]) - own[others] - own[one]
            smaller = np.minimum((tables[others] > 0).sum(axis=1), (tables[one] > 0).sum())
            loss[others] -= _TABLE_BITS + _SYMBOL_BITS * smaller
        return loss

    matrix = np.stack([losses(one) for one in range(n_tables)])
    while len(alive) > 1:
        one, other = np.unravel_index(int(matrix.argmin()), matrix.shape)
        if matrix[one, other] >= 0:
            break
        tables[one] += tables[other]
        own[one] = _entropy(tables[one])
        went[went == other] = one
        alive.remove(int(other))
        matrix[other], matrix[:, other] = np.inf, np.inf
        matrix[one] = losses(int(one))
        matrix[:, one] = matrix[one]
    return np.searchsorted(alive, went), tables[alive]


def table_lengths(counts: Floats, precision: int) -> NDArray[np.uint8]:
    """Return the lengths, in quarter bits, of one table."""
    lengths = np.full(N_SYMBOLS, ABSENT, np.uint8)
    last = int(np.flatnonzero(counts)[-1]) if counts.any() else 0
    size = 2 * ((last + 1) // 2) + 1
    chances = counts[:size] / max(1.0, counts.sum())
    with np.errstate(divide="ignore"):
        quarters = np.round(-4 * np.log2(chances)) if counts.any() else np.zeros(size)
    lengths[:size] = np.minimum(np.where(np.isfinite(quarters), quarters, 4 * precision), MAX_LENGTH)
    return lengths
