from __future__ import annotations

import numpy as np
import pytest

from dcompress.constants import DTYPE_BY_NAME
from dcompress.errors import RecipeError
from dcompress.floats import SHAREABLE, narrow, widen
from dcompress.kernels.trellis import STATES, transitions
from dcompress.kernels.trellis import walk as follow_path
from dcompress.prices import Placed, neighbour_levels
from dcompress.prune import prune, sparsity_mask
from dcompress.rate import MAX_STEPS, Layout, RatePlan, is_matrix, vector_step

F32 = DTYPE_BY_NAME["float32"]


def laplace(*shape, seed=0, scale=0.05):
    return (np.random.default_rng(seed).laplace(size=shape) * scale).astype(np.float32)


def one_lane(shape):
    """Return the layout of a tensor that is coded in a single lane, a row for each place of dimension 0."""
    n_words = int(np.prod(shape, dtype=np.int64))
    n_rows = shape[0] if shape and n_words else 1
    return Layout(n_words // n_rows, np.arange(n_rows), np.zeros(1, np.int64))


def share_by_rate(tensors, dtypes, steps, **settings):
    return RatePlan(tensors, dtypes, steps, **settings).share_all({})


def share(weights, step, dtype=F32, **settings):
    pruned = weights if hasattr(weights, "mask") else prune(weights)
    return share_by_rate([pruned], [dtype], [step], **{"layout": one_lane, **settings})[0]


def floats(shared):
    return widen(shared.gather().words, shared.dtype).reshape(shared.shape)


def grid_of(shared, step):
    return np.rint(floats(shared).astype(np.float64) / step).astype(np.int32).reshape(-1)


def entropy_bits(shared):
    shares = np.bincount(shared.labels) / shared.labels.size
    shares = shares[shares > 0]
    return float(-(shares * np.log2(shares)).sum())


def squared_error(weights, shared):
    return float(np.square(weights.astype(np.float64) - floats(shared)).mean())


@pytest.mark.parametrize("dtype", SHAREABLE)
def test_without_a_slope_and_states_every_weight_takes_the_nearest_value(dtype):
    weights = laplace(40, 50)
    if dtype == "float64":
        weights = weights.astype(np.float64)
    shared = share(weights, 0.03125, DTYPE_BY_NAME[dtype], slope=0.0, states=0)
    np.testing.assert_array_equal(grid_of(shared, 0.03125), np.rint(weights / 0.03125).reshape(-1))
    assert shared.states == 0


@pytest.mark.parametrize("states", [0, 8])
def test_threads_share_lanes_and_make_no_difference(states, monkeypatch):
    def nine_lanes(shape):
        return Layout(12, np.arange(30)[::-1].copy(), np.array([0, 3, 4, 4, 9, 15, 20, 22, 29]))

    weights = laplace(30, 12, seed=8)
    found = set()
    for lanes, threads in ((100, 1), (1, 3), (2, 2), (4, 1)):
        monkeypatch.setattr("dcompress.rate._LANES", lanes)
        found.add(share(weights, 0.02, states=states, layout=nine_lanes, threads=threads).labels.tobytes())
    assert len(found) == 1


@pytest.mark.parametrize("states", STATES)
def test_labels_are_a_grid_and_walk_the_trellis(states):
    weights = laplace(24, 8, 3, 3)
    step = 0.013
    shared = share(weights, step, states=states, effort=1)
    assert shared.states == states
    assert shared.has_zero
    assert shared.shape == weights.shape
    values = widen(shared.codebook[0], F32)
    low, high = np.rint(values[[0, -1]] / step).astype(int)
    expected = np.arange(low, high + 1)
    np.testing.assert_array_equal(shared.codebook[0], narrow(expected[expected != 0] * step, F32))
    grid = grid_of(shared, step)
    assert {low, high} <= set(grid.tolist())
    places, quantisers = np.zeros_like(grid), np.zeros(grid.size, np.uint8)
    assert follow_path(grid, transitions(states), np.zeros(1, np.int64), places, quantisers) == grid.size


def test_prices_lower_the_entropy_at_equal_error():
    weights = laplace(200, 100)
    plain = share(weights, 0.12, slope=0.0, states=0)
    error = squared_error(weights, plain)
    for states, step in ((0, 0.103), (8, 0.07)):
        shared = share(weights, step, states=states)
        assert squared_error(weights, shared) <= error
        places, quantisers = np.zeros(weights.size, np.int32), np.zeros(weights.size, np.uint8)
        grid = grid_of(shared, step)
        follow_path(grid, transitions(states), np.zeros(1, np.int64), places, quantisers)
        bits = 0.0
        for quantiser in range(2):
            counts = np.unique(places[quantisers == quantiser], return_counts=True)[1]
            bits -= float((counts * np.log2(counts / counts.sum())).sum())
        assert bits / weights.size < entropy_bits(plain) - 0.05


def test_a_steeper_slope_takes_fewer_bits_and_leaves_more_error():
    weights = laplace(100, 100)
    found = [share(weights, 0.03, slope=slope, states=4) for slope in (0.0, 0.2, 0.6)]
    errors = [squared_error(weights, one) for one in found]
    assert errors == sorted(errors)
    zeros = [np.count_nonzero(one.labels == 0) for one in found]
    assert zeros == sorted(zeros)


def test_pruned_weights_stay_zero():
    weights = laplace(60, 40)
    pruned = prune(weights, sparsity_mask(weights, 0.7))
    for states in (0, 8):
        shared = share(pruned, 0.01, states=states)
        assert not shared.labels[~pruned.mask.reshape(-1)].any()
        assert np.count_nonzero(shared.labels) > 0.8 * pruned.values.size


def test_tensors_that_are_no_matrices_are_rounded():
    bias = laplace(64, seed=1)
    tensors = [prune(bias), prune(laplace(30, 30)), prune(bias.reshape(1, 64, 1))]
    shared = share_by_rate(tensors, [F32] * 3, [0.001, 0.02, 0.001], layout=one_lane)
    assert [one.states for one in shared] == [0, 8, 0]
    np.testing.assert_array_equal(grid_of(shared[0], 0.001), np.rint(bias / 0.001))
    np.testing.assert_array_equal(shared[0].labels, shared[2].labels)


@pytest.mark.parametrize("shape", [(), (0,), (5, 0), (0, 4, 3), (1,), (3, 1), (2, 2)])
def test_every_shape_is_taken(shape):
    weights = laplace(*shape)
    shared = share(weights, 0.01)
    assert shared.shape == shape
    np.testing.assert_allclose(floats(shared), weights, atol=0.021)


def test_all_zero_tensors_have_an_empty_codebook():
    shared = share(np.zeros((4, 4), np.float32), 0.1)
    assert shared.codebook.shape == (1, 0)
    assert not floats(shared).any()


@pytest.mark.parametrize("effort", [1, 6, 9])
def test_the_same_again(effort):
    tensors = [prune(laplace(30, 20, 3, 3)), prune(laplace(50, 60, seed=1))]
    one, other = (
        share_by_rate(tensors, [F32] * 2, [0.02] * 2, layout=one_lane, effort=effort, states=8)
        for _ in range(2)
    )
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a.labels, b.labels)


