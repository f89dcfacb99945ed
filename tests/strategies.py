"""Hypothesis strategies. Sizes and kinds are drawn; bulk data comes from a drawn seed, which is faster."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from dcompress.coding.tables import ascending_order
from dcompress.constants import DTYPES, MAX_CODE_LENGTH
from dcompress.stages import SharedTensor, TensorData, word_dtype

dtypes = st.sampled_from(DTYPES)
seeds = st.integers(0, 2**32 - 1)
# Around the bounds of lanes and of small chunks.
sizes = st.one_of(st.integers(1, 40), st.sampled_from([1020, 1023, 1024, 1025, 1027, 1500, 4096, 5000]))


def complete_lengths(n_used: int, rng, limit: int = MAX_CODE_LENGTH) -> list[int]:
    """Return the code lengths of a random complete code."""
    lengths = [0]
    while len(lengths) < n_used:
        place = int(rng.choice(np.flatnonzero(np.array(lengths) < limit)))
        lengths[place] += 1
        lengths.insert(place, lengths[place])
    return lengths if n_used > 1 else [1]


@st.composite
def code_lengths(draw, max_symbols: int = 300, limit: int = MAX_CODE_LENGTH):
    """Code lengths of a complete code, in an alphabet with unused symbols."""
    n_symbols = draw(st.integers(1, max_symbols))
    n_used = draw(st.integers(1, min(n_symbols, 1 << limit)))
    rng = np.random.default_rng(draw(seeds))
    lengths = np.zeros(n_symbols, np.uint8)
    lengths[rng.permutation(n_symbols)[:n_used]] = complete_lengths(n_used, rng, limit)
    return lengths


def random_words(rng, n_words: int, word_bytes: int) -> np.ndarray:
    """Return random words, many of them special: zero, all ones, sign bit alone, its complement."""
    words = rng.integers(0, 1 << 8 * word_bytes, n_words, np.uint64)
    sign = 1 << (8 * word_bytes - 1)
    special = np.array([0, (sign << 1) - 1, sign, sign - 1], np.uint64)
    words = np.where(rng.random(n_words) < 0.1, rng.choice(special, n_words), words)
    return words.astype(word_dtype(word_bytes))


def random_codebook(rng, dtype, n_groups: int, n_centroids: int, has_zero: bool) -> np.ndarray:
    """Return rows of distinct words in ascending order of value."""
    rows = np.empty((n_groups, n_centroids), word_dtype(dtype.word_bytes))
    for row in rows:
        words = np.unique(random_words(rng, 4 * n_centroids + 8, dtype.word_bytes))
        while words.size < n_centroids + has_zero:  # bytes, many of them
            words = np.unique(np.append(words, random_words(rng, n_centroids + 8, dtype.word_bytes)))
        if has_zero:
            words = words[words != 0]
        words = rng.permutation(words)[:n_centroids]
        row[:] = words[ascending_order(dtype, words)]
    return rows


@st.composite
def tensors(draw, dtype=dtypes, n_elements=sizes):
    """TensorData of any dtype, with few or many distinct words."""
    dtype = draw(dtype)
    n = draw(n_elements)
    rng = np.random.default_rng(draw(seeds))
    n_words = n * dtype.words_per_element
    words = random_words(rng, n_words, dtype.word_bytes)
    if draw(st.booleans()):
        words = rng.choice(words[: draw(st.integers(1, 9))], n_words)
    if draw(st.booleans()):
        words = np.where(rng.random(n_words) < 0.7, words.dtype.type(0), words)
    return TensorData(dtype, (n,), words)


@st.composite
def shared_tensors(draw, dtype=dtypes, n_words=sizes, max_centroids: int = 40, has_zero=None, groups=True):
    """SharedTensor of any dtype: dense or sparse, one codebook or one for each of several groups."""
    dtype = draw(dtype)
    n = draw(n_words) * dtype.words_per_element
    divisors = [d for d in range(1, min(n, 8) + 1) if n % d == 0]
    n_groups = draw(st.sampled_from(divisors)) if groups else 1
    zero = draw(st.booleans()) if has_zero is None else has_zero
    # A codebook is no larger than the tensor.
    n_centroids = draw(st.integers(1, min(max_centroids, n // n_groups)))
    rng = np.random.default_rng(draw(seeds))
    density = draw(st.sampled_from([0.003, 0.05, 0.4, 1.0])) if zero else 1.0
    codebook = random_codebook(rng, dtype, n_groups, n_centroids, zero)
    # Some labels are much more frequent than others, as with real weights.
    labels = np.minimum(rng.geometric(draw(st.sampled_from([0.1, 0.5])), n) - 1, n_centroids - 1) + zero
    if zero:
        labels[rng.random(n) >= density] = 0
    shape = (n // dtype.words_per_element,)
    return SharedTensor(dtype, shape, codebook, labels.astype(np.uint16), zero)
