"""The valid vectors of ``context``."""

from __future__ import annotations

from collections.abc import Iterator

from vector_book import Book, even_values
from vector_bytes import DTYPES, DType, noise
from vector_coders import Tensor, context
from vector_context import Model, Table, TableSet, flat_tables
from vector_frames import Frame
from vector_valid import Valid, every_dtype
from vector_valid_sets import grid_book, signed_noise, wide_set

__all__ = ["context_vectors"]


def _context_types() -> Iterator[Valid]:
    tables = wide_set(4, 3, 1, 8)

    def one(kind: DType) -> Tensor:
        n_negative = 0 if kind.kind == "unsigned" else 5
        book = grid_book(kind, n_negative, 8)
        numbers = signed_noise(kind.number, 12 * kind.words, -n_negative, 8)
        return context(kind.name, kind.name, (3, 2, 2), numbers, book, Model(tables, rows=[0, 2, None]))

    frame = every_dtype(one).but(table_sets=[tables])
    yield Valid(
        "context-every-dtype",
        "a tensor of every element type, coded by context, all with one table set",
        frame,
    )
    pair = wide_set(6, 2, 2, 9, 11)
    kind = DTYPES["float16"]
    tensors = []
    for trellis in range(8):
        numbers = signed_noise(trellis, 63, -8, 8)
        model = Model(pair, trellis=trellis, distance=2, rows=[0, 1, 0, 1, 0, 1, 1, 0, 1])
        tensors.append(
            context(f"trellis.{trellis}", "float16", (9, 7), numbers, grid_book(kind, 17, 17), model, 2)
        )
    yield Valid(
        "context-trellis",
        "all trellises, of 1 to 256 states, in chunks of four rows: states start anew",
        Frame(tensors, table_sets=[pair]),
    )
    words = even_values("float32", 0x3C23D70A, 8, 16)
    even = Book([words], True, (0x3C23D70A, 8))
    yield Valid(
        "context-even",
        "an even codebook",
        Frame(
            [context("a", "float32", (4, 5), signed_noise(3, 20, -8, 8), even, Model(tables))],
            table_sets=[tables],
        ),
    )


def _context_shapes() -> Iterator[Valid]:
    tables = wide_set(3, 2, 1, 3, 10)
    book = grid_book(DTYPES["int8"], 3, 3)
    shapes = {
        "a": (),
        "b": (9,),
        "c": (1, 9),
        "d": (9, 1),
        "e": (2, 1, 3, 2),
        "f": (4, 2, 1),
        "g": (1,),
        "h": (1, 1, 7),
    }
    tensors = []
    for name, shape in shapes.items():
        n = 1
        for dimension in shape:
            n *= dimension
        tensors.append(context(name, "int8", shape, signed_noise(n, n, -3, 3), book, Model(tables)))
    pairs = grid_book(DTYPES["complex64"], 3, 3)
    tensors.append(context("i", "complex64", (), [-3, 2], pairs, Model(tables)))
    tensors.append(
        context("j", "complex64", (2, 2), signed_noise(8, 8, -3, 3), pairs, Model(tables, positions=[0, 1]))
    )
    yield Valid(
        "context-shapes",
        "rows, columns and positions of any number of dimensions",
        Frame(tensors, table_sets=[tables]),
    )
    sparse = TableSet([Table([0, 18, 19, 26, 27, 30, 30])], 1, 1, 12)
    shapes_of_lanes = ((5, 410), (9, 456), (3, 1366), (16, 1024))
    bounds = ((23, 89), (8, 256), (9, 455), (8, 512), (129, 127))
    for rows, columns in (*shapes_of_lanes, *bounds):
        n_words = rows * columns
        numbers = [k - 3 if k < 7 else 0 for k in noise(rows, n_words, 300)]
        tensor = context("a", "int8", (rows, columns), numbers, book, Model(sparse))
        lanes = min(rows, 8 if n_words >= 16384 else 4 if n_words >= 4096 else 2 if n_words >= 2048 else 1)
        yield Valid(
            f"context-{lanes}-lanes-{n_words}-words",
            f"{rows} rows of {columns} words take turns",
            Frame([tensor], table_sets=[sparse]),
        )
    numbers = signed_noise(4, 10 * 6, -3, 3)
    yield Valid(
        "context-chunks",
        "chunks of four rows, the last one of two; rows are counted in the tensor",
        Frame(
            [
                context(
                    "a",
                    "int8",
                    (10, 3, 2),
                    numbers,
                    book,
                    Model(tables, rows=[0, 1, None, 1, 0, 0, 1, 1, None, 0]),
                    2,
                ),
                context("b", "int8", (3, 2), [1, -1, 0, 2, -2, 0], book, Model(tables)),
            ],
            table_sets=[tables],
        ),
    )
    none = TableSet([Table([24])])
    yield Valid(
        "context-no-bits",
        "a table of one symbol: nothing but the states of the lanes; the table set has no bytes",
        Frame(
            [
                context("a", "float32", (5, 7), [0] * 35, grid_book(DTYPES["float32"], 1, 1), Model(none)),
                context("b", "float32", (5, 7), [0] * 35, Book([[]]), Model(none), 2),
            ],
            table_sets=[b""],
        ),
    )


