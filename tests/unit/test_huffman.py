from __future__ import annotations

import itertools
from fractions import Fraction
from functools import cache

import numpy as np
import pytest
from bitarray import bitarray
from bitarray.util import canonical_decode, huffman_code
from hypothesis import assume, given
from hypothesis import strategies as st

from dcompress.coding.huffman import HuffmanCode, fit_lengths, optimal_lengths
from dcompress.constants import MAX_ALPHABET, MAX_CODE_LENGTH
from dcompress.errors import CorruptError
from tests.checks import raises_rule
from tests.strategies import code_lengths, seeds

counts_lists = st.lists(
    st.integers(0, 1000) | st.sampled_from([1, 2, 4, 10**6, 10**12]), min_size=1, max_size=60
)


def kraft(lengths):
    return sum(Fraction(1, 1 << int(length)) for length in lengths if length)


def cost(counts, lengths):
    return int(np.asarray(counts) @ np.asarray(lengths, np.int64))


@cache
def complete_vectors(n_symbols, limit):
    """Every vector of code lengths of a complete code."""
    vectors = itertools.product(range(1, limit + 1), repeat=n_symbols)
    return np.array([v for v in vectors if sum(1 << (limit - x) for x in v) == 1 << limit])


def cheapest(counts, limit):
    """Cost of the best code by dynamic programming over (symbol, lengths so far, room left)."""
    ordered = sorted(counts, reverse=True)

    @cache
    def best(place, length, room):
        if place == len(ordered):
            return 0
        options = [
            ordered[place] * now + best(place + 1, now, room - (1 << (limit - now)))
            for now in range(length, limit + 1)
            if 1 << (limit - now) <= room
        ]
        return min(options, default=float("inf"))

    return best(0, 1, 1 << limit)


# Code lengths.


@given(counts_lists)
def test_lengths_make_a_complete_code_of_the_used_symbols(counts):
    counts = np.array(counts)
    lengths = optimal_lengths(counts)
    np.testing.assert_array_equal(lengths > 0, counts > 0)
    if np.count_nonzero(counts) > 1:
        assert kraft(lengths) == 1
    # More frequent symbols never have longer codes.
    order = np.argsort(-counts[counts > 0], kind="stable")
    ordered = counts[counts > 0][order], lengths[counts > 0][order].astype(int)
    for i in np.flatnonzero(np.diff(ordered[0])):
        assert ordered[1][i] <= ordered[1][i + 1]


@given(st.integers(2, 6).flatmap(lambda n: st.lists(st.integers(1, 60), min_size=n, max_size=n)), st.data())
def test_no_complete_code_under_the_limit_is_cheaper(counts, data):
    limit = data.draw(st.integers((len(counts) - 1).bit_length(), 5))
    lengths = optimal_lengths(np.array(counts), limit)
    assert lengths.max() <= limit
    assert cost(counts, lengths) == (complete_vectors(len(counts), limit) @ counts).min()


@given(st.lists(st.integers(1, 10**5), min_size=2, max_size=20), st.data())
def test_lengths_are_optimal_under_any_limit(counts, data):
    limit = data.draw(st.integers((len(counts) - 1).bit_length(), 7))
    lengths = optimal_lengths(np.array(counts), limit)
    assert lengths.max() <= limit
    assert cost(counts, lengths) == cheapest(tuple(counts), limit)


@given(st.lists(st.integers(1, 10**6), min_size=2, max_size=300))
def test_lengths_cost_what_huffman_costs_if_no_limit_binds(counts):
    code = huffman_code(dict(enumerate(counts)))
    assume(max(map(len, code.values())) <= MAX_CODE_LENGTH)
    want = sum(count * len(code[symbol]) for symbol, count in enumerate(counts))
    assert cost(counts, optimal_lengths(np.array(counts))) == want


def test_skewed_counts_meet_the_limit():
    fibonacci = [1, 1]
    while len(fibonacci) < 40:
        fibonacci.append(fibonacci[-1] + fibonacci[-2])
    lengths = optimal_lengths(np.array(fibonacci))
    assert lengths.max() == MAX_CODE_LENGTH
    assert kraft(lengths) == 1


@pytest.mark.parametrize("n_symbols", [2, 3, 4095, 4096])
def test_a_full_alphabet_fits_the_tightest_limit(n_symbols):
    limit = (n_symbols - 1).bit_length()
    lengths = optimal_lengths(np.arange(1, n_symbols + 1), limit)
    assert lengths.max() == limit
    assert kraft(lengths) == 1


