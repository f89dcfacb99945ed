"""Table sets: frequencies that the context-coded tensors of a model share (spec 9.7).

A set holds tables, and says which table serves which context: the class of a weight, the quantiser it is
coded with, and the levels of two words to its left. Contexts with all signs turned round share a table.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from dcompress import kernels
from dcompress.coding.range_coder import SideReader, SideWriter, fold_sign
from dcompress.coding.symbols import N_SYMBOLS
from dcompress.errors import CorruptError
from dcompress.kernels.reference_context import FLIP, NO_LEVEL
from dcompress.kernels.side import (
    KIND_EXTENT,
    KIND_PARENT,
    MAP_CONTEXTS,
    MAX_TABLES,
    QUARTERS_EXPECTED,
    TABLE_CONTEXTS,
)
from dcompress.kernels.side import MAX_QUARTERS as MAX_LENGTH
from dcompress.kernels.side import NO_QUARTERS as ABSENT
from dcompress.kernels.trellis import LEVELS

__all__ = [
    "ABSENT",
    "CANONICAL",
    "MAX_CLASSES",
    "MAX_LENGTH",
    "MAX_TABLES",
    "N_LEVELS",
    "PLACES",
    "PRECISIONS",
    "TURNED",
    "TableSet",
    "frequencies_of",
]

N_LEVELS = LEVELS
MAX_CLASSES = 64
PRECISIONS = (10, 12)  # bits of the frequencies, from and to

# Level to the left and level farther left, of which the first that is not 0 is positive.
CANONICAL = tuple(
    (left, far)
    for left in range(NO_LEVEL + 1)
    for far in range(-NO_LEVEL, NO_LEVEL + 1)
    if left > 0 or far >= 0
)


def _levels() -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Return, by levels, the place in CANONICAL, and whether all signs have to be turned round for it."""
    places, is_flipped = np.zeros((8, 8), np.uint8), np.zeros((8, 8), np.bool_)
    for place, (left, far) in enumerate(CANONICAL):
        places[NO_LEVEL + left, NO_LEVEL + far] = places[NO_LEVEL - left, NO_LEVEL - far] = place
        is_flipped[NO_LEVEL - left, NO_LEVEL - far] = left > 0 or far > 0
    return places.reshape(-1), is_flipped.reshape(-1)


PLACES, TURNED = _levels()  # by level to the left * 8 + level farther left, each plus NO_LEVEL
_KIND_SIZE = 8


def _weights() -> NDArray[np.int64]:
    """Return 2 ** (16 - length / 4) by length in quarter bits, rounded down; 0 for ABSENT."""
    weights = np.zeros(ABSENT + 1, np.int64)
    lengths = np.arange(MAX_LENGTH + 1)
    weights[: MAX_LENGTH + 1] = np.array([65536, 55109, 46341, 38968])[lengths & 3] >> (lengths >> 2)
    return weights


_WEIGHTS = _weights()


def frequencies_of(lengths: NDArray[np.uint8], precision: int) -> NDArray[np.int64]:
    """Return the frequencies that lengths in quarter bits stand for; they add up to ``2 ** precision``.

    Parameters
    ----------
    lengths : ndarray of shape (..., n_symbols), dtype uint8
        0..MAX_LENGTH, or ABSENT; any number of tables.

    Raises
    ------
    CorruptError
        What rounding adds to the rare symbols is more than the most frequent one has (SET-03).
    """
    weights = _WEIGHTS[lengths]
    frequencies = (weights << precision) // weights.sum(axis=-1, keepdims=True)
    frequencies = np.where(lengths != ABSENT, np.maximum(1, frequencies), 0)
    first = frequencies.argmax(axis=-1)[..., None]
    largest = np.take_along_axis(frequencies, first, -1)
    largest += (1 << precision) - frequencies.sum(axis=-1, keepdims=True)
    if largest.min() < 1:
        raise CorruptError("table with too many rare symbols", rule="SET-03")
    np.put_along_axis(frequencies, first, largest, -1)
    return frequencies