def _context_models() -> Iterator[Valid]:
    int8 = DTYPES["int8"]
    book = grid_book(int8, 6, 6)
    tables = wide_set(9, 64, 2, 6)
    numbers = signed_noise(6, 5 * 4 * 3, -6, 6)
    yield Valid(
        "context-classes",
        "classes of rows, columns and positions; sums below 0 and above the last one; dead ones",
        Frame(
            [
                context(
                    "a",
                    "int8",
                    (5, 4, 3),
                    numbers,
                    book,
                    Model(
                        tables,
                        rows=[1, 63, None, 31, 32],
                        columns=[-31, None, 31, 0],
                        positions=[0, 31, -31],
                        base=32,
                    ),
                ),
                context(
                    "b",
                    "int8",
                    (5, 4, 3),
                    numbers,
                    book,
                    Model(tables, rows=[5, 5, 5, 5, 5], columns=[None] * 4),
                ),
                context(
                    "c",
                    "int8",
                    (5, 4, 3),
                    numbers,
                    book,
                    Model(tables, rows=[None] * 5, positions=[3, 3, None], base=63),
                ),
                context(
                    "d", "int8", (5, 4, 3), numbers, book, Model(tables, rows=[63, 62, 61, 60, 59], base=60)
                ),
            ],
            table_sets=[tables],
        ),
    )
    yield Valid(
        "context-neighbours",
        "distances of 0, 1 and the most; thresholds that are equal, far apart, as high as can be",
        Frame(
            [
                context(
                    "a", "int8", (5, 12), numbers, book, Model(tables, distance=11, thresholds=(0, 0, 0))
                ),
                context("b", "int8", (5, 12), numbers, book, Model(tables, distance=1, thresholds=(0, 2, 4))),
                context(
                    "c", "int8", (5, 12), numbers, book, Model(tables, distance=0, thresholds=(1, 4096, 8191))
                ),
                context(
                    "d",
                    "int8",
                    (5, 12),
                    numbers,
                    book,
                    Model(tables, distance=5, thresholds=(4095, 8190, 12285)),
                ),
                context("e", "int8", (5, 12), numbers, book, Model(tables, distance=3, thresholds=(0, 4, 5))),
            ],
            table_sets=[tables],
        ),
    )
    no_zero = grid_book(int8, 6, 6, has_zero=False)
    unsigned = grid_book(DTYPES["uint8"], 0, 12, has_zero=False)
    yield Valid(
        "context-origin",
        "without Has_Zero the tables say where zero lies: in the middle, at either end",
        Frame(
            [
                context("a", "int8", (5, 12), numbers, no_zero, Model(tables, origin=6)),
                context("b", "int8", (5, 12), [abs(k) for k in numbers], no_zero, Model(tables, origin=0)),
                context("c", "int8", (5, 12), [-abs(k) for k in numbers], no_zero, Model(tables, origin=12)),
                context("d", "uint8", (5, 12), numbers, unsigned, Model(tables, origin=6, trellis=0)),
                context("e", "int8", (2, 3), [0] * 6, Book([[7]], False), Model(tables)),
            ],
            table_sets=[tables],
        ),
    )
    sizes = [0, 1, 7, 8, 9, 10, 14, 15, 16, 31, 32, 100, 511, 512, 1000, 2045, 2046, 2047]
    int16 = DTYPES["int16"]
    levels = TableSet(flat_tables(43), 1, 1, 12)
    large = grid_book(int16, 2047, 2047)
    one_sided = grid_book(DTYPES["uint16"], 0, 4094)
    yield Valid(
        "context-large-levels",
        "beyond the baseline profile: 4,095 labels, raw bits of every number",
        Frame(
            [
                context("a", "int16", (2, 18), [*sizes, *[-k for k in sizes[::-1]]], large, Model(levels)),
                context(
                    "b",
                    "uint16",
                    (4, 6),
                    [*sizes, 2048, 3000, 3583, 3584, 4093, 4094],
                    one_sided,
                    Model(levels),
                ),
            ],
            table_sets=[levels],
        ),
    )
    small = grid_book(int8, 100, 100)
    yield Valid(
        "context-raw-bits",
        "levels of up to 100: up to four raw bits",
        Frame(
            [
                context("a", "int8", (4, 25), range(-50, 50), small, Model(levels)),
                context("b", "int8", (1, 201), range(-100, 101), small, Model(levels)),
            ],
            table_sets=[levels],
        ),
    )


def context_vectors() -> Iterator[Valid]:
    """Yield the vectors, in the order of their numbers, after those of ``vector_valid``."""
    for part in (_context_types, _context_shapes, _context_models):
        yield from part()
