"""Valid vectors that were added when deliberate mistakes in the pseudo-code had passed all others."""

from __future__ import annotations

from collections.abc import Iterator

from vector_book import Book
from vector_bytes import DTYPES, noise
from vector_coders import context, labels
from vector_context import PAIRS, Model, Table, TableSet
from vector_frames import Frame
from vector_valid import Valid
from vector_valid_sets import grid_book, signed_noise, wide_set

__all__ = ["late_vectors"]


def _classes(seed: int, n: int) -> list[int | None]:
    """Return small classes, some of them dead: what they are written as is 0 to 5."""
    kinds = (None, 0, -1, 1, -2, 2)
    return [kinds[k] for k in noise(seed, n, len(kinds))]


def late_vectors() -> Iterator[Valid]:
    """Yield the vectors; new ones go to the end."""
    tables = wide_set(3, 9, 1, 3, 10)
    book = grid_book(DTYPES["int8"], 3, 3)
    rows = [None if k is None else k + 4 for k in _classes(1, 30)]
    model = Model(tables, rows=rows, columns=_classes(2, 20), positions=_classes(3, 6), base=4)
    numbers = signed_noise(5, 30 * 20 * 6, -1, 1)
    yield Valid(
        "context-small-classes",
        "small classes in any order: each set of contexts is used",
        Frame([context("a", "int8", (30, 20, 6), numbers, book, model)], table_sets=[tables]),
    )
    minus_zero = Book([[0x8000, 0x8001, 1, 2]])
    yield Valid(
        "context-minus-zero",
        "minus zero is the greatest of the negative values",
        Frame(
            [context("a", "float16", (4, 5), signed_noise(9, 20, -2, 2), minus_zero, Model(tables))],
            table_sets=[tables],
        ),
    )
    # Found by a search: in each of them a weight that is off by one, up or down, moves a frequency.
    close = ([0, 4, 4], [0, 1, 3], [1, 5, 5], [1, 6, 9], [1, 2, 4], [0, 7, 8])
    one_each = TableSet(
        [Table(lengths) for lengths in close], 6, 1, 12, [{pair: list(range(6)) for pair in PAIRS}]
    )
    few = grid_book(DTYPES["int8"], 1, 1)
    numbers = [k - 1 for k in noise(11, 600, 3)]
    yield Valid(
        "table-set-roundings",
        "tables whose frequencies a weight that is off by one would change",
        Frame(
            [context("a", "int8", (6, 100), numbers, few, Model(one_each, rows=range(6)))],
            table_sets=[one_each],
        ),
    )
    full = Book([range(1, 256)] * 16)
    yield Valid(
        "codebook-4080-values-and-zeros",
        "sixteen groups of 256 labels: the word 0 is no value of the codebook",
        Frame([labels("a", "uint16", (4096,), [0] * 4096, full)]),
    )
