"""Compiled loops look at the room that is left only now and then: streams that make the most of that."""

from __future__ import annotations

import numpy as np
import pytest

from dcompress.coding import Codebook, SplitRun, ZeroRun
from dcompress.coding.huffman import HuffmanCode
from dcompress.constants import DTYPE_BY_NAME
from dcompress.errors import CorruptError
from dcompress.stages import SharedTensor
from tests.checks import varint

N_WORDS = 5000


def run_coder(kind, raw_bits):
    """Return a coder of 16 buckets whose longest run has the shortest code, a single 0."""
    rows = np.array([[5]], np.uint32)
    labels = np.ones(N_WORDS, np.uint16)
    book = Codebook.of(SharedTensor(DTYPE_BY_NAME["float32"], (N_WORDS,), rows, labels, True))
    if kind is SplitRun:
        runs = HuffmanCode(np.array([5] * 14 + [4, 1], np.uint8))
        runs.check()
        return SplitRun(book, 16, raw_bits, runs, HuffmanCode(np.array([1, 1], np.uint8)))
    code = HuffmanCode(np.array([*[5] * 15, 1, 5], np.uint8))
    code.check()
    return ZeroRun(book, 16, raw_bits, code)


@pytest.mark.parametrize("last", [N_WORDS - 1, N_WORDS - 100, N_WORDS - 300, N_WORDS - 1000, 3])
@pytest.mark.parametrize("raw_bits", [0, 3])
@pytest.mark.parametrize("kind", [ZeroRun, SplitRun])
@pytest.mark.parametrize("fill", [b"\x00", b"\x01", b"\x0f"])
def test_runs_that_are_as_long_as_they_can_be(kernel, kind, raw_bits, last, fill):
    coder = run_coder(kind, raw_bits)
    lanes = [fill * 600] * 4
    starts = [1, 1, last - 2]
    chunk = varint(1024) + b"".join(varint(len(lane)) for lane in lanes)
    chunk += b"".join(map(varint, starts)) + b"".join(lanes)
    memory = np.full(20 * N_WORDS, 0xA5A5A5A5, np.uint32)
    out = memory[N_WORDS : 2 * N_WORDS]
    out.fill(0)
    with pytest.raises(CorruptError) as caught:
        coder.decode_chunk(memoryview(chunk), 0, out, 0)
    assert caught.value.rule in ("RUN-01", "STR-02")
    assert np.all(memory[:N_WORDS] == 0xA5A5A5A5)
    assert np.all(memory[2 * N_WORDS :] == 0xA5A5A5A5)
