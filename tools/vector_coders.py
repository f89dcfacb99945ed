"""Writers of tensors: words in, tables and bodies of chunks out, for every coder (spec 9 to 11).

Nothing is checked: what makes no sense is written all the same, so that decoders can refuse it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from bitarray.util import canonical_huffman
from vector_book import Book, labels_of
from vector_bytes import DTYPES, BitWriter, DType, SideWriter, pack_words, varint, write_lengths
from vector_context import Model, context_bodies, geometry

__all__ = [
    "CODERS",
    "Tensor",
    "context",
    "fixed",
    "labels",
    "lengths_of",
    "planes",
    "raw",
    "runs",
    "split",
    "stream",
]

CODERS = ("raw", "planes", "fixed", "labels", "zero_run", "split_run", "context")


@dataclass(frozen=True)
class Tensor:
    """A tensor as it is written. ``words`` are meant; the rest is how it stands in the frame."""

    name: bytes
    dtype: DType
    shape: tuple[int, ...]
    words: list[int]
    coder: int = 0
    tables: bytes | None = None
    bodies: tuple[bytes, ...] = (b"",)
    shift: int = 0
    n_labels: int = 0
    n_kept: int = 0
    digest: int | None = None  # None: the right one
    alias_of: int | None = None
    shared_prefix: int | None = None  # None: as much as there is
    cost: dict[str, int] = field(default_factory=dict)  # what the baseline profile caps
    raw_record: bytes | None = None  # in place of all that follows the name

    @property
    def n_words(self) -> int:
        """Words that the shape asks for."""
        return math.prod(self.shape) * self.dtype.words

    @property
    def chunks(self) -> tuple[bytes, ...]:
        """The chunks, tables at the head of the first."""
        if self.n_words == 0 or (self.raw_record is not None and not self.bodies):
            return ()
        if self.tables is None:
            return self.bodies
        return (varint(len(self.tables)) + self.tables + self.bodies[0], *self.bodies[1:])

    def but(self, **changes: Any) -> Tensor:
        """Return the tensor with some fields changed."""
        return replace(self, **changes)


def _start(name: str | bytes, dtype: str, shape: Sequence[int], words: Sequence[int]) -> dict[str, Any]:
    return {
        "name": name.encode() if isinstance(name, str) else name,
        "dtype": DTYPES[dtype],
        "shape": tuple(shape),
        "words": list(words),
    }


def _cut(items: Sequence[int], shift: int) -> list[Sequence[int]]:
    """Return the units of each chunk."""
    step = 1 << shift if shift else max(1, len(items))
    return [items[at : at + step] for at in range(0, len(items), step)]


def raw(name: str | bytes, dtype: str, shape: Sequence[int], words: Sequence[int], shift: int = 0) -> Tensor:
    """Return a tensor whose chunks are its words; one without words if it is empty."""
    size = DTYPES[dtype].word_bytes
    bodies = tuple(pack_words(part, size) for part in _cut(words, shift))
    return Tensor(**_start(name, dtype, shape, words), bodies=bodies, shift=shift)


# Huffman codes: lengths from bitarray, codes counted up here.


def lengths_of(symbols: Iterable[int], n_symbols: int) -> list[int]:
    """Return the code lengths of symbols, by how often they occur."""
    codes, _, _ = canonical_huffman(Counter(symbols))
    return [len(codes[symbol]) if symbol in codes else 0 for symbol in range(n_symbols)]


def _codes(lengths: Sequence[int]) -> dict[int, tuple[int, int]]:
    """Return code and length of each used symbol; a lone symbol has no bits."""
    used = sorted((length, symbol) for symbol, length in enumerate(lengths) if length)
    if len(used) == 1:
        return {used[0][1]: (0, 0)}
    codes, code, before = {}, 0, 0
    for length, symbol in used:
        code <<= length - before
        codes[symbol] = (code, length)
        code, before = code + 1, length
    return codes


def lane_counts(n: int) -> list[int]:
    """Return the symbols of each lane."""
    share = -(-n // 4)
    return [n] if n < 1024 else [share, share, share, n - 3 * share]


def stream(symbols: Sequence[int], lengths: Sequence[int]) -> bytes:
    """Return a Huffman stream in lanes, sizes first."""
    codes, lanes, at = _codes(lengths), [], 0
    for count in lane_counts(len(symbols)):
        bits = BitWriter()
        for symbol in symbols[at : at + count]:
            bits.write(*codes[symbol])
        lanes.append(bits.to_bytes())
        at += count
    return b"".join(varint(len(lane)) for lane in lanes) + b"".join(lanes)


def planes(
    name: str | bytes,
    dtype: str,
    shape: Sequence[int],
    words: Sequence[int],
    modes: Sequence[Any] | None = None,
    shift: int = 0,
) -> Tensor:
    """Return a tensor in byte planes.

    ``modes`` has "raw", a constant byte, "huffman" or code lengths for each plane; by default a plane of
    one byte is constant, the top one is Huffman coded, the others are raw.
    """
    kind = DTYPES[dtype]
    top = 8 * kind.word_bytes - 1
    turned = [word << 1 & kind.mask | word >> top for word in words] if kind.kind == "float" else list(words)
    columns = [[word >> 8 * place & 255 for word in turned] for place in range(kind.word_bytes)]
    if modes is None:
        modes = ["raw" if place < kind.word_bytes - 1 else "huffman" for place in range(kind.word_bytes)]
        modes = [
            column[0] if len(set(column)) == 1 else mode for column, mode in zip(columns, modes, strict=True)
        ]
    side, codes = SideWriter(), []
    for mode, column in zip(modes, columns, strict=True):
        code = lengths_of(column, 256) if isinstance(mode, str) and mode == "huffman" else mode
        side.raw(0 if isinstance(code, int) else 1 if isinstance(code, str) else 2, 2)
        if isinstance(code, int):
            side.raw(code, 8)
        elif not isinstance(code, str):
            write_lengths(side, code, 16)
        codes.append(code)
    bodies = []
    for first in range(0, len(words), 1 << shift if shift else len(words)):
        body = b""
        for code, column in zip(codes, columns, strict=True):
            part = column[first : first + (1 << shift)] if shift else column
            if not isinstance(code, int):
                body += bytes(part) if isinstance(code, str) else stream(part, code)
        bodies.append(body)
    return Tensor(
        **_start(name, dtype, shape, words), coder=1, tables=side.finish(), bodies=tuple(bodies), shift=shift
    )


# Coders with a codebook.


def _shared(
    start: dict[str, Any], coder: int, book: Book, side: SideWriter, bodies: Sequence[bytes], shift: int
) -> Tensor:
    cost = {"values": sum(map(len, book.rows))}
    return Tensor(
        **start,
        coder=coder,
        tables=side.finish(),
        bodies=tuple(bodies),
        shift=shift,
        n_labels=book.n_labels,
        n_kept=sum(word != 0 for word in start["words"]),
        cost=cost,
    )


def fixed(
    name: str | bytes, dtype: str, shape: Sequence[int], words: Sequence[int], book: Book, shift: int = 0
) -> Tensor:
    """Return a tensor of labels of equally many bits."""
    start, side = _start(name, dtype, shape, words), SideWriter()
    book.write(side, start["dtype"])
    width, bodies = max(1, (book.n_labels - 1).bit_length()), []
    for part in _cut(labels_of(book, start["dtype"], words), shift):
        bits = BitWriter()
        for label in part:
            bits.write(label, width)
        bodies.append(bits.to_bytes())
    return _shared(start, 2, book, side, bodies, shift)


def labels(
    name: str | bytes,
    dtype: str,
    shape: Sequence[int],
    words: Sequence[int],
    book: Book,
    block: int = 1,
    lengths: Sequence[int] | None = None,
    shift: int = 0,
) -> Tensor:
    """Return a tensor of Huffman-coded blocks of labels; code lengths by their counts by default."""
    start, side, n = _start(name, dtype, shape, words), SideWriter(), book.n_labels
    book.write(side, start["dtype"])
    parts = []
    for part in _cut(labels_of(book, start["dtype"], words), shift):
        filled = [*part, *[0] * (-len(part) % block)]
        blocks = [filled[at : at + block] for at in range(0, len(filled), block)]
        parts.append([sum(label * n ** (block - 1 - k) for k, label in enumerate(one)) for one in blocks])
    if lengths is None:
        lengths = lengths_of([symbol for part in parts for symbol in part], n**block)
    side.number(3, block - 1)
    write_lengths(side, lengths, n)
    lone = sum(length != 0 for length in lengths) == 1
    bodies = [b"" if lone else stream(part, lengths) for part in parts]
    return _shared(start, 3, book, side, bodies, shift)


def _entries(part: Sequence[int], longest: int, fill: int) -> list[tuple[int, int]]:
    """Return (run, label) of a chunk; label 0 is a filler, with a run of ``fill``."""
    entries, run = [], 0
    for label in part:
        if label == 0:
            run += 1
            continue
        while run >= longest:
            entries.append((fill, 0))
            run -= fill + 1
        entries.append((run, label))
        run = 0
    return entries


def runs(
    name: str | bytes,
    dtype: str,
    shape: Sequence[int],
    words: Sequence[int],
    book: Book,
    n_buckets: int = 4,
    raw_bits: int = 0,
    codes: Sequence[Sequence[int]] | None = None,
    shift: int = 0,
    split: bool = False,
    fill: int | None = None,
    entries: Sequence[Sequence[tuple[int, int]]] | None = None,
) -> Tensor:
    """Return a sparse tensor of zero runs: coder ``zero_run``, or ``split_run`` with ``split``.

    ``codes`` are the code lengths: one list, or that of the buckets and that of the labels. ``entries`` are
    (run, label) by chunk, in place of those that the words ask for.
    """
    start, side, n = _start(name, dtype, shape, words), SideWriter(), book.n_labels
    book.write(side, start["dtype"])
    longest = n_buckets << raw_bits
    fill = longest - 1 if fill is None else fill
    if entries is None:
        parts = _cut(labels_of(book, start["dtype"], words), shift)
        entries = [_entries(part, longest, fill) for part in parts]
    every = [entry for part in entries for entry in part]

    def symbol(run: int, label: int) -> int:
        return n_buckets * (n - 1) if label == 0 else (run >> raw_bits) * (n - 1) + label - 1

    side.number(4, n_buckets - 1)
    side.number(5, raw_bits)
    if codes is None and split:
        codes = (
            lengths_of([run >> raw_bits for run, _ in every], n_buckets),
            lengths_of([label for _, label in every], n),
        )
    elif codes is None:
        codes = (lengths_of([symbol(*entry) for entry in every], n_buckets * (n - 1) + 1),)
    if split:
        write_lengths(side, codes[0], n_buckets)
        write_lengths(side, codes[1], n)
    else:
        write_lengths(side, codes[0], max(1, n - 1))
    books = [_codes(code) for code in codes]

    def put(bits: BitWriter, run: int, label: int) -> None:
        bits.write(*books[0][run >> raw_bits if split else symbol(run, label)])
        bits.write(run & (1 << raw_bits) - 1, raw_bits)
        if split:
            bits.write(*books[1][label])

    bodies = [_run_body(part, put) for part in entries]
    return _shared(start, 5 if split else 4, book, side, bodies, shift)


def _run_body(entries: Sequence[tuple[int, int]], put: Any) -> bytes:
    """Return the body of a chunk of runs."""
    lanes, advances, at = [], [], 0
    for count in lane_counts(len(entries)):
        bits = BitWriter()
        for run, label in entries[at : at + count]:
            put(bits, run, label)
        lanes.append(bits.to_bytes())
        advances.append(sum(run + 1 for run, _ in entries[at : at + count]))
        at += count
    numbers = [len(entries), *map(len, lanes), *advances[:-1]]
    return b"".join(map(varint, numbers)) + b"".join(lanes)


def split(*arguments: Any, **settings: Any) -> Tensor:
    """Return a tensor of coder ``split_run``; as ``runs``."""
    return runs(*arguments, split=True, **settings)


def context(
    name: str | bytes,
    dtype: str,
    shape: Sequence[int],
    numbers: Sequence[int],
    book: Book,
    model: Model,
    shift: int = 0,
    end: int = 1 << 16,
) -> Tensor:
    """Return a tensor of coder ``context``; ``numbers`` are the k of all words, and tell what these are."""
    start, side = _start(name, dtype, shape, []), SideWriter()
    kind = start["dtype"]
    book.write(side, kind)
    matrix = geometry(kind, shape)
    model.write(side, matrix, book.has_zero)
    bodies, grid = context_bodies(model, matrix, numbers, shift, end)
    by_place = sorted([*book.rows[0], *[0] * book.has_zero], key=kind.key)
    origin = by_place.index(0) if book.has_zero else model.origin
    inside = [0 <= origin + g < len(by_place) for g in grid]
    start["words"] = [by_place[origin + g] if ok else 0 for g, ok in zip(grid, inside, strict=True)]
    tensor = _shared(start, 6, book, side, bodies, shift)
    return tensor.but(
        cost={
            **tensor.cost,
            "row": matrix[1] * matrix[2],
            "classes": model.n_given(matrix),
            "tables": len(model.table_set.tables),
        }
    )
