"""What the context coder knows of a word: row, column, position, classes, neighbours (spec 9.7, 11.5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dcompress.coding.range_coder import CLASS_CONTEXTS, SideReader, SideWriter, fold_sign
from dcompress.coding.symbols import N_SYMBOLS, SYMBOL_BASES
from dcompress.errors import CorruptError
from dcompress.kernels.side import NO_CLASS

__all__ = ["CLASSES_PER_BYTE", "DEAD", "MAX_CLASS", "Classes", "Geometry", "Neighbourhood", "lanes_of"]

MAX_CLASS = 63  # of rows; those of columns and positions add -31..31
DEAD = NO_CLASS  # a class that takes any sum below 0
CLASSES_PER_BYTE = 16  # of the chunks of a tensor: few bytes cannot ask for much work
_MAX_STEP = 31  # of a class from the base of all rows
_KIND_BASE = 20
_LANE_STEPS = ((1 << 14, 8), (1 << 12, 4), (1 << 11, 2))  # words of a chunk, lanes


class Geometry(NamedTuple):
    """A tensor as a matrix of words: rows, and columns of several positions each."""

    n_rows: int
    n_columns: int
    n_positions: int

    @property
    def row_words(self) -> int:
        """Words of a row."""
        return self.n_columns * self.n_positions

    @classmethod
    def of(cls, shape: tuple[int, ...], n_words: int) -> Geometry:
        """Return rows (first dimension), columns (second) and positions (the others) of a shape.

        Examples
        --------
        >>> Geometry.of((16, 3, 3, 3), 432)
        Geometry(n_rows=16, n_columns=3, n_positions=9)
        >>> Geometry.of((64,), 64)
        Geometry(n_rows=1, n_columns=64, n_positions=1)
        """
        if len(shape) < 2:
            return cls(1, n_words, 1)
        return cls(shape[0], shape[1], n_words // (shape[0] * shape[1]))


def lanes_of(n_rows: int, n_words: int) -> int:
    """Return the lanes of a chunk: more for a larger one, never more than it has rows."""
    for words, lanes in _LANE_STEPS:
        if n_words >= words:
            return min(lanes, n_rows)
    return 1


@dataclass(frozen=True, eq=False)
class Classes:
    """Classes of a tensor's rows, columns and positions; they are added.

    Attributes
    ----------
    rows : ndarray of shape (n_rows,), dtype int64
        0..MAX_CLASS, or DEAD: the words of the row are of class 0, whatever their columns.
    columns, positions : ndarray of int64
        -31..31, or DEAD; of the size that the geometry says, or of size 1: no classes.
    """

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    positions: NDArray[np.int64]

    def along_row(self, geometry: Geometry) -> NDArray[np.int64]:
        """Return the class that column and position add, for every word of a row."""
        columns = np.broadcast_to(self.columns, geometry.n_columns)
        positions = np.broadcast_to(self.positions, geometry.n_positions)
        along: NDArray[np.int64] = np.maximum(columns[:, None] + positions, DEAD).reshape(-1)
        return along

    def fit(self, n_bytes: float) -> bool:
        """Return whether a tensor of so many stored bytes may have this many classes."""
        n_given = self.rows.size + sum(side.size for side in (self.columns, self.positions) if side.size > 1)
        return n_given <= CLASSES_PER_BYTE * n_bytes

    def write(self, writer: SideWriter, geometry: Geometry) -> None:
        """Write the classes."""
        for kind, (numbers, full) in enumerate(
            ((self.columns, geometry.n_columns), (self.positions, geometry.n_positions))
        ):
            assert numbers.size in (1, full)
            assert numbers.size > 1 or not numbers[0]  # what is not written is 0
            if full > 1:
                writer.raw(int(numbers.size > 1), 1)
            if numbers.size > 1:
                _write_classes(writer, kind + 1, numbers)
        alive = self.rows[self.rows > DEAD]
        base = 0
        if alive.size:  # in the middle, but no further from the ends than a number can say
            low, high = int(alive.max()) - _MAX_STEP, int(alive.min()) + _MAX_STEP
            base = min(max(int(np.median(alive)), low), high)
        writer.number(_KIND_BASE, base)
        _write_classes(writer, 0, np.where(self.rows > DEAD, self.rows - base, DEAD))

    @classmethod
    def read(cls, reader: SideReader, geometry: Geometry, n_bytes: int) -> Classes:
        """Read what ``write`` wrote.

        Parameters
        ----------
        reader : SideReader
            Where to read.
        geometry : Geometry
            How many there may be.
        n_bytes : int
            Stored bytes of the tensor, which bound how many there can be.

        Raises
        ------
        CorruptError
            A class is out of range (TAB-01, CTX-02), or there are too many for so few bytes (CTX-08).
        """
        allowed = CLASSES_PER_BYTE * n_bytes
        sides = []
        for kind, full in enumerate((geometry.n_columns, geometry.n_positions)):
            given = full > 1 and reader.raw(1) == 1
            allowed -= full if given else 0
            _check_number(full, allowed)
            sides.append(_read_classes(reader, kind + 1, full) if given else np.zeros(1, np.int64))
        base = reader.number(_KIND_BASE, MAX_CLASS)
        _check_number(geometry.n_rows, allowed - geometry.n_rows)
        rows = _read_classes(reader, 0, geometry.n_rows)
        alive = rows > DEAD
        rows[alive] += base
        if rows.min(where=alive, initial=0) < 0 or rows.max() > MAX_CLASS:
            raise CorruptError("class of a row out of range", rule="CTX-02")
        return cls(rows, *sides)


def _check_number(count: int, left: int) -> None:
    """Refuse classes that would take more time than the bytes of their tensor are worth."""
    if left < 0:
        raise CorruptError(f"{count} classes in too few bytes", rule="CTX-08")


def _write_classes(writer: SideWriter, kind: int, numbers: NDArray[np.int64]) -> None:
    """Write signed numbers, 0 for DEAD; how large one is hints at how large the next one is."""
    first = CLASS_CONTEXTS + 64 * kind
    last = 0
    for number in numbers.tolist():
        folded = 0 if number <= DEAD else 1 + fold_sign(number)
        writer.unary(first + 16 * last, folded, 16)
        last = min(folded, 3)


def _read_classes(reader: SideReader, kind: int, count: int) -> NDArray[np.int64]:
    """Read what ``_write_classes`` wrote."""
    return reader.classes(CLASS_CONTEXTS + 64 * kind, count)


class Neighbourhood(NamedTuple):
    """Which words to the left count, and from which magnitudes on.

    Attributes
    ----------
    distance : int
        Which word to the left counts beside the nearest one; 0 = none.
    thresholds : tuple of int
        A magnitude greater than the first has level 1, than the second 2, than the third 3.
    """

    distance: int
    thresholds: tuple[int, int, int]

    def levels(self) -> NDArray[np.int64]:
        """Return the level of each symbol, -3..3: that of the smallest magnitude that it stands for."""
        size = sum((threshold < SYMBOL_BASES).astype(np.int64) for threshold in self.thresholds)
        return np.where(np.arange(N_SYMBOLS) % 2 == 1, size, -size)
