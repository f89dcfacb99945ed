"""The valid vectors of planes, of labels and of codebooks."""

from __future__ import annotations

from collections.abc import Iterator

from vector_book import Book, even_values
from vector_bytes import DTYPES, SideWriter, noise, write_lengths
from vector_coders import fixed, labels, planes, raw, runs, split
from vector_frames import Frame
from vector_valid import Valid, drawn

__all__ = ["coder_frames"]


def _plain() -> Iterator[Valid]:
    yield Valid(
        "raw-chunks",
        "raw words in chunks of 4 and of 8, the last ones shorter",
        Frame(
            [
                raw("a", "uint16", (5, 2), noise(2, 10, 65536), shift=2),
                raw("b", "complex64", (9,), noise(3, 18, 2**32), shift=3),
                raw("c", "uint8", (8,), noise(4, 8, 256), shift=2),
            ]
        ),
    )
    floats = [word << 16 | word for word in noise(5, 40, 65536)]
    yield Valid(
        "planes-all-modes",
        "constant, raw and Huffman planes side by side, in chunks",
        Frame(
            [
                planes(
                    "a",
                    "uint32",
                    (40,),
                    [(w & 7) << 24 | 5 << 16 | w & 0xFFFF for w in floats],
                    ["raw", "raw", 5, "huffman"],
                    shift=3,
                ),
                planes("b", "float32", (40,), [w & 0xFFFF0001 for w in floats], shift=4),
                planes("c", "bfloat16", (7,), [0x8000, 0, 0x7FC1, 0xFF80, 1, 0x8001, 0x3F80], ["raw", "raw"]),
                planes("d", "int64", (1000,), [2**63 + 5] * 1000, shift=9),
            ]
        ),
    )
    longest = [0] * 256
    for place, length in enumerate([*range(1, 16), 15]):
        longest[200 - 11 * place] = length
    used = [symbol for symbol in range(256) if longest[symbol]]
    yield Valid(
        "planes-longest-codes",
        "code lengths 1 to 15, from high symbols to low ones",
        Frame(
            [
                planes("a", "uint8", (64,), [used[k % 16] for k in noise(6, 64, 16)], [longest]),
                planes("b", "int8", (32,), used * 2, [longest], shift=4),
            ]
        ),
    )
    flat = [8] * 256
    yield Valid(
        "planes-flat-code",
        "256 symbols of 8 bits",
        Frame([planes("a", "bool", (300,), noise(7, 300, 256), [flat])]),
    )
    for n in (1023, 1024, 1025, 1029, 4100):
        counted = [(k * k + 3 * k) % 5 for k in range(n)]
        yield Valid(
            f"lanes-{n}-symbols",
            "streams in one lane or four; the last one may be shorter",
            Frame(
                [
                    planes("a", "uint8", (n,), counted, ["huffman"]),
                    labels("b", "uint8", (n,), counted, Book([range(5)], False)),
                ]
            ),
        )


