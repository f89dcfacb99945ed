"""Labels with error feedback against the paper's algorithm, column by column."""

from __future__ import annotations

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from dcompress import feeding
from dcompress.blas import one_blas_thread
from dcompress.coding.symbols import N_BUCKETS, N_SYMBOLS
from dcompress.constants import DTYPE_BY_NAME
from dcompress.feedback import Calibrated, Feedback
from dcompress.feeding import fed_grid, fed_places
from dcompress.floats import widen
from dcompress.kernels.trellis import LEVELS, transitions
from dcompress.prices import Layout, Prices
from dcompress.prune import prune
from dcompress.rate_groups import GroupPlan
from dcompress.rules import RateRule
from dcompress.share import share
from tests.moments import correlated, damped, gptq, moments_of

F32 = DTYPE_BY_NAME["float32"]
KERNELS = pytest.mark.parametrize("kernels", ["numpy", "numba"])
STEP = 0.25

# Shape, layout, groups, blocks.
LAYERS = {
    "rows": ((20, 30), "rows", 1, 1),
    "long rows": ((12, 300), "rows", 1, 1),
    "rows in blocks": ((9, 150), "rows", 1, 3),
    "groups": ((6, 4, 3, 3), "rows", 2, 1),
    "long groups": ((8, 16, 3, 3), "rows", 2, 1),
    "transposed": ((40, 12), "transposed", 1, 1),
    "many transposed rows": ((300, 5), "transposed", 1, 1),
    "transposed kernels": ((6, 5, 2, 3), "transposed", 2, 1),
    "transposed, in blocks": ((32, 3, 3, 3), "transposed", 1, 2),
    "one column": ((7, 1), "rows", 1, 1),
}


def layer(case, seed=0, **options):
    """Return weights, what is kept of them, and moments."""
    shape, layout, groups, blocks = LAYERS[case]
    rng = np.random.default_rng(seed)
    n_columns = int(np.prod(shape[1:])) if layout == "rows" else shape[0] // groups * int(np.prod(shape[2:]))
    inputs = np.stack([correlated(2 * n_columns + 4, n_columns, rng) for _ in range(groups)])
    moments = moments_of(inputs, shape, layout=layout, blocks=blocks, **options)
    return rng.normal(size=shape), rng.random(shape) < 0.9, moments


def by_textbook(fed, quantise):
    """Return what the paper's algorithm makes of a tensor; ``quantise`` gets values, group and column."""
    moments = fed.moments
    found = np.zeros(fed.targets.shape)
    for block, here in zip(moments.second, moments.blocks, strict=True):
        for group in range(moments.n_groups):
            found[group, :, here] = gptq(
                fed.targets[group, :, here],
                damped(block[group], fed.damping),
                lambda values, _, group=group: quantise(values, group),
                fed.kept[group, :, here],
            )
    return moments.weight(found)


def grid_of(fed, step, *, n_lanes=3, threads=1):
    """Return grid integers where bits cost nothing and there is no trellis."""
    shape = fed.moments.shape
    row_words = int(np.prod(shape[1:]))
    lanes = np.arange(shape[0]) % n_lanes
    order = Layout(
        row_words, np.argsort(lanes, kind="stable"), np.searchsorted(np.sort(lanes), np.arange(n_lanes))
    )
    bits = np.zeros((1, 1, LEVELS, LEVELS, N_SYMBOLS), np.int32)
    prices = Prices(
        np.zeros(shape[0], np.int32),
        np.zeros(row_words, np.int32),
        np.zeros((1, N_BUCKETS), np.uint8),
        0,
        bits,
    )
    nothing = np.zeros((0, 0), np.uint8)
    return fed_grid(
        fed, step, 1000, order, transitions(0), prices, bits.astype(np.float32), nothing, threads
    ).reshape(shape)


@KERNELS
@pytest.mark.parametrize("case", LAYERS)
def test_grid_integers_are_those_of_the_paper(case, kernels, monkeypatch):
    monkeypatch.setenv("DCOMPRESS_KERNELS", kernels)
    weights, kept, moments = layer(case)
    fed = Feedback.of("w", weights, kept, STEP, moments)
    expected = by_textbook(fed, lambda values, _: np.rint(values / STEP) * STEP)
    np.testing.assert_allclose(grid_of(fed, STEP) * STEP, expected)
    if case != "one column":
        assert (expected != np.where(kept, np.rint(weights / STEP) * STEP, 0)).mean() > 0.05


