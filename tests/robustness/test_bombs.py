"""Frames that ask for more than they are: refused quickly, in little memory, for their own rule."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import dcompress.numpy
from dcompress.checksum import checksum
from dcompress.coding.range_coder import SideWriter
from dcompress.decode import open_frame
from dcompress.errors import LimitError
from dcompress.limits import DecodeLimits
from tests.checks import Entry, Frame, error_of, read_everything, text, varint
from tests.properties.test_frames import small_model


def sealed(directory: bytes, size: int | None = None) -> bytes:
    """Return a frame that is a directory alone; the preamble may lie about its size."""
    head = b"\x89DCZ\r\n\x1a\n\x01\0\0\0" + struct.pack("<I", len(directory) if size is None else size)
    return head + struct.pack("<I", checksum(head + directory)) + directory


def one(shape=(3,), **fields) -> bytes:
    return Frame(entries=[Entry(shape=shape, **fields)]).to_bytes()


def record(*fields: bytes) -> bytes:
    """Return a frame of one tensor whose record is written out: name "w", float32, then these fields."""
    return sealed(b"\x00\x01\x00\x01w\x0c" + b"".join(fields) + b"\x00\x00")


def constant(n_words: int) -> bytes:
    """Return an honest frame of any number of equal words, in a few dozen bytes."""
    tables = SideWriter()
    tables.raw(2, 0)
    tables.raw(8, 5)
    return one((n_words,), dtype=2, coder=1, chunks=(text(tables.finish()),), digest=0)


def context_of(n_rows: int) -> bytes:
    """Return a `context` tensor of as many dead rows as its bytes must not allow."""
    set_bytes = b""
    tables = SideWriter()
    tables.number(2, 0)
    tables.raw(1, 1)
    tables.number(16, 0)
    tables.number(17, 0)
    tables.number(18, 0)
    for _ in range(3):
        tables.number(19, 0)
    tables.number(20, 0)
    chunk = text(tables.finish()) + b"\0\0\1\0"
    entry = Entry(shape=(n_rows, 1), dtype=2, coder=6, n_labels=1, chunks=(chunk,))
    return Frame(entries=[entry], table_sets=[set_bytes]).to_bytes()


HUGE = [2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53 + 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1]


def lies_about_sizes():
    """Yield names, frames, and rules that may be named."""
    for n in (0, 1, 5, 2**28, 2**31, 2**32 - 1):
        yield f"directory of {n}", sealed(b"\0\0\0\0", n), "FRM-01 LIM-01 FRM-05"
    for n in HUGE:
        yield f"chunk of {n} bytes", record(b"\1\3\0\0", varint(n), bytes(4)), "FRM-01 NUM-02"
        yield f"section of {n}", sealed(b"\0\0\0\1\1" + varint(n) + bytes(4)), "FRM-01 NUM-02"
        yield f"key of {n}", sealed(b"\0\0\1" + varint(n) + b"\0"), "LIM-04"
        yield f"value of {n}", sealed(b"\0\0\1\0" + varint(n) + b"\0"), "FRM-01"
        yield f"name of {n} bytes", sealed(b"\0\1\0" + varint(n) + b"w\0\0"), "LIM-04"
    for n in (65537, *HUGE):
        yield f"table set of {n} bytes", sealed(b"\1" + varint(n) + bytes(7)), "DIR-14"


def lies_about_counts():
    for n in HUGE:
        yield f"{n} metadata", sealed(b"\0\0" + varint(n) + b"\0"), "NUM-02"
        yield f"{n} sections", sealed(b"\0\0\0" + varint(n)), "NUM-02"
    for n in (1025, *HUGE):
        yield f"{n} table sets", sealed(varint(n) + bytes(3)), "DIR-14"
    for n in (10**7, *HUGE):
        yield f"{n} tensors", sealed(b"\0" + varint(n) + bytes(2)), "LIM-02"
    yield "a million tensors that are not there", sealed(b"\0" + varint(1 << 20)), "FRM-01"
    for n in (0, *HUGE):
        yield f"alias of {n}", sealed(b"\0\1\0\1w\0" + varint(n) + b"\0\0"), "DIR-04"
    for n in (0, 4097, *HUGE):
        yield f"{n} labels", record(b"\1\3\2", varint(n), b"\0\0" + bytes(8)), "DIR-08"
    for n in (4, *HUGE):
        yield f"{n} kept", record(b"\1\3\4\2", varint(n), b"\0\0" + bytes(8)), "DIR-11"


def lies_about_shapes():
    for n in (65, *HUGE):
        yield f"rank {n}", record(varint(n)), "LIM-03"
    for n in HUGE:
        raw = record(b"\1", varint(n), b"\0\0", varint(3), bytes(4))
        yield f"dimension {n}", raw, "LIM-05 DIR-06 FRM-01 RAW-01"
    for n in (2**32, *HUGE[4:]):
        yield f"dimensions 0 and {n} twice", record(b"\3\0", varint(n), varint(n)), "DIR-06"
    wrap = record(b"\2", varint(2**33), varint(2**31), b"\0\0\0" + bytes(4))
    yield "dimensions that wrap around 64 bits", wrap, "DIR-06"
    yield "64 dimensions of 2", record(b"\x40" + b"\2" * 64), "DIR-06"
    for shift in (20, 30, 40, 58):
        yield f"2**{shift} chunks", record(b"\1", varint(2 ** (shift + 2)), b"\0\2"), "DIR-10"
    yield "an honest terabyte in 60 bytes", constant(1 << 40), "LIM-05"
    yield "five honest gigabytes in 60 bytes", constant(5 << 30), "LIM-05"
    yield "sixteen million dead rows", context_of(1 << 24), "CTX-08"
    yield "a billion dead rows", context_of(1 << 30), "CTX-08 LIM-05"
    yield "four billion dead rows", context_of(1 << 32), "CTX-08 LIM-05"


LIES = {
    name: (frame, rules.split())
    for lies in (lies_about_sizes, lies_about_counts, lies_about_shapes)
    for name, frame, rules in lies()
}

# Decodes the first frame, to load everything, and then all the others in an address space without room for
# what they ask; tells the error, the seconds and the growth of the peak of resident memory, in kB.
PROBE = """
import json, resource, sys, time
from dcompress.decode import open_frame
from dcompress.errors import DecodeError
frames = [bytes.fromhex(line) for line in sys.stdin.read().split()]
with open_frame(frames[0]) as reader:
    reader.read_all()