def _shared() -> Iterator[Valid]:
    few = Book([[3, 200]], True)
    yield Valid(
        "fixed-widths",
        "1, 2, 3, 4, 5, 255 and 256 labels: widths of 1 to 8 bits; one label takes a bit",
        Frame(
            [
                fixed(f"{n}", "uint16", (13,), [k % n for k in noise(n, 13, 997)], Book([range(n)], False))
                for n in (1, 2, 3, 4, 5, 255, 256)
            ]
        ),
    )
    many = Book([range(4096)], False)
    yield Valid(
        "labels-4096",
        "the most labels: fixed, and as Huffman code with a lone symbol and with two",
        Frame(
            [
                fixed("a", "int16", (5,), [4095, 0, 2048, 2047, 1], many),
                labels("b", "uint16", (3,), [4095] * 3, many),
                labels("c", "uint16", (3,), [4095, 0, 4095], many),
            ]
        ),
    )
    yield Valid(
        "labels-256",
        "as many labels as the baseline profile reads",
        Frame(
            [
                labels(
                    "a",
                    "uint16",
                    (40,),
                    [min(k, 255) for k in range(216, 256)],
                    Book([range(256)], False),
                    lengths=[8] * 256,
                ),
            ]
        ),
    )
    yield Valid(
        "labels-257",
        "beyond the baseline profile: one label more",
        Frame(
            [
                fixed("a", "uint16", (40,), range(217, 257), Book([range(257)], False)),
            ]
        ),
    )
    yield Valid(
        "one-label",
        "nothing but zeros, or but one value",
        Frame(
            [
                fixed("a", "float32", (9,), [0] * 9, Book([[]], True)),
                labels("b", "float32", (9,), [0] * 9, Book([[]], True)),
                labels("c", "float16", (9,), [0x8000] * 9, Book([[0x8000]], False), 3),
                labels("d", "float16", (21,), [5] * 21, Book([[5]], False), 14),
            ]
        ),
    )
    yield Valid(
        "lone-symbol-chunks",
        "a lone symbol has no bits: the second chunk and those after it are empty",
        Frame(
            [
                labels("a", "int32", (40,), [2**31] * 40, Book([[2**31, 7]], True), shift=4),
                raw("b", "uint8", (1,), [1]),
            ]
        ),
    )
    words = drawn(few, 8, 50)
    yield Valid(
        "blocks",
        "blocks of labels; what the last one holds beyond the chunk is label 0",
        Frame(
            [
                labels("a", "uint8", (50,), words, few, 2),
                labels("b", "uint8", (50,), words, few, 7),
                labels("c", "uint8", (50,), words, few, 3, shift=4),
                labels("d", "uint8", (50,), [3 if w else 0 for w in words], Book([[3]], True), 12),
            ]
        ),
    )
    steps = [*range(1, 16), 15]
    yield Valid(
        "labels-longest-codes",
        "code lengths up to 15 in one row, and up and down",
        Frame(
            [
                labels("a", "uint8", (16,), range(16), Book([range(16)], False), lengths=steps),
                labels("b", "uint8", (16,), range(16), Book([range(16)], False), lengths=steps[::-1]),
                labels(
                    "c",
                    "uint8",
                    (16,),
                    range(16),
                    Book([range(16)], False),
                    lengths=[15, 1, 14, 2, 13, 3, 12, 4, 11, 5, 10, 6, 9, 7, 15, 8],
                ),
            ]
        ),
    )
    pair = Book([[3]])
    yield Valid(
        "labels-corner",
        "a code length beside one of length 1, above which and left of which others stand",
        Frame([labels("a", "uint8", (24,), [0, 3, 3, 0, 0, 0] * 4, pair, 3, [1, 4, 2, 4, 4, 4, 0, 0])]),
    )
    side = SideWriter()
    pair.write(side, DTYPES["uint8"])
    side.number(3, 0)
    write_lengths(side, [1, 1], 2)
    whole = labels("a", "uint8", (8,), [0, 3] * 4, pair).but(tables=side.finish(1))
    note = "tables up to the last byte that a decoder reads, which does not matter, but is not 0"
    yield Valid("tables-last-byte", note, Frame([whole]))
    grouped = Book([[1, 2, 3], [4, 5, 0x80], [0xFF, 0xFE, 1]], True)
    in_groups = [
        row[k]
        for row, k in zip(
            [r for r in grouped.ordered(DTYPES["int8"]) for _ in range(20)], noise(9, 60, 4), strict=True
        )
    ]
    yield Valid(
        "codebook-groups",
        "a codebook for each third of a tensor; chunks end within a group",
        Frame(
            [
                fixed("a", "int8", (3, 20), in_groups, grouped),
                fixed("b", "int8", (60,), in_groups, grouped, shift=3),
                labels("c", "int8", (3, 20), in_groups, grouped, 2, shift=4),
                runs("d", "int8", (60,), in_groups, grouped, 3, shift=4),
                split("e", "int8", (60,), in_groups, grouped, 3, 1, shift=5),
                fixed("f", "uint8", (4,), [1, 2, 3, 4], Book([[1], [2], [3], [4]], False)),
            ]
        ),
    )
    yield Valid(
        "codebook-extremes",
        "magnitudes of 64 bits, gaps of every length, bits dropped, no bit dropped",
        Frame(
            [
                fixed(
                    "a",
                    "uint64",
                    (6,),
                    [0, 2**64 - 1, 2**63, 1, 2**32, 2**64 - 2],
                    Book([[0, 2**64 - 1, 2**63, 1, 2**32, 2**64 - 2]], False),
                ),
                fixed(
                    "b",
                    "int64",
                    (4,),
                    [2**63, 2**63 - 1, 2**64 - 1, 0],
                    Book([[2**63, 2**63 - 1, 2**64 - 1, 0]], False),
                ),
                fixed(
                    "c",
                    "float64",
                    (4,),
                    [2**63, 2**64 - 1, 2**63 - 1, 0x7FF0 << 48],
                    Book([[2**63, 2**64 - 1, 2**63 - 1, 0x7FF0 << 48]], False),
                ),
                fixed(
                    "d",
                    "float32",
                    (2,),
                    [0x3F800000, 0xBF800000],
                    Book([[0x3F800000, 0xBF800000]], False, n_dropped=0),
                ),
                fixed("e", "uint8", (2,), [128, 128], Book([[128]], False, n_dropped=7)),
                fixed("f", "float32", (3,), [0, 1, 0], Book([[0, 1]], False)),
                fixed("g", "float32", (3,), [0x80000000] * 3, Book([[0x80000000]], False, n_dropped=31)),
                fixed("h", "uint8", (2,), [0, 0], Book([[0]], False, n_dropped=8)),
                fixed("i", "uint64", (1,), [2**64 - 1], Book([[2**64 - 1]], False)),
            ]
        ),
    )
    yield Valid(
        "codebook-4096-values",
        "as many values as the baseline profile reads, in 16 groups",
        Frame(
            [
                fixed(
                    "a",
                    "uint16",
                    (4096,),
                    range(4096),
                    Book([range(256 * k, 256 * k + 256) for k in range(16)], False),
                ),
            ]
        ),
    )
    yield Valid(
        "codebook-4097-values",
        "beyond the baseline profile: values of a codebook, in 17 groups",
        Frame(
            [
                fixed(
                    "a",
                    "uint16",
                    (4097,),
                    range(4097),
                    Book([range(241 * k, 241 * k + 241) for k in range(17)], False),
                ),
            ]
        ),
    )


