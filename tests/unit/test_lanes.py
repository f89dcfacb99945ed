from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcompress.coding.lanes import check_status, lane_counts, pack_lanes, read_lanes
from dcompress.constants import LANE_THRESHOLD, N_LANES
from dcompress.cursor import Cursor
from dcompress.errors import CorruptError, TruncatedError
from dcompress.kernels import reference
from tests.checks import raises_rule, varint
from tests.strategies import seeds


@given(st.integers(0, 1 << 40) | st.integers(0, 5000))
def test_lanes_hold_all_symbols_in_equal_shares(n_symbols):
    counts = lane_counts(n_symbols)
    assert counts.sum() == n_symbols
    assert counts.size == (N_LANES if n_symbols >= LANE_THRESHOLD else 1)
    assert (counts[:-1] == counts[0]).all()
    assert 0 <= counts[0] - counts[-1] < N_LANES


@pytest.mark.parametrize(
    ("n_symbols", "counts"),
    [
        (0, [0]),
        (1023, [1023]),
        (1024, [256] * 4),
        (1025, [257, 257, 257, 254]),
        (1027, [257, 257, 257, 256]),
    ],
)
def test_lane_counts_around_the_threshold(n_symbols, counts):
    assert lane_counts(n_symbols).tolist() == counts


@given(st.sampled_from([0, 1, 1023, 1024, 1025, 3000]), st.integers(0, 30), seeds)
def test_lanes_are_packed_one_by_one(n_symbols, widest, seed):
    rng = np.random.default_rng(seed)
    widths = rng.integers(0, widest + 1, n_symbols).astype(np.uint8)
    values = rng.integers(0, 1 << 62, n_symbols, np.uint64) & ((np.uint64(1) << widths) - np.uint64(1))
    counts = lane_counts(n_symbols)
    extras = rng.integers(0, 1 << 40, counts.size - 1).tolist()
    packed = pack_lanes(values, widths, extras)
    cursor = Cursor(packed + b"next")
    stream, ends, got = read_lanes(cursor, counts.size, len(extras))
    assert got == extras
    assert cursor.remaining == 4
    assert ends[-1] == stream.size
    done = 0
    for start, stop, count in zip([0, *ends[:-1]], ends, counts, strict=True):
        part = slice(done, done + count)
        assert stream[start:stop].tobytes() == reference.pack_bits(values[part], widths[part]).tobytes()
        done += count


def test_lane_sizes_stand_first():
    widths = np.full(1024, 8, np.uint8)
    packed = pack_lanes(np.arange(1024, dtype=np.uint64), widths, [7, 300, 2])
    assert packed[:8] == varint(256) * 4
    assert packed[8:12] == varint(7) + varint(300) + varint(2)
    assert packed[12:] == bytes(range(256)) * 4


@pytest.mark.parametrize(
    ("data", "kind", "rule"),
    [
        (varint(5) + b"abcd", CorruptError, "NUM-02"),
        (varint(2) + varint(2) + b"abc", TruncatedError, "FRM-01"),
        (varint(2), CorruptError, "NUM-02"),
        (varint(2**64 - 1) + b"abc", CorruptError, "NUM-02"),
        (varint(1), TruncatedError, "FRM-01"),
        (b"", TruncatedError, "FRM-01"),
    ],
)
def test_lanes_longer_than_their_chunk_are_refused(data, kind, rule):
    n_lanes = 1 if rule == "NUM-02" else 2
    with pytest.raises((CorruptError, TruncatedError)) as caught:
        read_lanes(Cursor(data), n_lanes)
    assert caught.value.rule in {"NUM-02", "FRM-01"}


@pytest.mark.parametrize(
    ("status", "rule"),
    [
        (reference.SHORT, "STR-01"),
        (reference.SURPLUS, "STR-02"),
        (reference.PADDING, "STR-03"),
        (reference.OVERRUN, "RUN-01"),
    ],
)
def test_each_status_of_a_kernel_breaks_a_rule(status, rule):
    with raises_rule(CorruptError, rule):
        check_status(status)


def test_a_good_status_passes():
    check_status(reference.OK)