def test_both_kernels_share_alike(monkeypatch):
    tensors = [prune(laplace(6, 5, 3, 3)), prune(laplace(8, 60, seed=1))]
    found = []
    for choice in ("numpy", "numba"):
        monkeypatch.setenv("DCOMPRESS_KERNELS", choice)
        found.append(share_by_rate(tensors, [F32] * 2, [0.02] * 2, layout=one_lane))
    for a, b in zip(*found, strict=True):
        np.testing.assert_array_equal(a.labels, b.labels)


def test_lanes_may_take_rows_in_turn():
    def two_lanes(shape):
        row_words, rows, _ = one_lane(shape)
        return Layout(row_words, np.argsort(rows % 2, kind="stable"), np.array([0, (rows.size + 1) // 2]))

    weights = laplace(15, 20)
    grid = grid_of(share(weights, 0.01, layout=two_lanes), 0.01).reshape(15, 20)
    for lane in (grid[::2].reshape(-1), grid[1::2].reshape(-1)):
        places, quantisers = np.zeros_like(lane), np.zeros(lane.size, np.uint8)
        assert follow_path(lane, transitions(8), np.zeros(1, np.int64), places, quantisers) == lane.size


def test_neighbours_are_looked_for_within_the_row():
    tensor = Placed((2, 4), 4, np.array([1, -1, 0, 2, 3, 0, -2, 1], np.int32), np.zeros(8, np.uint8), 1)
    levels = np.minimum(np.arange(44), 3).astype(np.uint8)[None]
    assert neighbour_levels(tensor, levels, 1).tolist() == [3, 4, 2, 3, 3, 6, 3, 1]
    assert neighbour_levels(tensor, levels, 3).tolist() == [3, 3, 3, 4, 3, 3, 3, 6]
    assert (
        neighbour_levels(tensor, levels, 0).tolist()
        == neighbour_levels(tensor, levels, 4).tolist()
        == [3] * 8
    )


@pytest.mark.parametrize("step", [0.0, -1.0, float("nan"), float("inf")])
def test_a_step_is_a_positive_number(step):
    with pytest.raises(RecipeError, match="above 0"):
        share(laplace(4, 4), step)


def test_a_step_must_not_be_too_small():
    weights = np.full((4, 4), 1.0, np.float32)
    with pytest.raises(RecipeError, match="too small"):
        share(weights, 0.999 / MAX_STEPS)
    assert share(weights, 1.001 / MAX_STEPS).n_labels <= 4096
    both = weights * np.float32([1, -1, 1, -1])
    assert share(both, 1.001 / MAX_STEPS).n_labels <= 4096


def test_a_step_must_tell_values_apart_in_the_type_of_the_tensor():
    weights = np.full((4, 4), 1.0, np.float32)
    share(weights, 1 / 200, DTYPE_BY_NAME["bfloat16"])
    with pytest.raises(RecipeError, match="bfloat16 cannot tell"):
        share(weights, 1 / 900, DTYPE_BY_NAME["bfloat16"])
    with pytest.raises(RecipeError, match="float16 cannot tell"):
        share(np.full((4, 4), 1e-7, np.float32), 1e-9, DTYPE_BY_NAME["float16"])


def test_the_number_of_states_is_one_of_a_few():
    with pytest.raises(RecipeError, match="states"):
        share(laplace(4, 4), 0.1, states=7)


def test_what_is_a_matrix():
    shapes = [(), (5,), (1, 5), (5, 1, 1), (5, 5), (5, 1, 3), (0, 5, 5)]
    assert [is_matrix(shape) for shape in shapes] == [False] * 4 + [True] * 2 + [False]


@pytest.mark.parametrize("quality", [20.0, 40.0])
def test_the_step_of_a_vector_keeps_its_quality(quality):
    for values in (laplace(300), laplace(300, seed=1) * 1000, np.exp(laplace(300, scale=1.0))):
        step = vector_step(values, quality)
        error = values - np.rint(values / step) * step
        ratio = np.square(values).mean() / np.square(error).mean()
        assert 10 * np.log10(ratio) > quality - 1
        assert np.abs(values).max() <= MAX_STEPS * step


def test_small_values_of_one_sign_keep_their_size():
    values = np.geomspace(0.01, 1, 200).astype(np.float32)
    step = vector_step(values, 40.0)
    assert step < 0.1 * values.min() * 8
    assert np.abs(np.rint(values / step) * step / values - 1).max() < 0.35
    assert vector_step(values * np.where(np.arange(200) % 2, 1, -1), 40.0) > step


def test_vectors_of_zeros_and_of_wide_range_have_a_step_too():
    assert vector_step(np.zeros(5, np.float32)) == 1.0
    wide = np.array([1e-30, 1.0, 1e20])
    assert share(prune(wide), vector_step(wide, 100.0), DTYPE_BY_NAME["float64"]).n_labels <= 4096


def test_values_of_one_sign_are_not_rounded_to_zero():
    variances = np.array([1e-4, 0.0, 0.3, 1.0], np.float32)
    assert grid_of(share(variances, 0.25), 0.25).tolist() == [1, 0, 1, 4]
    assert grid_of(share(-variances, 0.25), 0.25).tolist() == [-1, 0, -1, -4]
    assert grid_of(share(variances * np.float32([-1, 1, 1, 1]), 0.25), 0.25).tolist() == [0, 0, 1, 4]


def test_threads_make_no_difference():
    tensors = [prune(laplace(30, 40, seed=seed)) for seed in range(5)]
    one, three = (share_by_rate(tensors, [F32] * 5, [0.02] * 5, layout=one_lane, threads=n) for n in (1, 3))
    for a, b in zip(one, three, strict=True):
        np.testing.assert_array_equal(a.labels, b.labels)
