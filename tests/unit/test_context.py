from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcompress.coding import Codebook, Context, TableSet, TensorLayout
from dcompress.coding.classes import CLASSES_PER_BYTE
from dcompress.coding.context import (
    DEAD,
    MAX_ROW_WORDS,
    Classes,
    Geometry,
    Neighbourhood,
    flipped,
    grid_symbols,
    lane_order,
    lanes_of,
)
from dcompress.coding.range_coder import SideReader, SideWriter
from dcompress.coding.symbols import N_SYMBOLS
from dcompress.constants import DTYPE_BY_NAME
from dcompress.errors import CorruptError
from dcompress.kernels import reference
from dcompress.kernels.reference_context import PADDING_WORDS
from tests.checks import check_coder, check_damage, decode, error_of, layout_of, raises_rule, reread
from tests.contexts import contexts, random_context, random_table_set
from tests.strategies import seeds

jit = pytest.importorskip("dcompress.kernels.jit")

F32 = DTYPE_BY_NAME["float32"]
FEW = Geometry(3, 4, 2)


def rng(seed=0):
    return np.random.default_rng(seed)


def tables_of(coder) -> bytes:
    writer = SideWriter()
    coder.write_tables(writer)
    return writer.finish()


def read(coder, layout):
    return Context.read_tables(SideReader(tables_of(coder)), layout)


# Geometry.


@pytest.mark.parametrize(
    ("shape", "n_words", "geometry"),
    [
        ((), 1, (1, 1, 1)),
        ((), 2, (1, 2, 1)),
        ((7,), 7, (1, 7, 1)),
        ((7,), 14, (1, 14, 1)),
        ((3, 5), 15, (3, 5, 1)),
        ((3, 5), 30, (3, 5, 2)),
        ((2, 3, 5, 7), 210, (2, 3, 35)),
        ((1, 1, 1), 1, (1, 1, 1)),
    ],
)
def test_geometry(shape, n_words, geometry):
    assert Geometry.of(shape, n_words) == geometry


def test_lanes():
    assert [lanes_of(100, n) for n in (1, 2047, 2048, 4095, 4096, 16383, 16384)] == [1, 1, 2, 2, 4, 4, 8]
    assert [lanes_of(n, 1 << 20) for n in (1, 2, 3, 5, 7, 8, 9)] == [1, 2, 3, 5, 7, 8, 8]
    order, starts = lane_order(7, 3)
    assert (order.tolist(), starts.tolist()) == ([0, 3, 6, 1, 4, 2, 5], [0, 3, 5])


# Classes.


def class_bytes(classes, geometry):
    writer = SideWriter()
    classes.write(writer, geometry)
    return writer.finish()


def reread_classes(classes, geometry, n_bytes=1000):
    reader = SideReader(class_bytes(classes, geometry))
    again = Classes.read(reader, geometry, n_bytes)
    reader.finish()
    return again


@given(st.lists(st.integers(0, 62) | st.just(DEAD), min_size=3, max_size=3), seeds)
def test_classes_come_back_however_far_apart(rows, seed):
    sides = rng(seed).integers(-32, 32, 6)
    sides[sides == -32] = DEAD
    classes = Classes(np.array(rows), sides[:4], sides[4:])
    again = reread_classes(classes, FEW)
    for one in ("rows", "columns", "positions"):
        np.testing.assert_array_equal(getattr(again, one), getattr(classes, one))


def test_classes_that_are_not_given_are_0():
    none = np.zeros(1, np.int64)
    classes = Classes(np.array([DEAD] * 3), none, none)
    assert class_bytes(classes, FEW) == b""
    again = reread_classes(classes, FEW)
    assert (again.columns.tolist(), again.positions.tolist()) == ([0], [0])
    np.testing.assert_array_equal(again.along_row(FEW), np.zeros(8))


@pytest.mark.parametrize("rows", [(-1, 5, 5), (40, 40, 64)])
def test_rows_have_classes_of_0_to_63(rows):
    none = np.zeros(1, np.int64)
    with raises_rule(CorruptError, "CTX-02"):
        reread_classes(Classes(np.array(rows), none, none), FEW)


