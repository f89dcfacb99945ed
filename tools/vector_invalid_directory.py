"""The invalid vectors of directories: names, types, shapes, chunks (spec 8)."""

from __future__ import annotations

from collections.abc import Iterator

from vector_book import Book
from vector_bytes import u32, varint
from vector_coders import context, fixed, labels, raw, runs
from vector_context import Model, TableSet, flat_tables
from vector_frames import Frame, alias, empty
from vector_invalid import BOOK, BYTE, WORDS, Invalid, bare, record

__all__ = ["directory_vectors"]


def _directory() -> Iterator[Invalid]:
    yield Invalid("DIR-01", "a-byte-more", "ignores it", Frame(directory=Frame().make_directory() + b"\x00"))
    yield Invalid(
        "DIR-01", "a-record-more", "ignores it", Frame(directory=Frame().make_directory() + b"\x01a\x02\x00")
    )
    yield Invalid(
        "DIR-02",
        "first-tensor",
        "copies a name from memory before the first",
        Frame([BYTE.but(name=b"xa", shared_prefix=1)]).but(
            directory=b"\x00\x01\x01\x01a\x02\x01\x00\x00\x00"
        ),
    )
    yield Invalid(
        "DIR-02",
        "longer-than-before",
        "copies beyond the end of a name",
        Frame(directory=b"\x00\x02\x00\x01a\x02\x01\x00\x02\x01b\x02\x01\x00\x00\x00"),
    )
    yield Invalid(
        "DIR-02",
        "wraps",
        "adds 2**64 - 1 and 2 to a size of 1",
        Frame(directory=b"\x00\x01" + varint(2**64 - 1) + b"\x02ab\x02\x01\x00\x00\x00"),
        hostile=True,
    )
    yield Invalid(
        "DIR-03",
        "twice",
        "keeps the last one",
        Frame([BYTE, empty("b", "int8", (0,)), BYTE.but(shared_prefix=0)]),
    )
    yield Invalid(
        "DIR-03",
        "twice-by-prefix",
        "compares what is stored of the names",
        Frame([BYTE.but(name=b"ab"), BYTE.but(name=b"ab", shared_prefix=1)]),
    )
    yield Invalid("DIR-03", "alias-of-same-name", "keeps one of them", Frame([BYTE, alias("a", 0)]))
    yield Invalid(
        "DIR-03",
        "empty-names",
        "takes an empty name for none",
        Frame([BYTE.but(name=b""), BYTE.but(name=b"")]),
    )
    yield Invalid("DIR-04", "itself", "follows it for ever", Frame([BYTE, alias("b", 1)]))
    yield Invalid("DIR-04", "first-of-all", "reads a record that is not there", Frame([alias("b", 0)]))
    yield Invalid("DIR-04", "later", "reads a record that is not there yet", Frame([alias("b", 1), BYTE]))
    yield Invalid(
        "DIR-04", "alias", "follows it, though it need not", Frame([BYTE, alias("b", 0), alias("c", 1)])
    )
    yield Invalid(
        "DIR-04", "far", "multiplies the number and wraps", Frame([BYTE, alias("b", 2**61)]), hostile=True
    )
    yield Invalid(
        "DIR-05",
        "dtype-23",
        "looks it up beyond the table",
        bare(record(23, (1,), b"\x00\x00\x00" + u32(0))),
    )
    yield Invalid("DIR-05", "dtype-255", "looks it up beyond the table", bare(record(255, (0,))))
    for reason, dtype, shape in (
        ("two-of-2-32", 2, (2**32, 2**32)),
        ("one-of-2-63", 2, (2**63,)),
        ("element-bytes", 12, (2**61,)),
        ("words-of-complex", 22, (2**59,)),
        ("zero-beside-huge", 2, (0, 2**32, 2**32)),
        ("huge-before-zero", 12, (2**62, 2**62, 2**62, 0)),
        ("three-of-2-22", 2, (2**22, 2**22, 2**22)),
        ("one-of-2-64", 2, (2**64 - 1, 0)),
    ):
        careless = (
            "takes the product for 0 or little, and writes beyond its memory"
            if 0 not in shape
            else "multiplies in another order, and has no words or very many"
        )
        yield Invalid(
            "DIR-06",
            reason,
            careless,
            bare(record(dtype, shape, b"" if 0 in shape else b"\x00\x00\x00" + u32(0))),
            hostile=True,
        )
    for coder in (7, 255):
        yield Invalid(
            "DIR-07",
            f"coder-{coder}",
            "looks it up beyond the table",
            Frame([BYTE.but(coder=coder)]).but(
                directory=b"\x00\x01\x00\x01a\x02\x01\x02"
                + bytes([coder])
                + b"\x00\x02"
                + u32(0)
                + b"\x00\x00"
            ),
        )
    good = fixed("a", "uint8", (12,), WORDS, BOOK)
    yield Invalid("DIR-08", "no-labels", "reads labels of no bits, or of 64", Frame([good.but(n_labels=0)]))
    yield Invalid(
        "DIR-08", "4097-labels", "looks labels up beyond its table", Frame([good.but(n_labels=4097)])
    )
    yield Invalid(
        "DIR-08",
        "2-64-labels",
        "reserves that many values",
        Frame([good.but(n_labels=2**64 - 1)]),
        hostile=True,
    )
    yield from _shifts()
    some = runs("a", "uint8", (12,), WORDS, BOOK)
    yield Invalid("DIR-11", "one-too-many", "reserves 13 positions of 12", Frame([some.but(n_kept=13)]))
    yield Invalid(
        "DIR-11", "2-63", "reserves that many positions", Frame([some.but(n_kept=2**63)]), hostile=True
    )
    yield Invalid(
        "DIR-12",
        "twice",
        "keeps the last one",
        Frame([BYTE], metadata=[(b"k", b"1"), (b"l", b"2"), (b"k", b"1")]),
    )
    for reason, bad in (
        ("surrogate", b"\xed\xa0\x80"),
        ("overlong-nul", b"\xc0\x80"),
        ("overlong-slash", b"\xe0\x80\xaf"),
        ("above-10ffff", b"\xf4\x90\x80\x80"),
        ("lone-byte", b"\x80"),
        ("cut-character", b"a\xe2\x82"),
        ("latin-1", b"\xfc"),
        ("five-bytes", b"\xf8\x88\x80\x80\x80"),
        ("overlong-four", b"\xf0\x8f\xbf\xbf"),
    ):
        yield Invalid(
            "DIR-13",
            f"name-{reason}",
            "hands out a name that others refuse, or ends",
            Frame([BYTE.but(name=bad)]),
        )
    yield Invalid(
        "DIR-13",
        "name-cut-by-prefix",
        "checks what is stored of the name alone",
        Frame([BYTE.but(name="\u00e9".encode()), BYTE.but(name=b"\xc3a", shared_prefix=1)]),
    )
    yield Invalid("DIR-13", "key", "checks tensor names alone", Frame([BYTE], metadata=[(b"\xff", b"v")]))
    yield Invalid(
        "DIR-13", "value", "checks names and keys alone", Frame([BYTE], metadata=[(b"k", b"v\xc3")])
    )
    yield Invalid("DIR-14", "1025-table-sets", "reserves them", Frame([BYTE], table_sets=[b""] * 1025))
    yield Invalid(
        "DIR-14",
        "2-63-table-sets",
        "reserves them",
        Frame([BYTE], counts={"table_sets": varint(2**63)}),
        hostile=True,
    )
    yield Invalid(
        "DIR-14",
        "table-set-of-65537-bytes",
        "reads it",
        Frame([BYTE], table_sets=[b""], sizes={"table set 0": 65537}),
    )


