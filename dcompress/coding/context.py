"""The context coder: rANS under static tables, picked by row, column, position and neighbours (spec 9.7).

A word's place in the grid (the ascending values, zero in the middle) is its symbol. Its table follows from
its class, the sum of a class of its row, of its column and of its position in a kernel, and from how large
two words to its left are, with sign. Tables belong to a table set, which many tensors share.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from dcompress import kernels
from dcompress.coding.base import Codebook, SharedCoder, TensorLayout
from dcompress.coding.classes import DEAD, MAX_CLASS, Classes, Geometry, Neighbourhood, lanes_of
from dcompress.coding.range_coder import SideReader, SideWriter
from dcompress.coding.symbols import MAX_MAGNITUDE, SYMBOL_BASES, SYMBOL_RAW_BITS, symbol_of
from dcompress.coding.table_set import TableSet
from dcompress.constants import CODER_CONTEXT
from dcompress.errors import CorruptError
from dcompress.kernels.reference_context import (
    FLIP,
    LOWEST_STATE,
    NO_LEVEL,
    PADDING_WORDS,
    ContextTables,
)
from dcompress.kernels.status import OK, OUT_OF_RANGE, SHORT, SURPLUS, UNFINISHED
from dcompress.kernels.trellis import STATES, transitions
from dcompress.stages import Words

__all__ = [
    "DEAD",
    "MAX_CLASS",
    "MAX_ROW_WORDS",
    "Classes",
    "Context",
    "Geometry",
    "Neighbourhood",
    "flipped",
    "grid_symbols",
    "lane_order",
    "lanes_of",
]

MAX_ROW_WORDS = 1 << 22  # a decoder keeps some bytes for each word of a row
_KIND_SET = 16
_KIND_STATES = 17
_KIND_DISTANCE = 18
_KIND_THRESHOLD = 19
_KIND_BASE = 20
# Beyond the last context: levels with INVALID reach 143 further until a kernel looks at them.
_NO_CONTEXTS = np.zeros(256, np.uint8)
_FAULTS = {
    SHORT: ("context-coded words run out", "CTX-04"),
    SURPLUS: ("context-coded words left over", "CTX-05"),
    UNFINISHED: ("a lane does not end where coding starts", "CTX-06"),
    OUT_OF_RANGE: ("a symbol stands for no label", "CTX-07"),
}


@dataclass(frozen=True, eq=False)
class Context(SharedCoder):
    """rANS under static tables that are picked by class and neighbours.

    Attributes
    ----------
    codebook : Codebook
        The shared values, of one group.
    tables : TableSet
        The tables.
    set_number : int
        Number of the set within the frame.
    geometry : Geometry
        Rows and columns of the tensor.
    classes : Classes
        Classes of rows, columns and positions.
    neighbourhood : Neighbourhood
        Which words to the left count.
    origin : int
        Place in the grid that symbol 0 stands for: that of the zero if it stands apart.
    states : int
        States of the trellis; 0 = none.
    """

    number: ClassVar[int] = CODER_CONTEXT
    tables: TableSet
    set_number: int
    geometry: Geometry
    classes: Classes
    neighbourhood: Neighbourhood
    origin: int
    states: int

    def write_codes(self, writer: SideWriter) -> None:
        """Write what the labels are coded with, the table set apart."""
        writer.number(_KIND_SET, self.set_number)
        writer.number(_KIND_STATES, STATES.index(self.states))
        if not self.codebook.has_zero:
            writer.number(_KIND_BASE, self.origin)
        writer.number(_KIND_DISTANCE, self.neighbourhood.distance)
        previous = 0
        for threshold in self.neighbourhood.thresholds:
            writer.number(_KIND_THRESHOLD, threshold - previous)
            previous = threshold
        self.classes.write(writer, self.geometry)

    @classmethod
    def read_tables(cls, reader: SideReader, layout: TensorLayout) -> Context:
        """Read codebook and codes.

        Raises
        ------
        CorruptError
            More than one codebook, or one too large, rows too long, or no table set (CTX-01), classes out of
            range (CTX-02) or too many (CTX-08), a trellis where the table set has none (CTX-03), numbers out
            of range (TAB-01).
        """
        geometry = Geometry.of(layout.shape, layout.n_words)
        codebook = Codebook.read(reader, layout)
        if codebook.n_groups > 1 or codebook.n_labels > MAX_MAGNITUDE or geometry.row_words > MAX_ROW_WORDS:
            raise CorruptError(
                f"context coding of {codebook.n_groups} codebooks of {codebook.n_labels} values and rows of "
                f"{geometry.row_words} words",
                rule="CTX-01",
            )
        set_number = reader.number(_KIND_SET, max(0, layout.n_table_sets - 1))
        if layout.table_set is None or not layout.n_table_sets:
            raise CorruptError("context coding without a table set", rule="CTX-01")
        tables = layout.table_set(set_number)
        states = STATES[reader.number(_KIND_STATES, len(STATES) - 1)]
        if states and tables.n_quantisers < 2:
            raise CorruptError(f"table set {set_number} has no tables for a trellis", rule="CTX-03")
        origin = codebook.n_negative
        if not codebook.has_zero:
            origin = reader.number(_KIND_BASE, codebook.n_labels - 1)
        distance = reader.number(_KIND_DISTANCE, geometry.row_words - 1)
        thresholds: list[int] = []
        for _ in range(3):
            thresholds.append(reader.number(_KIND_THRESHOLD, MAX_MAGNITUDE) + sum(thresholds[-1:]))
        neighbourhood = Neighbourhood(distance, (thresholds[0], thresholds[1], thresholds[2]))
        classes = Classes.read(reader, geometry, layout.n_bytes)
        return cls(codebook, tables, set_number, geometry, classes, neighbourhood, origin, states)

    @cached_property
    def _bases(self) -> tuple[NDArray[np.uint64], NDArray[np.uint64], int, int]:
        """Bases of rows and of the words of a row, smallest and largest sum of classes."""
        columns = self.classes.along_row(self.geometry)
        rows, columns, low, high = kernels.select(0).class_bases(self.classes.rows, columns)
        return rows, columns, int(low), int(high)

    def _places(self) -> NDArray[np.int64]:
        """Return the label at each place of the grid."""
        labels = np.arange(self.codebook.n_labels)
        if self.codebook.has_zero:
            labels = np.concatenate([labels[1 : self.origin + 1], labels[:1], labels[self.origin + 1 :]])
        return labels

    def _decoding(self, lookup: NDArray[Any]) -> ContextTables:
        """Return what the kernels decode with; ``lookup`` is by label."""
        _, _, low, high = self._bases
        contexts = self.tables.contexts(low, high)
        ordered = lookup[self._places()]
        values, codes = kernels.select(0).symbol_values(
            ordered, self.origin, self.neighbourhood.levels(), SYMBOL_RAW_BITS, SYMBOL_BASES, self.states > 0
        )
        return ContextTables(
            np.concatenate([contexts, _NO_CONTEXTS]),
            self.tables.slots,
            values,
            codes,
            ordered,
            transitions(self.states).astype(np.uint8).reshape(-1) if self.states else None,
            SYMBOL_RAW_BITS,
            SYMBOL_BASES,
            contexts.size // self.tables.n_quantisers,
            self.tables.precision,
            self.origin,
            self.neighbourhood.distance or self.geometry.row_words,
        )

    def build_tables(self, kernel: ModuleType) -> ContextTables:
        """Build what the words of a chunk are decoded with."""
        del kernel
        return self._decoding(self.codebook.lookup[0])

    def _decode(
        self, chunk: memoryview, first_word: int, out: NDArray[Any], given: ContextTables, kernel: Any
    ) -> None:
        """Decode a chunk of whole rows into ``out``.

        Raises
        ------
        CorruptError
            The chunk is no whole number of 16-bit words, or too short (CTX-04), too long (CTX-05), its
            lanes do not end where they must (CTX-06), or a symbol stands for no label (CTX-07).
        """
        width = self.geometry.row_words
        first, n_rows = first_word // width, out.size // width
        n_lanes = lanes_of(n_rows, out.size)
        if len(chunk) % 2 or len(chunk) < 4 * n_lanes:
            raise CorruptError(f"{len(chunk)} bytes for {n_lanes} lanes", rule="CTX-04")
        states = np.frombuffer(chunk[: 4 * n_lanes], "<u4").astype(np.uint64)
        if states.min() < LOWEST_STATE:
            raise CorruptError("a lane starts in a state that cannot be", rule="CTX-06")
        stream = np.frombuffer(chunk[4 * n_lanes :], "<u2")
        words = np.zeros(stream.size + PADDING_WORDS, np.uint16)
        words[: stream.size] = stream
        rows, columns, _, _ = self._bases
        status = kernel.decode_contexts(words, states, rows[first : first + n_rows], columns, given, out)
        if status != OK:
            message, rule = _FAULTS[status]
            raise CorruptError(message, rule=rule)

    def decode_labels(
        self, chunk: memoryview, n_words: int, kernel: ModuleType, first_word: int = 0
    ) -> NDArray[Any]:
        """Return the labels of a chunk; raise CorruptError as ``decode_chunk`` does."""
        labels = np.empty(n_words, np.uint16)
        given = self._decoding(np.arange(self.codebook.n_labels, dtype=np.uint16))
        self._decode(chunk, first_word, labels, given, kernel)
        return labels

    def decode_chunk(
        self, chunk: memoryview, first_word: int, out: Words, work: int
    ) -> tuple[int, int] | None:
        """Decode symbols straight to words; raise CorruptError if the chunk is illegal."""
        kernel = kernels.select(work)
        self._decode(chunk, first_word, out, self.decoding_tables(kernel), kernel)
        return None

    def encode_chunk(self, symbols: NDArray[Any], first_word: int = 0) -> bytes:
        """Return the bytes of a chunk of whole rows."""
        width = self.geometry.row_words
        labels = symbols.reshape(-1, width)
        first, n_rows = first_word // width, labels.shape[0]
        n_lanes = lanes_of(n_rows, labels.size)
        kinds, raws, neighbours = self.symbols_of(labels, n_lanes)
        rows, columns, low, high = self._bases
        contexts = self.tables.contexts(low, high).reshape(self.tables.n_quantisers, -1, 64)
        classes = (rows[first : first + n_rows, None] + columns) // np.uint64(64)
        found = contexts[neighbours >> 6, classes.astype(np.intp), neighbours & 63]
        kinds = np.where((found & FLIP) != 0, flipped(kinds), kinds)
        kernel = kernels.select(labels.size)
        words = kernel.encode_contexts(
            found & np.uint8(FLIP - 1),
            kinds,
            raws,
            self.tables.starts.astype(np.uint16),
            self.tables.frequencies.astype(np.uint16),
            SYMBOL_RAW_BITS,
            n_lanes,
            self.tables.precision,
        )
        return bytes(words.astype("<u2").tobytes())

    def symbols_of(
        self, labels: NDArray[Any], n_lanes: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint16], NDArray[np.uint8]]:
        """Return symbols, raw values and neighbours of the labels of whole rows; see `grid_symbols`."""
        places = np.empty(self.codebook.n_labels, np.int32)
        places[self._places()] = np.arange(self.codebook.n_labels) - self.origin
        return grid_symbols(places[labels], self.neighbourhood, self.states, n_lanes)


def flipped(symbols: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return symbols with their signs turned round."""
    turned = symbols + (symbols & np.uint8(1)) - ((symbols & np.uint8(1)) ^ np.uint8(1))
    return np.where(symbols == 0, np.uint8(0), turned)


