"""The invalid vectors of coders: bodies of chunks, streams, lanes (spec 9 and 10)."""

from __future__ import annotations

from collections.abc import Iterator

from vector_book import Book
from vector_bytes import noise, read_varint, varint
from vector_coders import Tensor, fixed, labels, planes, raw, runs, split
from vector_frames import Frame
from vector_invalid import BOOK, WORDS, Invalid

__all__ = ["coder_vectors", "with_body"]


def with_body(tensor: Tensor, body: bytes, number: int = 0) -> Frame:
    """Return a frame of a tensor with another body in one chunk."""
    bodies = list(tensor.bodies)
    bodies[number] = body
    return Frame([tensor.but(bodies=tuple(bodies))])


def _flip(data: bytes, place: int, bits: int) -> bytes:
    """Return bytes with some bits of one byte turned over."""
    place %= len(data)
    return data[:place] + bytes([data[place] ^ bits]) + data[place + 1 :]


def _plain() -> Iterator[Invalid]:
    words = raw("a", "uint16", (3,), [1, 2, 3])
    yield Invalid("RAW-01", "byte-short", "reads beyond the chunk", with_body(words, words.bodies[0][:-1]))
    yield Invalid("RAW-01", "byte-long", "ignores it", with_body(words, words.bodies[0] + b"\0"))
    yield Invalid("RAW-01", "empty", "hands out memory as it was", with_body(words, b""))
    parts = raw("a", "uint8", (10,), range(10), shift=2)
    yield Invalid(
        "RAW-01", "last-chunk-full", "writes beyond the tensor", with_body(parts, b"\x08\x09\x00\x00", 2)
    )
    yield Invalid(
        "RAW-01", "first-chunk-short", "moves the words that follow", with_body(parts, b"\x00\x01\x02")
    )
    floats = [k << 24 | 5 for k in noise(1, 12, 100)]
    one = planes("a", "float32", (12,), floats)
    body = one.bodies[0]
    yield Invalid("PLN-01", "mode-3", "takes it for one of the others", Frame([one.but(tables=b"\xc0")]))
    lone = planes(
        "a",
        "uint16",
        (12,),
        [5 << 8 | k for k in range(12)],
        ["raw", [1 if k == 5 else 0 for k in range(256)]],
    )
    yield Invalid("PLN-02", "lone-symbol", "reads no bits for ever", Frame([lone]))
    yield Invalid("PLN-03", "byte-long", "ignores it", with_body(one, body + b"\0"))
    constant = planes("a", "uint8", (12,), [7] * 12, [7])
    yield Invalid(
        "PLN-03",
        "constant-planes-and-more",
        "does not look at a body that it does not need",
        with_body(constant, b"\x07"),
    )
    plain = planes("a", "uint16", (12,), range(12), ["raw", 0])
    yield Invalid(
        "FRM-01", "raw-plane-short", "reads beyond the chunk", with_body(plain, plain.bodies[0][:-1])
    )
    yield Invalid("FRM-01", "planes-empty", "reads beyond the chunk", with_body(plain, b""))
    five = fixed("a", "uint8", (13,), [k % 5 for k in range(13)], Book([range(5)], False))
    body = five.bodies[0]
    yield Invalid("FIX-01", "byte-short", "reads beyond the chunk", with_body(five, body[:-1]))
    yield Invalid("FIX-01", "byte-long", "ignores it", with_body(five, body + b"\0"))
    yield Invalid(
        "FIX-01",
        "one-label-no-bits",
        "takes labels of one label to have no bits",
        with_body(fixed("a", "uint8", (9,), [4] * 9, Book([[4]], False)), b""),
    )
    yield Invalid("FIX-02", "last-bit", "ignores it", with_body(five, _flip(body, -1, 1)))
    chunks = fixed("a", "uint8", (13,), [k % 5 for k in range(13)], Book([range(5)], False), 2)
    yield Invalid(
        "FIX-02",
        "in-a-middle-chunk",
        "looks at the last chunk alone",
        with_body(chunks, _flip(chunks.bodies[1], -1, 1), 1),
    )
    seven = Book([range(8)], False)
    for reason, values in (("first", [7, 0, 1, 2]), ("last", [0, 1, 2, 5])):
        wrong = fixed("a", "uint8", (4,), values, seven)
        right = fixed("a", "uint8", (4,), [0, 1, 2, 3], Book([range(5)], False))
        yield Invalid(
            "FIX-03", f"{reason}-label", "looks it up beyond the codebook", with_body(right, wrong.bodies[0])
        )
    zero = fixed("a", "float32", (4,), [0] * 4, Book([[]]))
    yield Invalid("FIX-03", "label-1-of-one", "takes the one bit for padding", with_body(zero, b"\x10"))