def test_few_bytes_have_few_classes():
    none = np.zeros(1, np.int64)
    geometry = Geometry(1 << 40, 1, 1)
    with raises_rule(CorruptError, "CTX-08"):
        Classes.read(SideReader(b""), geometry, 1 << 20)
    geometry = Geometry(4 * CLASSES_PER_BYTE, 8 * CLASSES_PER_BYTE, CLASSES_PER_BYTE)
    for columns, positions, least in ((0, 0, 4), (1, 0, 12), (0, 1, 5), (1, 1, 13)):
        classes = Classes(
            np.arange(geometry.n_rows) % 60,
            np.arange(geometry.n_columns) % 9 if columns else none,
            np.arange(geometry.n_positions) % 9 if positions else none,
        )
        assert classes.fit(least)
        assert not classes.fit(least - 1)
        reread_classes(classes, geometry, least)
        with raises_rule(CorruptError, "CTX-08"):
            reread_classes(classes, geometry, least - 1)


# Symbols and levels.


def test_levels_have_the_sign_of_the_symbol():
    levels = Neighbourhood(0, (0, 2, 8)).levels()
    assert levels[:9].tolist() == [0, 1, -1, 1, -1, 2, -2, 2, -2]
    # The bucket of 8 and 9 starts at 8, which is no more than the threshold.
    assert levels[15:19].tolist() == [2, -2, 3, -3]
    assert not Neighbourhood(0, (4095, 8190, 12285)).levels().any()


def test_flipped_symbols():
    symbols = np.arange(N_SYMBOLS, dtype=np.uint8)
    turned = flipped(symbols)
    assert turned[:5].tolist() == [0, 2, 1, 4, 3]
    np.testing.assert_array_equal(flipped(turned), symbols)


def test_neighbours_are_those_of_the_row():
    grid = np.array([[1, 0, -9, 0], [0, 5, 0, 0]], np.int32)
    symbols, raws, near = grid_symbols(grid, Neighbourhood(2, (0, 4, 8)), 0, 1)
    assert (symbols[0].tolist(), raws[0].tolist()) == ([1, 0, 16, 0], [0, 0, 1, 0])
    assert [(n >> 3, n & 7) for n in near[0].tolist()] == [(3, 3), (4, 3), (3, 4), (1, 3)]
    assert [(n >> 3, n & 7) for n in near[1].tolist()] == [(3, 3), (3, 3), (5, 3), (3, 5)]


def test_labels_that_leave_the_trellis_are_refused():
    with pytest.raises(ValueError, match="trellis"):
        grid_symbols(np.array([[1, 1, 1]], np.int32), Neighbourhood(0, (0, 1, 2)), 4, 1)


# The coder.


@settings(max_examples=40)
@given(contexts())
def test_every_tensor_comes_back(kernel, one):
    tensor, coder, shift = one
    chunk_words = coder.geometry.row_words << shift if shift else tensor.labels.size
    check_coder(coder, tensor, chunk_words, kernel)


@settings(max_examples=40)
@given(contexts())
def test_both_kernels_write_the_same_bytes(one):
    tensor, coder, shift = one
    step = coder.geometry.row_words << shift if shift else tensor.labels.size
    for first in range(0, tensor.labels.size, step):
        chunks = set()
        for name in ("numpy", "numba"):
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("DCOMPRESS_KERNELS", name)
                chunks.add(coder.encode_chunk(tensor.labels[first : first + step], first))
        assert len(chunks) == 1


@pytest.mark.parametrize("states", [0, 8])
@pytest.mark.parametrize("has_zero", [True, False])
def test_damaged_chunks(kernel, states, has_zero):
    tensor, coder = random_context(rng(1), F32, (6, 3, 2), 40, has_zero, states)
    chunk = coder.encode_chunk(tensor.labels)
    assert check_damage(reread(coder, layout_of(coder, tensor)), chunk, 0, 36, 4) > 0.9 * len(chunk) * 8


def test_the_smallest_chunk_is_its_states():
    # One symbol alone takes no bits: the lanes end where they begin.
    tensor, coder = random_context(rng(), F32, (9, 5), 1, True)
    coder = replace(coder, tables=TableSet.from_bytes(b""))
    assert coder.encode_chunk(tensor.labels) == b"\x00\x00\x01\x00"


def a_coder(**changes):
    tensor, coder = random_context(rng(3), F32, (6, 4, 2), 17, True)
    return tensor, replace(coder, **changes)


