from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcompress.coding.huffman import HuffmanCode
from dcompress.coding.range_coder import SideReader, SideWriter
from dcompress.coding.tables import (
    _KIND_COUNT,
    ascending_order,
    even_step,
    even_values,
    may_be_even,
    read_code,
    read_codebook,
    read_even,
    write_code,
    write_codebook,
    write_even,
)
from dcompress.constants import DTYPE_BY_NAME, DTYPES, MAX_ALPHABET, WordKind
from dcompress.errors import CorruptError
from dcompress.kernels.side import KIND_GAP
from dcompress.stages import word_dtype
from tests.checks import error_of, raises_rule
from tests.strategies import code_lengths, dtypes, random_codebook, seeds


def codebook_bytes(dtype, values):
    writer = SideWriter()
    write_codebook(writer, dtype, values)
    return writer.finish()


def ascending(dtype, words):
    words = np.unique(np.asarray(words, word_dtype(dtype.word_bytes)))
    return words[ascending_order(dtype, words)]


def assert_codebook_round_trips(dtype, values):
    reader = SideReader(codebook_bytes(dtype, values))
    again = read_codebook(reader, dtype, values.size)
    reader.finish()
    assert again.dtype == values.dtype
    np.testing.assert_array_equal(again, values)


# Codebooks.


@given(dtypes, st.integers(0, 200), seeds)
def test_codebooks_round_trip(dtype, n_values, seed):
    n_values = min(n_values, 100 if dtype.word_bytes == 1 else n_values)
    values = random_codebook(np.random.default_rng(seed), dtype, 1, n_values, has_zero=False)[0]
    assert_codebook_round_trips(dtype, values)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
def test_extreme_words_round_trip(dtype):
    bits = 8 * dtype.word_bytes
    sign = 1 << (bits - 1)
    extremes = [0, 1, 2, sign - 2, sign - 1, sign, sign + 1, 2 * sign - 2, 2 * sign - 1]
    assert_codebook_round_trips(dtype, ascending(dtype, extremes))
    for word in extremes:
        assert_codebook_round_trips(dtype, ascending(dtype, [word]))


@pytest.mark.parametrize("name", ["bool", "int8", "uint8", "float8_e5m2"])
def test_all_bytes_round_trip(name):
    dtype = DTYPE_BY_NAME[name]
    assert_codebook_round_trips(dtype, ascending(dtype, range(256)))


def test_zeros_infinities_and_nans_round_trip_bit_for_bit():
    floats = np.array([-np.inf, -1e-45, -0.0, 0.0, 1e-45, np.inf, np.nan, -np.nan], np.float32)
    payloads = np.array([0x7F800001, 0x7FC12345, 0xFFC00001, 0xFFFFFFFF], np.uint32)
    dtype = DTYPE_BY_NAME["float32"]
    assert_codebook_round_trips(dtype, ascending(dtype, np.append(floats.view(np.uint32), payloads)))


@pytest.mark.parametrize(
    "name", ["float16", "float32", "float64", "int8", "int16", "int64", "uint16", "uint64"]
)
def test_order_is_that_of_the_values(name):
    dtype = DTYPE_BY_NAME[name]
    words = random_codebook(np.random.default_rng(3), dtype, 1, 60, has_zero=False)[0]
    values = np.random.default_rng(1).permutation(words).view(name)
    values = values[~np.isnan(values)] if dtype.kind is WordKind.FLOAT else values
    order = ascending_order(dtype, values.view(words.dtype))
    assert (np.diff(values[order].astype(object)) >= 0).all()


def test_minus_zero_comes_before_zero():
    dtype = DTYPE_BY_NAME["float32"]
    words = np.array([-0.0, 0.0, 1.0, -1.0], np.float32).view(np.uint32)
    assert ascending_order(dtype, words).tolist() == [3, 0, 1, 2]


def test_halves_in_a_float_codebook_cost_what_halves_cost():
    halves = np.unique(np.random.default_rng(0).normal(0, 0.05, 256).astype(np.float16))
    narrow = len(codebook_bytes(DTYPE_BY_NAME["float16"], halves.view(np.uint16)))
    floats = halves.astype(np.float32).view(np.uint32)
    wide = len(codebook_bytes(DTYPE_BY_NAME["float32"], floats))
    full = np.unique(np.random.default_rng(0).normal(0, 0.05, 256).astype(np.float32))
    assert wide <= 1.15 * narrow
    assert wide < 0.5 * len(codebook_bytes(DTYPE_BY_NAME["float32"], full.view(np.uint32)))


def test_evenly_spaced_values_are_nearly_free():
    dtype = DTYPE_BY_NAME["int64"]
    assert len(codebook_bytes(dtype, ascending(dtype, np.arange(-128, 128).view(np.uint64)))) < 20