def _longer_lanes(block: int, dtype: str, values: list[int], n_words: int) -> Frame:
    """Return a frame of blocks in four lanes, each with 32 bytes more than its symbols take."""
    words = [values[k % 2] for k in range(n_words)]
    tensor = labels("a", dtype, (n_words,), words, Book([values], False), block, [block] * 2**block)
    sizes, at = [], 0
    for _ in range(4):
        size, at = read_varint(tensor.bodies[0], at)
        sizes.append(size)
    lanes = b""
    for size in sizes:
        lanes += tensor.bodies[0][at : at + size] + bytes(32)
        at += size
    return with_body(tensor, b"".join(varint(size + 32) for size in sizes) + lanes)


def _streams() -> Iterator[Invalid]:
    tensor = labels("a", "uint8", (12,), WORDS, BOOK, lengths=[1, 2, 3, 3])
    body = tensor.bodies[0]
    n_bytes = body[0]
    yield Invalid("LBL-01", "byte-long", "ignores it", with_body(tensor, body + b"\0"))
    lone = labels("a", "uint8", (12,), [9] * 12, Book([[9]], False))
    yield Invalid(
        "LBL-01",
        "lone-symbol-with-lane-size",
        "reads the size of a lane that is not there",
        with_body(lone, b"\0"),
    )
    yield Invalid(
        "STR-01", "byte-short", "reads beyond the lane", with_body(tensor, bytes([n_bytes - 1]) + body[1:-1])
    )
    yield Invalid("STR-01", "empty-lane", "reads beyond the lane", with_body(tensor, b"\0"))
    yield Invalid(
        "STR-02",
        "byte-long",
        "stops at the last symbol",
        with_body(tensor, bytes([n_bytes + 1]) + body[1:] + b"\0"),
    )
    yield Invalid("STR-03", "last-bit", "stops at the last symbol", with_body(tensor, _flip(body, -1, 1)))
    blocks = labels("a", "uint8", (12,), WORDS, BOOK, 5)
    yield Invalid(
        "STR-02",
        "blocks-in-4-lanes",
        "stores the last block whole, beyond the chunk, while there are bytes left",
        _longer_lanes(2, "float32", [0x3F800000, 0x40000000], 2079),
    )
    yield Invalid(
        "STR-02",
        "long-blocks-in-4-lanes",
        "stores the last block whole, beyond the chunk, while there are bytes left",
        _longer_lanes(8, "float64", [0x4141414141414141, 0x4242424242424242], 8313),
    )
    yield Invalid(
        "STR-02",
        "blocks",
        "counts labels where it should count blocks",
        with_body(blocks, bytes([blocks.bodies[0][0] + 1]) + blocks.bodies[0][1:] + b"\0"),
    )
    plane = planes("a", "uint8", (12,), [1, 2, 2, 1, 3, 1, 1, 2, 1, 3, 1, 1], ["huffman"])
    yield Invalid(
        "STR-01",
        "planes",
        "reads beyond the lane",
        with_body(plane, bytes([plane.bodies[0][0] - 1]) + plane.bodies[0][1:-1]),
    )
    yield Invalid(
        "STR-03", "planes", "stops at the last symbol", with_body(plane, _flip(plane.bodies[0], -1, 1))
    )
    longest = [*range(1, 16), 15]
    end = labels("a", "uint8", (9,), [0] * 8 + [15], Book([range(16)], False), lengths=longest)
    short = bytes([end.bodies[0][0] - 1]) + end.bodies[0][1:-1]
    yield Invalid(
        "STR-01", "within-the-longest-code", "looks 15 bits ahead, beyond the lane", with_body(end, short)
    )
    many = labels("a", "uint8", (1100,), noise(4, 1100, 4), Book([range(4)], False), lengths=[2] * 4)
    data = many.bodies[0]
    sizes = [data[k] for k in range(4)]
    yield Invalid(
        "STR-01",
        "lane-2",
        "checks the last lane alone",
        with_body(many, bytes([sizes[0], sizes[1], sizes[2] - 1, sizes[3] + 1]) + data[4:]),
        or_rule="STR-02",
    )
    yield Invalid(
        "STR-03",
        "lane-1",
        "checks the last lane alone",
        with_body(_uneven(), _flip(_uneven().bodies[0], 4 + sum(_uneven().bodies[0][:2]) - 1, 1)),
    )
    yield Invalid(
        "NUM-02",
        "lane-3-beyond-chunk",
        "reads beyond the chunk",
        with_body(many, data[:3] + bytes([sizes[3] + 1]) + data[4:]),
        or_rule="FRM-01",
    )
    yield Invalid(
        "NUM-02",
        "lane-of-2-64-bytes",
        "adds up sizes and wraps",
        with_body(many, varint(2**64 - 1) + data[1:]),
        or_rule="FRM-01",
        hostile=True,
    )
    yield Invalid("FRM-01", "lane-sizes-missing", "reads sizes from the next chunk", with_body(many, b"\0\0"))


