from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dcompress.checkpoint import tensor_to_data
from dcompress.compare import compare_tensors, to_values
from dcompress.constants import DTYPE_BY_NAME, DTYPES
from dcompress.numpy import data_from_array
from dcompress.stages import TensorData, word_dtype


def data(values, dtype=np.float64):
    return data_from_array("x", np.array(values, dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
def test_any_dtype_is_identical_to_itself_and_differs_by_one_bit(dtype):
    rng = np.random.default_rng(1)
    words = rng.integers(0, 2, 6 * dtype.words_per_element).astype(word_dtype(dtype.word_bytes))
    other = words.copy()
    other[3] ^= 1
    a, b = TensorData(dtype, (2, 3), words), TensorData(dtype, (2, 3), other)
    assert compare_tensors(a, TensorData(dtype, (2, 3), words.copy())).identical
    difference = compare_tensors(a, b)
    assert not difference.identical
    assert difference.n_different == 1
    assert difference.max_error > 0


@pytest.mark.parametrize(
    "name",
    [d.name for d in DTYPES if d.name.startswith(("float8", "bfloat")) and hasattr(torch, d.name)],
)
def test_values_are_those_of_torch(name):
    dtype = DTYPE_BY_NAME[name]
    words = np.arange(1 << (8 * dtype.word_bytes), dtype=word_dtype(dtype.word_bytes))
    tensor = torch.from_numpy(words.copy().view(f"i{dtype.word_bytes}")).view(getattr(torch, name))
    expected = tensor.to(torch.float32).double().numpy()
    np.testing.assert_array_equal(to_values(words, dtype), expected)


def test_float4_has_two_values_a_byte():
    dtype = DTYPE_BY_NAME["float4_e2m1fn_x2"]
    assert to_values(np.array([0x21, 0xF7], np.uint8), dtype).tolist() == [0.5, 1.0, 6.0, -6.0]


def test_errors_are_measured():
    difference = compare_tensors(data([3, 4, 0, 1]), data([3, 4.5, 0, 1]))
    assert difference.n_different == 1
    assert difference.max_error == 0.5
    assert difference.sqnr == pytest.approx(10 * math.log10(26 / 0.25))


def test_other_bits_of_equal_values():
    difference = compare_tensors(data([0.0, 1.0]), data([-0.0, 1.0]))
    assert not difference.identical
    assert (difference.n_different, difference.sqnr) == (0, math.inf)


def test_not_finite_values():
    inf, nan = math.inf, math.nan
    assert compare_tensors(data([nan, inf, 1]), data([nan, inf, 2])).max_error == 1
    for a, b in ((nan, 1), (1, nan), (inf, 1), (inf, -inf), (nan, inf)):
        difference = compare_tensors(data([a, 2]), data([b, 2]))
        assert (difference.n_different, difference.max_error, difference.sqnr) == (1, inf, -inf)


def test_squares_beyond_float64_have_no_ratio():
    for scale in (1e200, 1e-170):
        difference = compare_tensors(data([scale, 1.0]), data([2 * scale, 1.0]))
        assert difference.max_error == scale
        assert math.isnan(difference.sqnr)


def test_large_integers_are_subtracted_exactly():
    for dtype, low in ((np.int64, -(1 << 63)), (np.uint64, 0)):
        big = int(np.iinfo(dtype).max)
        assert compare_tensors(data([big], dtype), data([big - 1], dtype)).max_error == 1
        assert compare_tensors(data([low], dtype), data([big], dtype)).max_error == float(big - low)


def test_shapes_and_dtypes():
    assert not compare_tensors(data([[1, 2]]), data([1, 2])).comparable
    mixed = compare_tensors(data([1, 2]), data([1, 2], np.float32))
    assert (mixed.identical, mixed.comparable, mixed.n_different) == (False, True, 0)
    assert not compare_tensors(data([1, 2]), data([1, 2], np.complex64)).comparable
    assert compare_tensors(data([]), data([])).identical


def test_blocks_add_up():
    rng = np.random.default_rng(2)
    a = rng.normal(size=600_000).astype(np.float32)
    b = a.copy()
    b[[5, 300_000, 599_999]] += 0.25
    difference = compare_tensors(tensor_to_data("a", torch.from_numpy(a)), data(b, np.float32))
    exact = a.astype(np.float64) - b
    assert difference.n_different == 3
    assert difference.noise == pytest.approx(exact @ exact)
    assert difference.signal == pytest.approx(a.astype(np.float64) @ a.astype(np.float64))