@pytest.mark.parametrize(
    ("counts", "lengths"),
    [
        ([0, 0, 0], [0, 0, 0]),
        ([0, 9, 0], [0, 1, 0]),
        ([1, 1], [1, 1]),
        ([1, 10**12], [1, 1]),
        ([5, 0, 5, 5], [2, 0, 2, 1]),
        ([1, 1, 1, 1], [2, 2, 2, 2]),
        ([8, 3, 0, 1, 1], [1, 2, 0, 3, 3]),
    ],
)
def test_ties_are_resolved_by_symbol_number(counts, lengths):
    assert optimal_lengths(np.array(counts)).tolist() == lengths


@given(counts_lists)
def test_shorter_codes_are_taken_only_if_they_cost_next_to_nothing(counts):
    counts = np.array(counts)
    best, fitted = optimal_lengths(counts), fit_lengths(counts)
    assert cost(counts, best) <= cost(counts, fitted) <= 1.0005 * cost(counts, best)
    assert fitted.max(initial=0) <= best.max(initial=0)


# Codes.


@given(code_lengths(), seeds)
def test_codes_are_the_canonical_ones(lengths, seed):
    code = HuffmanCode(lengths)
    assume(code.lone_symbol is None)
    codes = [
        f"{value:0{n}b}" for value, n in zip(code.assign_codes().tolist(), lengths.tolist(), strict=True)
    ]
    # bitarray's decoder knows only how many codes there are of each length, and their symbols in order.
    count = np.bincount(lengths, minlength=MAX_CODE_LENGTH + 1)
    count[0] = 0
    used = np.flatnonzero(lengths)
    in_order = sorted(used.tolist(), key=lambda symbol: (lengths[symbol], symbol))
    sent = np.random.default_rng(seed).choice(used, 200).tolist() + in_order
    stream = bitarray("".join(codes[symbol] for symbol in sent))
    assert list(canonical_decode(stream, count.tolist(), in_order)) == sent
    assert not code.assign_codes()[lengths == 0].any()


@given(code_lengths())
def test_windows_begin_with_the_code_of_their_symbol(lengths):
    code = HuffmanCode(lengths)
    bits, symbols = code.windows()
    codes = code.assign_codes()
    assert bits.size == symbols.size == 1 << code.max_length
    windows = np.arange(bits.size)
    np.testing.assert_array_equal(windows >> (code.max_length - bits.astype(int)), codes[symbols])
    np.testing.assert_array_equal(bits, code.bits[symbols])
    assert set(symbols.tolist()) == set(np.flatnonzero(lengths).tolist())


@pytest.mark.parametrize("place", [0, 3])
def test_a_lone_symbol_takes_no_bits(place):
    lengths = np.zeros(5, np.uint8)
    lengths[place] = 1
    code = HuffmanCode(lengths)
    code.check()
    assert code.lone_symbol == place
    assert code.max_length == 0
    assert not code.bits.any()
    assert not code.assign_codes().any()
    bits, symbols = code.windows()
    assert (bits.tolist(), symbols.tolist()) == ([0], [place])


@given(counts_lists.filter(any))
def test_codes_of_counts_pass_their_own_check(counts):
    code = HuffmanCode.from_counts(np.array(counts))
    code.check()
    assert (code.lone_symbol is not None) == (sum(map(bool, counts)) == 1)


# Which code lengths are legal.


@pytest.mark.parametrize("n_symbols", range(6))
def test_exactly_the_complete_codes_are_accepted(n_symbols):
    for lengths in itertools.product(range(6), repeat=n_symbols):
        used = [length for length in lengths if length]
        legal = used == [1] if len(used) <= 1 else kraft(used) == 1
        try:
            HuffmanCode(np.array(lengths, np.uint8)).check()
        except CorruptError:
            assert not legal, lengths
        else:
            assert legal, lengths


@pytest.mark.parametrize(
    ("lengths", "rule"),
    [
        ([], "HUF-01"),
        ([0, 0], "HUF-01"),
        ([12] * 4096 + [0], "HUF-01"),
        ([1, 1, 1], "HUF-02"),
        ([1, 2], "HUF-02"),
        ([15] * 4096, "HUF-02"),
        ([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 16], "HUF-03"),
        ([255, 1], "HUF-03"),
        ([0, 2], "HUF-04"),
        ([15], "HUF-04"),
    ],
)
def test_illegal_lengths_are_named_by_their_rule(lengths, rule):
    with raises_rule(CorruptError, rule):
        HuffmanCode(np.array(lengths, np.uint8)).check()


def test_the_largest_codes_are_legal():
    HuffmanCode(np.full(MAX_ALPHABET, 12, np.uint8)).check()
    HuffmanCode(np.array([*range(1, MAX_CODE_LENGTH), MAX_CODE_LENGTH, MAX_CODE_LENGTH], np.uint8)).check()


def test_too_many_symbols_for_a_limit():
    assert optimal_lengths(np.ones(8, np.int64), 3).tolist() == [3] * 8
    with pytest.raises(ValueError, match="9 symbols have no code of at most 3 bits"):
        optimal_lengths(np.ones(9, np.int64), 3)
