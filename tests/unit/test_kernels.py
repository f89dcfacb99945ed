from __future__ import annotations

import numpy as np
import pytest

from dcompress import kernels
from dcompress.coding.huffman import HuffmanCode
from dcompress.coding.lanes import lane_counts
from dcompress.errors import DcompressError
from dcompress.kernels import reference
from tests.checks import Guarded
from tests.strategies import complete_lengths

jit = pytest.importorskip("dcompress.kernels.jit")

STATUSES = {reference.OK, reference.SHORT, reference.SURPLUS, reference.PADDING, reference.OVERRUN}
AROUND_LANES = [0, 1, 2, 7, 1022, 1023, 1024, 1025, 1027, 4095, 4096, 5001]


def a_code(n_used, seed, limit=15):
    rng = np.random.default_rng(seed)
    return HuffmanCode(np.array(complete_lengths(n_used, rng, limit), np.uint8))


def packed(code, symbols):
    """Lay symbols out in lanes: the stream, where each lane ends, the symbols of each."""
    counts = lane_counts(symbols.size)
    stops = np.cumsum(counts)
    codes, bits = code.assign_codes().astype(np.uint64), code.bits
    lanes = [reference.pack_bits(codes[part], bits[part]).tobytes() for part in np.split(symbols, stops[:-1])]
    ends = np.cumsum([len(lane) for lane in lanes]).astype(np.int64)
    return np.frombuffer(b"".join(lanes), np.uint8), ends, counts


