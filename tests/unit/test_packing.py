from __future__ import annotations

import numpy as np
import pytest

from dcompress.coding.context import MAX_ROW_WORDS
from dcompress.coding.table_set import TableSet
from dcompress.constants import CODER_CONTEXT, DTYPE_BY_NAME
from dcompress.grid import fits_grid
from dcompress.packing import encode_group, prepare
from dcompress.stages import SharedTensor, TensorData
from tests.checks import assert_same, frame_of, read_everything

F32 = DTYPE_BY_NAME["float32"]


def grid_tensor(shape, sizes, seed=0, has_zero=True):
    """Return a tensor of labels around the middle of a grid; ``sizes`` are by row."""
    rng = np.random.default_rng(seed)
    places = np.round(rng.normal(0, 1, shape) * np.broadcast_to(sizes, shape)).astype(int)
    places = np.clip(places, -2000, 2000)
    low, high = int(places.min()), int(places.max())
    values = np.arange(low, high + 1)
    book = (values[values != 0] if has_zero else values + 0.5).astype(np.float32) / 64
    labels = places - low
    if has_zero:
        labels = np.where(places == 0, 0, np.where(places < 0, places - low + 1, places - low))
    return SharedTensor(
        F32, shape, book.view(np.uint32)[None], labels.astype(np.uint16).reshape(-1), has_zero
    )


def round_trip(tensors, effort=6):
    """Encode tensors together; return how each was coded, and the table set."""
    prepared = [prepare(tensor, effort) for tensor in tensors]
    coded, table_set = encode_group(prepared, 0, effort)
    named = {str(number): one for number, one in enumerate(coded)}
    frame = frame_of(named, table_sets=[] if table_set is None else [table_set])
    assert_same(read_everything(frame), {str(number): one for number, one in enumerate(tensors)})
    assert encode_group([prepare(tensor, effort) for tensor in tensors], 0, effort)[1] == table_set
    return coded, table_set


@pytest.mark.parametrize("effort", [4, 6, 9])
def test_tensors_that_share_a_table_set(effort):
    rows = np.exp(np.random.default_rng(0).normal(0, 1, (64, 1, 1, 1)))
    tensors = [
        grid_tensor((64, 64, 3, 3), 3 * rows),
        grid_tensor((96, 200), 2, 1, False),
        grid_tensor((4000,), 4, 2),
    ]
    coded, table_set = round_trip(tensors, effort)
    assert CODER_CONTEXT in {one.coder for one in coded}
    assert TableSet.from_bytes(table_set).n_quantisers == 1


@pytest.mark.parametrize("effort", [1, 3])
def test_low_efforts_have_no_table_set(effort):
    coded, table_set = round_trip([grid_tensor((96, 200), 2)], effort)
    assert table_set is None
    assert coded[0].coder != CODER_CONTEXT


def test_a_table_set_that_does_not_pay_is_left_out():
    coded, table_set = round_trip([grid_tensor((3, 5), 2), grid_tensor((2,), 1)])
    assert table_set is None
    assert CODER_CONTEXT not in {one.coder for one in coded}


def test_rows_of_very_different_sizes():
    # Most rows are of the lowest classes; one is further above them than a class can be from the middle.
    sizes = np.full((300, 1), 0.02)
    sizes[:9] = 900
    coded, _ = round_trip([grid_tensor((300, 64), sizes)], 9)
    assert coded[0].coder == CODER_CONTEXT


def test_many_rows_in_few_bytes_are_left_to_other_coders():
    tensor = grid_tensor((30_000, 1), 0)
    tensor.labels[::3000] = 0
    words = np.zeros(30_000, np.uint32)
    words[5::2999] = np.arange(1, 12, dtype=np.uint32)[: words[5::2999].size]
    round_trip([TensorData(F32, (30_000, 1), words)], 9)
    round_trip([TensorData(F32, (15_000, 2), words)], 9)


def test_rows_that_are_too_long_are_left_to_other_coders():
    for n_words, fits in ((MAX_ROW_WORDS, True), (MAX_ROW_WORDS + 1, False)):
        labels = np.zeros(n_words, np.uint16)
        book = np.array([[1, 2]], np.uint32)
        assert fits_grid(SharedTensor(F32, (n_words,), book, labels, True)) == fits


def test_chunks_of_large_tensors_are_rows():
    rows = np.exp(np.random.default_rng(0).normal(0, 1, (1300, 1)))
    coded, _ = round_trip([grid_tensor((1300, 700), 2 * rows)])
    assert coded[0].coder == CODER_CONTEXT
    assert coded[0].chunk_shift == 10
    assert len(coded[0].chunks) == 2


@pytest.mark.parametrize("n_alive", [8, 32])
@pytest.mark.parametrize("effort", [6, 9])
def test_matrices_with_few_columns_alive(n_alive, effort):
    # All living columns are of higher classes than the middle: classes must not be cut by those of the sums.
    for seed in range(4):
        rng = np.random.default_rng(seed)
        sizes = np.zeros(256)
        sizes[rng.choice(256, n_alive, replace=False)] = 3
        coded, _ = round_trip([grid_tensor((128, 256), sizes, seed)], effort)
        assert coded[0].coder == CODER_CONTEXT