def test_odd_and_short_chunks(kernel):
    tensor, coder = a_coder()
    chunk = coder.encode_chunk(tensor.labels)
    for bad in (chunk[:-1], chunk[:-2], chunk[:4], chunk[:2], b""):
        with raises_rule(CorruptError, "CTX-04"):
            decode(coder, bad, 0, 48, 4)


def test_words_left_over(kernel):
    tensor, coder = a_coder()
    with raises_rule(CorruptError, "CTX-05"):
        decode(coder, coder.encode_chunk(tensor.labels) + b"\x00\x00", 0, 48, 4)


def test_states_at_start_and_end(kernel):
    _, coder = random_context(rng(), F32, (9, 5), 1, True)
    coder = replace(coder, tables=TableSet.from_bytes(b""))
    for start in (0, 1, 0xFFFF):
        with raises_rule(CorruptError, "CTX-06"):
            decode(coder, start.to_bytes(4, "little"), 0, 45, 4)
    for start in (0x10001, 0xFFFFFFFF):  # nothing is read, so that is the end as well
        with raises_rule(CorruptError, "CTX-06"):
            decode(coder, start.to_bytes(4, "little"), 0, 45, 4)


@pytest.mark.parametrize("states", [0, 4])
@pytest.mark.parametrize(("many", "few"), [(17, 3), (600, 20)])
def test_places_beyond_the_codebook(kernel, states, many, few):
    large, coder = random_context(rng(3), F32, (30, 20), many, False, states)
    rows = large.codebook[:, :few]
    small = replace(coder, codebook=Codebook(F32, rows, False, 600), origin=min(coder.origin, few - 1))
    with raises_rule(CorruptError, "CTX-07"):
        decode(small, coder.encode_chunk(large.labels), 0, 600, 4)
    with raises_rule(CorruptError, "CTX-07"):
        small.decode_labels(memoryview(coder.encode_chunk(large.labels)), 600, kernel)


def test_one_codebook_of_at_most_4095_labels():
    tensor, coder = a_coder()
    layout = layout_of(coder, tensor)
    two = Codebook(F32, np.concatenate([coder.codebook.rows] * 2), True, 48)
    with raises_rule(CorruptError, "CTX-01"):
        read(replace(coder, codebook=two), layout)
    for n_labels, good in ((4095, True), (4096, False)):
        book = Codebook(F32, np.arange(n_labels, dtype=np.uint32)[None], False, 48)
        many = replace(coder, codebook=book, origin=0)
        if good:
            assert read(many, replace(layout, n_labels=n_labels)).codebook.n_labels == n_labels
            continue
        with raises_rule(CorruptError, "CTX-01"):
            read(many, replace(layout, n_labels=n_labels))


def test_rows_of_at_most_four_million_words():
    tensor, coder = random_context(rng(), F32, (5,), 3, True)
    for n_words in (MAX_ROW_WORDS, MAX_ROW_WORDS + 1):
        layout = replace(layout_of(coder, tensor), shape=(n_words,), n_words=n_words)
        long = replace(coder, classes=Classes(np.zeros(1, np.int64), *[np.zeros(1, np.int64)] * 2))
        if n_words == MAX_ROW_WORDS:
            assert read(long, layout).geometry.row_words == n_words
            continue
        with raises_rule(CorruptError, "CTX-01"):
            read(long, layout)


def test_a_table_set_that_is_not_there():
    tensor, coder = a_coder()
    layout = layout_of(coder, tensor)
    with raises_rule(CorruptError, "CTX-01"):
        read(coder, replace(layout, n_table_sets=0, table_set=None))
    with raises_rule(CorruptError, "TAB-01"):
        read(replace(coder, set_number=1), layout)


def test_a_trellis_needs_two_quantisers():
    tensor, coder = random_context(rng(), F32, (6, 8), 17, True, 8)
    one = replace(coder.tables, choice=coder.tables.choice[:1])
    with raises_rule(CorruptError, "CTX-03"):
        read(coder, replace(layout_of(coder, tensor), table_set=lambda number: one))
    assert read(replace(coder, states=0), layout_of(coder, tensor)).states == 0


