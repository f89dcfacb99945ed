"""The invalid vectors of numbers, preambles and sizes (spec 4, 6)."""

from __future__ import annotations

from collections.abc import Iterator

from vector_bytes import u32, varint
from vector_coders import labels, raw, runs
from vector_frames import Frame
from vector_invalid import BOOK, BYTE, ONE, WORDS, Invalid, bare, record

__all__ = ["frame_vectors"]


def _numbers() -> Iterator[Invalid]:
    yield Invalid("NUM-01", "overlong-tensors", "reads 0 tensors", Frame(counts={"tensors": b"\x80\x00"}))
    yield Invalid(
        "NUM-01",
        "overlong-dimension",
        "reads 2",
        bare(record(shape=(), rank=b"\x01\x82\x00" + b"\x00\x00\x02" + u32(0))),
    )
    yield Invalid(
        "NUM-01",
        "tenth-byte-2",
        "drops the bits above 64 and reads 0",
        Frame(counts={"tensors": b"\x80" * 9 + b"\x02"}),
    )
    yield Invalid(
        "NUM-01",
        "tenth-byte-127",
        "shifts by 63 and keeps a bit",
        Frame(counts={"metadata": b"\xff" * 9 + b"\x7f"}),
    )
    yield Invalid(
        "NUM-01",
        "eleven-bytes",
        "reads on for ever, or shifts by 70",
        Frame(counts={"tensors": b"\x80" * 10 + b"\x00"}),
    )
    tensor = labels("a", "uint8", (12,), WORDS, BOOK)
    chunk = tensor.chunks[0]
    long = tensor.but(tables=None, bodies=(bytes([chunk[0] | 128, 0]) + chunk[1:],))
    yield Invalid("NUM-01", "overlong-tables-size", "reads the right size", Frame([long]))
    body = tensor.bodies[0]
    yield Invalid(
        "NUM-01",
        "overlong-lane-size",
        "reads the right size",
        Frame([tensor.but(bodies=(bytes([body[0] | 128, 0]) + body[1:],))]),
    )
    yield Invalid(
        "NUM-02",
        "metadata-beyond-directory",
        "reserves 2**63 records",
        Frame([BYTE], counts={"metadata": varint(2**63)}),
        or_rule="FRM-01",
        hostile=True,
    )
    yield Invalid(
        "NUM-02",
        "metadata-by-two",
        "reads a record of nothing",
        Frame([BYTE], counts={"metadata": b"\x03"}),
        or_rule="FRM-01",
    )
    yield Invalid(
        "NUM-02",
        "sections-beyond-directory",
        "reserves 2**64 - 1 records",
        Frame([BYTE], counts={"sections": varint(2**64 - 1)}),
        or_rule="FRM-01",
        hostile=True,
    )
    yield Invalid(
        "NUM-02",
        "chunk-of-2-63-bytes",
        "turns the size negative",
        Frame([BYTE], sizes={"chunk 0:0": 2**63}),
        hostile=True,
    )
    two = [BYTE, raw("b", "uint8", (2,), [7, 8])]
    yield Invalid(
        "NUM-02",
        "sum-of-chunks-wraps",
        "adds up to an offset before the start",
        Frame(two, sizes={"chunk 0:0": 2**62, "chunk 1:0": 2**62 + 2**61 + 2**60}),
        hostile=True,
    )
    halves = {"chunk 0:0": 2**62, "chunk 1:0": 2**62 - 99}
    left = 2**62 - 20 - len(Frame(two, sizes=halves).make_directory())  # up to 2**63
    for rule, reason, size in (("NUM-02", "sum-of-2-63", left), ("FRM-01", "sum-of-2-63-less-1", left - 1)):
        most = Frame(two, sizes={**halves, "chunk 1:0": size})
        yield Invalid(rule, reason, "adds with a sign", most, hostile=True)
    part = {"section 0": 2**62 - 99, "chunk 0:0": 2**62}
    left = 2**62 - 20 - len(Frame([BYTE], sections=[(9, b"x")], sizes=part).make_directory())
    for rule, reason, size in (
        ("NUM-02", "sum-with-section-of-2-63", left),
        ("FRM-01", "sum-with-section-of-2-63-less-1", left - 1),
    ):
        most = Frame([BYTE], sections=[(9, b"x")], sizes={**part, "section 0": size})
        yield Invalid(rule, reason, "adds with a sign", most, hostile=True)
    yield Invalid(
        "NUM-02",
        "section-size-wraps",
        "adds up to an offset before the start",
        Frame([BYTE], sections=[(9, b"x")], sizes={"section 0": 2**64 - 1}),
        hostile=True,
    )
    yield Invalid(
        "NUM-02",
        "tables-beyond-chunk",
        "reads tables from the next chunk",
        Frame([tensor.but(tables=None, bodies=(b"\x7f" + chunk[1:],))]),
        or_rule="FRM-01",
    )
    yield Invalid(
        "NUM-02",
        "lane-beyond-chunk",
        "reads a lane from the next chunk",
        Frame([tensor.but(bodies=(bytes([body[0] + 1]) + body[1:],))]),
        or_rule="FRM-01",
    )
    some = runs("a", "uint8", (12,), WORDS, BOOK)
    yield Invalid(
        "NUM-02",
        "more-entries-than-words",
        "reads 13 entries of 12 words",
        Frame([some.but(bodies=(b"\x0d" + some.bodies[0][1:],))]),
    )