def _sizes() -> Iterator[Invalid]:
    missing = Frame([BYTE], table_sets=[b""], sizes={"table set 0": 65536})
    parts = Frame([raw("a", "uint8", (8,), range(8), shift=2)]).make_directory()[:-2]
    yield Invalid("FRM-01", "chunk-records-and-no-more", "reads on", Frame(directory=parts))
    yield Invalid("FRM-01", "table-set-of-65536-bytes", "reads it from beyond the end", missing)


def _shifts() -> Iterator[Invalid]:
    long = raw("a", "uint8", (10,), range(10), shift=2)
    yield Invalid(
        "DIR-09",
        "shift-1",
        "reads chunks of two words",
        Frame([raw("a", "uint8", (10,), range(10), shift=1)]),
    )
    for shift in (41, 64, 255):
        yield Invalid(
            "DIR-09",
            f"shift-{shift}",
            "shifts beyond its number, and divides by 0",
            Frame([BYTE.but(shift=shift)]),
        )
    many = labels("a", "uint8", (8,), [5] * 8, Book([[5]], False), shift=2)
    huge = Frame([many.but(shape=(2**42,), shift=41)])
    yield Invalid("DIR-09", "shift-41-of-42", "shifts 1 beyond 40 bits", huge, hostile=True)
    yield Invalid(
        "DIR-09",
        "one-chunk",
        "reads it: one chunk of as many words as there are",
        Frame([raw("a", "uint8", (4,), range(4)).but(shift=2)]),
    )
    yield Invalid(
        "DIR-09",
        "chunk-beyond-words",
        "reads it: one chunk, half full",
        Frame([raw("a", "uint8", (5,), range(5)).but(shift=3)]),
    )
    tables = TableSet(flat_tables(2))
    row = context("a", "int8", (8,), [0, 1, 0, 1, 1, 0, 1, 0], Book([[1, 2]]), Model(tables))
    yield Invalid(
        "DIR-09",
        "context-one-row",
        "counts words where it should count rows",
        Frame([row.but(shift=2)], table_sets=[tables]),
    )
    yield Invalid(
        "DIR-10",
        "chunks-not-there",
        "reserves 2**60 chunk records",
        bare(record(2, (2**62,), b"\x00\x02\x00" + u32(0))),
        hostile=True,
    )
    directory = Frame([long]).make_directory()
    yield Invalid(
        "DIR-10", "by-one-byte", "reads a record from the chunks", Frame([long]).but(directory=directory[:-3])
    )


def directory_vectors() -> Iterator[Invalid]:
    """Yield the vectors."""
    yield from _directory()
    yield from _sizes()
