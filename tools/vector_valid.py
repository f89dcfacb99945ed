"""The valid vectors of all coders but ``context``, and of what stands around tensors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import NamedTuple

from vector_book import Book
from vector_bytes import DTYPES, DType, noise
from vector_coders import Tensor, fixed, labels, planes, raw, runs, split
from vector_frames import Frame, alias, empty

__all__ = ["Valid", "book_of", "deflate", "deflate_json", "drawn", "every_dtype", "valid_vectors"]


class Valid(NamedTuple):
    """A frame that every decoder reads, and why it is there."""

    subject: str
    note: str
    frame: Frame
    limits: dict[str, int] = {}  # noqa: RUF012 (a NamedTuple's default, never changed)
    read: str = ""  # "section": the sections are sound, too


def special_words(kind: DType) -> list[int]:
    """Return words that are easily spoilt: minus zero, infinities, NaNs with payloads, the extremes."""
    top = kind.top_bit
    return [0, top, kind.mask, top - 1, 1, top | 1, kind.mask ^ top >> 1, top >> 1]


def book_of(kind: DType, n: int, has_zero: bool, seed: int = 0) -> Book:
    """Return a codebook of one row: special words first, then any others."""
    words = [*special_words(kind), *noise(seed + kind.number, 6 * n + 20, kind.mask + 1)]
    row = [word for word in dict.fromkeys(words) if word or not has_zero][:n]
    return Book([row], has_zero)


def drawn(book: Book, seed: int, n: int, zeros: int = 0) -> list[int]:
    """Return n words of a codebook's first row, ``zeros`` of 100 of them the word 0."""
    row = [*book.rows[0], *[0] * book.has_zero]
    picks = noise(seed, 2 * n, 1 << 20)
    return [0 if a % 100 < zeros else row[b % len(row)] for a, b in zip(picks[:n], picks[n:], strict=True)]


def every_dtype(make: object) -> Frame:
    """Return a frame with a tensor of every element type."""
    return Frame([make(kind) for kind in DTYPES.values()])  # type: ignore[operator]


def _one(kind: DType, coder: str) -> Tensor:
    """Return a small tensor of an element type and a coder."""
    book = book_of(kind, 5, coder not in ("fixed", "labels"))
    n = 12 * kind.words
    words = [*drawn(book, kind.number, n - 4, 50 if book.has_zero else 0), *book.rows[0][:4]]
    if coder == "raw":
        words = (special_words(kind) * 3)[:n]
        return raw(kind.name, kind.name, (3, 4), words)
    if coder == "planes":
        return planes(kind.name, kind.name, (3, 4), (special_words(kind) * 3)[:n])
    if coder == "fixed":
        return fixed(kind.name, kind.name, (3, 4), words, book)
    if coder == "labels":
        return labels(kind.name, kind.name, (3, 4), words, book)
    return runs(kind.name, kind.name, (3, 4), words, book, 3, 0, split=coder == "split_run")


def _dtypes() -> Iterator[Valid]:
    for coder in ("raw", "planes", "fixed", "labels", "zero_run", "split_run"):
        yield Valid(
            f"{coder.replace('_', '-')}-every-dtype",
            f"every element type, coded by {coder}; minus zero, infinities and NaNs among the words",
            every_dtype(lambda kind, coder=coder: _one(kind, coder)),
        )


def _frames() -> Iterator[Valid]:
    byte = raw("a", "uint8", (2,), [7, 8])
    yield Valid("no-tensors", "the shortest frame: 24 bytes, nothing in it", Frame())
    yield Valid("minor-version-7", "a newer minor version is read", Frame([byte], minor=7))
    yield Valid("minor-version-255", "the largest minor version", Frame([byte], minor=255))
    yield Valid(
        "unknown-sections",
        "sections of unknown kinds, one of them empty, one twice, one of the largest kind",
        Frame([byte], sections=[(77, b"unknown"), (3, b""), (77, b"again"), (2**64 - 1, b"last")]),
    )
    yield Valid(
        "unknown-section-damaged",
        "a section of an unknown kind whose checksum is wrong: it is skipped, so nobody minds",
        Frame([byte], sections=[(77, b"unknown")], sums={"section 0": 1}),
    )
    yield Valid(
        "sections",
        "a receipt and a torch section",
        Frame(
            [byte],
            sections=[
                (1, deflate_json({"version": 1, "recipe": {}, "effort": 6, "errors": {"0": [12.5, 0.25]}})),
                (2, deflate_json({"_metadata": {}, "values": {"epoch": 3}, "value_positions": [1]})),
            ],
        ),
    )
    yield Valid(
        "metadata",
        "keys and values with empty, non-ASCII and control characters",
        Frame(
            [byte],
            metadata=[
                (b"format", b"pt"),
                (b"", b"empty key"),
                (b"empty value", b""),
                ("\u00fc\u6f22\U0001f600".encode(), b"\x00\x1b[31m\r\n"),
                (b"Format", b"not the same key"),
            ],
        ),
    )


def deflate(text: bytes) -> bytes:
    """Return a raw deflate stream of one stored block: zlibs differ in the others."""
    size = len(text).to_bytes(2, "little")
    return b"\x01" + size + bytes(byte ^ 255 for byte in size) + text