limit = 64 << 20
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + limit, resource.RLIM_INFINITY))
def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
for frame in frames[1:]:
    start, before = time.perf_counter(), peak()
    try:
        with open_frame(frame) as reader:
            reader.read_all()
            reader.verify_sections()
        found = "accepted"
    except DecodeError as error:
        found = error.rule
    except BaseException as error:
        found = repr(error)
    print(json.dumps([found, time.perf_counter() - start, peak() - before]))
"""


@pytest.fixture(scope="module", params=["numpy", "numba"])
def answers(request):
    """What the reader says about every lie, in 64 MiB."""
    if not Path("/proc/self/statm").exists():
        pytest.skip("needs /proc")
    done = subprocess.run(
        [sys.executable, "-c", PROBE],
        input="\n".join(frame.hex() for frame in (small_model()[0], *(lie for lie, _ in LIES.values()))),
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "DCOMPRESS_KERNELS": request.param},
        timeout=120,
    )
    return dict(zip(LIES, map(json.loads, done.stdout.splitlines()), strict=True))


def test_lies_are_refused_for_their_own_rule(answers):
    wrong = {name: answers[name][0] for name, (_, rules) in LIES.items() if answers[name][0] not in rules}
    assert wrong == {}
    assert len(LIES) > 100


def test_lies_cost_neither_time_nor_memory(answers):
    assert {name: a for name, a in answers.items() if a[1] > 1.0} == {}
    assert {name: a for name, a in answers.items() if a[2] > 64 << 10} == {}


def test_no_lie_is_longer_than_it_need_be():
    """What makes them hostile: most of them are smaller than this sentence, which is 91 bytes long."""
    assert sum(len(frame) < 91 for frame, _ in LIES.values()) > 0.95 * len(LIES)


def test_names_that_grow_in_memory_are_over_a_limit():
    """Not among the lies: up to max_names_bytes, 16 MiB, are held before that is found."""
    names = b"".join(varint(60000) + b"\4%04d\2\1\0" % n for n in range(2999))
    names = b"\0" + varint(3000) + b"\0" + varint(60000) + b"n" * 60000 + b"\2\1\0" + names
    for limits in (DecodeLimits(), DecodeLimits(max_names_bytes=200_000)):
        with pytest.raises(LimitError, match=f"max_names_bytes={limits.max_names_bytes}"):
            dcompress.numpy.load(sealed(names + b"\0\0"), limits=limits)


def test_classes_are_as_many_as_their_bytes_allow(kernel):
    """The bound of CTX-08, exactly: rows that are dead at the end take no bytes."""
    with open_frame(context_of(9)) as reader:
        (chunk,) = reader.directory.tensors["w"].chunks
    most = 16 * chunk.n_bytes
    assert error_of(read_everything, context_of(most + 1)).rule == "CTX-08"
    assert error_of(read_everything, context_of(most)) is None


def test_an_honest_tensor_of_a_large_ratio_decodes_if_the_limit_allows_it():
    """What is honest but large is refused with the name and the value of the limit."""
    frame = dcompress.numpy.save({"w": np.zeros(1 << 26, np.uint8)}, recipe="lossless")
    assert (1 << 26) / len(frame) > 100_000
    assert dcompress.numpy.load(frame)["w"].size == 1 << 26
    with pytest.raises(LimitError, match=r"max_output_bytes=1000 .rule LIM-05.; .* .dcz decode -M 67108864"):
        dcompress.numpy.load(frame, limits=DecodeLimits(max_output_bytes=1000))
