"""The compiled kernels are never a different algorithm: same input, same output, as the NumPy ones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dcompress.coding.huffman import HuffmanCode
from dcompress.coding.lanes import lane_counts
from dcompress.coding.range_coder import CLASS_CONTEXTS
from dcompress.kernels import reference
from tests.checks import Guarded
from tests.strategies import code_lengths, random_words, seeds, sizes
from tests.unit.test_kernels import a_code, decode_runs, decode_split_runs, hostile_lanes, packed, run_tables

jit = pytest.importorskip("dcompress.kernels.jit")

BOTH = (reference, jit)
word_bytes = st.sampled_from([1, 2, 4, 8])


def agree(calls):
    """Run both kernels into guarded outputs; same verdict, and the same words if it is a good one."""
    statuses, outs = [], []
    for call, out in calls:
        statuses.append(call(out.words))
        outs.append(out)
        assert out.intact
    # A stream may break two rules; which is found first is not laid down.
    assert (statuses[0] == reference.OK) == (statuses[1] == reference.OK), statuses
    if statuses[0] == reference.OK:
        np.testing.assert_array_equal(outs[0].words, outs[1].words)
    return statuses[0]


@given(st.binary(max_size=300), st.integers(0, 2**40), st.integers(0, 3))
def test_partial_checksum(data, start, misaligned):
    view = np.frombuffer(b"\xee" * misaligned + data, np.uint8)[misaligned:]
    assert jit.partial_checksum(view, start) == reference.partial_checksum(view, start)


@given(code_lengths(600), sizes, seeds)
def test_decode_symbols(lengths, n_symbols, seed):
    code = HuffmanCode(lengths)
    assume(code.lone_symbol is None)  # takes no bits: coders never come to the kernel with it
    symbols = np.random.default_rng(seed).choice(np.flatnonzero(lengths), n_symbols)
    dtype = np.uint8 if lengths.size <= 256 else np.uint16
    calls = []
    for kernel in BOTH:
        table = kernel.symbol_table(*code.windows(), code.max_length, dtype().itemsize)
        out = Guarded(n_symbols, dtype)
        calls.append(
            (lambda words, k=kernel, t=table: k.decode_symbols(*packed(code, symbols), t, words), out)
        )
    assert agree(calls) == reference.OK
    np.testing.assert_array_equal(calls[1][1].words, symbols)


@settings(max_examples=200)
@given(st.data())
def test_decode_symbols_of_any_stream(data):
    seed, n_symbols = data.draw(seeds), data.draw(sizes)
    rng = np.random.default_rng(seed)
    code = a_code(data.draw(st.integers(2, 300)), seed)
    n_bytes = int(n_symbols * data.draw(st.sampled_from([0.1, 0.25, 0.5, 1.0, 1.5])))
    lanes = hostile_lanes(rng, n_symbols, n_bytes)
    dtype = np.uint8 if code.code_lengths.size <= 256 else np.uint16
    calls = []
    for kernel in BOTH:
        table = kernel.symbol_table(*code.windows(), code.max_length, dtype().itemsize)
        out = Guarded(n_symbols, dtype)
        calls.append((lambda words, k=kernel, t=table: k.decode_symbols(*lanes, t, words), out))
    agree(calls)


def nonzero_values(rng, n_values, n_bytes):
    """Return values by label; label 0 is the zero, and no other."""
    return np.append(np.zeros(1, f"<u{n_bytes}"), random_words(rng, n_values, n_bytes) | 1)


@st.composite
def run_streams(draw):
    """Lanes of (zero run, label) entries, right or, by way of a few flipped bits, wrong."""
    seed = draw(seeds)
    rng = np.random.default_rng(seed)
    n_entries = draw(sizes)
    raw_bits = draw(st.sampled_from([0, 1, 4] if n_entries > 40 else [0, 1, 4, 12]))
    n_bytes = draw(word_bytes)
    return seed, rng, raw_bits, n_entries, n_bytes, draw(st.sampled_from([0, 0, 1, 3]))


def laid_out(rng, values, widths, advances, n_flips):
    """Return stream, lane ends, lane counts and lane starts; and the words that all of it covers."""
    counts = lane_counts(values.size)
    stops = np.cumsum(counts)[:-1]
    lanes = [
        reference.pack_bits(v, w).tobytes()
        for v, w in zip(np.split(values, stops), np.split(widths, stops), strict=True)
    ]
    ends = np.cumsum([len(lane) for lane in lanes]).astype(np.int64)
    stream = bytearray(b"".join(lanes))
    for _ in range(n_flips if stream else 0):
        stream[rng.integers(len(stream))] ^= 1 << int(rng.integers(8))
    after = np.cumsum(advances)
    starts = np.append(0, after[stops - 1]).astype(np.int64)
    return np.frombuffer(bytes(stream), np.uint8), ends, counts, starts, int(after[-1])


@given(run_streams(), st.integers(1, 12), st.integers(1, 40))
def test_decode_runs(stream, n_buckets, n_columns):
    seed, rng, raw_bits, n_entries, n_bytes, n_flips = stream
    code = a_code(n_buckets * n_columns + 1, seed)
    symbols = rng.integers(0, code.code_lengths.size, n_entries)
    raws = rng.integers(0, 1 << raw_bits, n_entries).astype(np.uint64)
    values = code.assign_codes().astype(np.uint64)[symbols] << np.uint64(raw_bits) | raws
    runs, labels = run_tables(n_buckets, n_columns, raw_bits)
    advances = runs[symbols] + raws.astype(np.int64) + 1
    widths = (code.bits[symbols] + raw_bits).astype(np.uint8)
    *lanes, starts, n_words = laid_out(rng, values, widths, advances, n_flips)
    n_words += int(rng.integers(0, 3))
    lookup = nonzero_values(rng, n_columns, n_bytes)
    calls = []
    for kernel in BOTH:
        table = kernel.run_table(*code.windows(), code.max_length, runs, labels, raw_bits)
        out = Guarded(n_words, lookup.dtype, zero=True)
        calls.append(
            (lambda words, k=kernel, t=table: decode_runs(k, lanes, starts, t, lookup, words, 8), out)
        )
    status = agree(calls)
    assert n_flips or status == reference.OK


@given(run_streams(), st.integers(2, 40), st.integers(1, 300))
def test_decode_split_runs(stream, n_buckets, n_labels):
    seed, rng, raw_bits, n_entries, n_bytes, n_flips = stream
    run_code, label_code = a_code(n_buckets, seed), a_code(n_labels, seed + 1)
    buckets = rng.integers(0, n_buckets, n_entries)
    labels = rng.integers(0, n_labels, n_entries)
    raws = rng.integers(0, 1 << raw_bits, n_entries).astype(np.uint64)
    label_bits = label_code.bits[labels]
    values = run_code.assign_codes().astype(np.uint64)[buckets] << np.uint64(raw_bits) | raws
    values = values << label_bits.astype(np.uint64) | label_code.assign_codes().astype(np.uint64)[labels]
    widths = (run_code.bits[buckets] + raw_bits + label_bits).astype(np.uint8)
    advances = (buckets << raw_bits) + raws.astype(np.int64) + 1
    *lanes, starts, n_words = laid_out(rng, values, widths, advances, n_flips)
    lookup = nonzero_values(rng, n_labels - 1, n_bytes)
    calls = []
    for kernel in BOTH:
        tables = [kernel.symbol_table(*c.windows(), c.max_length, 2) for c in (run_code, label_code)]
        out = Guarded(n_words, lookup.dtype, zero=True)
        calls.append(
            (
                lambda words, k=kernel, t=tables: decode_split_runs(
                    k, lanes, starts, t, raw_bits, lookup, words, 8
                ),
                out,
            )
        )
    status = agree(calls)
    assert n_flips or status == reference.OK


@given(st.integers(1, 16), sizes, seeds)
def test_unpack_fixed(n_bits, n_values, seed):
    rng = np.random.default_rng(seed)
    stream = np.frombuffer(rng.bytes(-(-n_values * n_bits // 8)), np.uint8)
    outs = [Guarded(n_values, np.uint16) for _ in BOTH]
    for kernel, out in zip(BOTH, outs, strict=True):
        kernel.unpack_fixed(stream, n_bits, out.words)
        assert out.intact
    np.testing.assert_array_equal(outs[0].words, outs[1].words)


@given(word_bytes, st.sampled_from([np.uint8, np.uint16]), sizes, seeds)
def test_gather(n_bytes, label_type, n_words, seed):
    rng = np.random.default_rng(seed)
    lookup = random_words(rng, 200, n_bytes)
    labels = rng.integers(0, lookup.size, n_words).astype(label_type)
    for kernel in BOTH:
        out = Guarded(n_words, lookup.dtype)
        kernel.gather(lookup, labels, out.words)
        assert out.intact
        np.testing.assert_array_equal(out.words, lookup[labels])


@given(word_bytes, st.booleans(), sizes, seeds)
def test_join_planes(n_bytes, rotate, n_words, seed):
    rng = np.random.default_rng(seed)
    planes = [rng.integers(0, 256, n_words).astype(np.uint8) for _ in range(n_bytes)]
    outs = [Guarded(n_words, f"u{n_bytes}") for _ in BOTH]
    for kernel, out in zip(BOTH, outs, strict=True):
        kernel.join_planes(planes, rotate, out.words)
        assert out.intact
    np.testing.assert_array_equal(outs[0].words, outs[1].words)


@given(sizes, st.integers(0, 56), seeds)
def test_pack_bits(n_values, widest, seed):
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 2**64, n_values, np.uint64)
    widths = rng.integers(0, widest + 1, n_values).astype(np.uint8)
    packed = [kernel.pack_bits(values, widths).tobytes() for kernel in BOTH]
    assert packed[0] == packed[1]
    bits = "".join(
        f"{value & (1 << width) - 1:0{width}b}"
        for value, width in zip(values.tolist(), widths.tolist(), strict=True)
        if width
    )
    assert len(packed[0]) == -(-len(bits) // 8)
    assert "".join(f"{byte:08b}" for byte in packed[0]).startswith(bits)


@given(word_bytes, st.integers(1, 300), sizes, st.booleans(), seeds)
def test_label_words(n_bytes, n_values, n_words, complete, seed):
    rng = np.random.default_rng(seed)
    values = np.unique(random_words(rng, n_values, n_bytes))
    words = rng.choice(values, n_words)
    if not complete and values.size > 1:
        values = np.delete(values, rng.integers(values.size))
    places = rng.permutation(values.size).astype(np.uint16)
    for kernel in BOTH:
        labels = Guarded(n_words, np.uint16)
        found = kernel.label_words(words, values, places, labels.words)
        assert labels.intact
        missing = np.flatnonzero(~np.isin(words, values))
        assert found == (missing[0] if missing.size else n_words)
        np.testing.assert_array_equal(values[np.argsort(places)[labels.words[:found]]], words[:found])


@given(sizes, st.sampled_from([0.0, 0.02, 0.5, 1.0]), seeds)
def test_zero_runs(n_words, density, seed):
    rng = np.random.default_rng(seed)
    labels = np.where(rng.random(n_words) < density, rng.integers(1, 1 << 16, n_words), 0).astype(np.uint16)
    want, run = [], 0
    for label in labels.tolist():
        if label:
            want.append((run, label))
        run = 0 if label else run + 1
    for kernel in BOTH:
        runs, kept = kernel.zero_runs(labels)
        assert list(zip(runs.tolist(), kept.tolist(), strict=True)) == want


def damaged(data, n_flips, seed):
    """Return bytes with some bits flipped."""
    data = bytearray(data)
    rng = np.random.default_rng(seed)
    for _ in range(n_flips if data else 0):
        data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
    return np.frombuffer(bytes(data), np.uint8)


def both_read(name, data, *arguments, shape, dtype, fill=0):
    """Return status, what was read, and how much, the same from both kernels; None for what is refused."""
    results = []
    for kernel in BOTH:
        state = kernel.start_side(data)
        out = Guarded(int(np.prod(shape)), dtype)
        out.words[:] = fill
        status = getattr(kernel, name)(data, state, *arguments, out.words.reshape(shape))
        assert out.intact
        rest = kernel.bytes_used(state), int(kernel.read_raw(data, state, 30))
        results.append((status, (out.words.tolist(), rest) if status == reference.OK else None))
    assert results[0] == results[1]
    return results[0]


@given(code_lengths(), st.sampled_from([1, 2, 7, 16, 300]), st.integers(0, 2), seeds)
def test_code_lengths(lengths, n_columns, n_flips, seed):
    stored = [
        kernel.written(kernel.write_lengths(kernel.start_writer(), n_columns, lengths)) for kernel in BOTH
    ]
    assert stored[0] == stored[1]
    data = damaged(stored[0], n_flips, seed)
    status, found = both_read("read_lengths", data, n_columns, shape=lengths.shape, dtype=np.uint8)
    if not n_flips:
        assert (status, found[0]) == (reference.OK, lengths.tolist())


@given(st.data(), st.integers(1, 64), st.integers(0, 2), seeds)
def test_gaps(data, n_bits, n_flips, seed):
    part = st.lists(st.integers(0, 2**n_bits - 1), unique=True, max_size=20).map(sorted)
    first, others = data.draw(part), data.draw(part)
    values = np.array(first + others, np.uint64)
    stored = [kernel.written(kernel.write_gaps(kernel.start_writer(), len(first), values)) for kernel in BOTH]
    assert stored[0] == stored[1]
    largest = np.uint64(2**n_bits - 1)
    spoiled = damaged(stored[0], n_flips, seed)
    status, found = both_read("read_gaps", spoiled, len(first), largest, shape=values.shape, dtype=np.uint64)
    if not n_flips:
        assert (status, found[0]) == (reference.OK, values.tolist())
    if status == reference.OK:
        assert max(found[0], default=0) <= largest


@given(st.binary(max_size=200), st.integers(0, 60))
def test_classes_of_any_bytes(data, count):
    stored = np.frombuffer(data, np.uint8)
    status, found = both_read("read_classes", stored, CLASS_CONTEXTS, shape=(count,), dtype=np.int64)
    assert status != reference.OK or set(found[0]) <= {-128, *range(-31, 32)}


@given(st.binary(max_size=300), st.integers(1, 127), st.integers(1, 2), st.integers(1, 64), seeds)
def test_tables_of_any_bytes(data, n_tables, n_quantisers, n_classes, seed):
    # Low bytes make likely bits: so some get far.
    bytes_ = np.random.default_rng(seed).choice(np.frombuffer(data or b"\0", np.uint8) >> 3, 400)
    for kernel in BOTH:
        lengths, choice = Guarded(n_tables * 87, np.uint8), Guarded(n_quantisers * 25 * n_classes, np.uint8)
        lengths.words[:] = 255
        shapes = (n_tables, 87), (n_quantisers, 25, n_classes)
        state = kernel.start_side(bytes_)
        status = kernel.read_tables(
            bytes_, state, lengths.words.reshape(shapes[0]), choice.words.reshape(shapes[1])
        )
        assert lengths.intact
        assert choice.intact
        found = lengths.words.tolist(), choice.words.tolist(), kernel.bytes_used(state)
        if kernel is reference:
            expected = status, found
        assert status == expected[0]
        if status == reference.OK:
            assert found == expected[1]
            assert choice.words.max() < n_tables


@given(st.lists(st.integers(1, 10**6), min_size=2, max_size=300), st.integers(0, 6))
def test_package_merge(counts, spare):
    counts = np.sort(np.array(counts))
    limit = max(1, int(counts.size - 1).bit_length()) + spare
    lengths = [kernel.package_merge(counts, limit) for kernel in BOTH]
    np.testing.assert_array_equal(lengths[0], lengths[1])
    assert sum(2.0 ** -lengths[0].astype(float)) == 1
    assert lengths[0].max() <= limit


@given(
    st.integers(10, 12),
    st.lists(st.lists(st.integers(0, 9), min_size=87, max_size=87), min_size=1, max_size=5),
)
def test_table_slots(precision, weights):
    frequencies = np.array(weights, np.int64)
    frequencies[:, 3] += (1 << precision) - frequencies.sum(axis=1)
    slots = [kernel.table_slots(frequencies, precision) for kernel in BOTH]
    np.testing.assert_array_equal(slots[0], slots[1])
    assert (np.bincount(slots[0] >> 25, minlength=87) == frequencies.sum(axis=0)).all()


@given(word_bytes, st.integers(1, 8), st.sampled_from([np.uint8, np.uint16]), sizes, seeds)
def test_gather_blocks(n_bytes, block, symbol_type, n_words, seed):
    rng = np.random.default_rng(seed)
    values = random_words(rng, 150 * block, n_bytes).reshape(150, block)
    symbols = rng.integers(0, 150, -(-n_words // block)).astype(symbol_type)
    for kernel in BOTH:
        out = Guarded(n_words, values.dtype)
        kernel.gather_blocks(values, symbols, out.words)
        assert out.intact
        np.testing.assert_array_equal(out.words, values[symbols].reshape(-1)[:n_words])


@settings(max_examples=60)
@given(
    st.integers(0, 40), st.integers(1, 300), st.integers(0, 9), st.integers(0, 9), st.integers(1, 6), seeds
)
def test_counts_and_costs_of_contexts(n_rows, width, n_of_rows, n_of_columns, n_classes, seed):
    rng = np.random.default_rng(seed)
    symbols, near = (rng.integers(0, n, (n_rows, width)).astype(np.uint8) for n in (7, 5))
    rows, columns = rng.integers(-9, 9, n_rows), rng.integers(-9, 9, width)
    costs = rng.integers(0, 5000, (5, 7, n_classes)).astype(np.int32)
    results = []
    for kernel in BOTH:
        counts = np.zeros((n_classes, 5, 7), np.int64)
        by_row = np.zeros((n_rows if n_of_rows else 0, n_of_rows), np.int64)
        by_column = np.zeros((width if n_of_columns else 0, n_of_columns), np.int64)
        kernel.context_counts(symbols, near, rows, columns, counts)
        kernel.context_costs(symbols, near, rows, columns, costs, by_row, by_column)
        assert counts.sum() == symbols.size
        results.append((counts, by_row, by_column))
    for slow, fast in zip(*results, strict=True):
        np.testing.assert_array_equal(slow, fast)