def deflate_json(content: object) -> bytes:
    """Return the content of a section."""
    return deflate(json.dumps(content).encode())


def _names() -> Iterator[Valid]:
    def one(name: bytes, value: int, prefix: int | None = None) -> Tensor:
        return raw(name, "uint8", (1,), [value]).but(shared_prefix=prefix)

    yield Valid("name-empty", "a tensor without a name", Frame([one(b"", 1), one(b"a", 2)]))
    yield Valid(
        "name-unshared",
        "prefixes that could be shared and are not",
        Frame([one(b"layer.1", 1, 0), one(b"layer.2", 2, 0), one(b"layer.3", 3, 3), one(b"layer", 4, 5)]),
    )
    yield Valid(
        "name-split-character",
        "prefixes that end within a character",
        Frame(
            [
                one("\u00e9".encode(), 1),
                one("\u00e8".encode(), 2, 1),
                one("\U0001f600".encode(), 3, 0),
                one("\U0001f601".encode(), 4, 3),
            ]
        ),
    )
    yield Valid(
        "name-not-normalised",
        "the same letter in two ways: two names",
        Frame([one("\u00e9".encode(), 1), one("e\u0301".encode(), 2)]),
    )
    yield Valid(
        "name-no-path",
        "names that must not be taken for paths or code",
        Frame(
            [
                one(b"../../etc/passwd", 1),
                one(b"/", 2),
                one(b"a\x00b", 3),
                one(b"\x1b[2J", 4),
                one(b"C:\\con", 5),
            ]
        ),
    )
    yield Valid("name-255-bytes", "the longest name of the baseline profile", Frame([one(b"n" * 255, 1)]))
    yield Valid("name-256-bytes", "beyond the baseline profile: a longer name", Frame([one(b"n" * 256, 1)]))
    yield Valid(
        "aliases",
        "aliases of tensors; records of aliases are counted, too",
        Frame(
            [
                one(b"a", 1),
                alias("b", 0),
                raw("c", "int16", (2, 1), [5, 6]),
                alias("d", 2),
                alias("e", 0),
                empty("f", "float64", (0, 3)),
                alias("g", 5),
            ]
        ),
    )


def _limits() -> Iterator[Valid]:
    tensors = [
        raw("layer.a", "int16", (1, 2, 1), [5, 6]),
        alias("layer.b", 0),
        raw("layer.c", "uint8", (), [7]),
    ]
    receipt = deflate_json({"version": 1, "recipe": {}, "effort": 1, "errors": {}})
    frame = Frame(tensors, metadata=[(b"keykeyk", b"a longer value")], sections=[(1, receipt)])
    exact = {
        "max_directory_bytes": len(frame.make_directory()),
        "max_tensors": 3,
        "max_rank": 3,
        "max_name_bytes": 7,
        "max_names_bytes": 21,
        "max_output_bytes": 5,
        "max_section_bytes": len(receipt),
    }
    yield Valid("limits-reached", "every limit is reached, and none is exceeded", frame, exact, "section")


def _shapes() -> Iterator[Valid]:
    yield Valid(
        "rank-0",
        "single elements: of one word, and of two",
        Frame(
            [
                raw("a", "float32", (), [0x80000000]),
                raw("b", "complex64", (), [0x3F800000, 0x80000000]),
                planes("c", "float64", (), [0x7FF0000000000001], ["raw"] * 8),
                fixed("d", "int8", (), [255], Book([[255]], False)),
                labels("e", "int8", (), [254], Book([[254]], False)),
                runs("f", "complex32", (), [0, 0x3C00], Book([[0x3C00]]), 2, 1),
                split("g", "bool", (), [1], Book([[1]]), 1, 1),
            ]
        ),
    )
    yield Valid(
        "no-words",
        "dimensions of 0: no coder, no chunks, whatever the other dimensions",
        Frame(
            [
                empty("a", "float32", (0,)),
                empty("b", "bool", (3, 0, 5)),
                empty("c", "float32", (0, 2**61 - 1)),
                empty("d", "uint8", (2**63 - 1, 0)),
                empty("e", "complex128", (0, 0, 2**58)),
                raw("f", "uint8", (1,), [9]),
            ]
        ),
    )
    yield Valid(
        "rank-8",
        "the most dimensions of the baseline profile",
        Frame(
            [
                raw("a", "uint8", (1, 1, 2, 1, 1, 3, 1, 1), noise(1, 6, 256)),
            ]
        ),
    )
    yield Valid(
        "rank-9",
        "beyond the baseline profile: one dimension more",
        Frame(
            [
                raw("a", "uint8", (1, 1, 2, 1, 1, 3, 1, 1, 1), noise(1, 6, 256)),
            ]
        ),
    )
    yield Valid(
        "rank-64",
        "the most dimensions that the package reads by default",
        Frame(
            [
                raw("a", "uint8", (1,) * 64, [42]),
            ]
        ),
    )


def valid_vectors() -> Iterator[Valid]:
    """Yield the vectors, in the order of their numbers."""
    for part in (_frames, _names, _limits, _shapes, _dtypes):
        yield from part()
