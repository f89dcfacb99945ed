"""The invalid vectors of side information: codebooks, code lengths, classes, table sets (spec 10 and 11)."""

from __future__ import annotations

from collections.abc import Iterator

from vector_book import Book
from vector_bytes import DTYPES, USED_ZERO, SideWriter, write_lengths
from vector_coders import Tensor, fixed, labels, planes, runs, split
from vector_frames import Frame
from vector_invalid import BOOK, WORDS, Invalid

__all__ = ["table_vectors"]


def _one(book: Book, dtype: str = "uint8", n: int = 12) -> Tensor:
    """Return a tensor of nothing but the first value of each group, coded by ``fixed``."""
    stretch = n // len(book.rows)
    words = [row[0] for row in book.rows for _ in range(stretch)]
    plain = Book(book.rows, book.has_zero)
    tensor = fixed("a", dtype, (len(words),), words, plain)
    side = SideWriter()
    book.write(side, DTYPES[dtype])
    return tensor.but(tables=side.finish())


def _codebooks() -> Iterator[Invalid]:
    def bad(
        rule: str, reason: str, careless: str, book: Book, dtype: str = "uint8", **more: object
    ) -> Invalid:
        return Invalid(rule, reason, careless, Frame([_one(book, dtype)]), **more)  # type: ignore[arg-type]

    row = [[1, 2, 255]]
    yield bad(
        "CBK-01",
        "five-groups-of-12-words",
        "rounds the size of a group down, and reads a group beyond the last",
        Book(row, n_groups=5),
    )
    yield bad(
        "CBK-02", "more-values-than-words", "reads a codebook larger than its tensor", Book(row, n_groups=12)
    )
    wide = fixed("a", "uint8", (2**20,), [0] * 16, Book([range(1, 16)]))
    side = SideWriter()
    Book([range(1, 16)], n_groups=2**13).write(side, DTYPES["uint8"])
    yield Invalid(
        "CBK-02", "122880-values", "reserves them", Frame([wide.but(tables=side.finish())]), hostile=True
    )
    side = SideWriter()
    Book([[]], n_groups=2**17).write(side, DTYPES["uint8"])
    none = fixed("a", "uint8", (2**20,), [0] * 16, Book([[]]))
    yield Invalid(
        "CBK-02",
        "131072-groups-of-no-values",
        "multiplies by 0 and finds room",
        Frame([none.but(tables=side.finish())]),
        hostile=True,
    )
    side = SideWriter()
    Book([[]], n_groups=65537).write(side, DTYPES["uint8"])
    one_more = fixed("a", "uint8", (65537,), [0] * 16, Book([[]])).but(tables=side.finish())
    yield Invalid("CBK-02", "65537-groups-of-no-values", "counts values alone", Frame([one_more]))
    zero = Book([[0, 2, 255]])
    yield bad("CBK-03", "zero-twice", "counts words of label 0 as pruned, and others as kept", zero)
    yield Invalid(
        "CBK-03", "second-group", "looks at the first group alone", Frame([_one(Book([[1, 2], [0, 2]]))])
    )
    yield bad(
        "CBK-03", "even-rounds-to-zero", "checks steps alone", Book([[1]], even=(0x30000000, 0)), "float16"
    )
    for reason, step, n_negative, dtype in (
        ("step-0", 0, 1, "float32"),
        ("step-minus", 0xBF800000, 1, "float32"),
        ("step-infinite", 0x7F800000, 0, "float32"),
        ("step-nan", 0x7FC00000, 0, "float32"),
        ("two-infinities", 0x7F000000, 0, "float32"),
        ("two-infinities-float16", 0x477FE000, 0, "float16"),
        ("alike-in-float16", 0x33000001, 0, "float16"),
        ("alike-in-bfloat16", 0x00008001, 2, "bfloat16"),
        ("two-zeros", 0x31000000, 0, "float16"),
        ("step-minus-zero", 0x80000000, 1, "float16"),
    ):
        careless = "divides by it" if "step" in reason else "has two labels for one word"
        yield bad("CBK-04", reason, careless, Book(row, even=(step, n_negative)), dtype)
    for reason, step in (
        ("one-value-infinite", 0x7F800000),
        ("one-value-minus", 0xBF800000),
        ("one-value-0", 0),
    ):
        yield bad("CBK-04", reason, "compares values alone", Book([[1]], even=(step, 0)), "float32")
    yield Invalid(
        "TAB-02",
        "65536-values",
        "makes 65,536 values of a hundred bytes, again and again",
        _many_values(),
        hostile=True,
    )
    yield bad("TAB-01", "negatives-of-unsigned", "writes values before the first", Book(row, n_negative=1))
    yield bad(
        "TAB-01",
        "more-negatives-than-values",
        "writes values beyond the last",
        Book(row, n_negative=4),
        "int8",
    )
    yield bad(
        "TAB-01", "negatives-of-even", "counts to less than none", Book(row, even=(0x3F800000, 4)), "float32"
    )
    yield bad("TAB-01", "dropped-bits", "shifts beyond its word", Book(row, n_dropped=9))
    yield bad(
        "TAB-01",
        "dropped-bits-of-float",
        "moves a value into the sign",
        Book(row, n_dropped=16, gaps=[(0, 0)]),
        "float16",
    )
    yield bad("TAB-01", "groups", "reads more groups than words", Book(row, n_groups=14))
    yield bad("TAB-01", "2-64-groups", "multiplies and wraps", Book(row, n_groups=2**64), hostile=True)
    yield bad("TAB-01", "change-of-129", "shifts by any number", Book(row, gaps=[(129, 0)] * 3))
    yield bad("TAB-03", "bit-length-below-0", "shifts by less than 0", Book([[1]], gaps=[(1, 0)]))
    yield bad(
        "TAB-03",
        "bit-length-65",
        "shifts a bit out of 64",
        Book(row, gaps=[(128, 63), (2, 0), (0, 0)]),
        "uint64",
    )
    yield bad("TAB-03", "beyond-byte", "keeps the low byte", Book(row, gaps=[(18, 8), (0, 0), (0, 0)]))
    just = Book([[1, 2]], gaps=[(16, 7), (15, 0)])
    yield bad("TAB-03", "beyond-byte-by-one", "keeps the low byte", just)
    yield bad(
        "TAB-03",
        "into-the-sign",
        "turns a value negative",
        Book([[1, 2]], n_negative=0, gaps=[(14, 6), (13, 0)]),
        "int8",
    )
    yield bad(
        "TAB-03",
        "wraps-64-bits",
        "adds a gap to the value before, and wraps",
        Book(row, gaps=[(128, 63), (0, 63), (0, 63)]),
        "uint64",
    )
    yield bad(
        "TAB-03",
        "shifted-out",
        "shifts dropped bits in and the value out",
        Book(row, n_dropped=8, gaps=[(2, 0), (0, 0), (0, 0)]),
    )


