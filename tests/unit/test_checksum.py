from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcompress.checksum import checksum, fold, partial_sum
from tests.checks import flipped


def by_definition(data, first_word=0):
    """Sum of little-endian 32-bit words, each times an odd multiplier that its number gives."""
    total = 0
    for start in range(0, len(data), 4):
        x = (first_word + start // 4 + 1) * 0x9E3779B1 & 0xFFFFFFFF
        x ^= x >> 15
        total += int.from_bytes(data[start : start + 4], "little") * x
    return total & 0xFFFFFFFFFFFFFFFF


@pytest.mark.parametrize("n_bytes", [0, 1, 2, 3, 4, 5, 7, 8, 9, 31, 32, 1000])
def test_checksum_is_what_it_is_defined_to_be(kernel, n_bytes):
    for data in (b"\x00" * n_bytes, b"\xff" * n_bytes, np.random.default_rng(n_bytes).bytes(n_bytes)):
        total = by_definition(data)
        assert partial_sum(data) == total
        assert checksum(data) == fold(total) == (total + (total >> 32)) & 0xFFFFFFFF


@pytest.mark.parametrize("first_word", [0, 1, 2**20 - 1, 2**31, 2**32 - 2, 2**32, 2**40 + 5])
def test_multipliers_count_on_from_the_first_word(kernel, first_word):
    data = np.random.default_rng(1).bytes(50)
    assert partial_sum(data, 4 * first_word) == by_definition(data, first_word)


def test_blocks_of_the_sum_join(kernel):
    # Longer than the block in which multipliers are made.
    data = np.random.default_rng(2).bytes(4 * (1 << 20) + 4003)
    cut = 4 * (1 << 20) - 400
    assert (partial_sum(data[:cut]) + partial_sum(data[cut:], cut)) % 2**64 == partial_sum(data)


@given(st.binary(max_size=200), st.data())
def test_partial_sums_add_up(data, draw):
    cuts = sorted(4 * draw.draw(st.integers(0, len(data) // 4)) for _ in range(3))
    edges = [0, *cuts, len(data)]
    parts = [partial_sum(data[a:b], a) for a, b in pairwise(edges)]
    assert fold(sum(parts)) == checksum(data)


@given(st.binary(min_size=1, max_size=60))
def test_every_flipped_bit_changes_the_checksum(data):
    right = checksum(data)
    assert right not in {checksum(flipped(data, bit)) for bit in range(8 * len(data))}


@given(st.binary(min_size=8, max_size=60), st.data())
def test_swapped_words_change_the_checksum(data, draw):
    n_words = len(data) // 4
    a, b = (4 * draw.draw(st.integers(0, n_words - 1)) for _ in range(2))
    swapped = bytearray(data)
    swapped[a : a + 4], swapped[b : b + 4] = data[b : b + 4], data[a : a + 4]
    assert (checksum(bytes(swapped)) == checksum(data)) == (bytes(swapped) == data)


@pytest.mark.parametrize("shift", range(4))
def test_bytes_need_not_be_aligned(kernel, shift):
    data = np.random.default_rng(3).bytes(103)
    assert checksum(memoryview(b"\x00" * shift + data)[shift:]) == checksum(data)


@pytest.mark.parametrize("dtype", ["u1", "<u2", "<u4", "<u8"])
def test_words_of_any_size_are_summed_as_their_bytes(kernel, dtype):
    words = np.random.default_rng(4).integers(0, 256, 64).astype(np.uint8).view(dtype)
    assert partial_sum(words) == partial_sum(words.tobytes())


@pytest.mark.parametrize("total", [0, 1, 2**32 - 1, 2**32, 2**64 - 1, 2**64, 5 * 2**64 + 2**40 + 3])
def test_fold_keeps_32_bits_of_64(total):
    assert fold(total) == ((total % 2**64) % 2**32 + (total % 2**64 >> 32)) % 2**32


def test_the_example_of_the_docstring():
    assert checksum(b"dcompress") == fold(by_definition(b"dcompress"))