def run_tables(n_buckets, n_columns, raw_bits):
    place = np.arange(n_buckets * n_columns + 1)
    runs = (place // n_columns) << raw_bits
    labels = (place % n_columns + 1).astype(np.uint16)
    runs[-1], labels[-1] = (n_buckets - 1) << raw_bits, 0
    return runs, labels


def decode_runs(kernel, lanes, starts, table, lookup, out, first_word=0):
    """Decode entries of one symbol each; check the tally, which is only worth something if all went well."""
    tally = np.zeros(2, np.uint64)
    out[:] = 0
    status = kernel.decode_runs(*lanes, starts, table, lookup, first_word, out, tally)
    check_tally(status, out, first_word, tally)
    return status


def decode_split_runs(kernel, lanes, starts, tables, raw_bits, lookup, out, first_word=0):
    """Decode entries of two symbols each, as above."""
    tally = np.zeros(2, np.uint64)
    out[:] = 0
    status = kernel.decode_split_runs(*lanes, starts, *tables, raw_bits, lookup, first_word, out, tally)
    check_tally(status, out, first_word, tally)
    return status


def check_tally(status, out, first_word, tally):
    assert status in STATUSES
    if status == reference.OK:
        total = reference.partial_checksum(out.view(np.uint8), first_word * out.itemsize // 4)
        assert tally.tolist() == [total, np.count_nonzero(out)]


# Which kernels are chosen.


@pytest.fixture
def unloaded(monkeypatch):
    monkeypatch.delenv("DCOMPRESS_KERNELS", raising=False)
    monkeypatch.setattr(kernels, "_loaded", [])
    monkeypatch.setattr(kernels, "_expected", [0])
    monkeypatch.setattr(kernels, "_expected", [0])


def test_small_work_is_done_in_numpy(unloaded):
    assert kernels.select(kernels.JIT_MIN_WORK - 1) is reference


def test_large_work_is_done_in_numba(unloaded):
    assert kernels.select(kernels.JIT_MIN_WORK) is jit


def test_small_calls_add_up(unloaded):
    kernels.expect(kernels.JIT_MIN_WORK - 1)
    assert kernels.select(10) is reference
    kernels.expect(1)
    assert kernels.select(10) is jit


def test_numba_serves_every_size_once_it_is_loaded(unloaded):
    kernels.select(kernels.JIT_MIN_WORK)
    assert kernels.select(0) is jit


def test_without_numba_all_work_is_done_in_numpy(unloaded, monkeypatch):
    monkeypatch.setattr(kernels.util, "find_spec", lambda name: None)
    assert kernels.select(1 << 60) is reference


def test_the_environment_overrides_the_choice(unloaded, monkeypatch):
    monkeypatch.setenv("DCOMPRESS_KERNELS", "numpy")
    assert kernels.select(1 << 60) is reference
    monkeypatch.setenv("DCOMPRESS_KERNELS", "numba")
    assert kernels.select(0) is jit


def test_both_modules_have_the_same_functions():
    functions = {name for name in reference.__all__ if name[0].islower()}
    assert functions == {name for name in functions if callable(getattr(jit, name, None))}


# Sizes around the number of lanes and the unrolled loops.


@pytest.mark.parametrize("n_symbols", AROUND_LANES)
@pytest.mark.parametrize(
    ("n_used", "dtype"), [(2, np.uint8), (40, np.uint8), (200, np.uint8), (700, np.uint16)]
)
def test_symbols_decode_at_every_size(kernel, n_symbols, n_used, dtype):
    code = a_code(n_used, seed=n_used)
    symbols = np.random.default_rng(n_symbols).integers(0, n_used, n_symbols)
    out = Guarded(n_symbols, dtype)
    width = out.words.itemsize
    table = kernel.symbol_table(*code.windows(), code.max_length, width)
    assert kernel.decode_symbols(*packed(code, symbols), table, out.words) == reference.OK
    assert out.intact
    np.testing.assert_array_equal(out.words, symbols)


@pytest.mark.parametrize("n_entries", AROUND_LANES)
@pytest.mark.parametrize("raw_bits", [0, 3, 7])
def test_runs_decode_at_every_size(kernel, n_entries, raw_bits):
    n_buckets, n_columns = 4, 5
    code = a_code(n_buckets * n_columns + 1, seed=7)
    rng = np.random.default_rng(n_entries)
    symbols = rng.integers(0, code.code_lengths.size, n_entries)
    raws = rng.integers(0, 1 << raw_bits, n_entries)
    values = code.assign_codes().astype(np.uint64)[symbols] << np.uint64(raw_bits) | raws.astype(np.uint64)
    counts = lane_counts(n_entries)
    stops = np.cumsum(counts)[:-1]
    lanes = [
        reference.pack_bits(v, w).tobytes()
        for v, w in zip(
            np.split(values, stops),
            np.split((code.bits[symbols] + raw_bits).astype(np.uint8), stops),
            strict=True,
        )
    ]
    ends = np.cumsum([len(lane) for lane in lanes]).astype(np.int64)
    runs, labels = run_tables(n_buckets, n_columns, raw_bits)
    positions = np.cumsum(runs[symbols] + raws + 1) - 1
    n_words = int(positions[-1]) + 4 if n_entries else 3
    starts = np.array([0, *(positions[stops - 1] + 1)] if stops.size else [0], np.int64)
    lookup = rng.integers(1, 2**32, n_columns + 1, np.uint32)
    lookup[0] = 0
    want = np.zeros(n_words, np.uint32)
    want[positions] = lookup[labels[symbols]]

    out = Guarded(n_words, np.uint32, zero=True)
    table = kernel.run_table(*code.windows(), code.max_length, runs, labels, raw_bits)
    stream = np.frombuffer(b"".join(lanes), np.uint8)
    lanes = (stream, ends, counts)
    assert decode_runs(kernel, lanes, starts, table, lookup, out.words, first_word=8) == reference.OK
    assert out.intact
    np.testing.assert_array_equal(out.words, want)


def test_runs_whose_only_symbol_takes_no_bits_decode(kernel):
    # The 64-bit window of the compiled kernel must not be shifted by all its 64 bits.
    code = HuffmanCode(np.array([1, 0, 0], np.uint8))
    table = kernel.run_table(*code.windows(), 0, np.array([0, 8, 8]), np.array([1, 1, 0], np.uint16), 3)
    out = Guarded(20, np.uint32, zero=True)
    stream = np.frombuffer(bytes([0b00101011, 0b10000000]), np.uint8)
    lookup = np.array([0, 7], np.uint32)
    lanes = (stream, np.array([2]), np.array([4]))
    assert decode_runs(kernel, lanes, np.array([0]), table, lookup, out.words) == reference.OK
    assert out.intact
    assert np.flatnonzero(out.words).tolist() == [1, 4, 12, 13]


# Each fault has its status.


def lane_case(bits, n_symbols):
    data = np.packbits(np.array([int(bit) for bit in bits], np.uint8))
    return np.frombuffer(data.tobytes(), np.uint8), np.array([data.size]), np.array([n_symbols])


@pytest.mark.parametrize(
    ("bits", "n_symbols", "status"),
    [
        ("0" * 8, 8, reference.OK),
        ("10" * 4, 4, reference.OK),
        ("10", 1, reference.OK),
        ("10", 9, reference.SHORT),
        ("1" * 8, 5, reference.SHORT),
        ("", 1, reference.SHORT),
        ("", 0, reference.OK),
        ("0" * 8, 0, reference.SURPLUS),
        ("0" * 16, 8, reference.SURPLUS),
        ("0" * 16, 9, reference.OK),
        ("00000001", 7, reference.PADDING),
        ("01000000", 1, reference.PADDING),
    ],
)
def test_symbol_faults(kernel, bits, n_symbols, status):
    code = HuffmanCode(np.array([1, 2, 2], np.uint8))
    table = kernel.symbol_table(*code.windows(), code.max_length, 1)
    out = Guarded(n_symbols, np.uint8)
    assert kernel.decode_symbols(*lane_case(bits, n_symbols), table, out.words) == status
    assert out.intact


@pytest.mark.parametrize(
    ("bits", "n_symbols", "n_words", "status"),
    [
        ("0000", 4, 4, reference.OK),
        ("0000", 4, 9, reference.OK),
        ("0000", 4, 3, reference.OVERRUN),
        ("1010", 2, 4, reference.OK),
        ("1010", 2, 3, reference.OVERRUN),
        ("10", 1, 1, reference.OVERRUN),
        ("0", 1, 0, reference.OVERRUN),
        ("", 0, 0, reference.OK),
        ("", 1, 5, reference.SHORT),
        ("0" * 16, 4, 9, reference.SURPLUS),
        ("00001", 4, 9, reference.PADDING),
    ],
)
def test_run_faults(kernel, bits, n_symbols, n_words, status):
    # Code 0: a kept word at once; 10: one after a zero; 11: a filler of two zeros.
    code = HuffmanCode(np.array([1, 2, 2], np.uint8))
    runs, labels = run_tables(2, 1, 0)
    table = kernel.run_table(*code.windows(), code.max_length, runs, labels, 0)
    out = Guarded(n_words, np.uint32, zero=True)
    lookup = np.array([0, 9], np.uint32)
    start = np.zeros(1, np.int64)
    assert decode_runs(kernel, lane_case(bits, n_symbols), start, table, lookup, out.words) == status
    assert out.intact


@pytest.mark.parametrize(
    ("bits", "n_symbols", "n_words", "status"),
    [
        ("0101", 2, 2, reference.OK),
        ("0101", 2, 1, reference.OVERRUN),
        ("1111", 2, 4, reference.OK),
        ("1111", 2, 3, reference.OVERRUN),
        ("0", 0, 3, reference.SURPLUS),
        ("", 1, 3, reference.SHORT),
        ("01000000" * 2, 1, 3, reference.SURPLUS),
        ("01000001", 1, 3, reference.PADDING),
    ],
)
def test_split_run_faults(kernel, bits, n_symbols, n_words, status):
    code = HuffmanCode(np.array([1, 1], np.uint8))
    table = kernel.symbol_table(*code.windows(), 1, 2)
    lanes = lane_case(bits, n_symbols)
    out = Guarded(n_words, np.uint32, zero=True)
    lookup = np.array([0, 9], np.uint32)
    start = np.zeros(1, np.int64)
    assert decode_split_runs(kernel, lanes, start, (table, table), 0, lookup, out.words) == status
    assert out.intact


@pytest.mark.parametrize("wrong_by", [0, 1, -1])
def test_lanes_that_do_not_meet_overrun(kernel, wrong_by):
    # All bits are zero, and a zero keeps a word at once: every lane covers 256 words.
    code = HuffmanCode(np.array([1, 1], np.uint8))
    counts = lane_counts(1024)
    starts = np.arange(4) * 256 + np.array([0, 0, wrong_by, 0])
    status = reference.OVERRUN if wrong_by else reference.OK
    lookup = np.array([0, 9], np.uint32)
    out = Guarded(1024, np.uint32, zero=True)

    lanes = np.frombuffer(bytes(4 * 32), np.uint8), np.arange(1, 5) * 32, counts
    table = kernel.run_table(*code.windows(), 1, *run_tables(1, 1, 0), 0)
    assert decode_runs(kernel, lanes, starts, table, lookup, out.words) == status

    out = Guarded(1024, np.uint32, zero=True)
    lanes = np.frombuffer(bytes(4 * 64), np.uint8), np.arange(1, 5) * 64, counts
    table = kernel.symbol_table(*code.windows(), 1, 2)
    assert decode_split_runs(kernel, lanes, starts, (table, table), 0, lookup, out.words) == status
    assert out.intact


# Streams that nobody encoded.


def hostile_lanes(rng, n_symbols, n_bytes):
    counts = lane_counts(n_symbols)
    cuts = np.sort(rng.integers(0, n_bytes + 1, counts.size - 1))
    stream = rng.integers(0, 256, n_bytes).astype(np.uint8)
    if rng.random() < 0.3:
        stream[:] = rng.choice([0, 255])
    return np.frombuffer(stream.tobytes(), np.uint8), np.append(cuts, n_bytes).astype(np.int64), counts


@pytest.mark.parametrize("seed", range(120))
def test_hostile_streams_get_a_status_and_write_nowhere_else(kernel, seed):
    rng = np.random.default_rng(seed)
    n_symbols = int(rng.choice([1, 5, 900, 1024, 1030, 3000]))
    # About as many bytes as the symbols want, so that decoding gets far; sometimes far too few or many.
    n_used = int(rng.choice([2, 3, 17, 250]))
    code = a_code(n_used, seed)
    n_bytes = int(n_symbols * np.log2(n_used) / 8 * rng.choice([0, 0.3, 1, 1.1, 3]))
    lanes = hostile_lanes(rng, n_symbols, n_bytes)

    out = Guarded(n_symbols, np.uint8)
    table = kernel.symbol_table(*code.windows(), code.max_length, 1)
    assert kernel.decode_symbols(*lanes, table, out.words) in STATUSES
    assert out.intact

    raw_bits = int(rng.choice([0, 1, 5, 12]))
    n_buckets = max(1, (n_used - 1) // 2)
    n_columns = (n_used - 1) // n_buckets
    code = a_code(n_buckets * n_columns + 1, seed)
    runs, labels = run_tables(n_buckets, n_columns, raw_bits)
    n_words = int(rng.choice([0, 1, n_symbols, 4 * n_symbols, n_symbols << raw_bits >> 1]))
    starts = np.sort(np.append(rng.integers(0, n_words + 1, lanes[1].size - 1), 0)).astype(np.int64)
    lookup = np.arange(n_columns + 1, dtype=np.uint32)  # label 0 is the zero
    out = Guarded(n_words, np.uint32, zero=True)
    table = kernel.run_table(*code.windows(), code.max_length, runs, labels, raw_bits)
    decode_runs(kernel, lanes, starts, table, lookup, out.words)
    assert out.intact
    out = Guarded(n_words, np.uint32, zero=True)

    run_code, label_code = a_code(n_buckets, seed), a_code(n_columns + 1, seed + 1)
    tables = [kernel.symbol_table(*c.windows(), c.max_length, 2) for c in (run_code, label_code)]
    decode_split_runs(kernel, lanes, starts, tables, raw_bits, lookup, out.words)
    assert out.intact


# The rest, against what it is defined to be.


@pytest.mark.parametrize("word_bytes", [1, 2, 4, 8])
@pytest.mark.parametrize("rotate", [False, True])
@pytest.mark.parametrize("n_words", [0, 1, 33])
def test_planes_are_joined(kernel, word_bytes, rotate, n_words):
    rng = np.random.default_rng(n_words)
    planes = [rng.integers(0, 256, n_words).astype(np.uint8) for _ in range(word_bytes)]
    bits = 8 * word_bytes
    want = []
    for row in zip(*planes, strict=True):
        word = sum(int(byte) << 8 * place for place, byte in enumerate(row))
        want.append(word >> 1 | (word & 1) << bits - 1 if rotate else word)
    out = Guarded(n_words, f"u{word_bytes}")
    kernel.join_planes(planes, rotate, out.words)
    assert out.intact
    assert out.words.tolist() == want


@pytest.mark.parametrize("n_bits", range(1, 17))
def test_fixed_widths_unpack_what_was_packed(kernel, n_bits):
    for n_values in (0, 1, 8, 33):
        values = np.random.default_rng(n_bits).integers(0, 1 << n_bits, n_values).astype(np.uint64)
        text = "".join(f"{value:0{n_bits}b}" for value in values.tolist())
        stream = kernel.pack_bits(values, np.full(n_values, n_bits, np.uint8))
        assert stream.tobytes() == np.packbits([int(bit) for bit in text] or np.zeros(0, np.uint8)).tobytes()
        out = Guarded(n_values, np.uint16)
        kernel.unpack_fixed(np.frombuffer(stream.tobytes(), np.uint8), n_bits, out.words)
        assert out.intact
        np.testing.assert_array_equal(out.words, values)


def test_only_the_low_bits_of_a_value_are_packed(kernel):
    values = np.array([2**64 - 1, 0b1010_0101, 2**56 - 1, 1], np.uint64)
    packed = kernel.pack_bits(values, np.array([3, 4, 0, 56], np.uint8))
    want = "111" + "0101" + "0" * 55 + "1" + "0"
    assert "".join(f"{byte:08b}" for byte in packed.tolist()) == want


def test_only_kernels_that_exist_can_be_asked_for(monkeypatch):
    monkeypatch.setenv("DCOMPRESS_KERNELS", "nmuba")
    with pytest.raises(DcompressError, match="'nmuba': it may be numpy, or numba"):
        kernels.select(0)
    monkeypatch.setenv("DCOMPRESS_KERNELS", "numba")
    monkeypatch.setattr(kernels, "_loaded", [])
    monkeypatch.setattr(kernels.util, "find_spec", lambda name: None)
    with pytest.raises(DcompressError, match="pip install numba"):
        kernels.select(0)
