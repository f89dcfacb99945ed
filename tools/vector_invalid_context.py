"""The invalid vectors of ``context``: chunks, tables, table sets (spec 9.7, 11.5, 11.6)."""

from __future__ import annotations

from collections.abc import Iterator

from vector_book import Book
from vector_bytes import DTYPES, u32
from vector_coders import Tensor, context
from vector_context import PAIRS, Model, Table, TableSet, flat_tables
from vector_frames import Frame
from vector_invalid import Invalid
from vector_invalid_coders import with_body
from vector_valid_sets import grid_book, signed_noise

__all__ = ["context_breaches"]


DTYPE = DTYPES["int8"]


def _contexts() -> Iterator[Invalid]:
    tables = TableSet(flat_tables(8, 3), 2, 2)
    book = grid_book(DTYPE, 4, 4)
    numbers = signed_noise(1, 20, -4, 4)

    def one(book: Book = book, **more: object) -> Tensor:
        return context("a", "int8", (4, 5), numbers, book, Model(tables), **more)  # type: ignore[arg-type]

    def frame(tensor: Tensor, body: bytes | None = None) -> Frame:
        return (Frame([tensor]) if body is None else with_body(tensor, body)).but(table_sets=[tables])

    good = one()
    body = good.bodies[0]
    yield Invalid("CTX-01", "no-table-set", "reads a table set that is not there", Frame([good]))
    groups = Book([[1, 2, 255, 254], [3, 4, 5, 6]])
    yield Invalid("CTX-01", "two-groups", "looks all words up in the first group", frame(one(book=groups)))
    wide = context("a", "int16", (4, 5), numbers, Book([[65535, *range(1, 4095)]]), Model(tables))
    yield Invalid("CTX-01", "4096-labels", "has no symbol for the farthest place", frame(wide))
    yield Invalid(
        "CTX-01",
        "row-of-4194305-words",
        "reserves memory for rows of any length",
        frame(good.but(shape=(1, 4194305))),
        hostile=True,
    )
    yield Invalid(
        "CTX-01",
        "vector-of-4194305-words",
        "takes a vector for a column",
        frame(good.but(shape=(4194305,))),
        hostile=True,
    )
    yield Invalid("CTX-04", "odd-size", "reads half a word", frame(good, body + b"\0"))
    yield Invalid("CTX-04", "empty", "reads a state beyond the chunk", frame(good, b""))
    yield Invalid("CTX-04", "shorter-than-a-state", "reads a state beyond the chunk", frame(good, body[:2]))
    wide_rows = context("a", "int8", (2, 1024), [0] * 2048, book, Model(tables))
    cut = wide_rows.bodies[0][:6]
    yield Invalid("CTX-04", "state-of-lane-1-cut", "reads a state beyond the chunk", frame(wide_rows, cut))
    yield Invalid("CTX-04", "last-word-missing", "reads a word beyond the chunk", frame(good, body[:-2]))
    yield Invalid("CTX-04", "all-words-missing", "reads words beyond the chunk", frame(good, body[:4]))
    yield Invalid("CTX-05", "word-long", "ignores it", frame(good, body + b"\0\0"))
    yield Invalid("CTX-06", "state-0", "multiplies 0 for ever", frame(good, u32(0) + body[4:]))
    yield Invalid(
        "CTX-06", "state-65535-at-the-start", "shifts a word too many in", frame(good, u32(65535) + body[4:])
    )
    yield Invalid(
        "CTX-06", "state-65537-at-the-end", "does not look at the states at the end", frame(one(end=65537))
    )
    low = TableSet([flat_tables(5)[0]])
    for reason, numbers_of, n_negative, n_positive in (
        ("one-above", [0, 1, 2, 3, 0, 0, 0, 0], 2, 2),
        ("one-below", [0, 1, 2, -3, 0, 0, 0, 0], 2, 2),
        ("below-no-negatives", [0, -1, 0, 0, 0, 0, 0, 0], 0, 3),
    ):
        bad = context("a", "int8", (2, 4), numbers_of, grid_book(DTYPE, n_negative, n_positive), Model(low))
        yield Invalid("CTX-07", reason, "looks it up beyond the codebook", Frame([bad], table_sets=[low]))
    trellis = context(
        "a", "int8", (2, 4), [0, 1, -1, 2, 2, 2, 0, 0], grid_book(DTYPE, 2, 2), Model(tables, trellis=1)
    )
    yield Invalid("CTX-07", "trellis", "checks k where it should check the place", frame(trellis))
    large = TableSet(flat_tables(43))
    bad = context("a", "int8", (2, 4), [4095, -4095, 0, 0, 0, 0, 0, 0], grid_book(DTYPE, 2, 2), Model(large))
    yield Invalid("CTX-07", "farthest", "looks it up far from the codebook", Frame([bad], table_sets=[large]))
    rows = TableSet(flat_tables(5))
    late = context("a", "int8", (6, 4), [0] * 23 + [5], grid_book(DTYPE, 2, 2), Model(rows), 2)
    yield Invalid("CTX-07", "second-chunk", "checks the first chunk alone", Frame([late], table_sets=[rows]))
    flat = TableSet([flat_tables(0)[0]])
    many = context("a", "int8", (1000, 1), [0] * 1000, grid_book(DTYPE, 1, 1), Model(flat))
    yield Invalid("CTX-08", "rows", "reads dead rows from no bytes", Frame([many], table_sets=[b""]))
    dead = context(
        "a", "int8", (2, 600), [0] * 1200, grid_book(DTYPE, 1, 1), Model(flat, columns=[None] * 600)
    )
    yield Invalid("CTX-08", "columns", "counts rows alone", Frame([dead], table_sets=[b""]))
    spots = context(
        "a",
        "int8",
        (2, 2, 600),
        [0] * 2400,
        grid_book(DTYPE, 1, 1),
        Model(flat, columns=[0, 1], positions=[None] * 600),
    )
    yield Invalid("CTX-08", "positions", "counts rows and columns alone", Frame([spots], table_sets=[b""]))
    yield Invalid(
        "CTX-08",
        "2-30-rows",
        "reserves classes for all of them",
        Frame([many.but(shape=(2**30, 1))], table_sets=[b""]),
        hostile=True,
    )