def _largest() -> Iterator[Valid]:
    book = Book([range(4096 * k % 61440, 4096 * k % 61440 + 4096) for k in range(16)], False)
    words = [row[0] for row in book.rows for _ in range(4096)]
    lone = labels("a", "uint16", (65536,), words, book)
    note = "beyond the baseline profile: 65,536 values of codebooks, the most"
    yield Valid("codebook-65536-values", note, Frame([lone]))


def _even() -> Iterator[Valid]:
    cases = [
        ("a", "float32", 0x3DCCCCCD, 3, 7),
        ("b", "bfloat16", 0x3DCCCCCD, 3, 7),
        ("c", "float16", 0x3DCCCCCD, 3, 7),
        ("d", "float32", 1, 2, 5),
        ("e", "bfloat16", 0x00018000, 4, 9),
        ("f", "float16", 0x33C00000, 2, 6),
        ("g", "float32", 0x7F000000, 0, 2),
        ("h", "float16", 0x477FE000, 1, 2),
        ("i", "bfloat16", 0x7E800000, 4, 5),
        ("j", "float32", 0x3F800000, 6, 6),
        ("k", "float16", 0x3C000001, 0, 255),
        ("l", "float32", 0x007FFFFF, 3, 6),
        ("m", "float16", 0x33000001, 1, 1),
        ("n", "float32", 0x7F7FFFFF, 1, 2),
    ]
    tensors = []
    for name, dtype, step, n_negative, n_values in cases:
        values = even_values(dtype, step, n_negative, n_values)
        book = Book([values], True, (step, n_negative))
        tensors.append(
            labels(name, dtype, (n_values + 1,), [0, *values], book, lengths=_balanced(n_values + 1))
        )
    yield Valid(
        "codebook-even",
        "multiples of a step: rounded twice, subnormal, halfway, up to infinity",
        Frame(tensors),
    )
    uneven = Book([[0x3F800000, 0x40000000]], True)
    yield Valid(
        "codebook-not-even",
        "values that could be even, and are not",
        Frame(
            [
                labels("a", "float32", (3,), [0, 0x3F800000, 0x40000000], uneven),
            ]
        ),
    )


def _balanced(n: int) -> list[int]:
    """Return code lengths of n symbols that differ by one at most."""
    width = max(1, (n - 1).bit_length())
    short = (1 << width) - n
    return [width - 1] * short + [width] * (n - short)


def coder_frames() -> Iterator[Valid]:
    """Yield the vectors."""
    for part in (_plain, _shared, _even, _largest):
        yield from part()