def _uneven() -> Tensor:
    """Return a tensor whose lanes all end within a byte."""
    return labels("a", "uint8", (1030,), noise(4, 1030, 4), Book([range(4)], False), lengths=[2] * 4)


def _runs() -> Iterator[Invalid]:
    some = runs("a", "uint8", (12,), WORDS, BOOK, 4, 0)
    body = some.bodies[0]
    beyond = runs("a", "uint8", (12,), WORDS, BOOK, 4, 0, entries=[[(2, 1), (1, 2), (0, 3), (3, 1), (2, 1)]])
    yield Invalid("RUN-01", "entry-at-the-end", "writes one word beyond the tensor", Frame([beyond]))
    far = runs("a", "uint8", (12,), WORDS, BOOK, 1, 12, entries=[[(2, 1), (1, 2), (0, 3), (3, 1), (4095, 0)]])
    yield Invalid("RUN-01", "filler-beyond", "does not look where fillers go", Frame([far]))
    wide = split(
        "a", "uint8", (12,), WORDS, BOOK, 4096, 12, entries=[[(2, 1), (1, 2), (0, 3), (2**24 - 1, 1)]]
    )
    yield Invalid("RUN-01", "longest-run", "adds to a small number and wraps", Frame([wide]))
    chunked = runs(
        "a",
        "uint8",
        (12,),
        WORDS,
        BOOK,
        4,
        0,
        shift=2,
        entries=[[(2, 1), (1, 2)], [(0, 2), (0, 3)], [(1, 1)]],
    )
    yield Invalid(
        "RUN-01",
        "into-the-next-chunk",
        "writes what the next chunk overwrites, or races with it",
        Frame([chunked]),
    )
    words = [word for k in noise(14, 1024, 3) for word in ([0] * k + [9])]
    lanes = runs("a", "uint8", (len(words),), words, Book([[9]]), 4)
    data = lanes.bodies[0]
    count = 2  # bytes of N_Entries
    sizes = list(data[count : count + 4])
    at = count + 4
    for reason, change in (("lane-starts-late", 1), ("lane-starts-early", -1)):
        first = int.from_bytes(data[at : at + 2], "little")
        moved = (first & 127) + (first >> 8 << 7) + change
        yield Invalid(
            "RUN-01",
            reason,
            "writes lanes over each other, or leaves words as they were",
            with_body(lanes, data[:at] + varint(moved) + data[at + 2 :]),
        )
    yield Invalid(
        "RUN-01",
        "lane-starts-at-2-64",
        "adds the starts and wraps",
        with_body(lanes, data[:at] + varint(2**64 - 1) + data[at + 2 :]),
        hostile=True,
    )
    yield Invalid(
        "RUN-02",
        "no-zero",
        "divides by one label less",
        Frame(
            [
                runs(
                    "a",
                    "uint8",
                    (12,),
                    [w or 7 for w in WORDS],
                    Book([[1, 2, 7, 255]], False),
                    1,
                    1,
                    [[1, 2, 3, 3]],
                    entries=[[]],
                )
            ]
        ),
    )
    yield Invalid("RUN-02", "one-label", "divides by 0", Frame([_one_label(False)]))
    yield Invalid("RUN-02", "one-label-split", "reads fillers for ever", Frame([_one_label(True)]))
    yield Invalid("RUN-03", "byte-long", "ignores it", with_body(some, body + b"\0"))
    none = runs("a", "uint8", (12,), [0] * 12, Book([[9]]), 2, 1, [[1, 1, 0]])
    yield Invalid(
        "RUN-03",
        "no-entries-and-more",
        "does not look at a body without entries",
        with_body(none, none.bodies[0] + b"\0"),
    )
    lone = runs("a", "uint8", (12,), [9] * 12, Book([[9]]), 1, 0, [[1, 0]])
    yield Invalid("RUN-04", "zero-run", "makes 2**64 entries of no bits", Frame([lone]), hostile=True)
    both = split("a", "uint8", (12,), [9] * 12, Book([[9]]), 1, 0)
    yield Invalid("RUN-04", "split-run", "makes 2**64 entries of no bits", Frame([both]), hostile=True)
    yield Invalid("STR-01", "raw-bits-missing", "checks before the symbol alone", _short_raw())
    yield Invalid(
        "STR-01",
        "runs",
        "reads beyond the lane",
        with_body(some, bytes([body[0], body[1] - 1]) + body[2:-1]),
    )
    yield Invalid(
        "STR-02",
        "runs",
        "stops at the last entry",
        with_body(some, bytes([body[0], body[1] + 1]) + body[2:] + b"\0"),
    )
    odd = runs("a", "uint8", (12,), [*WORDS[:10], 1, 0], BOOK, 4, 0)
    yield Invalid("STR-03", "runs", "stops at the last entry", with_body(odd, _flip(odd.bodies[0], -1, 1)))
    yield Invalid(
        "STR-02", "no-entries", "does not look at a lane without symbols", with_body(none, b"\x00\x01\x00")
    )
    yield Invalid(
        "STR-03", "lane-of-runs", "checks the last lane alone", _last_bit_of_lane(lanes, at + 6, sizes)
    )