def _models() -> Iterator[Invalid]:
    tables = TableSet(flat_tables(6), 2)
    pair = TableSet(flat_tables(6), 2, 2)
    book = grid_book(DTYPES["int8"], 3, 3)
    numbers = [0, 1, -1, 2, 0, 3] * 2

    def bad(
        rule: str, reason: str, careless: str, book: Book = book, one: TableSet = tables, **model: object
    ) -> Invalid:
        tensor = context("a", "int8", (3, 4), numbers, book, Model(one, **model))  # type: ignore[arg-type]
        return Invalid(rule, reason, careless, Frame([tensor], table_sets=[one]))

    yield bad("CTX-02", "row-64", "looks a table up beyond the last class", rows=[33, 64, 33], base=33)
    yield bad("CTX-02", "row-below-0", "looks a table up before the first class", rows=[0, -1, 0])
    yield bad("CTX-02", "last-row", "checks the first row alone", rows=[63, 63, 94], base=63)
    for trellis in (1, 7):
        careless = "looks a table up beyond the table set"
        yield bad("CTX-03", f"one-quantiser-trellis-{trellis}", careless, trellis=trellis)
    yield bad("TAB-01", "trellis-8", "looks a trellis up beyond the last", one=pair, trellis=8)
    yield bad("TAB-01", "table-set-1-of-one", "reads a table set that is not there", set_number=1)
    yield bad("TAB-01", "table-set-2-63", "reads a table set that is not there", set_number=2**63)
    yield bad("TAB-01", "distance-of-a-row", "looks into the row before", distance=4)
    yield bad("TAB-01", "threshold-4096", "keeps 12 bits of it", thresholds=(4096, 4096, 4096))
    yield bad("TAB-01", "third-threshold", "checks their sum alone", thresholds=(0, 0, 4096))
    yield bad("TAB-01", "base-64", "adds it to all rows", base=64, rows=[64, 64, 64])
    yield bad(
        "TAB-01",
        "origin",
        "counts from beyond the codebook",
        grid_book(DTYPES["int8"], 3, 3, False),
        origin=7,
    )
    for reason, model in (("row-class", {"rows": [32, 0, 0]}), ("column-class", {"columns": [0, 0, -32, 0]})):
        yield bad("TAB-01", reason, "counts on", **model)  # type: ignore[arg-type]
    yield bad("TAB-01", "endless-class", "counts as long as there are bits", rows=[2000, 0, 0])
    yield bad("TAB-01", "row-32-below-base", "takes it for one more class", rows=[8, 40, 40], base=40)