def test_distances_within_a_row():
    tensor, coder = a_coder()
    for distance, good in ((7, True), (8, False)):
        changed = replace(coder, neighbourhood=Neighbourhood(distance, (0, 1, 2)))
        if good:
            assert read(changed, layout_of(coder, tensor)).neighbourhood.distance == 7
            continue
        with raises_rule(CorruptError, "TAB-01"):
            read(changed, layout_of(coder, tensor))


def test_thresholds_as_far_apart_as_they_may_be():
    tensor, coder = a_coder(neighbourhood=Neighbourhood(1, (4095, 8190, 12285)))
    check_coder(coder, tensor, 48, reference)


def test_dead_rows_and_columns_have_class_0():
    _, coder = random_context(rng(), F32, (3, 4), 5, True)
    rows, columns = np.array([DEAD, 63, 5]), np.array([DEAD, 31, -31, 0])
    coder = replace(coder, classes=Classes(rows, columns, np.zeros(1, np.int64)))
    bases, along, low, _ = coder._bases
    n_classes = coder.tables.n_classes
    sums = (bases[:, None] + along).astype(np.int64) // 64 + low
    wanted = np.array([[0, 0, 0, 0], [0, 94, 32, 63], [0, 36, 0, 5]])
    np.testing.assert_array_equal(np.clip(sums, 0, n_classes - 1), np.minimum(wanted, n_classes - 1))


# Streams of any kind, in both kernel sets.


def hostile(coder, n_words, words, states, first=0):
    """Decode words of any kind with both kernel sets; they must agree. Return the verdict."""
    results = []
    for kernel in (reference, jit):
        out = np.full(n_words + 64, 0xA5A5A5A5, np.uint32)
        given = coder._decoding(coder.codebook.lookup[0])
        rows, columns, _, _ = coder._bases
        width = coder.geometry.row_words
        status = kernel.decode_contexts(
            np.concatenate([words, np.zeros(PADDING_WORDS, np.uint16)]),
            states.copy(),
            rows[first : first + n_words // width],
            columns,
            given,
            out[32 : 32 + n_words],
        )
        assert (out[:32] == 0xA5A5A5A5).all()
        assert (out[-32:] == 0xA5A5A5A5).all()
        results.append((status, out[32 : 32 + n_words]))
    (one, slow), (other, fast) = results
    assert (one == 0) == (other == 0)
    if one == 0:
        np.testing.assert_array_equal(slow, fast)
    return one


@settings(max_examples=150)
@given(contexts(dtype=F32, shifts=(0,)), seeds, st.integers(0, 5000))
def test_any_stream_is_read_alike(one, seed, n_stream):
    tensor, coder, _ = one
    random = rng(seed)
    n_lanes = lanes_of(coder.geometry.n_rows, tensor.labels.size)
    states = random.integers(1 << 16, 1 << 32, n_lanes).astype(np.uint64)
    hostile(coder, tensor.labels.size, random.integers(0, 1 << 16, n_stream).astype(np.uint16), states)


@settings(max_examples=100)
@given(contexts(dtype=F32, shifts=(0,)), seeds, st.integers(0, 15))
def test_changed_words_are_read_alike(one, seed, bit):
    tensor, coder, _ = one
    random = rng(seed)
    n_lanes = lanes_of(coder.geometry.n_rows, tensor.labels.size)
    whole = np.frombuffer(coder.encode_chunk(tensor.labels), np.uint16).copy()
    states, words = whole[: 2 * n_lanes].view(np.uint32).astype(np.uint64), whole[2 * n_lanes :]
    assert hostile(coder, tensor.labels.size, words, states) == 0
    if words.size:
        words[random.integers(words.size)] ^= 1 << bit
        hostile(coder, tensor.labels.size, words, states)


@settings(max_examples=200)
@given(st.binary(max_size=60), st.binary(max_size=120), seeds, st.integers(1, 7), st.integers(1, 9))
def test_any_tables_are_read_or_corrupt(kernel, table_bytes, chunk, seed, n_rows, n_columns):
    tables = random_table_set(rng(seed), 3, 3, 5, 2, 10)
    n_words = n_rows * n_columns
    layout = TensorLayout(F32, n_words, 1 + seed % 9, (n_rows, n_columns), 200, 3, lambda number: tables)

    def read_both():
        coder = Context.read_tables(SideReader(table_bytes), layout)
        decode(coder, chunk, 0, n_words, 4)

    error = error_of(read_both)
    assert error is None or (type(error) is CorruptError and error.rule)