def raw_codebook(n_negative, n_dropped, *gaps):
    """Write a codebook by hand: each gap as the change of its bit length."""
    writer = SideWriter()
    writer.number(_KIND_COUNT, n_negative)
    writer.number(_KIND_COUNT, n_dropped)
    last = 0
    for gap in gaps:
        change = gap.bit_length() - last
        last = gap.bit_length()
        writer.number(KIND_GAP, 2 * change if change >= 0 else -2 * change - 1)
        writer.raw(gap, max(0, last - 1))
    return SideReader(writer.finish())


@pytest.mark.parametrize(
    ("name", "n_centroids", "fields", "rule"),
    [
        ("uint8", 1, (1, 0, 0), "TAB-01"),
        ("int8", 1, (2, 0, 0), "TAB-01"),
        ("uint8", 1, (0, 9, 0), "TAB-01"),
        ("int8", 1, (0, 8, 0), "TAB-01"),
        ("uint8", 1, (0, 0, 256), "TAB-03"),
        ("int8", 1, (0, 0, 128), "TAB-03"),
        ("float16", 1, (1, 0, 0x8000), "TAB-03"),
        ("uint8", 1, (0, 7, 2), "TAB-03"),
        ("uint8", 3, (0, 0, 254, 0, 0), "TAB-03"),
        ("uint64", 2, (0, 0, 2**64 - 1, 0), "TAB-03"),
        ("uint64", 2, (0, 0, 2**63, 2**63), "TAB-03"),
    ],
)
def test_codebooks_that_do_not_fit_are_refused(name, n_centroids, fields, rule):
    with raises_rule(CorruptError, rule):
        read_codebook(raw_codebook(*fields), DTYPE_BY_NAME[name], n_centroids)


@pytest.mark.parametrize(
    ("name", "fields", "want"),
    [
        ("uint8", (0, 0, 255), [255]),
        ("uint8", (0, 7, 1), [128]),
        ("int8", (1, 0, 127), [0x80]),
        ("int8", (1, 0, 0), [0xFF]),
        ("float16", (1, 0, 0), [0x8000]),
        ("int16", (2, 0, 0, 0), [0xFFFE, 0xFFFF]),
        ("uint64", (0, 0, 2**64 - 1), [2**64 - 1]),
    ],
)
def test_codebooks_by_hand(name, fields, want):
    assert read_codebook(raw_codebook(*fields), DTYPE_BY_NAME[name], len(want)).tolist() == want


def test_a_gap_of_impossible_length_is_refused():
    writer = SideWriter()
    writer.number(_KIND_COUNT, 0)
    writer.number(_KIND_COUNT, 0)
    writer.number(KIND_GAP, 1)  # one bit less than none
    with raises_rule(CorruptError, "TAB-03"):
        read_codebook(SideReader(writer.finish()), DTYPE_BY_NAME["uint8"], 1)


@given(dtypes, st.integers(0, 40), st.binary(max_size=80))
def test_any_bytes_give_a_legal_codebook_or_an_error(dtype, n_centroids, data):
    error = error_of(read_codebook, SideReader(data), dtype, n_centroids)
    if error is not None:
        assert error.rule in {"TAB-01", "TAB-03"}
        return
    values = read_codebook(SideReader(data), dtype, n_centroids)
    np.testing.assert_array_equal(values, ascending(dtype, values))


# Code lengths.


def code_bytes(code, n_columns):
    writer = SideWriter()
    write_code(writer, code, n_columns)
    return writer.finish()


@given(code_lengths(), st.sampled_from([1, 2, 7, 16, 32, 1000]))
def test_codes_round_trip(lengths, n_columns):
    reader = SideReader(code_bytes(HuffmanCode(lengths), n_columns))
    np.testing.assert_array_equal(read_code(reader, lengths.size, n_columns).code_lengths, lengths)
    reader.finish()


@pytest.mark.parametrize("n_symbols", [1, 2, 3, 4095, 4096])
def test_codes_of_any_size_round_trip(n_symbols):
    code = HuffmanCode.from_counts(1 + np.random.default_rng(n_symbols).geometric(0.01, n_symbols))
    again = read_code(SideReader(code_bytes(code, 64)), n_symbols, 64)
    np.testing.assert_array_equal(again.code_lengths, code.code_lengths)


@pytest.mark.parametrize("n_symbols", [0, MAX_ALPHABET + 1, 1 << 60])
def test_alphabets_of_the_wrong_size_are_refused_before_they_are_read(n_symbols):
    with raises_rule(CorruptError, "HUF-01"):
        read_code(SideReader(b""), n_symbols, 16)