def _sets() -> Iterator[Invalid]:
    book = grid_book(DTYPES["int8"], 1, 1)

    def bad(rule: str, reason: str, careless: str, wrong: TableSet | bytes, **more: object) -> Invalid:
        right = TableSet(flat_tables(1))
        tensor = context("a", "int8", (2, 3), [0, 1, -1, 0, 1, 0], book, Model(right))
        return Invalid(rule, reason, careless, Frame([tensor], table_sets=[wrong]), **more)  # type: ignore[arg-type]

    small = flat_tables(1)
    for reason, largest in (("bucket-44", 44), ("bucket-below-0", -1)):
        yield bad(
            "SET-01",
            reason,
            "writes beyond its table, or has one of no symbols",
            TableSet([Table([24] * 3, largest=largest)]),
        )
    yield bad("SET-01", "child-below-0", "has a table of no symbols", TableSet([*small, Table([24], 1, -1)]))
    for reason, lengths in (("length-64", [24, 64, 24]), ("length-below-0", [24, 24, -1])):
        yield bad("SET-01", reason, "shifts by any number", TableSet([Table(lengths)]))
    for reason, table in (("table-beyond", 1), ("table-below-0", -1)):
        yield bad(
            "SET-02",
            reason,
            "looks a table up that is not there",
            TableSet(small, choice=[{pair: [table] for pair in PAIRS}]),
        )
    last = {pair: [0, 0] for pair in PAIRS} | {(3, 3): [0, 1]}
    yield bad(
        "SET-02",
        "last-context",
        "checks the tables of the first class alone",
        TableSet(small, 2, choice=[last]),
    )
    second = [{pair: [0] for pair in PAIRS}, {pair: [1] for pair in PAIRS}]
    yield bad(
        "SET-02", "second-quantiser", "checks the first quantiser alone", TableSet(small, 1, 2, choice=second)
    )
    rare = [24] * 60 + [63] * 27
    yield bad(
        "SET-03",
        "too-many-rare",
        "has a frequency below 0, and slots that nobody has",
        TableSet([Table(rare)], precision=10),
    )
    none_left = TableSet([Table([24] * 40 + [25] + [63] * 28)], precision=10)
    yield bad("SET-03", "none-left", "has a symbol without a slot", none_left)
    yield bad(
        "SET-03",
        "second-table",
        "checks the first table alone",
        TableSet([*small, Table(rare)], precision=10),
    )
    for size, one_more in (
        ("precision-13", TableSet(small, precision=13)),
        ("three-quantisers", TableSet(small, n_quantisers=3)),
        ("65-classes", TableSet(small, n_classes=65)),
        ("128-tables", TableSet([Table([24] * 3, int(k > 0)) for k in range(128)])),
    ):
        yield bad("TAB-01", size, "reserves them", one_more)
    yield bad("TAB-01", "table-set-of-ff", "divides to more than eight bits", b"\xff" * 9)
    yield bad(
        "TAB-01", "2-64-tables", "reserves them", TableSet(small, declared={"n_tables": 2**64}), hostile=True
    )
    yield bad(
        "TAB-01",
        "parent-before-the-first",
        "copies a table that is not there",
        TableSet([Table([24] * 3, 1)]),
    )
    yield bad(
        "TAB-01",
        "extent-change-of-45",
        "counts from the parent, and wraps",
        TableSet([Table([24] * 3, largest=45)]),
    )
    for rule, reason, table in (("TAB-01", "minus-128", -128), ("SET-02", "127", 127)):
        moved = TableSet(small, choice=[{pair: [table] for pair in PAIRS}])
        yield bad(rule, f"table-change-of-{reason}", "counts on", moved)
    low = TableSet([Table([24] * 3, largest=-45)])
    yield bad("TAB-01", "extent-change-of-minus-45", "counts from the parent, and wraps", low)
    yield bad("TAB-01", "length-change-of-64", "counts on", TableSet([Table([24, 24, 88])]))
    yield bad(
        "TAB-01",
        "table-change-of-128",
        "counts on",
        TableSet(small, choice=[{pair: [128] for pair in PAIRS}]),
    )
    yield bad("TAB-02", "table-set-byte-long", "ignores it", TableSet(small, end=bytes(6) + b"\x01"))
    yield bad("TAB-02", "table-set-zero-at-the-end", "ignores it", TableSet(small, end=b"\0"))


def context_breaches() -> Iterator[Invalid]:
    """Yield the vectors."""
    for part in (_contexts, _models, _sets):
        yield from part()
