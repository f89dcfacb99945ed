"""Writers for the coder ``context``: table sets, classes, the coder that goes backwards (spec 9.7, 11.6)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from vector_bytes import DType, SideWriter, fold, u32

__all__ = ["PAIRS", "TRELLISES", "Model", "Table", "TableSet", "context_bodies", "flat_tables", "geometry"]

PAIRS = [(left, far) for left in range(4) for far in range(-3, 4) if left or far >= 0]
TRELLISES = ((0, 0), (2, 1), (5, 2), (9, 2), (18, 4), (33, 10), (78, 43), (166, 121))
_ROOTS = (65536, 55109, 46341, 38968)


@dataclass
class Table:
    """Lengths in quarter bits of the symbols 0 to 2E; ``parent`` is how many tables before this one."""

    lengths: list[int]
    parent: int = 0
    largest: int | None = None  # another E than the lengths have

    def frequencies(self, precision: int) -> list[int]:
        """Return how many slots each symbol has."""
        weights = [_ROOTS[length % 4] >> length // 4 for length in self.lengths]
        slots = [max(1, weight * 2**precision // sum(weights)) for weight in weights]
        slots[slots.index(max(slots))] += 2**precision - sum(slots)
        return slots


def flat_tables(*largest: int, length: int = 20) -> list[Table]:
    """Return tables without parents whose symbols are all as likely, by their largest bucket."""
    return [Table([length] * (2 * e + 1)) for e in largest]


@dataclass
class TableSet:
    """Tables, and which of them serves which context; whatever is None takes table 0."""

    tables: list[Table]
    n_classes: int = 1
    n_quantisers: int = 1
    precision: int = 12
    choice: list[dict[tuple[int, int], list[int]]] | None = None  # by quantiser and pair, by class
    declared: dict[str, int] = field(default_factory=dict)  # what to write in place of the right sizes
    end: bytes = b""  # bytes too many

    def table(self, quantiser: int, pair: tuple[int, int], word_class: int) -> int:
        """Return the table of a context."""
        return 0 if self.choice is None else self.choice[quantiser][pair][word_class]

    def to_bytes(self) -> bytes:
        """Return the side information of section 11.6."""
        side = SideWriter()
        side.number(8, self.declared.get("precision", self.precision) - 10)
        side.number(8, self.declared.get("n_quantisers", self.n_quantisers) - 1)
        side.number(8, self.declared.get("n_classes", self.n_classes) - 1)
        side.number(8, self.declared.get("n_tables", len(self.tables)) - 1)
        for number, table in enumerate(self.tables):
            self._write_table(side, number, table)
        for quantiser in range(self.n_quantisers):
            above = 0
            for pair in PAIRS:
                before = above
                for word_class in range(self.n_classes):
                    table_number = self.table(quantiser, pair, word_class)
                    side.unary(2256 if word_class else 2272, 16, fold(table_number - before))
                    before = table_number
                    above = above if word_class else table_number
        return side.finish() + self.end

    def _write_table(self, side: SideWriter, number: int, table: Table) -> None:
        side.number(9, table.parent)
        expected = self.tables[number - table.parent].lengths if 0 < table.parent <= number else []
        largest = len(table.lengths) // 2 if table.largest is None else table.largest
        side.number(10, fold(largest - len(expected) // 2))
        last = 0
        for symbol, length in enumerate(table.lengths):
            guess = table.lengths[symbol - 2] if symbol > 2 else 24
            guess = expected[symbol] if symbol < len(expected) else guess
            contexts = 2208 + 16 * min(last, 2)
            last = abs(length - guess)
            side.unary(contexts, 15, last)
            if last:
                side.bit(contexts + 15, int(length < guess))


@dataclass
class Model:
    """What tables say beside the codebook. A class None is dead; classes that are None are not given."""

    table_set: TableSet
    set_number: int = 0
    trellis: int = 0
    distance: int = 0
    thresholds: tuple[int, int, int] = (0, 1, 2)
    rows: Sequence[int | None] | None = None  # None: all of class 0
    columns: Sequence[int | None] | None = None
    positions: Sequence[int | None] | None = None
    base: int = 0
    origin: int = 0

    def write(self, side: SideWriter, shape: tuple[int, int, int], has_zero: bool) -> None:
        """Write all that follows the codebook (spec 11.5)."""
        n_rows, n_columns, n_positions = shape
        side.number(16, self.set_number)
        side.number(17, self.trellis)
        if not has_zero:
            side.number(20, self.origin)
        side.number(18, self.distance)
        before = 0
        for threshold in self.thresholds:
            side.number(19, threshold - before)
            before = threshold
        for kind, count, classes in ((1, n_columns, self.columns), (2, n_positions, self.positions)):
            if count > 1:
                side.raw(int(classes is not None), 1)
                if classes is not None:
                    _write_classes(side, kind, classes)
        side.number(20, self.base)
        rows = [0] * n_rows if self.rows is None else self.rows
        _write_classes(side, 0, [None if row is None else row - self.base for row in rows])

    def n_given(self, shape: tuple[int, int, int]) -> int:
        """Return how many classes are given."""
        return shape[0] + sum(len(side) for side in (self.columns, self.positions) if side is not None)

    def class_of(self, row: int, x: int, n_positions: int) -> int:
        """Return the class of a word; the rows of the tensor are counted."""
        parts = (
            0 if self.rows is None else self.rows[row],
            0 if self.columns is None else self.columns[x // n_positions],
            0 if self.positions is None else self.positions[x % n_positions],
        )
        if any(part is None for part in parts):
            return 0
        return min(max(sum(part or 0 for part in parts), 0), self.table_set.n_classes - 1)


def _write_classes(side: SideWriter, kind: int, classes: Sequence[int | None]) -> None:
    last = 0
    for one in classes:
        contexts = 2016 + 64 * kind + 16 * min(last, 3)
        last = 0 if one is None else fold(one) + 1
        side.unary(contexts, 16, last)


def geometry(dtype: DType, shape: Sequence[int]) -> tuple[int, int, int]:
    """Return rows, columns of a row, positions of a column."""
    if len(shape) < 2:
        return 1, math.prod(shape) * dtype.words, 1
    return shape[0], shape[1], math.prod(shape[2:]) * dtype.words


class _Step(NamedTuple):
    """What a lane does for a word: a symbol of a table, and raw bits."""

    lane: int
    frequencies: list[int]
    symbol: int
    raw: int
    n_raw: int


def _bucket(magnitude: int) -> tuple[int, int, int]:
    """Return the bucket, its raw bits and its smallest magnitude."""
    if magnitude < 8:
        return magnitude, 0, magnitude
    n_raw = magnitude.bit_length() - 3
    return 4 * n_raw + (magnitude >> n_raw), n_raw, magnitude >> n_raw << n_raw


def _n_lanes(n_rows: int, n_words: int) -> int:
    lanes = 8 if n_words >= 16384 else 4 if n_words >= 4096 else 2 if n_words >= 2048 else 1
    return min(lanes, n_rows)


def _walk(
    model: Model, shape: tuple[int, int, int], numbers: Sequence[int], first_row: int, n_rows: int
) -> tuple[list[_Step], dict[int, int], int]:
    """Return the steps of a chunk in their order, the grid numbers that come of it, and the lanes."""
    _, n_columns, n_positions = shape
    width = n_columns * n_positions
    n_lanes = _n_lanes(n_rows, n_rows * width)
    a, b = TRELLISES[model.trellis] if model.trellis < len(TRELLISES) else (0, 0)
    frequencies = [table.frequencies(model.table_set.precision) for table in model.table_set.tables]
    states = [0] * n_lanes
    levels: dict[tuple[int, int], int] = {}
    steps, grid = [], {}
    for top in range(first_row, first_row + n_rows, n_lanes):
        for x in range(width):
            for row in range(top, min(top + n_lanes, first_row + n_rows)):
                lane = row - top
                left = levels[row, x - 1] if x else 0
                far = levels[row, x - model.distance] if 0 < model.distance <= x else 0
                turned = left < 0 or (left == 0 and far < 0)
                pair = (-left, -far) if turned else (left, far)
                quantiser = states[lane] & 1
                k = numbers[row * width + x]
                word_class = model.class_of(row, x, n_positions)
                bucket, n_raw, smallest = _bucket(abs(k))
                symbol = 0 if k == 0 else 2 * bucket - ((k < 0) == turned)
                table = frequencies[model.table_set.table(quantiser, pair, word_class)]
                steps.append(_Step(lane, table, symbol, abs(k) - smallest, n_raw))
                level = sum(smallest > threshold for threshold in model.thresholds)
                levels[row, x] = -level if k < 0 else level
                states[lane] = states[lane] >> 1 ^ (a if states[lane] & 1 else 0) ^ (b if k & 1 else 0)
                magnitude = abs(k) if not model.trellis else max(0, 2 * abs(k) - quantiser)
                grid[row * width + x] = -magnitude if k < 0 else magnitude
    return steps, grid, n_lanes


def _code(steps: Sequence[_Step], n_lanes: int, precision: int, end: int) -> bytes:
    """Return the body of a chunk: the coder goes from the last step to the first."""
    states = [end] * n_lanes
    words: list[int] = []

    def make_room(lane: int, bound: int) -> None:
        if states[lane] >= bound:
            words.append(states[lane] & 0xFFFF)
            states[lane] >>= 16

    for lane, frequencies, symbol, raw, n_raw in reversed(steps):
        make_room(lane, 1 << 32 - n_raw)
        states[lane] = states[lane] << n_raw | raw
        frequency, start = frequencies[symbol], sum(frequencies[:symbol])
        make_room(lane, frequency << 32 - precision)
        whole, part = divmod(states[lane], frequency)
        states[lane] = (whole << precision) + start + part
    return b"".join(map(u32, states)) + b"".join(word.to_bytes(2, "little") for word in reversed(words))


def context_bodies(
    model: Model, shape: tuple[int, int, int], numbers: Sequence[int], shift: int, end: int = 1 << 16
) -> tuple[list[bytes], list[int]]:
    """Return the bodies of all chunks, and the numbers of the grid that they stand for.

    Parameters
    ----------
    model : Model
        Table set, classes, neighbours, trellis.
    shape : tuple of int
        Rows, columns, positions.
    numbers : sequence of int
        k for each word, in order; with a trellis the grid numbers follow from them.
    shift : int
        Chunk_Shift; 0 is one chunk.
    end : int
        The state that lanes end with; right is 65,536.
    """
    step = 1 << shift if shift else shape[0]
    bodies, grid = [], {}
    for first in range(0, shape[0], step):
        steps, part, n_lanes = _walk(model, shape, numbers, first, min(step, shape[0] - first))
        bodies.append(_code(steps, n_lanes, model.table_set.precision, end))
        grid |= part
    return bodies, [grid[place] for place in range(len(grid))]
