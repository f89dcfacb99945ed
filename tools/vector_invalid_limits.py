"""The invalid vectors of limits, checksums and sections (spec 12, 13, 14.4)."""

from __future__ import annotations

from collections.abc import Iterator

from vector_book import Book
from vector_bytes import u32, varint
from vector_coders import context, labels, planes, raw, runs
from vector_context import Model, TableSet, flat_tables
from vector_frames import Frame, alias, empty
from vector_invalid import BOOK, BYTE, ONE, WORDS, Invalid, bare, record
from vector_valid import deflate, deflate_json

__all__ = ["limit_vectors"]


def _limits() -> Iterator[Invalid]:
    yield Invalid(
        "LIM-01",
        "largest-size",
        "reserves 4 GiB for 20 bytes",
        ONE.but(directory_size=2**32 - 1),
        hostile=True,
    )
    yield Invalid("LIM-01", "by-one", "checks after reading", ONE.but(directory_size=268435457), hostile=True)
    yield Invalid(
        "LIM-01", "own-limit", "has a limit, and does not look at it", ONE, {"max_directory_bytes": 16}
    )
    yield Invalid(
        "LIM-02",
        "ten-million-empty-tensors",
        "reserves a record for each",
        Frame([empty("a", "int8", (0,))], counts={"tensors": varint(10**7)}),
        hostile=True,
    )
    yield Invalid(
        "LIM-02",
        "2-64-tensors",
        "reserves a record for each, or for none",
        Frame(counts={"tensors": varint(2**64 - 1)}),
        hostile=True,
    )
    yield Invalid(
        "LIM-02",
        "own-limit",
        "has a limit, and does not look at it",
        Frame([empty(k, "int8", (0,)) for k in "abc"]),
        {"max_tensors": 2},
    )
    yield Invalid(
        "LIM-03",
        "rank-65",
        "writes dimensions beyond its array",
        bare(record(2, (1,) * 65, b"\x00\x00\x01" + u32(0))),
    )
    yield Invalid(
        "LIM-03",
        "rank-2-64",
        "reserves a dimension for each",
        bare(record(2, (), rank=varint(2**64 - 1))),
        hostile=True,
    )
    yield Invalid(
        "LIM-03",
        "own-limit",
        "has a limit, and does not look at it",
        Frame([raw("a", "int8", (1, 1, 1), [5])]),
        {"max_rank": 2},
    )
    yield Invalid(
        "LIM-04",
        "name-of-65537-bytes",
        "reserves it, and then looks",
        Frame(directory=b"\x00\x01\x00" + varint(65537) + b"aaaa"),
    )
    yield Invalid(
        "LIM-04",
        "name-of-2-64-bytes",
        "adds it to the prefix and wraps",
        Frame(directory=b"\x00\x02\x00\x01a\x02\x01\x00\x01" + varint(2**64 - 1) + b"b"),
        hostile=True,
    )
    yield Invalid(
        "LIM-04",
        "key",
        "limits names alone",
        Frame(directory=b"\x00\x00\x01" + varint(2**40) + b"key"),
        hostile=True,
    )
    yield Invalid(
        "LIM-04",
        "own-limit-with-prefix",
        "limits what is stored of a name alone",
        Frame(
            [raw("abcd", "int8", (1,), [1]), raw("abce", "int8", (1,), [1]), raw("abcee", "int8", (1,), [1])]
        ),
        {"max_name_bytes": 4},
    )
    bomb = planes("bomb", "uint8", (1,), [7], [7])
    yield Invalid(
        "LIM-05",
        "bomb-2-40",
        "reserves a TiB for 55 bytes",
        Frame([bomb.but(shape=(2**40,), words=[7])]),
        hostile=True,
    )
    halves = labels("a", "uint8", (8,), [5] * 8, Book([[5]], False), shift=2)
    largest = Frame([halves.but(shape=(2**41,), shift=40)])
    yield Invalid("LIM-05", "chunk-shift-40", "reserves a chunk of a TiB", largest, hostile=True)
    yield Invalid(
        "LIM-05",
        "bomb-2-62-zeros",
        "reserves 4 EiB",
        Frame([runs("bomb", "uint8", (1,), [0], Book([[1]]), 2, 1, [[1, 0, 0]]).but(shape=(2**31, 2**31))]),
        hostile=True,
    )
    lone = labels("bomb", "float64", (4,), [5] * 4, Book([[5]], False))
    yield Invalid(
        "LIM-05",
        "sum-of-three",
        "looks at each tensor alone",
        Frame([lone.but(name=name, shape=(2**28,)) for name in (b"a", b"b", b"c")]),
        hostile=True,
    )
    yield Invalid(
        "LIM-05",
        "own-limit",
        "has a limit, and does not look at it",
        Frame([BYTE, alias("b", 0)]),
        {"max_output_bytes": 1},
    )
    yield Invalid(
        "LIM-05",
        "own-limit-sum",
        "looks at each tensor alone",
        Frame([BYTE, BYTE.but(name=b"b")]),
        {"max_output_bytes": 3},
    )
    yield Invalid(
        "LIM-06",
        "section-of-5-bytes",
        "reserves what the directory says",
        Frame([BYTE], sections=[(1, b"12345")]),
        {"max_section_bytes": 4},
        read="section",
    )
    yield Invalid(
        "LIM-06",
        "json-of-309-bytes",
        "unpacks without bound: 16 bytes here, gigabytes from a megabyte",
        Frame([BYTE], sections=[(1, bytes.fromhex("ab564a54b252505218054403a55a00"))]),
        {"max_section_bytes": 100},
        read="json",
    )
    names = [empty("n" * 200 + f"{k:03}", "int8", (0,)) for k in range(60)]
    yield Invalid(
        "LIM-07",
        "shared-prefixes",
        "unfolds names without bound",
        Frame(names),
        {"max_names_bytes": 12000},
        hostile=True,
    )
    yield Invalid(
        "LIM-07",
        "by-one",
        "counts what is stored of the names",
        Frame([raw("abcd", "int8", (1,), [1]), raw("abce", "int8", (1,), [1])]),
        {"max_names_bytes": 7},
    )


