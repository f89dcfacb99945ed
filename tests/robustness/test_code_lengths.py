"""Every vector of code lengths of up to five symbols, through the tables of a frame, on both kernels."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest

from dcompress.coding.huffman import HuffmanCode
from dcompress.coding.range_coder import SideReader, SideWriter
from dcompress.coding.tables import read_code, write_code
from dcompress.constants import MAX_CODE_LENGTH
from dcompress.errors import DecodeError
from tests.checks import Entry, Frame, error_of, read_everything, text


def rule_of(lengths) -> str:
    """Return which rule a vector breaks, by the letter of the spec; empty if it is legal."""
    used = [length for length in lengths if length]
    if not used:
        return "HUF-01"
    if len(used) == 1:
        return "" if used == [1] else "HUF-04"
    return "" if sum(Fraction(1, 2**length) for length in used) == 1 else "HUF-02"


def tables_of(lengths, rows) -> bytes:
    """Return the tables of a `labels` tensor with such a code: a codebook of 0 and more, blocks of one."""
    writer = SideWriter()
    writer.number(2, 0)
    writer.raw(1, 1)
    if len(rows):
        writer.raw(0, 1)
        writer.number(0, 0)
        writer.number(0, 0)
        writer.number(1, 2)
        for row in range(len(rows) - 1):
            writer.number(1, 1 if row == 0 else 0)
    writer.number(3, 0)
    write_code(writer, HuffmanCode(np.array(lengths, np.uint8)), len(lengths))
    return writer.finish()


def code_of(lengths, n_columns):
    writer = SideWriter()
    write_code(writer, HuffmanCode(np.array(lengths, np.uint8)), n_columns)
    reader = SideReader(writer.finish())
    read_code(reader, len(lengths), n_columns)
    reader.finish()


@pytest.mark.parametrize("n_symbols", [1, 2, 3, 4, 5])
def test_every_vector_is_read_or_refused_for_its_own_rule(kernel, n_symbols):
    tried = 0
    for lengths in itertools.product(range(7), repeat=n_symbols):
        error = error_of(code_of, lengths, min(n_symbols, 2))
        assert (error.rule if error else "") == rule_of(lengths), lengths
        tried += 1
    assert tried == 7**n_symbols


def test_long_lengths_are_judged_exactly(kernel):
    """Sums that floating point, or a 16-bit counter, would take for 1."""
    deepest = [*range(1, MAX_CODE_LENGTH + 1), MAX_CODE_LENGTH]
    assert error_of(code_of, deepest, 4) is None
    for place in range(len(deepest)):
        for other in range(MAX_CODE_LENGTH + 1):
            changed = [*deepest[:place], other, *deepest[place + 1 :]]
            error = error_of(code_of, changed, 4)
            assert (error.rule if error else "") == rule_of(changed), changed
    assert error_of(code_of, [*deepest, MAX_CODE_LENGTH], 4).rule == "HUF-02"
    assert error_of(code_of, [1] * 4096, 64).rule == "HUF-02"
    assert error_of(code_of, [12] * 4096, 64) is None
    assert error_of(code_of, [1] * 2 + [0] * 4000, 64) is None


def test_no_frame_decodes_with_an_illegal_code(kernel):
    """The same through whole frames, whose payload is all zeros."""
    n_legal = 0
    for lengths in itertools.product(range(4), repeat=4):
        chunk = text(tables_of(lengths, range(3))) + bytes([1, 0])
        entry = Entry(shape=(1,), coder=3, n_labels=4, chunks=(chunk,))
        error = error_of(read_everything, Frame(entries=[entry]).to_bytes())
        rule = rule_of(lengths)
        if rule:
            assert error.rule == rule, lengths
        else:
            assert error is None or isinstance(error, DecodeError)
            assert error is None or error.rule in ("DIG-01", "LBL-01", "STR-02"), (lengths, error)
            n_legal += 1
    assert n_legal > 20