@KERNELS
@pytest.mark.parametrize("n_books", [1, 3])
@pytest.mark.parametrize("case", LAYERS)
def test_centroids_are_those_of_the_paper(case, n_books, kernels, monkeypatch):
    monkeypatch.setenv("DCOMPRESS_KERNELS", kernels)
    weights, kept, moments = layer(case, seed=1)
    fed = Feedback.of("w", weights, kept, STEP, moments)
    groups, n_outputs, _ = fed.targets.shape
    rng = np.random.default_rng(2)
    books = np.sort(rng.normal(size=(n_books, 9)), axis=1)
    books[-1, 6:] = np.inf
    book_of = np.arange(groups * n_outputs) % n_books
    places = fed_places(fed, books, book_of)
    assert places.shape == weights.shape
    np.testing.assert_array_equal(places < 0, ~kept)

    def nearest(values, group):
        own = books[book_of[group * n_outputs : (group + 1) * n_outputs]]
        return own[np.arange(n_outputs), np.abs(own - values[:, None]).argmin(1)]

    found = books[book_of.reshape(groups, n_outputs)[:, :, None], moments.matrices(places)]
    found = np.where(fed.kept, found, 0.0)
    np.testing.assert_allclose(moments.weight(found), by_textbook(fed, nearest))


@pytest.mark.parametrize("case", LAYERS)
def test_squares_of_spread_errors_are_the_error_of_the_outputs(case):
    weights, kept, moments = layer(case, seed=3)
    fed = Feedback.of("w", weights, kept, STEP, moments)
    grid = grid_of(fed, STEP)
    errors = fed.targets - moments.matrices(grid * STEP)
    spread, outputs = 0.0, 0.0
    for block, factor, here in zip(moments.second, fed.factors, moments.blocks, strict=True):
        spread += float(np.square(errors[:, :, here] @ factor).sum())
        for group in range(moments.n_groups):
            own = errors[group, :, here]
            outputs += float(np.trace(own @ damped(block[group], fed.damping) @ own.T))
        np.testing.assert_array_equal(factor, np.triu(factor))
    assert spread == pytest.approx(outputs, rel=1e-9)


@pytest.mark.parametrize("case", ["long rows", "long groups", "many transposed rows"])
def test_windows_make_no_difference(case, monkeypatch):
    weights, kept, moments = layer(case, seed=4)
    fed = Feedback.of("w", weights, kept, STEP, moments)
    books, book_of = np.linspace(-2, 2, 9)[None], np.zeros(fed.targets[..., 0].size, np.int64)
    found = []
    for window in (16, 128, 1000):
        monkeypatch.setattr(feeding, "_WINDOW", window)
        found.append((grid_of(fed, STEP), fed_places(fed, books, book_of)))
    for grid, places in found[1:]:
        np.testing.assert_array_equal(grid, found[0][0])
        np.testing.assert_array_equal(places, found[0][1])


@pytest.mark.parametrize("case", ["rows", "long rows", "long groups"])
def test_rows_and_lanes_are_free_of_each_other_where_bits_cost_nothing(case, monkeypatch):
    weights, kept, moments = layer(case, seed=5)
    fed = Feedback.of("w", weights, kept, STEP, moments)
    expected = grid_of(fed, STEP, n_lanes=1)
    monkeypatch.setattr(feeding, "_LANES", 2)
    for n_lanes, threads in ((2, 1), (5, 3)):
        np.testing.assert_array_equal(grid_of(fed, STEP, n_lanes=n_lanes, threads=threads), expected)


@pytest.mark.parametrize("case", ["long rows", "rows", "many transposed rows"])
@pytest.mark.parametrize("states", [0, 8])
def test_threads_make_no_difference(case, states, monkeypatch):
    weights, _, moments = layer(case, seed=6)
    weights = weights.astype(np.float32)
    pruned = prune(weights)
    monkeypatch.setattr(feeding, "_LANES", 1)
    found = set()
    for threads, blas in ((1, 1), (2, 2), (3, 2)):
        plan = GroupPlan({"w": (pruned, F32, RateRule(0.2, states=states))}, 6, threads)
        with threadpool_limits(blas, user_api="blas"):
            shared = plan.share("w", Calibrated("w", weights, pruned.mask, moments))
        assert shared.states == states
        found.add(shared.labels.tobytes())
    assert len(found) == 1


