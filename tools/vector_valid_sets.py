"""The valid vectors of table sets, and of the bounds of the baseline profile."""

from __future__ import annotations

from collections.abc import Iterator

from vector_book import Book
from vector_bytes import DTYPES, DType, noise
from vector_coders import Tensor, context, labels, planes, raw
from vector_context import PAIRS, Model, Table, TableSet, flat_tables
from vector_frames import Frame
from vector_valid import Valid

__all__ = ["grid_book", "set_frames", "signed_noise", "wide_set"]


def grid_book(kind: DType, n_negative: int, n_positive: int, has_zero: bool = True) -> Book:
    """Return values around zero: the small integers, or for floats the smallest magnitudes."""
    negative = [
        kind.top_bit | k if kind.kind == "float" else kind.mask + 1 - k for k in range(1, n_negative + 1)
    ]
    return Book([[*negative, *range(0 if not has_zero else 1, n_positive + 1)]], has_zero)


def steep(largest: int, slope: int = 5, start: int = 2) -> Table:
    """Return a table whose symbols get rarer."""
    return Table([min(63, start + slope * symbol) for symbol in range(2 * largest + 1)])


def spread_choice(
    n_tables: int, n_classes: int, n_quantisers: int, seed: int
) -> list[dict[tuple[int, int], list[int]]]:
    """Return tables of contexts, drawn."""
    drawn_tables = iter(noise(seed, n_quantisers * len(PAIRS) * n_classes, n_tables))
    return [
        {pair: [next(drawn_tables) for _ in range(n_classes)] for pair in PAIRS} for _ in range(n_quantisers)
    ]


def wide_set(
    n_tables: int, n_classes: int, n_quantisers: int, largest: int, precision: int = 12, seed: int = 0
) -> TableSet:
    """Return a table set whose tables and contexts are drawn, some tables with a parent."""
    tables: list[Table] = []
    for number in range(n_tables):
        lengths = [k + 6 for k in noise(seed + number, 2 * largest + 1, 30)]
        parent = noise(seed + number + 99, 1, number + 1)[0]
        if parent:
            older = tables[number - parent].lengths
            lengths = [
                max(0, old + k - 2) for old, k in zip(older, noise(number, len(older), 5), strict=True)
            ]
        tables.append(Table(lengths, parent))
    choice = spread_choice(n_tables, n_classes, n_quantisers, seed)
    return TableSet(tables, n_classes, n_quantisers, precision, choice)


def signed_noise(seed: int, n: int, low: int, high: int) -> list[int]:
    """Return numbers of low to high, mostly small."""
    sizes = [min(a, b, c) for a, b, c in zip(*[iter(noise(seed, 3 * n, high - low + 1))] * 3, strict=True)]
    return [k if k <= high else high - k for k in sizes]


