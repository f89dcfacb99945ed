from __future__ import annotations

import numpy as np

from dcompress.coding.symbols import (
    BUCKET_BASES,
    BUCKET_OF,
    BUCKET_RAW_BITS,
    MAX_MAGNITUDE,
    N_BUCKETS,
    N_SYMBOLS,
    SYMBOL_BASES,
    SYMBOL_RAW_BITS,
    grid_of,
    symbol_of,
)


def test_buckets_cover_all_magnitudes_without_gaps():
    sizes = 1 << BUCKET_RAW_BITS.astype(int)
    assert (BUCKET_BASES[0], BUCKET_BASES[-1] + sizes[-1] - 1) == (0, MAX_MAGNITUDE)
    np.testing.assert_array_equal(BUCKET_BASES[1:], BUCKET_BASES[:-1] + sizes[:-1])
    np.testing.assert_array_equal(BUCKET_OF, np.repeat(np.arange(N_BUCKETS), sizes))


def test_buckets_with_raw_bits_start_at_even_magnitudes():
    # So the lowest raw bit is the parity of a magnitude, by which the trellis goes on.
    wide = BUCKET_RAW_BITS > 0
    assert not (BUCKET_BASES[wide] % (1 << BUCKET_RAW_BITS[wide].astype(int))).any()
    np.testing.assert_array_equal(BUCKET_OF[:8], np.arange(8))


def test_every_integer_comes_back():
    grid = np.arange(-MAX_MAGNITUDE, MAX_MAGNITUDE + 1)
    symbols, raw = symbol_of(grid)
    assert (symbols.min(), symbols.max()) == (0, N_SYMBOLS - 1)
    assert (raw < 1 << SYMBOL_RAW_BITS[symbols].astype(int)).all()
    np.testing.assert_array_equal(np.abs(grid) - raw, SYMBOL_BASES[symbols])
    np.testing.assert_array_equal(grid_of(symbols, raw), grid)


def test_symbols_of_small_integers():
    symbols, _ = symbol_of(np.array([0, 1, -1, 2, -2, 8, 9, 10, -10]))
    assert symbols.tolist() == [0, 1, 2, 3, 4, 15, 15, 17, 18]