def _sums() -> Iterator[Invalid]:
    tensor = labels("a", "uint8", (40,), (WORDS * 4)[:40], BOOK, shift=4)
    yield Invalid(
        "CHK-01", "first-chunk", "parses tables that are damaged", Frame([tensor], sums={"chunk 0:0": 1})
    )
    yield Invalid(
        "CHK-01", "last-chunk", "verifies the first chunk alone", Frame([tensor], sums={"chunk 0:2": 1})
    )
    yield Invalid(
        "CHK-01",
        "raw",
        "hands out damaged words",
        Frame([raw("a", "float32", (2,), [5, 6])], sums={"chunk 0:0": 1}),
    )
    tables = TableSet(flat_tables(2))
    numbers = [0, 1, 0, 1, 1, 0, 1, 0]
    shared = context("a", "int8", (4, 2), numbers, Book([[1, 2]]), Model(tables))
    yield Invalid(
        "CHK-01",
        "table-set",
        "parses a table set that is damaged",
        Frame([shared], table_sets=[tables], sums={"table set 0": 1}),
    )
    empty_chunk = labels("a", "uint8", (40,), [9] * 40, Book([[9]], False), shift=4)
    yield Invalid(
        "CHK-01", "empty-chunk", "skips chunks without bytes", Frame([empty_chunk], sums={"chunk 0:1": 1})
    )
    yield Invalid("DIG-01", "labels", "trusts the checksum of the chunk", Frame([tensor.but(digest=1)]))
    yield Invalid(
        "DIG-01",
        "planes",
        "verifies coders with a codebook alone",
        Frame([planes("a", "float32", (3,), [1, 2, 3]).but(digest=1)]),
    )
    yield Invalid(
        "DIG-01",
        "zeros",
        "takes a digest of 0 for none",
        Frame([labels("a", "uint8", (4,), [9] * 4, Book([[9]], False)).but(digest=0)]),
    )
    some = runs("a", "uint8", (12,), WORDS, BOOK)
    yield Invalid("DIG-01", "runs", "counts the kept words alone", Frame([some.but(digest=1)]))
    yield Invalid(
        "DIG-01",
        "context",
        "trusts the end state of the lanes",
        Frame([shared.but(digest=1)], table_sets=[tables]),
    )
    yield Invalid(
        "DIG-02",
        "one-less",
        "hands out a tensor that is not as dense as it says",
        Frame([some.but(n_kept=some.n_kept - 1)]),
    )
    yield Invalid(
        "DIG-02", "none", "skips a tensor that says it has no kept words", Frame([some.but(n_kept=0)])
    )
    yield Invalid(
        "DIG-02",
        "split-run",
        "verifies zero_run alone",
        Frame([runs("a", "uint8", (12,), WORDS, BOOK, split=True).but(n_kept=12)]),
    )
    receipt = deflate_json({"version": 1, "recipe": {}, "effort": 6, "errors": {}})
    yield Invalid(
        "SEC-01",
        "receipt",
        "unpacks damaged bytes",
        Frame([BYTE], sections=[(1, receipt)], sums={"section 0": 1}),
        read="section",
    )
    for reason, data, careless in (
        ("no-deflate", b"\x07\x00", "ends with an error of its library"),
        ("deflate-cut", receipt[:-1], "reads what there is"),
        ("bytes-behind", receipt + b"\x00", "ignores them"),
        ("no-json", deflate(b"{'a': 1}"), "ends with an error of its library"),
        ("no-object", deflate(b"[1]"), "looks for keys in a list"),
        ("not-utf-8", deflate(b'{"recipe": "\xff"}'), "ends with an error of its library"),
        ("deep-json", deflate(b"[" * 20000), "runs out of stack"),
        ("empty", b"", "reads an object without keys"),
        (
            "no-such-tensor",
            deflate_json({"version": 1, "recipe": {}, "effort": 6, "errors": {"1": [1.0, 0.0]}}),
            "looks a tensor up that is not there",
        ),
    ):
        yield Invalid("SEC-02", reason, careless, Frame([BYTE], sections=[(1, data)]), read="json")
    bad = deflate_json({"values": {"a": 1}, "value_positions": [0]})
    yield Invalid(
        "SEC-02",
        "torch-value-of-a-tensor-name",
        "gives one name two meanings",
        Frame([BYTE], sections=[(2, bad)]),
        read="json",
    )


def limit_vectors() -> Iterator[Invalid]:
    """Yield the vectors."""
    for part in (_limits, _sums):
        yield from part()
