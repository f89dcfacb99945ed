from __future__ import annotations

import numpy as np
import pytest

from dcompress.coding import Codebook, SplitRun, TensorLayout, ZeroRun, zero_run
from dcompress.coding.huffman import HuffmanCode
from dcompress.coding.range_coder import SideReader, SideWriter
from dcompress.coding.tables import write_code
from dcompress.coding.zero_run import RunStatistics
from dcompress.constants import DTYPE_BY_NAME, DTYPES
from dcompress.errors import CorruptError, TruncatedError
from dcompress.stages import SharedTensor
from tests.checks import check_coder, check_damage, decode, raises_rule, varint
from tests.strategies import random_codebook

F32 = DTYPE_BY_NAME["float32"]
KINDS = [ZeroRun, SplitRun]
CUTS = [(1, 0), (2, 0), (4, 1), (8, 3), (3, 7), (32, 0), (1, 12)]


def sparse(n_words, density, n_centroids=5, *, n_groups=1, dtype=F32, seed=0):
    rng = np.random.default_rng(seed)
    codebook = random_codebook(rng, dtype, n_groups, n_centroids, has_zero=True)
    labels = np.minimum(rng.geometric(0.3, n_words), n_centroids)
    labels[rng.random(n_words) >= density] = 0
    return SharedTensor(
        dtype, (n_words // dtype.words_per_element,), codebook, labels.astype(np.uint16), True
    )


def fitted(kind, tensor, n_buckets, raw_bits, chunk_words):
    statistics = RunStatistics(tensor.labels, tensor.n_labels, chunk_words)
    coder, cost = kind.fit(Codebook.of(tensor), statistics, n_buckets, raw_bits)
    return coder, cost


# The contract.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
def test_every_dtype_is_kept(kernel, kind, dtype):
    tensor = sparse(200, 0.3, dtype=dtype)
    check_coder(fitted(kind, tensor, 4, 1, 64)[0], tensor, 64, kernel)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n_buckets", "raw_bits"), CUTS)
@pytest.mark.parametrize("density", [0.004, 0.1, 0.6, 1.0])
def test_every_cut_is_kept(kernel, kind, n_buckets, raw_bits, density):
    tensor = sparse(6000, density)
    coder, _ = fitted(kind, tensor, n_buckets, raw_bits, 4096)
    if coder.usable:
        check_coder(coder, tensor, 4096, kernel)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_kept", [0, 1, 1022, 1023, 1024, 1025, 1026])
def test_entries_around_the_lane_threshold(kernel, kind, n_kept):
    tensor = sparse(9000, 0.4)
    coder, _ = fitted(kind, tensor, 6, 1, 3000)
    labels = np.zeros(3000, np.uint16)
    places = np.random.default_rng(n_kept).permutation(3000)[:n_kept]
    labels[places] = 1 + places % 5
    check_coder(coder, SharedTensor(F32, (3000,), tensor.codebook, labels, True), 3000, kernel)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk_words", [4, 50, 1024])
def test_groups_and_runs_end_with_their_chunk(kernel, kind, chunk_words):
    tensor = sparse(1200, 0.2, 4, n_groups=6)
    check_coder(fitted(kind, tensor, 3, 1, chunk_words)[0], tensor, chunk_words, kernel)


@pytest.mark.parametrize("kind", KINDS)
def test_long_runs_are_bridged_by_fillers(kernel, kind):
    labels = np.zeros(5000, np.uint16)
    labels[[0, 1, 700, 4999]] = [1, 2, 3, 1]
    tensor = SharedTensor(F32, (5000,), np.array([[7, 8, 9]], np.uint32), labels, True)
    coder, _ = fitted(kind, tensor, 4, 2, 5000)
    (chunk,) = check_coder(coder, tensor, 5000, kernel)
    assert chunk.startswith(varint(4 + 698 // 16 + 4298 // 16))


@pytest.mark.parametrize("n_words", [2, 3, 17, 3000])
@pytest.mark.parametrize("kind", KINDS)
def test_runs_that_reach_the_end_are_not_written(kernel, kind, n_words):
    labels = np.zeros(n_words, np.uint16)
    labels[0] = 2
    tensor = SharedTensor(F32, (n_words,), np.array([[7, 8]], np.uint32), labels, True)
    coder, _ = fitted(kind, tensor, 2, 1, n_words)
    (chunk,) = check_coder(coder, tensor, n_words, kernel)
    assert len(chunk) <= 3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("raw_bits", [1, 3])
def test_a_lone_symbol_with_raw_bits(kernel, kind, raw_bits):
    # One value, and runs that all fall into the first bucket: the codes take no bits.
    labels = np.zeros(6000, np.uint16)
    labels[1 :: 1 << raw_bits] = 1
    tensor = SharedTensor(F32, (6000,), np.array([[7]], np.uint32), labels, True)
    coder, cost = fitted(kind, tensor, 4, raw_bits, 6000)
    assert coder.usable
    assert cost == raw_bits * np.count_nonzero(labels)
    check_coder(coder, tensor, 6000, kernel)
    check_coder(coder, tensor, 700, kernel)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n_words", "cut"), [(60, (4, 0)), (90, (2, 2)), (1300, (2, 1))])
def test_damaged_chunks(kernel, kind, n_words, cut):
    tensor = sparse(n_words, 0.9 if n_words > 1000 else 0.4, 3)
    coder, _ = fitted(kind, tensor, *cut, n_words)
    (chunk,) = check_coder(coder, tensor, n_words, kernel)
    assert check_damage(coder, chunk, 0, n_words, 4)


# Costs.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n_buckets", "raw_bits"), CUTS)
def test_fit_costs_exactly_what_the_stream_takes(kind, n_buckets, raw_bits):
    tensor = sparse(30_000, 0.05)
    coder, cost = fitted(kind, tensor, n_buckets, raw_bits, 1 << 13)
    chunks = [coder.encode_chunk(tensor.labels[k : k + (1 << 13)]) for k in range(0, 30_000, 1 << 13)]
    # Beside the stream: number of entries, lane sizes and starts, whole bytes.
    assert 0 <= 8 * sum(map(len, chunks)) - cost <= 4 * 8 * (3 + 4 * 3 + 3 * 2 + 4)


def test_statistics_count_every_run_and_label():
    tensor = sparse(20_000, 0.01)
    statistics = RunStatistics(tensor.labels, tensor.n_labels, 3000)
    runs, labels = [], []
    for first in range(0, 20_000, 3000):
        part = tensor.labels[first : first + 3000]
        places = np.flatnonzero(part)
        runs += (np.diff(places, prepend=-1) - 1).tolist()
        labels += part[places].tolist()
    assert max(runs) > 256
    for n_buckets, raw_bits in CUTS:
        reach = n_buckets << raw_bits
        table, n_fillers = statistics.counts(n_buckets, raw_bits)
        want = np.zeros_like(table)
        for run, label in zip(runs, labels, strict=True):
            want[run % reach >> raw_bits, label - 1] += 1
        np.testing.assert_array_equal(table, want)
        assert n_fillers == sum(run // reach for run in runs)
    assert statistics.n_kept == len(runs)


def test_symbols_without_bits_are_unusable():
    labels = np.ones(100, np.uint16)
    tensor = SharedTensor(F32, (100,), np.array([[7]], np.uint32), labels, True)
    for kind in KINDS:
        assert not fitted(kind, tensor, 1, 0, 100)[0].usable
        assert fitted(kind, tensor, 1, 1, 100)[0].usable


# Chunks by hand. Codes: 0 = kept at once, 10 = kept after a zero, 11 = a filler of two zeros.


def by_hand(kind=ZeroRun):
    codebook = Codebook(F32, np.array([[7]], np.uint32), True, 9)
    if kind is ZeroRun:
        return ZeroRun(codebook, 2, 0, HuffmanCode(np.array([1, 2, 2], np.uint8)))
    # Run code: 0 or 1 zeros; label code: 0 = filler, 1 = kept.
    one_bit = HuffmanCode(np.array([1, 1], np.uint8))
    return SplitRun(codebook, 2, 0, one_bit, one_bit)


@pytest.mark.parametrize(
    ("chunk", "words"),
    [
        ("00 00", [0, 0, 0, 0, 0, 0, 0, 0, 0]),
        ("01 01 00", [7, 0, 0, 0, 0, 0, 0, 0, 0]),
        ("03 01 b0", [0, 7, 0, 0, 7, 0, 0, 0, 0]),
        ("06 02 fc 00", [0] * 6 + [7] * 3),
    ],
)
def test_zero_runs_by_hand(kernel, chunk, words):
    assert decode(by_hand(), bytes.fromhex(chunk), 0, 9, 4).tolist() == words


@pytest.mark.parametrize(
    ("chunk", "words"),
    [
        ("00 00", [0, 0, 0, 0, 0, 0, 0, 0, 0]),
        ("02 01 70", [7, 0, 7, 0, 0, 0, 0, 0, 0]),
        ("02 01 b0", [0, 0, 0, 7, 0, 0, 0, 0, 0]),
    ],
)
def test_split_runs_by_hand(kernel, chunk, words):
    assert decode(by_hand(SplitRun), bytes.fromhex(chunk), 0, 9, 4).tolist() == words


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("chunk", "error", "rule"),
    [
        ("", TruncatedError, "FRM-01"),
        ("0a 02 00 00", CorruptError, "NUM-02"),
        ("01 03 00", CorruptError, "NUM-02"),
        ("01 02 00", TruncatedError, "FRM-01"),
        ("01 00", CorruptError, "STR-01"),
        ("01 02 40 00", CorruptError, "STR-02"),
        ("00 01 00", CorruptError, "STR-02"),
        ("01 01 41", CorruptError, "STR-03"),
        ("05 02 aa 80", CorruptError, "RUN-01"),
        ("00 00 00", CorruptError, "RUN-03"),
    ],
)
def test_run_chunk_faults(kernel, kind, chunk, error, rule):
    # Five entries of two words each pass the end of nine words.
    with raises_rule(error, rule):
        decode(by_hand(kind), bytes.fromhex(chunk), 0, 9, 4)


@pytest.mark.parametrize("kind", KINDS)
def test_lanes_must_start_where_the_lane_before_ends(kernel, kind):
    # 1,024 kept words in a row; every lane covers 256 of them.
    coder = by_hand(kind)
    bits = 1 if kind is ZeroRun else 2
    lane = bytes(32) if kind is ZeroRun else b"\x55" * 64
    size = 32 * bits
    head = varint(1024) + bytes([size]) * 4

    def chunk(*starts):
        return head + b"".join(map(varint, starts)) + 4 * lane

    assert decode(coder, chunk(256, 256, 256), 0, 1024, 4).tolist() == [7] * 1024
    for starts in [(255, 257, 256), (256, 257, 256), (256, 256, 257), (256, 256, 512)]:
        with raises_rule(CorruptError, "RUN-01"):
            decode(coder, chunk(*starts), 0, 1024, 4)


def test_lanes_that_start_beyond_all_bounds_are_refused(kernel):
    chunk = varint(1024) + b"\x20" * 4 + varint(2**64 - 1) + b"\x00\x00" + bytes(128)
    with raises_rule(CorruptError, "RUN-01"):
        decode(by_hand(), chunk, 0, 1024, 4)


# Tables.


def tables(kind, *, has_zero=True, n_centroids=2, n_buckets=2, raw_bits=0, codes=None):
    writer = SideWriter()
    rows = np.arange(1, 1 + n_centroids, dtype=np.uint32)[None]
    Codebook(F32, rows, has_zero, 9).write(writer)
    writer.number(zero_run._KIND_BUCKETS, n_buckets - 1)
    writer.number(zero_run._KIND_RAW, raw_bits)
    columns = [n_centroids] if kind is ZeroRun else [n_buckets, n_centroids + 1]
    for code, n_columns in zip(codes or [], columns, strict=bool(codes)):
        write_code(writer, HuffmanCode(np.array(code, np.uint8)), n_columns)
    reader = SideReader(writer.finish())
    return kind.read_tables(reader, TensorLayout(F32, 9, n_centroids + has_zero))


GOOD = {ZeroRun: [[3, 3, 2, 2, 2]], SplitRun: [[1, 1], [2, 1, 2]]}


@pytest.mark.parametrize("kind", KINDS)
def test_tables_by_hand(kind):
    coder = tables(kind, codes=GOOD[kind], raw_bits=12)
    assert (coder.n_buckets, coder.raw_bits, coder.codebook.n_labels) == (2, 12, 3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"has_zero": False}, "RUN-02"),
        ({"n_centroids": 0}, "RUN-02"),
        ({"n_buckets": 4098}, "TAB-01"),
        ({"raw_bits": 13}, "TAB-01"),
        ({"n_buckets": 4097}, "HUF-01"),
    ],
)
def test_illegal_cuts_are_refused(kind, fields, rule):
    with raises_rule(CorruptError, rule):
        tables(kind, **fields)


@pytest.mark.parametrize(("kind", "codes"), [(ZeroRun, [[0, 0, 1, 0, 0]]), (SplitRun, [[1, 0], [0, 0, 1]])])
def test_entries_that_take_no_bits_are_refused(kind, codes):
    # Otherwise a few bytes could ask for any number of entries.
    with raises_rule(CorruptError, "RUN-04"):
        tables(kind, codes=codes)
    assert tables(kind, codes=codes, raw_bits=1).usable


@pytest.mark.parametrize(
    ("codes", "rule"), [([[1, 2], [1, 0, 1]], "HUF-02"), ([[1, 1], [1, 0, 2]], "HUF-02")]
)
def test_both_codes_are_checked(codes, rule):
    with raises_rule(CorruptError, rule):
        tables(SplitRun, codes=codes)