def _many_values() -> Frame:
    """Return a frame with as many values of a codebook as there can be, in few bytes, wrong at their end."""
    side = SideWriter()
    side.number(2, 15)
    side.raw(0, 1)
    for _ in range(16):
        side.number(0, 0)
        side.number(0, 0)
        for _ in range(4096):
            side.number(1, 0)
    side.number(3, 0)
    write_lengths(side, [1, *[0] * 4095], 4096)
    many = labels("a", "uint16", (65536,), [0], Book([range(4096)], False), lengths=[1, *[0] * 4095])
    return Frame([many.but(tables=side.finish() + bytes(300) + b"\x01", words=[0] * 65536)])


def _codes() -> Iterator[Invalid]:
    def tensor(lengths: list[int], n: int = 4) -> Frame:
        book = Book([range(n)], False)
        good = labels("a", "uint8", (12,), [0] * 12, book, lengths=[1, *[0] * (n - 1)])
        side = SideWriter()
        book.write(side, DTYPES["uint8"])
        side.number(3, 0)
        write_lengths(side, lengths, n)
        return Frame([good.but(tables=side.finish(), bodies=(b"\x02\0\0",))])

    yield Invalid("HUF-01", "nothing-used", "looks for a symbol for ever", tensor([0, 0, 0, 0]))
    for reason, n_labels, block in (
        ("4913-symbols", 17, 3),
        ("2-to-the-168-symbols", 4096, 14),
        ("2-to-the-64-symbols", 256, 8),
    ):
        book = Book([range(n_labels)], False)
        side = SideWriter()
        book.write(side, DTYPES["uint16"])
        side.number(3, block - 1)
        good = labels("a", "uint16", (12,), [0] * 12, book)
        careless = "reserves that many, or multiplies and wraps to few"
        yield Invalid("HUF-01", reason, careless, Frame([good.but(tables=side.finish())]), hostile=True)
    some = runs("a", "uint8", (12,), WORDS, BOOK)
    for reason, tensor_, n_buckets in (
        ("4097-run-symbols", some, 1366),
        ("4097-buckets", some.but(coder=5), 4097),
    ):
        side = SideWriter()
        BOOK.write(side, DTYPES["uint8"])
        side.number(4, n_buckets - 1)
        side.number(5, 0)
        yield Invalid("HUF-01", reason, "writes beyond its table", Frame([tensor_.but(tables=side.finish())]))
    yield Invalid("HUF-02", "incomplete", "finds no symbol for some bits", tensor([1, 2, 0, 0]))
    yield Invalid(
        "HUF-02",
        "incomplete-by-one-longest",
        "fills all but one slot of its table",
        tensor([*range(1, 16)], 15),
    )
    yield Invalid("HUF-02", "oversubscribed", "writes beyond its table", tensor([1, 1, 1, 0]))
    yield Invalid(
        "HUF-02",
        "oversubscribed-by-one-longest",
        "writes one slot beyond its table",
        tensor([*range(1, 16), 15, 15], 17),
    )
    yield Invalid("HUF-02", "two-of-length-2", "takes few symbols for a lone one", tensor([2, 2, 0, 0]))
    many = Book([range(4096)], False)
    side = SideWriter()
    many.write(side, DTYPES["uint16"])
    side.number(3, 0)
    write_lengths(side, [1] * 4096, 4096)
    wraps = labels("a", "uint16", (12,), [0] * 12, many).but(tables=side.finish())
    yield Invalid("HUF-02", "sum-wraps-16-bits", "adds up to a multiple of 2**16", Frame([wraps]))
    side = SideWriter()
    side.raw(2, 2)
    write_lengths(side, [2, 2, 2, *[0] * 253], 16)
    constant = planes("a", "uint8", (12,), [1] * 12, [1])
    yield Invalid("HUF-02", "planes", "checks label codes alone", Frame([constant.but(tables=side.finish())]))
    both = split("a", "uint8", (12,), WORDS, BOOK, 4)
    for reason, codes in (
        ("split-runs", ([1, 2, 0, 0], [1, 2, 3, 3])),
        ("split-labels", ([1, 2, 3, 3], [1, 2, 3, 0])),
    ):
        side = SideWriter()
        BOOK.write(side, DTYPES["uint8"])
        side.number(4, 3)
        side.number(5, 0)
        for code in codes:
            write_lengths(side, code, 4)
        yield Invalid(
            "HUF-02", reason, "checks one of the two codes alone", Frame([both.but(tables=side.finish())])
        )
    yield Invalid("HUF-03", "length-16", "shifts by -1", tensor([15, 16, 0, 0]))
    yield Invalid("HUF-03", "length-16-at-once", "counts on", tensor([16, 0, 0, 0]))
    yield Invalid("HUF-03", "length-30", "shifts beyond its number", tensor([15, 30, 0, 0]))
    yield Invalid(
        "HUF-03", "endless", "counts as long as there are bits", tensor([200, 0, 0, 0]), hostile=True
    )
    yield Invalid(
        "HUF-03", "used-length-0", "takes a used symbol for an unused one", tensor([2, USED_ZERO, 1, 0])
    )
    yield Invalid("HUF-03", "used-length-below-0", "stores -1 as 255", tensor([2, -1, 1, 0]))
    yield Invalid("HUF-04", "lone-length-2", "reads two bits for it, or none", tensor([0, 2, 0, 0]))
    yield Invalid("HUF-04", "lone-length-15", "reads 15 bits for it, or none", tensor([0, 0, 0, 15]))


