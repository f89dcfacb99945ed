from __future__ import annotations

import numpy as np
import pytest

from dcompress.coding import Codebook, FixedWidth, Labels, TensorLayout, base, labels
from dcompress.coding.huffman import HuffmanCode
from dcompress.coding.range_coder import SideReader, SideWriter
from dcompress.coding.tables import _KIND_COUNT, write_code
from dcompress.constants import DTYPE_BY_NAME, DTYPES
from dcompress.errors import CorruptError, TruncatedError
from dcompress.stages import SharedTensor, word_dtype
from tests.checks import check_coder, check_damage, decode, raises_rule
from tests.strategies import random_codebook

F32 = DTYPE_BY_NAME["float32"]
SIZES = [3, 7, 1023, 1024, 1025, 3001]


def shared_of(n_words, n_labels, *, n_groups=1, has_zero=False, dtype=F32, seed=0):
    rng = np.random.default_rng(seed)
    codebook = random_codebook(rng, dtype, n_groups, n_labels - has_zero, has_zero)
    labels = np.minimum(rng.geometric(0.3, n_words) - 1, n_labels - 1).astype(np.uint16)
    return SharedTensor(dtype, (n_words // dtype.words_per_element,), codebook, labels, has_zero)


def label_coders(tensor, chunk_words):
    return [coder for coder, _ in Labels.fit(Codebook.of(tensor), tensor.labels, chunk_words)]


# The contract.


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("has_zero", [False, True])
def test_every_dtype_is_kept(kernel, dtype, has_zero):
    tensor = shared_of(120, 5, dtype=dtype, has_zero=has_zero)
    check_coder(FixedWidth(Codebook.of(tensor)), tensor, 50, kernel)
    for coder in label_coders(tensor, 50):
        check_coder(coder, tensor, 50, kernel)


@pytest.mark.parametrize("n_labels", [1, 2, 3, 4, 5, 16, 17, 255, 256, 257, 1000, 4096])
def test_every_number_of_labels_is_kept(kernel, n_labels):
    tensor = shared_of(5000, n_labels)
    check_coder(FixedWidth(Codebook.of(tensor)), tensor, 5000, kernel)
    for coder in label_coders(tensor, 5000):
        check_coder(coder, tensor, 5000, kernel)


@pytest.mark.parametrize("n_words", SIZES)
def test_sizes_around_the_lane_threshold(kernel, n_words):
    tensor = shared_of(n_words, 3)
    check_coder(FixedWidth(Codebook.of(tensor)), tensor, n_words, kernel)
    for coder in label_coders(tensor, n_words):
        check_coder(coder, tensor, n_words, kernel)


@pytest.mark.parametrize("chunk_words", [1, 4, 33, 1024])
def test_groups_may_end_anywhere_within_chunks(kernel, chunk_words):
    tensor = shared_of(1200, 4, n_groups=8, has_zero=True)
    check_coder(FixedWidth(Codebook.of(tensor)), tensor, chunk_words, kernel)
    for coder in label_coders(tensor, chunk_words):
        check_coder(coder, tensor, chunk_words, kernel)


@pytest.mark.parametrize(("n_words", "n_labels"), [(50, 3), (61, 20), (1100, 2)])
def test_damaged_chunks(kernel, n_words, n_labels):
    tensor = shared_of(n_words, n_labels, n_groups=1)
    for coder in [FixedWidth(Codebook.of(tensor)), *label_coders(tensor, n_words)]:
        (chunk,) = check_coder(coder, tensor, n_words, kernel)
        assert check_damage(coder, chunk, 0, n_words, 4)


# Fixed widths.


@pytest.mark.parametrize(
    ("n_labels", "n_bits"), [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3), (256, 8), (257, 9), (4096, 12)]
)
def test_labels_take_as_few_bits_as_number_them(n_labels, n_bits):
    tensor = shared_of(100, n_labels)
    coder = FixedWidth(Codebook.of(tensor))
    assert coder.n_bits == n_bits
    assert len(coder.encode_chunk(tensor.labels)) == -(-100 * n_bits // 8)


def fixed(n_labels):
    codebook = Codebook(F32, np.arange(1, n_labels + 1, dtype=np.uint32)[None], False, 3)
    return FixedWidth(codebook)


def test_fixed_widths_stand_most_significant_bit_first(kernel):
    assert decode(fixed(8), bytes([0b001_010_11, 0b1_0000000]), 0, 3, 4).tolist() == [2, 3, 8]


@pytest.mark.parametrize(
    ("chunk", "rule"),
    [
        (bytes([0b001_010_11]), "FIX-01"),
        (bytes([0b001_010_11, 0b1_0000000, 0]), "FIX-01"),
        (bytes([0b001_010_11, 0b1_0000001]), "FIX-02"),
        (bytes([0b001_010_11, 0b1_1000000]), "FIX-02"),
    ],
)
def test_fixed_width_faults(kernel, chunk, rule):
    with raises_rule(CorruptError, rule):
        decode(fixed(8), chunk, 0, 3, 4)


def test_labels_beyond_the_codebook_are_refused(kernel):
    with raises_rule(CorruptError, "FIX-03"):
        decode(fixed(5), bytes([0b001_101_00, 0]), 0, 3, 4)


# Huffman-coded labels.


def test_blocks_are_numbers_to_the_base_of_the_labels():
    codebook = Codebook(F32, np.array([[5, 6, 7]], np.uint32), False, 5)
    code = HuffmanCode(np.array([4] * 2 + [3] * 7, np.uint8))
    labels = Labels(codebook, 2, code)
    # Digits 2, 1 make symbol 7; 0, 2 make 2; 1 and the filled-up 0 make 3.
    codes = code.assign_codes()
    bits = "".join(f"{codes[s]:0{code.code_lengths[s]}b}" for s in (7, 2, 3))
    want = bytes([2]) + int(bits.ljust(16, "0"), 2).to_bytes(2, "big")
    assert labels.encode_chunk(np.array([2, 1, 0, 2, 1], np.uint16)) == want
    assert decode(labels, want, 0, 5, 4).tolist() == [7, 6, 5, 7, 6]


def test_fit_costs_exactly_what_the_stream_takes():
    tensor = shared_of(40_000, 3)
    fits = Labels.fit(Codebook.of(tensor), tensor.labels, 1 << 14)
    assert [coder.block for coder, _ in fits] == list(range(1, len(fits) + 1))
    assert len(fits) > 3
    for coder, cost in fits:
        chunks = [coder.encode_chunk(tensor.labels[k : k + (1 << 14)]) for k in range(0, 40_000, 1 << 14)]
        # Lanes end with whole bytes, and their sizes stand before them.
        assert 0 <= 8 * sum(map(len, chunks)) - cost <= 3 * 4 * (8 + 16)


def test_a_lone_label_takes_no_bytes(kernel):
    tensor = shared_of(2000, 1)
    (coder,) = label_coders(tensor, 2000)
    assert coder.encode_chunk(tensor.labels) == b""
    check_coder(coder, tensor, 2000, kernel)
    with raises_rule(CorruptError, "LBL-01"):
        decode(coder, b"\x00", 0, 2000, 4)


def two_labels(n_words):
    codebook = Codebook(F32, np.array([[5, 6]], np.uint32), False, n_words)
    return Labels(codebook, 1, HuffmanCode(np.array([1, 1], np.uint8)))


@pytest.mark.parametrize(
    ("chunk", "kind", "rule"),
    [
        ("", TruncatedError, "FRM-01"),
        ("03 01", CorruptError, "NUM-02"),
        ("02 01", TruncatedError, "FRM-01"),
        ("00", CorruptError, "STR-01"),
        ("02 0100", CorruptError, "STR-02"),
        ("01 01", CorruptError, "STR-03"),
        ("01 00 00", CorruptError, "LBL-01"),
        ("8100 00", CorruptError, "NUM-01"),
    ],
)
def test_label_stream_faults(kernel, chunk, kind, rule):
    with raises_rule(kind, rule):
        decode(two_labels(5), bytes.fromhex(chunk), 0, 5, 4)


# Tables.


def tables(n_groups=1, has_zero=0, rows=((0, 0, 4, 5),), block=None, code=None):
    """Write tables by hand: groups, the zero, the rows as (negatives, dropped bits, gaps...)."""
    writer = SideWriter()
    writer.number(base._KIND_GROUPS, n_groups - 1)
    writer.raw(has_zero, 1)
    if has_zero and n_groups == 1 and rows[0][2:]:
        writer.raw(0, 1)  # not even
    for n_negative, n_dropped, *gaps in rows:
        writer.number(_KIND_COUNT, n_negative)
        writer.number(_KIND_COUNT, n_dropped)
        parts = [np.array(part, np.uint64) for part in (gaps[:n_negative], gaps[n_negative:])]
        sums = [np.cumsum(part + np.uint64(1)) - np.uint64(1) for part in parts]
        writer.magnitudes(np.concatenate(sums), n_negative)
    if block is not None:
        writer.number(labels._KIND_BLOCK, block - 1)
        write_code(writer, HuffmanCode(np.array(code, np.uint8)), 2)
    return SideReader(writer.finish())


def test_tables_by_hand():
    coder = FixedWidth.read_tables(tables(), TensorLayout(F32, 6, 2))
    assert coder.codebook.rows.tolist() == [[4, 10]]
    coder = Labels.read_tables(tables(block=2, code=[2] * 4), TensorLayout(F32, 6, 2))
    assert (coder.block, coder.code.code_lengths.tolist()) == (2, [2] * 4)


def test_groups_must_divide_the_words():
    with raises_rule(CorruptError, "CBK-01"):
        FixedWidth.read_tables(tables(n_groups=4), TensorLayout(F32, 6, 2))
    with raises_rule(CorruptError, "CBK-01"):
        FixedWidth.read_tables(tables(n_groups=7), TensorLayout(F32, 6, 2))
    with raises_rule(CorruptError, "TAB-01"):
        FixedWidth.read_tables(tables(n_groups=8), TensorLayout(F32, 6, 2))


@pytest.mark.parametrize(
    ("n_groups", "n_labels", "n_words"),
    [
        (1 << 17, 1, 1 << 17),
        (1 << 15, 3, 1 << 20),
        (17, 4096, 17 << 20),
        (1 << 60, 2, 1 << 60),
        (4, 3, 8),
        (5, 2, 5),
    ],
)
def test_codebooks_are_bounded_before_they_are_allocated(n_groups, n_labels, n_words):
    with raises_rule(CorruptError, "CBK-02"):
        FixedWidth.read_tables(tables(n_groups=n_groups), TensorLayout(F32, n_words, n_labels))


def test_a_single_codebook_may_be_larger_than_its_tensor(kernel):
    coder = FixedWidth.read_tables(tables(), TensorLayout(F32, 1, 2))
    assert decode(coder, b"\x80", 0, 1, 4).tolist() == [10]


def test_zero_stands_apart_or_in_the_codebook_not_both():
    with raises_rule(CorruptError, "CBK-03"):
        FixedWidth.read_tables(tables(has_zero=1, rows=((0, 0, 0, 5),)), TensorLayout(F32, 6, 3))
    coder = FixedWidth.read_tables(tables(has_zero=0, rows=((0, 0, 0, 5),)), TensorLayout(F32, 6, 2))
    assert coder.codebook.lookup.tolist() == [[0, 6]]


def test_only_zero_needs_no_codebook(kernel):
    coder = FixedWidth.read_tables(tables(has_zero=1, rows=((0, 0),)), TensorLayout(F32, 6, 1))
    assert decode(coder, b"\x00", 0, 6, 4).tolist() == [0] * 6


@pytest.mark.parametrize(
    ("block", "code", "rule"),
    [(2, [1, 1, 1, 1], "HUF-02"), (13, [1, 1], "HUF-01"), (15, [1, 1], "TAB-01"), (1, [0, 0], "HUF-01")],
)
def test_illegal_label_codes_are_refused(block, code, rule):
    with raises_rule(CorruptError, rule):
        Labels.read_tables(tables(block=block, code=code), TensorLayout(F32, 6, 2))


def test_codebook_gathers_across_groups(kernel):
    rows = np.arange(12, dtype=word_dtype(4)).reshape(3, 4) + 100
    codebook = Codebook(F32, rows, False, 9)
    labels = np.array([0, 1, 2, 3, 0, 1, 2, 3, 0], np.uint16)
    for first in range(9):
        for last in range(first, 10):
            out = np.zeros(last - first, np.uint32)
            codebook.gather(labels[first:last], first, out, kernel)
            assert out.tolist() == [int(rows[k // 3, labels[k]]) for k in range(first, last)]
