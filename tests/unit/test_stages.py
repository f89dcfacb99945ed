from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given

from dcompress.constants import DTYPE_BY_NAME, DTYPES
from dcompress.stages import Checkpoint, SharedTensor, TensorData, word_dtype
from tests.strategies import shared_tensors

F32 = DTYPE_BY_NAME["float32"]
C64 = DTYPE_BY_NAME["complex64"]


def test_words_are_little_endian_and_unsigned():
    for dtype in DTYPES:
        words = word_dtype(dtype.word_bytes)
        assert words.kind == "u"
        assert words.itemsize == dtype.word_bytes
        assert words.newbyteorder("<") == words


def test_dtype_numbers_and_names_are_unique():
    for attribute in ("code", "name", "safetensors_name"):
        values = [getattr(dtype, attribute) for dtype in DTYPES if getattr(dtype, attribute)]
        assert len(set(values)) == len(values)
    assert all(dtype.name for dtype in DTYPES)
    assert all(0 < dtype.code < 256 for dtype in DTYPES)


@pytest.mark.parametrize(
    ("dtype", "shape", "words"),
    [
        (F32, (3,), np.zeros(2, "<u4")),
        (F32, (), np.zeros(0, "<u4")),
        (F32, (0, 5), np.zeros(1, "<u4")),
        (F32, (3,), np.zeros(3, "<u8")),
        (F32, (3,), np.zeros(3, "<i4")),
        (F32, (3,), np.zeros((3, 1), "<u4")),
        (C64, (3,), np.zeros(3, "<u4")),
    ],
)
def test_tensor_data_must_fit_its_dtype_and_shape(dtype, shape, words):
    with pytest.raises(ValueError, match="words"):
        TensorData(dtype, shape, words)


def test_tensor_data_knows_its_size():
    assert TensorData(C64, (3,), np.zeros(6, "<u4")).n_bytes == 24
    assert TensorData(F32, (), np.zeros(1, "<u4")).n_bytes == 4
    assert TensorData(F32, (0, 7), np.zeros(0, "<u4")).n_bytes == 0


def test_stages_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TensorData(F32, (), np.zeros(1, "<u4")).shape = (1,)
    with pytest.raises(dataclasses.FrozenInstanceError):
        Checkpoint({}).tensors = {}


@given(shared_tensors())
def test_gather_gives_each_word_its_value(tensor):
    words = tensor.gather().words
    stretch = tensor.labels.size // tensor.n_groups
    for place, (label, word) in enumerate(zip(tensor.labels.tolist(), words.tolist(), strict=True)):
        row = tensor.codebook[place // stretch]
        if tensor.has_zero:
            assert word == (row[label - 1] if label else 0)
        else:
            assert word == row[label]
    assert words.dtype == tensor.codebook.dtype
    np.testing.assert_array_equal(tensor.mask, words != 0 if tensor.has_zero else True)


def test_shared_tensors_count_zero_as_a_label():
    codebook = np.array([[5, 6], [7, 8]], "<u4")
    labels = np.array([0, 1, 2, 0], np.uint16)
    shared = SharedTensor(F32, (4,), codebook, labels, has_zero=True)
    assert (shared.n_groups, shared.n_centroids, shared.n_labels) == (2, 2, 3)
    assert shared.gather().words.tolist() == [0, 5, 8, 0]
    assert shared.mask.tolist() == [False, True, True, False]
    dense = dataclasses.replace(shared, labels=labels % 2, has_zero=False)
    assert dense.n_labels == 2
    assert dense.mask.all()