def _preamble() -> Iterator[Invalid]:
    whole = ONE.to_bytes()
    yield Invalid("FRM-01", "signature-alone", "reads beyond the end", whole[:8])
    yield Invalid("FRM-01", "part-of-signature", "takes it for another file", whole[:5])
    yield Invalid("FRM-01", "preamble-cut", "reads beyond the end", whole[:19])
    yield Invalid("FRM-01", "directory-cut", "sums beyond the end", whole[:30])
    yield Invalid("FRM-01", "chunk-cut", "hands out a tensor with a wrong last word", whole[:-1])
    yield Invalid("FRM-01", "no-chunks", "hands out memory as it was", ONE.but(cut=len(whole) - 2))
    yield Invalid(
        "FRM-01",
        "directory-size-0",
        "reads the number of tensors from the bytes behind",
        Frame(directory=b"", tail=b"\x00" * 4).but(tail=b""),
    )
    yield Invalid(
        "FRM-01",
        "directory-too-short",
        "reads a record from the chunks",
        Frame(directory=b"\x00\x01\x00\x01a\x02\x01"),
    )
    yield Invalid(
        "FRM-01",
        "name-beyond-directory",
        "reads a name from the chunks",
        Frame(directory=b"\x00\x01\x00\x7fa"),
    )
    yield Invalid(
        "FRM-01",
        "value-beyond-directory",
        "reserves 2**40 bytes",
        Frame(directory=b"\x00\x00\x01\x01k" + varint(2**40)),
        hostile=True,
    )
    yield Invalid(
        "FRM-01", "directory-ends-in-varint", "takes it for a short number", Frame(directory=b"\x00\x80")
    )
    yield Invalid(
        "FRM-01",
        "section-missing",
        "reads the section from beyond the end",
        Frame([BYTE], sections=[(9, b"")], sizes={"section 0": 5}),
    )
    yield Invalid(
        "FRM-01",
        "tensors-not-there",
        "reserves a million records",
        Frame([BYTE], counts={"tensors": varint(1000000)}, directory=None).but(
            directory=b"\x00" + varint(1000000)
        ),
        hostile=True,
    )
    yield Invalid("FRM-02", "nothing", "reads beyond the end of an empty file", b"")
    yield Invalid(
        "FRM-02",
        "line-ends-changed",
        "reads a file that a text-mode copy has spoilt",
        ONE.but(signature=bytes.fromhex("89 44 43 5A 0A 1A 0A")).to_bytes()[:20] + whole[20:],
    )
    yield Invalid(
        "FRM-02",
        "top-bit-lost",
        "reads a file that a 7-bit copy has spoilt",
        ONE.but(signature=bytes.fromhex("09 44 43 5A 0D 0A 1A 0A")),
    )
    yield Invalid("FRM-02", "one-other-byte", "looks at the first bytes only, and waits for more", b"\x88")
    yield Invalid(
        "FRM-02", "safetensors", "takes a length for a signature", b"\x02\x00\x00\x00\x00\x00\x00\x00{}"
    )
    yield Invalid("FRM-03", "major-0", "reads it as version 1", ONE.but(major=0))
    yield Invalid("FRM-03", "major-2", "reads it as version 1", ONE.but(major=2))
    alone = Frame(major=2, directory=b"").to_bytes()
    yield Invalid("FRM-03", "preamble-alone", "asks for more bytes than there need be", alone)
    yield Invalid("FRM-04", "bit-0", "ignores what it does not know", ONE.but(features=1))
    yield Invalid("FRM-04", "bit-15", "reads one byte of the two", ONE.but(features=0x8000))
    yield Invalid(
        "FRM-05",
        "directory-bit",
        "reads a shape that is not the one written",
        whole[:25] + bytes([whole[25] ^ 1]) + whole[26:],
    )
    yield Invalid("FRM-05", "minor-bit", "sums the directory alone", whole[:9] + b"\x01" + whole[10:])
    yield Invalid("FRM-05", "stored-sum", "does not compare", ONE.but(sums={"head": 0}))
    yield Invalid("FRM-06", "a-byte-more", "ignores it", ONE.but(tail=b"\x00"))
    yield Invalid("FRM-06", "a-frame-more", "reads the first or the last of two frames", ONE.but(tail=whole))
    yield Invalid("FRM-06", "empty-and-more", "ignores it", Frame(tail=b"\x00"))


def frame_vectors() -> Iterator[Invalid]:
    """Yield the vectors."""
    for part in (_numbers, _preamble):
        yield from part()
