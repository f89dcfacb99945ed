"""The valid vectors of the run coders."""

from __future__ import annotations

from collections.abc import Iterator

from vector_book import Book
from vector_bytes import noise
from vector_coders import raw, runs, split
from vector_frames import Frame, alias
from vector_valid import Valid, drawn

__all__ = ["run_frames", "worked_example"]


def _runs() -> Iterator[Valid]:
    one, few = Book([[9]]), Book([[1, 0x8000, 0x7FC1]])
    yield Valid(
        "runs-no-entries",
        "tensors of zeros alone: no entry, or fillers alone",
        Frame(
            [
                runs("a", "uint16", (30,), [0] * 30, few, 2, 1, [[1, 0, 0, 0, 0, 0, 0]]),
                split("b", "uint16", (30,), [0] * 30, few, 2, 1, [[1, 0], [1, 0, 0, 0]]),
                runs(
                    "c",
                    "uint16",
                    (30,),
                    [0] * 30,
                    few,
                    2,
                    2,
                    [[0] * 6 + [1]],
                    entries=[[(7, 0), (7, 0), (4, 0)]],
                ),
                split("d", "uint16", (30,), [0] * 30, few, 2, 2, entries=[[(7, 0), (1, 0)]]),
            ]
        ),
    )
    far = [0] * 10000
    for place in (4095, 4096, 8192, 9999):
        far[place] = 9
    yield Valid(
        "runs-longest",
        "12 raw bits: runs of 4,095 and 4,096 zeros, with and without fillers, to the last word",
        Frame(
            [
                runs("a", "uint8", (10000,), far, one, 1, 12),
                split("b", "uint8", (10000,), far, one, 1, 12),
                runs("c", "uint8", (10000,), far, one, 2, 12),
                split("d", "uint8", (10000,), far, one, 3, 9),
            ]
        ),
    )
    wide = [0] * 9000
    wide[4094] = wide[4100] = wide[8999] = 9
    yield Valid(
        "runs-4096-symbols",
        "4,095 buckets and a filler; 4,096 buckets",
        Frame(
            [
                runs("a", "uint8", (9000,), wide, one, 4095),
                split("b", "uint8", (9000,), wide, one, 4096),
            ]
        ),
    )
    sparse = drawn(few, 11, 90, 80)
    yield Valid(
        "runs-short-fillers",
        "fillers whose raw bits are not all 1: a decoder accepts any",
        Frame(
            [
                runs("a", "float16", (9, 10), [w & 0xFFFF for w in sparse], few, 1, 2, fill=2),
                split("b", "float16", (90,), sparse, few, 2, 2, fill=5),
            ]
        ),
    )
    yield Valid(
        "runs-chunks",
        "runs start anew in each chunk; a chunk without entries; minus zero is kept",
        Frame(
            [
                runs("a", "bfloat16", (90,), sparse, few, 3, 1, shift=4),
                split("b", "bfloat16", (90,), sparse, few, 3, 1, shift=3),
                runs("c", "bfloat16", (90,), [*[0] * 40, 0x8000, *[0] * 49], Book([[0x8000]]), 2, 1, shift=2),
            ]
        ),
    )
    dense = drawn(few, 12, 60)
    full = [word or 1 for word in dense]
    yield Valid(
        "runs-dense",
        "every word is kept; the code of the runs has a lone symbol",
        Frame(
            [
                runs("a", "uint16", (60,), full, few, 1),
                split("b", "uint16", (60,), full, few, 1),
                runs("c", "uint16", (60,), dense, few, 4),
                split("d", "uint16", (60,), dense, few, 4),
            ]
        ),
    )
    ones = [9 if k == 0 else 0 for k in noise(13, 60, 4)]
    yield Valid(
        "runs-lone-symbols",
        "codes with a lone symbol and raw bits: entries of raw bits alone",
        Frame(
            [
                runs("a", "uint8", (60,), ones, one, 1, 6),
                split("b", "uint8", (60,), ones, one, 1, 6),
                split("c", "uint8", (60,), ones, one, 40, 0, codes=None),
            ]
        ),
    )
    steps = [*range(1, 16), 15]
    book = Book([range(1, 16)])
    walk = list(range(16)) * 4
    yield Valid(
        "runs-longest-codes",
        "code lengths 1 to 15 in run and label codes",
        Frame(
            [
                runs("a", "int16", (64,), walk, book, 1, 1, [steps]),
                split("b", "int16", (64,), walk, book, 2, 0, [[1, 1], steps]),
                split(
                    "c",
                    "int16",
                    (136,),
                    [k for n in range(16) for k in [*[0] * n, 1]],
                    Book([[1]]),
                    16,
                    0,
                    [steps[::-1], [0, 1]],
                ),
            ]
        ),
    )
    for n_entries in (1024, 1030):
        words = [word for k in noise(14, n_entries, 3) for word in ([0] * k + [9])]
        yield Valid(
            f"runs-lanes-{n_entries}",
            "four lanes that start where the one before ends; zeros behind the last entry",
            Frame(
                [
                    runs("a", "uint8", (len(words) + 5,), [*words, *[0] * 5], one, 4),
                    split("b", "uint8", (len(words),), words, one, 2, 1),
                ]
            ),
        )


def worked_example() -> Iterator[Valid]:
    """Yield the frame of appendix A, which the encoder of the package has written, field by field."""
    quarter, half, more = 0x3E800000, 0xBF000000, 0x3FC00000
    words = [0] * 24
    for place, word in ((2, quarter), (5, half), (11, quarter), (13, quarter), (15, more), (22, quarter)):
        words[place] = word
    book = Book([[quarter, half, more]])
    weight = runs("fc.weight", "float32", (4, 6), words, book, 2, 1, [[0, 2, 3, 3, 2, 0, 2]])
    bias = raw("fc.bias", "float32", (4,), [0x3F000000, 0xBF800000, 0, 0x40000000])
    frame = Frame([weight, bias, alias("head.weight", 0)], metadata=[(b"format", b"pt")])
    yield Valid("worked-example", "the frame of appendix A, annotated there byte by byte", frame)


def run_frames() -> Iterator[Valid]:
    """Yield the vectors."""
    yield from _runs()
