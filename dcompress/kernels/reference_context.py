"""Context-coded symbols in plain Python and NumPy: decoding, coding, and counting (spec 9.7).

A chunk is rows of ``row_words`` words. Lane k of n decodes rows k, k + n, ...; all lanes step through a
column before the next one, and take their 16-bit words from one stream. The context of a symbol is the sum
of its row's base, its column's base, the level of the word to its left (times 8), the level of the word
``distance`` to its left, and the quantiser that the trellis has come to.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dcompress.kernels.status import OK, OUT_OF_RANGE, SHORT, SURPLUS, UNFINISHED
from dcompress.kernels.trellis import NO_LEVEL

__all__ = [
    "FLIP",
    "INVALID",
    "LEVEL_STRIDE",
    "LOWEST_STATE",
    "NO_LEVEL",
    "PADDING_WORDS",
    "WIDE",
    "ContextTables",
    "class_bases",
    "context_costs",
    "context_counts",
    "decode_contexts",
    "encode_contexts",
    "symbol_values",
    "table_slots",
]

FLIP = 128  # in a context: its symbols have their signs turned round
INVALID = 128  # in a level: the symbol stands for no label
WIDE = 64  # in a level: the symbol has raw bits, and its label is found when they are read
LEVEL_STRIDE = 64  # contexts of one class and quantiser: level to the left * 8 + the other one
LOWEST_STATE = 1 << 16
_BLOCK = 1 << 16
# Words beyond the end that a kernel may look at: eight lanes take up to two each before it looks where they
# are, and leaves rows that have gone wrong.
PADDING_WORDS = 40

U8 = NDArray[np.uint8]
U64 = NDArray[np.uint64]


class ContextTables(NamedTuple):
    """What a tensor's chunks are decoded with.

    Attributes
    ----------
    contexts : ndarray of uint8
        Table by context, FLIP set where signs are turned round. The second quantiser's stand ``span`` on.
    tables : ndarray of shape (n_tables << precision,), uint32
        By table and low bits of the state: symbol (7 bits), frequency (13 bits), offset (12 bits).
    values : ndarray of shape (512,), words
        Word by quantiser (256) and symbol with flip (128).
    levels : ndarray of shape (512,), uint8
        Level (times 8) likewise, with INVALID where no label belongs to the symbol, or WIDE.
    lookup : ndarray of words
        Word by place in the grid.
    successors : ndarray of uint8
        Next state by ``2 * state + parity``; None without a trellis.
    raw_bits, bases : ndarray of shape (n_symbols,)
        Raw bits and smallest magnitude by symbol.
    span, precision, origin, distance : int
        Contexts of one quantiser; bits of the frequencies; place of zero in the grid; which word to the left
        the second level is taken from.
    """

    contexts: U8
    tables: NDArray[np.uint32]
    values: NDArray[Any]
    levels: U8
    lookup: NDArray[Any]
    successors: U8 | None
    raw_bits: U8
    bases: NDArray[np.uint16]
    span: int
    precision: int
    origin: int
    distance: int


def class_bases(rows: NDArray[np.int64], columns: NDArray[np.int64]) -> tuple[U64, U64, int, int]:
    """Return the bases of rows and columns of these classes, and the smallest and largest sum of two.

    What is dead, below all others, is held just low enough to stay below 0 beside the highest class of the
    other side.
    """
    rows = np.maximum(rows, -1 - max(0, int(columns.max())))
    columns = np.maximum(columns, -1 - max(0, int(rows.max())))
    first, second = int(rows.min()), int(columns.min())
    return (
        (rows - first).astype(np.uint64) * np.uint64(LEVEL_STRIDE),
        (columns - second).astype(np.uint64) * np.uint64(LEVEL_STRIDE),
        first + second,
        int(rows.max()) + int(columns.max()),
    )


def symbol_values(
    lookup: NDArray[Any],
    origin: int,
    levels: NDArray[np.int64],
    raw_bits: U8,
    bases: NDArray[np.uint16],
    two: bool,
) -> tuple[NDArray[Any], U8]:
    """Return ``values`` and ``levels`` of ContextTables.

    Parameters
    ----------
    lookup, origin, raw_bits, bases
        As in ContextTables.
    levels : ndarray of shape (n_symbols,), dtype int64
        Signed level of each symbol.
    two : bool
        Whether there are two quantisers.
    """
    n_symbols = levels.size
    magnitudes = bases.astype(np.int64)
    if two:
        magnitudes = np.maximum(0, 2 * magnitudes - np.array([[[0]], [[1]]]))
    signs = np.where(np.arange(n_symbols) % 2 == 1, 1, -1)
    grid = np.zeros((2, 2, n_symbols), np.int64)  # by quantiser, flip and symbol
    grid[: 2 if two else 1] = magnitudes * np.stack([signs, -signs])
    places = grid + origin
    wrong = (places < 0) | (places >= lookup.size)
    values = np.zeros((2, 2, FLIP), lookup.dtype)
    values[..., :n_symbols] = lookup[np.where(wrong, 0, places)]
    codes = np.full((2, 2, FLIP), INVALID, np.uint8)
    both = np.stack([levels, -levels]) + NO_LEVEL << 3
    codes[..., :n_symbols] = both | np.where(raw_bits > 0, WIDE, np.where(wrong, INVALID, 0))
    return values.reshape(-1), codes.reshape(-1)


def table_slots(frequencies: NDArray[np.int64], precision: int) -> NDArray[np.uint32]:
    """Return ``tables`` of ContextTables; frequencies, by table and symbol, add up to ``2 ** precision``."""
    n_tables, n_symbols = frequencies.shape
    repeats = frequencies.reshape(-1)
    symbols = np.tile(np.arange(n_symbols), n_tables)
    firsts = (np.cumsum(frequencies, axis=1) - frequencies).reshape(-1)
    offsets = np.tile(np.arange(1 << precision), n_tables) - np.repeat(firsts, repeats)
    return (np.repeat(symbols << 25 | repeats << 12, repeats) | offsets).astype(np.uint32)


def decode_contexts(
    words: NDArray[np.uint16],
    states: U64,
    row_bases: U64,
    column_bases: U64,
    given: ContextTables,
    out: NDArray[Any],
) -> int:
    """Decode a chunk of whole rows; return OK or what is wrong.

    ``words`` ends in PADDING_WORDS zeros; there is a lane for each of ``states``.
    """
    n_words = words.size - PADDING_WORDS
    stream = words.tolist()
    contexts, table, levels = given.contexts.tolist(), given.tables, given.levels.tolist()
    successors = [0, 0] if given.successors is None else given.successors.tolist()
    raw_bits, bases = given.raw_bits.tolist(), given.bases.tolist()
    columns, precision, distance = column_bases.tolist(), given.precision, given.distance
    width, mask, doubling = len(columns), (1 << precision) - 1, len(successors) > 2
    xs, trellis = states.tolist(), [0] * states.size
    entries = table.tolist() if table.size <= 4 * out.size else table
    place, seen = 0, 0
    for first in range(0, row_bases.size, len(xs)):
        rows = row_bases[first : first + len(xs)].tolist()
        recent = [[NO_LEVEL] * distance + [0] * width for _ in rows]
        found: list[int] = []
        for column, column_base in enumerate(columns):
            if place > n_words:
                return SHORT
            for lane, row_base in enumerate(rows):
                levels_of = recent[lane]
                left = levels_of[column + distance - 1] if column else NO_LEVEL
                quantiser = trellis[lane] & 1
                at = row_base + column_base + 8 * left + levels_of[column] + quantiser * given.span
                context = contexts[at]
                x = xs[lane]
                entry = int(entries[(context & 127) << precision | x & mask])
                x = (entry >> 12 & 0x1FFF) * (x >> precision) + (entry & 0xFFF)
                if x < LOWEST_STATE:
                    x = x << 16 | stream[place]
                    place += 1
                kind = entry >> 25
                symbol = kind | context & FLIP
                parity = kind + 1 >> 1 & 1
                level = levels[quantiser << 8 | symbol]
                if not level & WIDE:
                    found.append(quantiser << 8 | symbol)
                else:
                    parity = x & 1
                    magnitude = bases[kind] + (x & (1 << raw_bits[kind]) - 1)
                    x >>= raw_bits[kind]
                    if x < LOWEST_STATE:
                        x = x << 16 | stream[place]
                        place += 1
                    if doubling:
                        magnitude = 2 * magnitude - quantiser
                    negative = (kind & 1 == 0) != (symbol >= FLIP)
                    label = given.origin - magnitude if negative else given.origin + magnitude
                    level &= WIDE - 1
                    if not 0 <= label < given.lookup.size:
                        label, level = 0, level | INVALID
                    found.append(~label)
                seen |= level
                levels_of[column + distance] = level >> 3 & 7
                trellis[lane] = successors[trellis[lane] << 1 | parity]
                xs[lane] = x
        places = np.array(found).reshape(width, len(rows)).T
        wide = places < 0
        group = given.values[np.where(wide, 0, places)]
        group[wide] = given.lookup[~places[wide]]
        out[first * width : (first + len(rows)) * width] = group.reshape(-1)
        if seen & INVALID:
            break
    return _status(place, n_words, xs, seen)


def _status(place: int, n_words: int, states: list[int], seen: int) -> int:
    """Return what the end of a chunk says about it."""
    if place > n_words:
        return SHORT
    if seen & INVALID:
        return OUT_OF_RANGE
    if place < n_words:
        return SURPLUS
    return UNFINISHED if any(x != LOWEST_STATE for x in states) else OK


def encode_contexts(
    tables: U8,
    symbols: U8,
    raws: NDArray[np.uint16],
    starts: NDArray[np.uint16],
    frequencies: NDArray[np.uint16],
    raw_bits: U8,
    n_lanes: int,
    precision: int,
) -> NDArray[np.uint16]:
    """Return the words of a chunk, the states of its lanes before them (low half first).

    Parameters
    ----------
    tables, symbols, raws : ndarray of shape (n_rows, row_words)
        Table, symbol as it stands in the table, and raw value of each word.
    starts, frequencies : ndarray of shape (n_tables, n_symbols)
        Where a symbol's slots start, and how many it has.
    raw_bits : ndarray of shape (n_symbols,)
        Raw bits by symbol.
    """
    n_rows, width = tables.shape
    states = [LOWEST_STATE] * n_lanes
    words: list[int] = []
    for first in reversed(range(0, n_rows, n_lanes)):
        group = slice(first, first + n_lanes)
        some_start = starts[tables[group], symbols[group]].tolist()
        some_frequency = frequencies[tables[group], symbols[group]].tolist()
        some_raw, some_bits = raws[group].tolist(), raw_bits[symbols[group]].tolist()
        for column in reversed(range(width)):
            for lane in reversed(range(len(some_raw))):
                x = states[lane]
                n_bits = some_bits[lane][column]
                if n_bits:
                    if x >= 1 << (32 - n_bits):
                        words.append(x & 0xFFFF)
                        x >>= 16
                    x = x << n_bits | some_raw[lane][column]
                frequency = some_frequency[lane][column]
                if x >= frequency << (32 - precision):
                    words.append(x & 0xFFFF)
                    x >>= 16
                states[lane] = (x // frequency << precision) + x % frequency + some_start[lane][column]
    head = [half for x in states for half in (x & 0xFFFF, x >> 16)]
    return np.array(head + words[::-1], np.uint16)


def context_counts(
    symbols: U8,
    neighbours: U8,
    row_classes: NDArray[np.int64],
    column_classes: NDArray[np.int64],
    counts: NDArray[np.int64],
) -> None:
    """Add to ``counts`` (class, neighbours, symbol) the words of a matrix of symbols."""
    n_classes, n_neighbours, n_symbols = counts.shape
    for part in _row_blocks(symbols):
        classes = np.clip(row_classes[part, None] + column_classes, 0, n_classes - 1)
        places = (classes * n_neighbours + neighbours[part]) * n_symbols + symbols[part]
        counts.reshape(-1)[:] += np.bincount(places.reshape(-1), minlength=counts.size)


def _row_blocks(symbols: U8) -> Iterator[slice]:
    """Cut a matrix into blocks of rows: large enough for NumPy, small enough for a cache."""
    step = max(1, _BLOCK // max(1, symbols.shape[1]))
    for first in range(0, symbols.shape[0], step):
        yield slice(first, first + step)


def context_costs(
    symbols: U8,
    neighbours: U8,
    row_classes: NDArray[np.int64],
    column_classes: NDArray[np.int64],
    costs: NDArray[np.int32],
    by_row: NDArray[np.int64],
    by_column: NDArray[np.int64],
) -> None:
    """Add what each row, and each column, would cost in each of the classes that it could have.

    ``costs`` (neighbours, symbol, class) is in 1/256 bit; ``by_row`` (row, candidate) and ``by_column``
    (column, candidate) take candidate c - n_candidates // 2 for the class of the row, or add it to those of
    row and column. An empty array is left out.
    """
    _, n_symbols, n_classes = costs.shape
    flat = costs.reshape(-1)
    for part in _row_blocks(symbols):
        first = (neighbours[part].astype(np.int64) * n_symbols + symbols[part]) * n_classes
        for candidate in range(by_row.shape[1]):
            classes = np.clip(column_classes + (candidate - by_row.shape[1] // 2), 0, n_classes - 1)
            by_row[part, candidate] += flat[first + classes].sum(axis=1)
        for candidate in range(by_column.shape[1]):
            shift = row_classes[part, None] + (candidate - by_column.shape[1] // 2)
            classes = np.clip(column_classes + shift, 0, n_classes - 1)
            by_column[:, candidate] += flat[first + classes].sum(axis=0)
