"""Table sets: frequencies that the context-coded tensors of a model share (spec 9.7).

A set holds tables, and says which table serves which context: the class of a weight, the quantiser it is
coded with, and the levels of two words to its left. Contexts with all signs turned round share a table.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from dcompress.coding.range_coder import (
    MAP_CONTEXTS,
    TABLE_CONTEXTS,
    SideReader,
    SideWriter,
    fold_sign,
    unfold_sign,
)
from dcompress.coding.symbols import N_BUCKETS, N_SYMBOLS
from dcompress.errors import CorruptError
from dcompress.kernels.reference_context import FLIP, NO_LEVEL
from dcompress.kernels.trellis import LEVELS

__all__ = [
    "ABSENT",
    "CANONICAL",
    "MAX_CLASSES",
    "MAX_LENGTH",
    "MAX_TABLES",
    "N_LEVELS",
    "PRECISIONS",
    "TableSet",
    "frequencies_of",
]

N_LEVELS = LEVELS
MAX_CLASSES = 64
MAX_TABLES = 127
MAX_LENGTH = 63  # quarter bits
PRECISIONS = (10, 12)  # bits of the frequencies, from and to
ABSENT = 255  # in the place of a length

# Level to the left and level farther left, of which the first that is not 0 is positive.
CANONICAL = tuple(
    (left, far)
    for left in range(NO_LEVEL + 1)
    for far in range(-NO_LEVEL, NO_LEVEL + 1)
    if left > 0 or far >= 0
)
_KIND_SIZE = 8
_KIND_PARENT = 9
_KIND_EXTENT = 10
_FLAT = 24  # the length that is expected where nothing is known
_ROOTS = (65536, 55109, 46341, 38968)  # 2 ** (16 - quarter / 4)


def frequencies_of(lengths: NDArray[np.uint8], precision: int) -> NDArray[np.int64]:
    """Return the frequencies that lengths in quarter bits stand for; they add up to ``2 ** precision``.

    Parameters
    ----------
    lengths : ndarray of shape (n_symbols,), dtype uint8
        0..MAX_LENGTH, or ABSENT.

    Raises
    ------
    CorruptError
        What rounding adds to the rare symbols is more than the most frequent one has (SET-03).
    """
    used = lengths != ABSENT
    quarters = np.where(used, lengths, 0).astype(np.int64)
    weights = np.where(used, np.array(_ROOTS)[quarters & 3] >> (quarters >> 2), 0)
    frequencies = np.where(used, np.maximum(1, (weights << precision) // weights.sum()), 0)
    first = int(frequencies.argmax())
    frequencies[first] += (1 << precision) - frequencies.sum()
    if frequencies[first] < 1:
        raise CorruptError("table with too many rare symbols", rule="SET-03")
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
        return np.array([frequencies_of(lengths, self.precision) for lengths in self.lengths])

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """First slot by table and symbol."""
        return np.cumsum(self.frequencies, axis=1) - self.frequencies

    @cached_property
    def slots(self) -> NDArray[np.uint32]:
        """What a decoder looks up, flat, by table and slot: symbol, frequency, place within the symbol."""
        n_tables = self.lengths.shape[0]
        repeats = self.frequencies.reshape(-1)
        symbols = np.tile(np.arange(N_SYMBOLS), n_tables)
        places = np.tile(np.arange(1 << self.precision), n_tables) - np.repeat(
            self.starts.reshape(-1), repeats
        )
        entries = np.repeat(symbols << 25 | repeats << 12, repeats) | places
        return entries.astype(np.uint32)

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
        classes = np.clip(np.arange(low, high + 1), 0, self.n_classes - 1)
        full = np.zeros((self.n_quantisers, classes.size, 8, 8), np.uint8)
        for place, (left, far) in enumerate(CANONICAL):
            tables = self.choice[:, place, classes]
            full[:, :, NO_LEVEL + left, NO_LEVEL + far] = tables
            if left or far:
                full[:, :, NO_LEVEL - left, NO_LEVEL - far] = tables | FLIP
        return full.reshape(-1)

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
        writer.number(_KIND_PARENT, parent)
        expected = None if parent == 0 else self.lengths[number - parent]
        extent = _extent(lengths)
        writer.number(_KIND_EXTENT, fold_sign(extent - (_extent(expected) if expected is not None else 0)))
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
        lengths = np.full((n_tables, N_SYMBOLS), ABSENT, np.uint8)
        for number in range(n_tables):
            _read_table(reader, lengths, number)
        choice = np.zeros((n_quantisers, len(CANONICAL), n_classes), np.uint8)
        for quantiser in range(n_quantisers):
            above = 0
            for row in choice[quantiser]:
                previous = above
                for at in range(n_classes):
                    step = reader.unary(MAP_CONTEXTS + 16 * (at == 0), 16, 2 * MAX_TABLES)
                    previous += unfold_sign(step)
                    if not 0 <= previous < n_tables:
                        raise CorruptError(f"table {previous} of {n_tables}", rule="SET-02")
                    row[at] = previous
                    above = previous if at == 0 else above
        reader.finish()
        for table in lengths:
            frequencies_of(table, precision)  # proves that it can be
        return cls(precision, lengths, choice)


def _extent(lengths: NDArray[np.uint8]) -> int:
    """Return the largest bucket of a table."""
    return int(np.count_nonzero(lengths != ABSENT)) // 2


def _guess(done: NDArray[np.uint8] | list[int], expected: NDArray[np.uint8] | None, symbol: int) -> int:
    """Return what a length is expected to be, after those before it."""
    if expected is not None and expected[symbol] != ABSENT:
        return int(expected[symbol])
    return int(done[symbol - 2]) if symbol >= 3 else _FLAT


def _guesses(lengths: NDArray[np.uint8], expected: NDArray[np.uint8] | None, extent: int) -> list[int]:
    return [_guess(lengths, expected, symbol) for symbol in range(2 * extent + 1)]


def _table_cost(lengths: NDArray[np.uint8], expected: NDArray[np.uint8] | None) -> float:
    """Return about how many bits a table costs after another one."""
    steps = np.abs(
        lengths[: 2 * _extent(lengths) + 1] - np.array(_guesses(lengths, expected, _extent(lengths)))
    )
    return float(np.minimum(2 * steps, 4 + steps).sum() + steps.size)


def _read_table(reader: SideReader, lengths: NDArray[np.uint8], number: int) -> None:
    """Read one table into its row."""
    parent = reader.number(_KIND_PARENT, number)
    expected = None if parent == 0 else lengths[number - parent]
    extent = (_extent(expected) if expected is not None else 0) + unfold_sign(
        reader.number(_KIND_EXTENT, 2 * N_BUCKETS)
    )
    if not 0 <= extent < N_BUCKETS:
        raise CorruptError(f"bucket {extent} of {N_BUCKETS}", rule="SET-01")
    done: list[int] = []
    last = 0
    for symbol in range(2 * extent + 1):
        first = TABLE_CONTEXTS + 16 * min(last, 2)
        last = reader.unary(first, 15, MAX_LENGTH)
        step = -last if last and reader.bit(first + 15) else last
        length = _guess(done, expected, symbol) + step
        if not 0 <= length <= MAX_LENGTH:
            raise CorruptError(f"length of {length} quarter bits", rule="SET-01")
        done.append(length)
    lengths[number, : len(done)] = done
