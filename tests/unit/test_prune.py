from __future__ import annotations

import numpy as np
import pytest

from dcompress.errors import RecipeError
from dcompress.prune import (
    global_threshold,
    n_m_mask,
    prune,
    quality_threshold,
    sparsity_mask,
    threshold_mask,
)

NAN = float("nan")


def slow_sparsity_mask(weights, sparsity):
    order = sorted(range(weights.size), key=lambda place: (abs(weights[place]), place))
    pruned = set(order[: round(sparsity * weights.size)])
    return [place not in pruned and weights[place] != 0 for place in range(weights.size)]


def random_weights(n=500, dtype=np.float32):
    # Few levels, so that magnitudes tie and zeros of both signs occur.
    return (np.random.default_rng(0).integers(-9, 10, n) / 4).astype(dtype) * dtype(-1)


@pytest.mark.parametrize("sparsity", [0, 0.1, 0.333, 0.5, 0.9, 0.999, 1])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_sparsity_prunes_the_smallest_and_breaks_ties_by_position(sparsity, dtype):
    weights = random_weights(dtype=dtype)
    assert sparsity_mask(weights, sparsity).tolist() == slow_sparsity_mask(weights, sparsity)


def test_sparsity_prunes_exactly_the_rounded_count_and_keeps_the_shape():
    weights = np.random.default_rng(1).normal(size=(13, 7)).astype(np.float32)
    mask = sparsity_mask(weights, 0.37)
    assert mask.shape == (13, 7)
    assert np.count_nonzero(~mask) == round(0.37 * 91)


def test_nan_is_never_pruned():
    weights = np.array([1.0, NAN, 0.0, -2.0, NAN], np.float32)
    assert sparsity_mask(weights, 1.0).tolist() == [False, True, False, False, True]
    assert sparsity_mask(weights, 0.4).tolist() == [False, True, False, True, True]
    assert threshold_mask(weights, 5.0).tolist() == [False, True, False, False, True]


def test_threshold_keeps_what_equals_it_but_no_zero():
    weights = np.array([0.5, -0.5, 0.49, 0.0, -0.0], np.float32)
    assert threshold_mask(weights, 0.5).tolist() == [True, True, False, False, False]
    assert threshold_mask(weights, 0.0).tolist() == [True, True, True, False, False]


@pytest.mark.parametrize("shape", [(), (0,), (1, 1), (3, 0)])
def test_small_shapes(shape):
    weights = np.ones(shape, np.float32)
    assert sparsity_mask(weights, 0.4).shape == shape
    assert threshold_mask(weights, 0.4).shape == shape
    assert quality_threshold(weights, 1.0) == 0
    assert prune(weights).values.size == weights.size


def test_quality_is_a_multiple_of_the_standard_deviation():
    weights = np.random.default_rng(2).normal(3, 2, 300_001).astype(np.float32)
    assert quality_threshold(weights, 1.5) == pytest.approx(1.5 * np.std(weights.astype(np.float64)))


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 2), (3, 4), (1, 8)])
@pytest.mark.parametrize("shape", [(5, 8), (3, 16, 2, 3), (2, 8, 0)])
def test_n_of_m_keeps_the_largest_of_each_run(shape, n, m):
    weights = np.random.default_rng(1).integers(-4, 5, shape).astype(np.float32)
    mask = n_m_mask(weights, n, m)
    assert mask.shape == shape
    moved, kept = np.moveaxis(weights, 1, -1), np.moveaxis(mask, 1, -1)
    for run, own in zip(moved.reshape(-1, m), kept.reshape(-1, m), strict=True):
        largest = sorted(range(m), key=lambda place, run=run: (abs(run[place]), place))[m - n :]
        assert sorted(np.flatnonzero(own)) == sorted(largest)


@pytest.mark.parametrize("shape", [(8,), (4, 6), (4, 2, 4)])
def test_n_of_m_needs_a_second_dimension_of_whole_runs(shape):
    with pytest.raises(RecipeError, match="2:4: 4 does not divide the second dimension of"):
        n_m_mask(np.ones(shape), 2, 4)


def test_prune_keeps_values_in_order_and_never_zeros():
    weights = np.array([[1.0, 0.0], [-2.0, 3.0]], np.float32)
    pruned = prune(weights, np.array([[True, True], [True, False]]))
    assert pruned.mask.tolist() == [[True, False], [True, False]]
    assert pruned.values.tolist() == [1.0, -2.0]
    assert prune(weights).values.tolist() == [1.0, -2.0, 3.0]
    assert prune(weights.astype(np.float16)).values.dtype == np.float32
    assert prune(weights.astype(np.float64)).values.dtype == np.float64


@pytest.mark.parametrize("sparsity", [0, 0.01, 0.5, 0.9, 1])
def test_global_threshold_is_the_quantile_of_all_tensors_together(sparsity):
    rng = np.random.default_rng(3)
    tensors = [
        rng.normal(0, 10.0**scale, n).astype(np.float32) for scale, n in ((0, 999), (-3, 77), (2, 500))
    ]
    threshold = global_threshold([lambda tensor=tensor: tensor for tensor in tensors], sparsity)
    n_pruned = sum(np.count_nonzero(~threshold_mask(tensor, threshold)) for tensor in tensors)
    assert n_pruned == round(sparsity * 1576)


def test_global_threshold_takes_all_of_equal_magnitudes_or_none_whichever_is_nearer():
    tensor = np.repeat(np.float32([1, -2, 3]), [10, 10, 10])
    counts = [
        np.count_nonzero(~threshold_mask(tensor, global_threshold([lambda: tensor], n / 30)))
        for n in (2, 8, 14, 16, 30)
    ]
    assert counts == [0, 10, 10, 20, 30]


def test_global_threshold_of_float64_and_float16():
    wide, narrow = np.array([1e-300, 2.0, 1e300]), np.array([0.5, 4.0], np.float16)
    threshold = global_threshold([lambda: wide, lambda: narrow], 0.6)
    assert threshold_mask(wide, threshold).tolist() == [False, False, True]
    assert threshold_mask(narrow, threshold).tolist() == [False, True]


@pytest.mark.parametrize("bad", [-0.1, 1.1, NAN])
def test_sparsity_out_of_range(bad):
    with pytest.raises(RecipeError, match="sparsity must be between 0 and 1"):
        sparsity_mask(np.ones(3), bad)
    with pytest.raises(RecipeError, match="sparsity must be between 0 and 1"):
        global_threshold([], bad)


@pytest.mark.parametrize("bad", [-1.0, NAN])
def test_negative_threshold_and_quality(bad):
    with pytest.raises(RecipeError, match="threshold must be at least 0"):
        threshold_mask(np.ones(3), bad)
    with pytest.raises(RecipeError, match="quality must be at least 0"):
        quality_threshold(np.ones(3), bad)


def test_wrong_masks():
    for mask in (np.ones(2, np.bool_), np.ones(3, np.uint8)):
        with pytest.raises(RecipeError, match="must be boolean and of that shape"):
            prune(np.ones(3), mask)