def _one_label(as_split: bool) -> Tensor:
    """Return a tensor of zeros whose codebook has no values."""
    book = Book([[]])
    codes = [[1, 1], [1]] if as_split else [[1]]
    return runs(
        "a", "uint8", (12,), [0] * 12, book, 2 if as_split else 1, 1, codes, split=as_split, entries=[[]]
    )


def _short_raw() -> Frame:
    """Return entries of 12 raw bits, of which the last one lacks eight."""
    words = [0] * 600
    words[255] = words[400] = 9
    tensor = runs("a", "uint8", (600,), words, Book([[9]]), 1, 12, [[1, 1]])
    body = tensor.bodies[0]
    return with_body(tensor, bytes([body[0], body[1] - 1]) + body[2:-1])


def _last_bit_of_lane(lanes: Tensor, start: int, sizes: list[int]) -> Frame:
    """Turn over the last bit of the first lane whose last bit is padding; one of them must have some."""
    body = lanes.bodies[0]
    end = start
    for size in sizes[:3]:
        end += size
        if body[end - 1] & 1 == 0:
            return with_body(lanes, _flip(body, end - 1, 1))
    raise ValueError("all lanes are full")


def _bombs() -> Iterator[Invalid]:
    """Yield tensors of a GiB, which the default limits allow, in chunks that cannot hold them."""
    huge = {"shape": (2**30,)}
    plain = raw("a", "uint8", (12,), WORDS).but(**huge)
    yield Invalid("RAW-01", "gibibyte", "reserves a GiB for twelve bytes", Frame([plain]), hostile=True)
    narrow = fixed("a", "uint8", (12,), WORDS, BOOK).but(**huge)
    yield Invalid("FIX-01", "gibibyte", "reserves a GiB for three bytes", Frame([narrow]), hostile=True)
    many = labels("a", "uint8", (12,), WORDS, BOOK).but(**huge, bodies=(b"\1\1\1\1" + bytes(4),))
    yield Invalid("STR-01", "gibibyte", "reserves a GiB for four bytes", Frame([many]), hostile=True)
    some = runs("a", "uint8", (12,), WORDS, BOOK).but(**huge, bodies=(varint(2**30),))
    yield Invalid(
        "FRM-01", "gibibyte-of-entries", "reserves an entry for each word", Frame([some]), hostile=True
    )


def coder_vectors() -> Iterator[Invalid]:
    """Yield the vectors."""
    for part in (_plain, _streams, _runs, _bombs):
        yield from part()