def _numbers() -> Iterator[Invalid]:
    def side_of(book: Book = BOOK) -> SideWriter:
        side = SideWriter()
        book.write(side, DTYPES["uint8"])
        return side

    good = labels("a", "uint8", (12,), WORDS, BOOK, lengths=[1, 2, 3, 3])
    some = runs("a", "uint8", (12,), WORDS, BOOK)
    side = side_of()
    side.number(3, 14)
    yield Invalid("TAB-01", "block-15", "multiplies 15 times", Frame([good.but(tables=side.finish())]))
    side = side_of()
    side.number(3, 2**64 - 1)
    yield Invalid(
        "TAB-01", "block-2-64", "multiplies for ever", Frame([good.but(tables=side.finish())]), hostile=True
    )
    side = side_of()
    side.number(4, 4097)
    yield Invalid("TAB-01", "4098-buckets", "reserves them", Frame([some.but(tables=side.finish())]))
    side = side_of()
    side.number(4, 0)
    side.number(5, 13)
    yield Invalid(
        "TAB-01", "13-raw-bits", "shifts runs beyond its number", Frame([some.but(tables=side.finish())])
    )
    tables = good.tables or b""
    yield Invalid("TAB-02", "byte-long", "ignores it", Frame([good.but(tables=tables + bytes(6) + b"\x01")]))
    yield Invalid("TAB-02", "zero-at-the-end", "ignores it", Frame([good.but(tables=tables + b"\0")]))
    read = _last_byte(1)
    yield Invalid("TAB-02", "byte-long-by-one", "reads ahead", Frame([good.but(tables=read + b"\x01")]))
    yield Invalid(
        "TAB-01", "tables-of-ff", "divides to more than eight bits", Frame([good.but(tables=b"\xff" * 9)])
    )
    plain = planes("a", "uint8", (12,), range(12), ["raw"]).but(tables=b"\xff" * 9)
    yield Invalid(
        "PLN-01", "tables-of-ff", "divides to more than two bits, and reads a mode 4", Frame([plain])
    )
    yield Invalid("TAB-02", "zeros-alone", "takes them for no bytes", Frame([_zeros()]))
    yield Invalid(
        "TAB-02",
        "fixed-byte-long",
        "ends before it",
        Frame([_one(BOOK).but(tables=(_one(BOOK).tables or b"") + bytes(8) + b"\x01")]),
    )


def _last_byte(last: int) -> bytes:
    """Return the tables of ``labels`` with the last byte that a decoder reads, which is not 0."""
    side = SideWriter()
    BOOK.write(side, DTYPES["uint8"])
    side.number(3, 0)
    write_lengths(side, [1, 2, 3, 3], 4)
    return side.finish(last)


def _zeros() -> Tensor:
    """Return a tensor whose tables are zeros alone: planes that are all constant zeros."""
    tensor = planes("a", "uint16", (12,), [0] * 12, [0, 0])
    return tensor.but(tables=b"\0")


def table_vectors() -> Iterator[Invalid]:
    """Yield the vectors."""
    for part in (_codebooks, _codes, _numbers):
        yield from part()