def lane_order(n_rows: int, n_lanes: int) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
    """Return the order that puts the rows of a lane together, and the first row of each lane in it."""
    lanes = np.arange(n_rows) % n_lanes
    return np.argsort(lanes, kind="stable"), np.searchsorted(np.sort(lanes), np.arange(n_lanes))


def _walk(
    grid: NDArray[np.integer[Any]], states: int, n_lanes: int
) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
    """Return the integers of the quantisers that the trellis comes to, and which quantisers those are."""
    order, starts = lane_order(grid.shape[0], n_lanes)
    path = np.ascontiguousarray(grid[order], np.int32).reshape(-1)
    places, quantisers = np.empty_like(path), np.empty(path.size, np.uint8)
    kernel = kernels.select(path.size)
    if kernel.walk(path, transitions(states), starts * grid.shape[1], places, quantisers) < path.size:
        raise ValueError("labels do not follow their trellis")
    back = np.argsort(order)
    return places.reshape(grid.shape)[back], quantisers.reshape(grid.shape)[back]


def grid_symbols(
    grid: NDArray[np.integer[Any]], neighbourhood: Neighbourhood, states: int, n_lanes: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint16], NDArray[np.uint8]]:
    """Return symbols, raw values, and quantiser * 64 + left level * 8 + far level, of whole rows.

    Parameters
    ----------
    grid : ndarray of shape (n_rows, row_words), dtype int32
        Places in the grid, counted from the origin.
    neighbourhood : Neighbourhood
        Which words to the left count.
    states, n_lanes : int
        States of the trellis, and lanes it walks along.
    """
    quantisers = np.zeros(grid.shape, np.uint8)
    if states:
        grid, quantisers = _walk(grid, states, n_lanes)
    symbols, raws = symbol_of(grid)
    levels = (neighbourhood.levels() + NO_LEVEL).astype(np.uint8)[symbols]
    left = np.full(grid.shape, NO_LEVEL, np.uint8)
    left[:, 1:] = levels[:, :-1]
    far = np.full(grid.shape, NO_LEVEL, np.uint8)
    distance = neighbourhood.distance
    if distance and distance < grid.shape[1]:
        far[:, distance:] = levels[:, :-distance]
    return symbols, raws, quantisers << np.uint8(6) | left << np.uint8(3) | far