@pytest.mark.parametrize(
    ("lengths", "rule"), [([0, 0], "HUF-01"), ([1, 2], "HUF-02"), ([1, 1, 1], "HUF-02"), ([0, 3], "HUF-04")]
)
def test_illegal_codes_are_refused(lengths, rule):
    data = code_bytes(HuffmanCode(np.array(lengths, np.uint8)), 16)
    with raises_rule(CorruptError, rule):
        read_code(SideReader(data), len(lengths), 16)


@pytest.mark.parametrize("lengths", [[16, 1], [1, 17], [1, 200]])
def test_lengths_above_the_limit_are_refused(lengths):
    data = code_bytes(HuffmanCode(np.array(lengths, np.uint8)), 16)
    with raises_rule(CorruptError, "HUF-03"):
        read_code(SideReader(data), len(lengths), 16)


@given(st.integers(1, 300), st.integers(1, 20), st.binary(max_size=120))
def test_any_bytes_give_a_complete_code_or_an_error(n_symbols, n_columns, data):
    error = error_of(read_code, SideReader(data), n_symbols, n_columns)
    if error is not None:
        assert error.rule.startswith("HUF-")
        return
    code = read_code(SideReader(data), n_symbols, n_columns)
    assert code.code_lengths.size == n_symbols
    code.check()


def test_smooth_lengths_are_nearly_free():
    # 256 codes of 8 bits: what a codebook of equally used values has.
    assert len(code_bytes(HuffmanCode(np.full(256, 8, np.uint8)), 16)) < 12


# Even codebooks.

EVEN = [DTYPE_BY_NAME[name] for name in ("float16", "bfloat16", "float32")]


def even_bytes(bits, n_negative):
    writer = SideWriter()
    write_even(writer, np.uint32(bits).view(np.float32), n_negative)
    return writer.finish()


def test_only_three_types_can_be_even():
    assert [dtype for dtype in DTYPES if may_be_even(dtype, 1, True, 5)] == EVEN
    assert not may_be_even(EVEN[0], 2, True, 5)
    assert not may_be_even(EVEN[0], 1, False, 5)
    assert not may_be_even(EVEN[0], 1, True, 0)


def test_values_of_a_step():
    floats = np.arange(-3, 6)[np.arange(-3, 6) != 0] * 0.25
    for dtype, as_float in zip(EVEN, (np.float16, None, np.float32), strict=True):
        words = even_values(dtype, np.float32(0.25), 3, 8)
        if as_float is None:
            words = words.astype(np.uint32) << np.uint32(16)
        np.testing.assert_array_equal(words.view(as_float or np.float32), floats)


@given(
    st.sampled_from(EVEN), st.integers(1, 0x7F7FFFFF), st.integers(1, 200), st.floats(0, 1, allow_nan=False)
)
def test_steps_come_back(dtype, bits, n_values, share):
    n_negative = int(share * n_values)
    step = np.uint32(bits).view(np.float32)
    values = even_values(dtype, step, n_negative, n_values)
    reader = SideReader(even_bytes(bits, n_negative))
    if np.unique(values).size < n_values:
        with raises_rule(CorruptError, "CBK-04"):
            read_even(reader, dtype, n_values)
        return
    np.testing.assert_array_equal(read_even(reader, dtype, n_values), values)
    reader.finish()
    np.testing.assert_array_equal(values[ascending_order(dtype, values)], values)
    found = even_step(dtype, values, n_negative)
    if found is not None:  # it need not be the step that they were made of
        np.testing.assert_array_equal(even_values(dtype, found, n_negative, n_values), values)
    if dtype.name == "float32" and n_negative < n_values:
        assert found is not None


@pytest.mark.parametrize("bits", [0, 0x80000000, 0xBF800000, 0x7F800000, 0x7FC00000, 0xFFFFFFFF])
def test_steps_are_positive_and_finite(bits):
    with raises_rule(CorruptError, "CBK-04"):
        read_even(SideReader(even_bytes(bits, 0)), EVEN[2], 3)


def test_no_more_values_are_negative_than_there_are():
    assert (read_even(SideReader(even_bytes(0x3F800000, 3)), EVEN[2], 3) >> 31 == 1).all()
    with raises_rule(CorruptError, "TAB-01"):
        read_even(SideReader(even_bytes(0x3F800000, 4)), EVEN[2], 3)


def test_codebooks_of_nans_and_infinities_are_not_even():
    words = np.array([0xFF800000, 0x7F800000, 0x7F800001, 0x7FC00000], np.uint32)
    assert even_step(EVEN[2], words, 1) is None
    assert even_step(EVEN[2], words[2:], 0) is None
    assert even_step(EVEN[2], words[:1], 1) is None