def test_threads_of_linear_algebra_are_given_back():
    def limits():
        return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]

    with threadpool_limits(2, user_api="blas"):
        before = limits()
        with one_blas_thread():
            with one_blas_thread():
                assert set(limits()) == {1}
            assert set(limits()) == {1}
        assert limits() == before
        with pytest.raises(KeyError), one_blas_thread():
            raise KeyError
        assert limits() == before


@pytest.mark.parametrize("states", [0, 8])
@pytest.mark.parametrize("case", ["rows", "long rows", "groups", "transposed", "transposed kernels"])
def test_outputs_are_kept_better_in_as_many_bits(case, states):
    plain_error = fed_error = plain_bits = fed_bits = 0.0
    for seed in range(3):
        weights, kept, moments = layer(case, seed=10 + seed)
        weights = np.where(kept, weights, 0).astype(np.float32)
        pruned = prune(weights)
        plan = GroupPlan({"w": (pruned, F32, RateRule(0.3, states=states))}, 6)
        known = Calibrated("w", weights, pruned.mask, moments)
        plain, fed = plan.share("w"), plan.share("w", known)
        assert not values(fed)[~pruned.mask].any()
        plain_error += moments.output_error(values(plain) - weights)
        fed_error += moments.output_error(values(fed) - weights)
        plain_bits += entropy(plain)
        fed_bits += entropy(fed)
    assert fed_error < 0.8 * plain_error
    assert fed_bits < 1.08 * plain_bits


def values(shared):
    return widen(shared.gather().words, shared.dtype).reshape(shared.shape)


def entropy(shared):
    counts = np.bincount(shared.labels)
    shares = counts[counts > 0] / shared.labels.size
    return float(-(shares * np.log2(shares)).sum())


METHODS = {
    "kmeans": {"method": "kmeans", "n_centroids": 8},
    "uniform": {"method": "uniform", "n_centroids": 8},
    "fixed_point": {"method": "fixed_point", "integer_bits": 1, "fraction_bits": 2},
    "given": {"method": "given", "codebook": (-1.5, -0.5, 0.0, 0.5, 1.5)},
}


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("case", ["rows", "long rows", "groups", "transposed", "transposed kernels"])
@pytest.mark.parametrize("method", METHODS)
def test_codebooks_are_the_same_but_labels_keep_the_outputs(method, case, groups):
    weights, kept, moments = layer(case, seed=20)
    weights = np.where(kept, weights, 0).astype(np.float32)
    pruned = prune(weights)
    known = Calibrated("w", weights, pruned.mask, moments)
    plain = share(pruned, F32, groups=groups, **METHODS[method])
    fed = share(pruned, F32, groups=groups, calibrated=known, **METHODS[method])
    assert {*values(fed).flat} <= {
        *values(plain).flat,
        *(METHODS[method].get("codebook", ())),
        *fixed(method),
    }
    assert not values(fed)[~pruned.mask].any()
    errors = [moments.output_error(values(one) - weights) for one in (fed, plain)]
    if groups > 1 and moments.layout != "rows":
        assert errors[0] == errors[1]  # rows of such a tensor are no outputs: nothing is fed
    else:
        assert errors[0] < 0.8 * errors[1]


def fixed(method):
    return np.arange(-8, 8) / 4 if method == "fixed_point" else ()


def test_rows_that_are_looked_up_more_often_are_worth_more():
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(64, 24)).astype(np.float32)
    seen = np.where(np.arange(64) < 16, 1000.0, 1.0)
    nothing = np.zeros(1, np.int64)
    moments = moments_of(np.zeros((1, 1, 24)), (64, 24))
    moments = type(moments)(
        ("embedding",), (64, 24), "rows", nothing, moments.total, (), nothing, (), row_weights=seen
    )
    pruned = prune(weights)
    known = Calibrated("w", weights, pruned.mask, moments)
    plan = GroupPlan({"w": (pruned, F32, RateRule(0.3, slope=0.3))}, 6)
    plain, fed = (
        np.square(values(one) - weights).mean(1) for one in (plan.share("w"), plan.share("w", known))
    )
    assert fed[:16].mean() < 0.9 * plain[:16].mean()
    assert fed[16:].mean() > plain[16:].mean()
    shared = [values(share(pruned, F32, n_centroids=9, calibrated=one)) for one in (None, known)]
    np.testing.assert_array_equal(*shared)  # each takes its nearest centroid
