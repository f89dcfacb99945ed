"""Tensors that are shared already are recognised: few values, or multiples of a step."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import dcompress.numpy as dcz
from dcompress.coding.tables import even_step
from dcompress.constants import DTYPE_BY_NAME
from dcompress.encode import encode_checkpoint
from dcompress.floats import narrow
from dcompress.packing import prepare
from dcompress.recipe import Recipe
from dcompress.recognition import find_step, recognise
from dcompress.stages import Checkpoint, TensorData
from tests.checks import assert_same, read_everything
from tests.strategies import seeds

DTYPES = ("float16", "bfloat16", "float32")


def tensor_of(values, dtype="float32"):
    words = narrow(np.asarray(values, np.float32), DTYPE_BY_NAME[dtype])
    return TensorData(DTYPE_BY_NAME[dtype], words.shape, words)


def on_grid(places, step, dtype="float32"):
    return tensor_of(np.asarray(places, np.float32) * np.float32(step), dtype)


@given(
    st.sampled_from(DTYPES),
    st.floats(2.0**-10, 10, width=32),
    st.integers(1, 60) | st.integers(100, 4095),
    st.integers(1, 400),
    seeds,
)
def test_multiples_of_a_step_come_back_and_are_known_by_it(dtype, step, most, n_words, seed):
    places = np.random.default_rng(seed).integers(-most, most + 1, n_words)
    tensor = on_grid(places, step, dtype)
    forms = recognise(tensor)
    for shared in forms:
        np.testing.assert_array_equal(shared.gather().words, tensor.words)
    n_values = np.unique(places[places != 0]).size
    if (
        dtype == "float32" and n_values >= max(3, most) and most <= 60
    ):  # so no more than half of the multiples are missing
        assert forms[-1].has_zero
        assert even_step(tensor.dtype, forms[-1].codebook[0], -min(0, int(places.min()))) is not None


@pytest.mark.parametrize(
    "places", [np.arange(260), np.arange(-100, 101) * 0.0073, np.arange(-127, 128) * 0.4], ids=["0", "1", "2"]
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_a_type_cannot_tell_apart_is_no_grid(dtype, places):
    tensor = tensor_of(places, dtype)
    for shared in recognise(tensor):
        assert np.unique(shared.codebook).size == shared.n_centroids
        np.testing.assert_array_equal(shared.gather().words, tensor.words)
    frame = encode_checkpoint(Checkpoint({"w": tensor}), Recipe("lossless")).to_bytes()
    assert_same(read_everything(frame), {"w": tensor})


@pytest.mark.parametrize("dtype", DTYPES)
def test_gaps_are_filled_and_the_codebook_is_a_step(dtype):
    places = np.array([-9, -4, -3, 2, 5, 6] * 8)
    few, even = recognise(on_grid(places, 0.371, dtype))
    assert few.n_labels == 6
    assert even.has_zero  # which no word uses
    assert even.n_centroids == 15
    assert even_step(even.dtype, even.codebook[0], 9) is not None  # which the codebook is written by
    np.testing.assert_array_equal(even.gather().words, on_grid(places, 0.371, dtype).words)


def test_the_codebook_that_takes_less_is_written():
    near, far = (on_grid(places * 9, 0.371) for places in ([1, 4, 6, 9, 0], [1, 7, 2000, 0, 0]))
    assert prepare(near).shared.n_labels == 10
    assert prepare(far).shared.n_labels == 4


def test_as_many_multiples_as_weights():
    (even,) = recognise(on_grid(np.arange(-20, 21), 0.1))
    assert even.n_labels == 41
    assert not recognise(tensor_of(np.sqrt(np.arange(1, 41))))


def test_a_codebook_without_gaps_is_said_once():
    assert len(recognise(on_grid([-2, -1, 0, 1, 2, 3] * 9, 0.1))) == 1


@pytest.mark.parametrize(
    "values",
    [[], [0.0], [np.inf, 1.0], [np.nan], [1.0, 1.234567, 1.7], [1e-45, 1.0], [1.0, 3000.0]],
    ids=["nothing", "zero", "infinity", "nan", "no step", "too fine", "too many"],
)
def test_no_step(values):
    assert find_step(np.array(values), np.full(len(values), 1e-8), 2000) is None


def test_the_step_may_be_a_part_of_the_smallest_gap():
    for places in ([1], [-1, 2], [2, 5], [3, -7, 11]):
        step = find_step(np.array(places) * 0.25, np.full(len(places), 1e-8), 2000)
        assert step == pytest.approx(0.25)


def test_zeros_with_a_sign_stay_what_they_are():
    tensor = tensor_of(np.array([1.0, 2.0, 3.0] * 8))
    words = tensor.words.copy()
    words[0] = 0x80000000
    (again,) = recognise(TensorData(tensor.dtype, tensor.shape, words))
    np.testing.assert_array_equal(again.gather().words, words)


def test_weights_on_a_grid_and_their_biases_take_little_in_a_file():
    rng = np.random.default_rng(5)
    places = {"weight": rng.integers(-3, 4, (40, 30)), "bias": rng.integers(-15, 16, 40)}
    grids = {name: value.astype(np.float32) * np.float32(0.07) for name, value in places.items()}
    odd = {name: np.where(value == 0, 0, value + 1e-6).astype(np.float32) for name, value in grids.items()}
    small, large = dcz.save(grids, recipe="lossless"), dcz.save(odd, recipe="lossless")
    assert len(large) - len(small) > 100
    for name, value in dcz.load(small).items():
        np.testing.assert_array_equal(value, grids[name])
