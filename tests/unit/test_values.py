from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcompress.values import find_values
from tests.strategies import random_words, seeds, sizes


@given(st.sampled_from([1, 2, 4, 8]), st.integers(1, 200), sizes, seeds)
def test_values_are_the_distinct_words(n_bytes, n_values, n_words, seed):
    rng = np.random.default_rng(seed)
    words = rng.choice(random_words(rng, n_values, n_bytes), n_words)
    distinct = np.unique(words)
    values, labels = find_values(words, distinct.size)
    assert labels.dtype == np.uint16
    assert values.dtype == words.dtype
    np.testing.assert_array_equal(np.sort(values), distinct)
    np.testing.assert_array_equal(values[labels], words)
    assert find_values(words, distinct.size - 1) is None


def test_both_zeros_and_every_nan_are_values_of_their_own():
    floats = np.array([0.0, -0.0, np.nan, np.inf], np.float32)
    words = np.append(floats.view(np.uint32), np.uint32(0x7FC00001))
    values, _ = find_values(words, 5)
    assert values.size == 5


def test_no_words_have_no_values():
    values, labels = find_values(np.zeros(0, np.uint32), 4)
    assert values.size == labels.size == 0


@pytest.mark.parametrize("n_bytes", [1, 2, 4, 8])
def test_values_that_a_sample_misses_are_found(kernel, n_bytes):
    words = np.zeros(300_000, f"<u{n_bytes}")
    words[::3] = 7
    words[[5, 99_999, 299_999]] = [9, 200, 131]
    values, labels = find_values(words, 5)
    np.testing.assert_array_equal(np.sort(values), [0, 7, 9, 131, 200])
    np.testing.assert_array_equal(values[labels], words)
    assert find_values(words, 4) is None


def test_late_values_are_found_in_long_tensors(kernel):
    # Beyond the first block of the search; each block adds some.
    words = np.zeros(2_200_000, np.uint16)
    words[1_100_001:1_100_020] = np.arange(19) + 3
    words[2_199_999] = 9999
    values, labels = find_values(words, 100)
    np.testing.assert_array_equal(np.sort(values), np.unique(words))
    np.testing.assert_array_equal(values[labels], words)


def test_the_most_values_that_labels_can_name(kernel):
    words = np.random.default_rng(0).permutation(np.arange(1 << 16, dtype=np.uint16))
    values, labels = find_values(words, 1 << 16)
    np.testing.assert_array_equal(values[labels], words)