def _table_sets() -> Iterator[Valid]:
    book = grid_book(DTYPES["int8"], 3, 3)
    numbers = signed_noise(9, 20, -3, 3)
    sets = [wide_set(3, 2, 1, 3, 10), wide_set(2, 1, 2, 5, 11, 5), wide_set(5, 3, 1, 4, 12, 9)]
    yield Valid(
        "table-sets",
        "three table sets of all precisions, the second of which nobody uses",
        Frame(
            [
                context("a", "int8", (4, 5), numbers, book, Model(sets[2], 2)),
                context("b", "int8", (4, 5), numbers, book, Model(sets[0], 0)),
                context("c", "int8", (4, 5), numbers, book, Model(sets[2], 2)),
            ],
            table_sets=sets,
        ),
    )
    yield Valid(
        "table-set-unused",
        "a table set in a frame without context",
        Frame([raw("a", "uint8", (1,), [1])], table_sets=sets[:1]),
    )
    rare = TableSet(
        [Table([63] * 87), Table([0, *[63] * 86]), Table([*[63] * 86, 0]), Table([63, 0] * 43 + [63])],
        4,
        1,
        10,
        [{pair: [0, 1, 2, 3] for pair in PAIRS}],
    )
    wide = grid_book(DTYPES["int16"], 100, 100)
    yield Valid(
        "table-set-rare-symbols",
        "lengths of 0 and 63: symbols of one slot beside one of nearly all",
        Frame(
            [
                context(
                    "a",
                    "int16",
                    (4, 20),
                    signed_noise(10, 80, -100, 100),
                    wide,
                    Model(rare, rows=[0, 1, 2, 3]),
                ),
            ],
            table_sets=[rare],
        ),
    )
    most = wide_set(64, 64, 2, 9, 12, 3)
    yield Valid(
        "table-set-64-tables",
        "as many tables as the baseline profile reads, 64 classes, two quantisers",
        Frame(
            [
                context(
                    "a",
                    "int8",
                    (16, 5),
                    signed_noise(11, 80, -3, 3),
                    book,
                    Model(most, rows=range(16), columns=[0, 9, 18, 27, 31]),
                ),
            ],
            table_sets=[most],
        ),
    )
    beyond = TableSet(
        [Table([24] * 7, int(k > 0)) for k in range(65)], 1, 1, 12, [{pair: [64] for pair in PAIRS}]
    )
    yield Valid(
        "table-set-65-tables",
        "beyond the baseline profile: one table more",
        Frame([context("a", "int8", (4, 5), numbers, book, Model(beyond))], table_sets=[beyond]),
    )
    last = TableSet(
        [Table([24] * 7, int(k > 0)) for k in range(127)], 1, 1, 12, [{pair: [126] for pair in PAIRS}]
    )
    yield Valid(
        "table-set-127-tables",
        "beyond the baseline profile: the most tables",
        Frame([context("a", "int8", (4, 5), numbers, book, Model(last))], table_sets=[last]),
    )
    for n in (16, 17):
        note = (
            "as many table sets as the baseline profile reads"
            if n == 16
            else "beyond the baseline profile: one table set more"
        )
        yield Valid(
            f"table-sets-{n}",
            note,
            Frame(
                [context("a", "int8", (4, 5), numbers, book, Model(sets[0], n - 1))],
                table_sets=[*[b""] * (n - 1), sets[0]],
            ),
        )
    drawn = [noise(n, 87, 64) for n in range(64)]
    spread = [[k if k < 40 else 63 * (s // 2 % 2 == 0) for s, k in enumerate(row)] for row in drawn]
    tables = [Table(lengths) for lengths in (*spread[:36], *drawn[36:])]  # both found by a search
    exact = TableSet(tables, 64, 2, 12, spread_choice(64, 64, 2, 8))
    yield Valid(
        "table-set-8192-bytes",
        "the longest table set that the baseline profile reads",
        Frame([context("a", "int8", (4, 5), numbers, book, Model(exact))], table_sets=[exact]),
    )
    heavy = TableSet([Table(lengths) for lengths in spread], 64, 2, 12, spread_choice(64, 64, 2, 1))
    yield Valid(
        "table-set-long",
        "beyond the baseline profile: a table set of more than 8,192 bytes",
        Frame([context("a", "int8", (4, 5), numbers, book, Model(heavy))], table_sets=[heavy]),
    )


def _bounds() -> Iterator[Valid]:
    """Yield frames at the bounds of rules."""
    book = grid_book(DTYPES["int8"], 3, 3)
    numbers = signed_noise(9, 20, -3, 3)
    near = wide_set(3, 2, 1, 3, 10)
    yield Valid(
        "table-sets-1024",
        "beyond the baseline profile: the most table sets, the last of which is used",
        Frame(
            [context("a", "int8", (4, 5), numbers, book, Model(near, 1023))], table_sets=[*[b""] * 1023, near]
        ),
    )
    least = TableSet([Table([24] * 41 + [25] + [63] * 43)], precision=10)
    yield Valid(
        "table-set-least-frequency",
        "a table whose most frequent symbol is left with one slot",
        Frame([context("a", "int8", (4, 5), numbers, book, Model(least))], table_sets=[least]),
    )
    flat = TableSet([Table([24])])

    def dead_columns(n_rows: int) -> Tensor:
        zeros = grid_book(DTYPES["int8"], 1, 1)
        return context(
            "a", "int8", (n_rows, 150), [0] * 150 * n_rows, zeros, Model(flat, columns=[None] * 150)
        )

    # Found by a search: at column 18 the range of the side coder is 2**24 to the bit, and stays.
    rare = [k // 2 if k % 2 == 0 else -(k + 1) // 2 for k in noise(2769, 40, 63)]
    zeros = grid_book(DTYPES["int8"], 1, 1)
    yield Valid(
        "side-range-2-24",
        "side information during which the range of its coder is exactly 2**24, once",
        Frame([context("a", "int8", (2, 40), [0] * 80, zeros, Model(flat, columns=rare))], table_sets=[b""]),
    )
    n = next(n for n in range(1, 20) if 16 * sum(map(len, dead_columns(n).chunks)) == n + 150)
    yield Valid(
        "context-most-classes",
        "16 classes for each byte of the chunks, no more",
        Frame([dead_columns(n)], table_sets=[b""]),
    )


def _heavy() -> Iterator[Valid]:
    swings = [63 * (symbol // 2 % 2) for symbol in range(87)]
    far = [{pair: [126 * (number % 2) for number in range(64)] for pair in PAIRS} for _ in range(2)]
    tables = TableSet([Table(swings) for _ in range(127)], 64, 2, 12, far)
    tensor = context("a", "int8", (2, 3), [0, 1, -1, 0, 1, 0], grid_book(DTYPES["int8"], 1, 1), Model(tables))
    note = "beyond the baseline profile: a table set of 1.4 million bits of side information, the most work"
    yield Valid("table-set-most-work", note, Frame([tensor], table_sets=[tables]))


def _beyond() -> Iterator[Valid]:
    for n in (16384, 16385):
        note = (
            "as many words in a chunk as the baseline profile reads"
            if n == 16384
            else "beyond the baseline profile: a word more"
        )
        yield Valid(f"chunk-{n}-words", note, Frame([planes("a", "uint8", (n,), [7] * n, [7])]))
    yield Valid(
        "chunk-16384-words-of-more",
        "chunks of 16,384 words of a larger tensor",
        Frame([labels("a", "uint8", (20000,), [7] * 20000, Book([[7]], False), shift=14)]),
    )
    book = grid_book(DTYPES["int8"], 1, 1)
    tables = TableSet([Table([0, 40, 41])])
    for n in (4096, 4097):
        numbers = [k - 1 if k < 3 else 0 for k in noise(n, n, 900)]
        note = (
            "as many words in a row as the baseline profile reads"
            if n == 4096
            else "beyond the baseline profile: a longer row"
        )
        yield Valid(
            f"context-row-{n}",
            note,
            Frame([context("a", "int8", (n,), numbers, book, Model(tables))], table_sets=[tables]),
        )
    flat = TableSet(flat_tables(1), 2)
    for n in (16384, 16385):
        numbers = [k - 1 for k in noise(1, n, 3)]
        rows = [0 if k < n - 1 else 1 for k in range(n)]
        note = (
            "as many classes as the baseline profile reads"
            if n == 16384
            else "beyond the baseline profile: more classes"
        )
        yield Valid(
            f"context-classes-{n}",
            note,
            Frame(
                [context("a", "int8", (n, 1), numbers, book, Model(flat, rows=rows), 12)], table_sets=[flat]
            ),
        )


def set_frames() -> Iterator[Valid]:
    """Yield the vectors."""
    for part in (_table_sets, _beyond, _bounds, _heavy):
        yield from part()