@dataclass(frozen=True, eq=False)
class TableSet:
    """Tables of frequencies, and which context uses which.

    Attributes
    ----------
    precision : int
        Frequencies of a table add up to ``2 ** precision``.
    lengths : ndarray of shape (n_tables, N_SYMBOLS), dtype uint8
        Minus the logarithm of a symbol's probability, in quarter bits; ABSENT for symbols that a table
        does not have: those beyond its largest bucket.
    choice : ndarray of shape (n_quantisers, len(CANONICAL), n_classes), dtype uint8
        Table of each context.
    """

    precision: int
    lengths: NDArray[np.uint8]
    choice: NDArray[np.uint8]

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return int(self.choice.shape[2])

    @property
    def n_quantisers(self) -> int:
        """2 if the set serves trellis-coded tensors, otherwise 1."""
        return int(self.choice.shape[0])

    @cached_property
    def frequencies(self) -> NDArray[np.int64]:
        """Frequencies by table and symbol."""
        return frequencies_of(self.lengths, self.precision)

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """First slot by table and symbol."""
        return np.cumsum(self.frequencies, axis=1) - self.frequencies

    @cached_property
    def slots(self) -> NDArray[np.uint32]:
        """What a decoder looks up, flat, by table and slot: symbol, frequency, place within the symbol."""
        kernel = kernels.select(0)
        slots: NDArray[np.uint32] = kernel.table_slots(self.frequencies, self.precision)
        return slots

    @cached_property
    def _contexts(self) -> NDArray[np.uint8]:
        """Table, with FLIP, by quantiser, class and levels."""
        tables = np.moveaxis(self.choice, 1, 2)[..., PLACES]
        return np.where(TURNED, tables | np.uint8(FLIP), tables)

    def contexts(self, low: int, high: int) -> NDArray[np.uint8]:
        """Return table, with FLIP, by quantiser, sum of classes and levels.

        Parameters
        ----------
        low, high : int
            Smallest and largest sum of row, column and position class; sums are held in 0..n_classes - 1.

        Returns
        -------
        contexts : ndarray of shape (n_quantisers * (high - low + 1) * 64,), dtype uint8
            Levels: left * 8 + far, each plus NO_LEVEL.
        """
        return self._contexts.take(np.arange(low, high + 1), axis=1, mode="clip").reshape(-1)

    def to_bytes(self) -> bytes:
        """Return the set as side information."""
        return self._stored

    @cached_property
    def _stored(self) -> bytes:
        writer = SideWriter()
        writer.number(_KIND_SIZE, self.precision - PRECISIONS[0])
        writer.number(_KIND_SIZE, self.n_quantisers - 1)
        writer.number(_KIND_SIZE, self.n_classes - 1)
        writer.number(_KIND_SIZE, self.lengths.shape[0] - 1)
        for number in range(self.lengths.shape[0]):
            self._write_table(writer, number)
        for quantiser in range(self.n_quantisers):
            above = 0
            for row in self.choice[quantiser]:
                previous = above
                for at, table in enumerate(row.tolist()):
                    writer.unary(MAP_CONTEXTS + 16 * (at == 0), fold_sign(table - previous), 16)
                    previous = table
                    above = table if at == 0 else above
        return writer.finish()

    def _write_table(self, writer: SideWriter, number: int) -> None:
        lengths = self.lengths[number]
        parents = [_table_cost(lengths, other) for other in (None, *self.lengths[:number][::-1])]
        parent = int(np.argmin(parents))
        writer.number(KIND_PARENT, parent)
        expected = None if parent == 0 else self.lengths[number - parent]
        extent = _extent(lengths)
        writer.number(KIND_EXTENT, fold_sign(extent - (_extent(expected) if expected is not None else 0)))
        last = 0
        for guess, length in zip(_guesses(lengths, expected, extent), lengths.tolist(), strict=False):
            step = length - guess
            first = TABLE_CONTEXTS + 16 * min(last, 2)
            writer.unary(first, abs(step), 15)
            if step:
                writer.bit(first + 15, int(step < 0))
            last = abs(step)

    @classmethod
    def from_bytes(cls, data: bytes) -> TableSet:
        """Read what ``to_bytes`` wrote.

        Raises
        ------
        CorruptError
            Sizes out of range (TAB-01), bytes left over (TAB-02), a parent, a bucket or a length that does
            not exist (SET-01), a table that does not exist (SET-02), a table that cannot be (SET-03).
        """
        reader = SideReader(data)
        precision = PRECISIONS[0] + reader.number(_KIND_SIZE, PRECISIONS[1] - PRECISIONS[0])
        n_quantisers = 1 + reader.number(_KIND_SIZE, 1)
        n_classes = 1 + reader.number(_KIND_SIZE, MAX_CLASSES - 1)
        n_tables = 1 + reader.number(_KIND_SIZE, MAX_TABLES - 1)
        lengths, choice = reader.tables(n_tables, N_SYMBOLS, n_quantisers, len(CANONICAL), n_classes)
        reader.finish()
        table_set = cls(precision, lengths, choice)
        _ = table_set.frequencies  # proves that they can be
        return table_set


def _extent(lengths: NDArray[np.uint8]) -> int:
    """Return the largest bucket of a table."""
    return int(np.count_nonzero(lengths != ABSENT)) // 2


def _guess(done: NDArray[np.uint8] | list[int], expected: NDArray[np.uint8] | None, symbol: int) -> int:
    """Return what a length is expected to be, after those before it."""
    if expected is not None and expected[symbol] != ABSENT:
        return int(expected[symbol])
    return int(done[symbol - 2]) if symbol >= 3 else QUARTERS_EXPECTED


def _guesses(lengths: NDArray[np.uint8], expected: NDArray[np.uint8] | None, extent: int) -> list[int]:
    return [_guess(lengths, expected, symbol) for symbol in range(2 * extent + 1)]


def _table_cost(lengths: NDArray[np.uint8], expected: NDArray[np.uint8] | None) -> float:
    """Return about how many bits a table costs after another one."""
    steps = np.abs(
        lengths[: 2 * _extent(lengths) + 1] - np.array(_guesses(lengths, expected, _extent(lengths)))
    )
    return float(np.minimum(2 * steps, 4 + steps).sum() + steps.size)
