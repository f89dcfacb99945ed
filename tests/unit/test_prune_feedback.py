"""Pruning with error feedback against loops over columns."""

from __future__ import annotations

import numpy as np
import pytest

from dcompress import prune_feedback
from dcompress.compression import compress_tensor
from dcompress.constants import DTYPE_BY_NAME
from dcompress.errors import RecipeError
from dcompress.feedback import Feedback
from dcompress.floats import narrow, widen
from dcompress.prune import n_m_mask, sparsity_mask
from dcompress.prune_feedback import prune_fed
from dcompress.prune_rules import prune_named
from dcompress.rules import PruneRule, RateRule, ShareRule, TensorRecipe
from dcompress.stages import TensorData
from tests.moments import damped, moments_of
from tests.unit.test_feeding import layer

CASES = ["rows", "long rows", "rows in blocks", "groups", "transposed", "transposed kernels"]


def floats(pruned):
    found = np.zeros(pruned.mask.shape)
    found[pruned.mask] = pruned.values
    return found


def tensor_of(weights, dtype="float32"):
    kind = DTYPE_BY_NAME[dtype]
    return TensorData(kind, weights.shape, narrow(weights.reshape(-1), kind))


def slow(fed, choose, window):
    """Return pruned matrices; ``choose`` gets costs of a window by group, and says what goes."""
    moments = fed.moments
    values, kept = fed.targets.copy(), fed.kept.copy()
    factors = np.zeros((moments.n_groups, moments.n_columns, moments.n_columns))
    for block, here in zip(moments.second, moments.blocks, strict=True):
        for group in range(moments.n_groups):
            inverse = np.linalg.inv(damped(block[group], fed.damping))
            factors[group, here, here] = np.linalg.cholesky(inverse).T
    for begin in range(0, moments.n_columns, window):
        here = slice(begin, min(begin + window, moments.n_columns))
        cost = values[:, :, begin:] ** 2 / factors.diagonal(0, 1, 2)[:, None, begin:] ** 2
        kept[:, :, here] &= ~choose(cost, kept[:, :, begin:], here.stop - begin)
        for column in range(here.start, here.stop):
            for group, factor in enumerate(factors):
                new = values[group, :, column] * kept[group, :, column]
                error = (values[group, :, column] - new) / factor[column, column]
                values[group, :, column + 1 :] -= error[:, None] * factor[column, column + 1 :]
                values[group, :, column] = new
    return values


@pytest.mark.parametrize("window", [20, 128])
@pytest.mark.parametrize("sparsity", [0.3, 0.7])
@pytest.mark.parametrize("case", CASES)
def test_sparsity_is_that_of_a_loop_over_columns(case, sparsity, window, monkeypatch):
    monkeypatch.setattr(prune_feedback, "_WINDOW", window)
    weights, kept, moments = layer(case, seed=1)
    fed = Feedback.of("w", weights, kept, None, moments)
    pruned = prune_fed(fed, sparsity=sparsity)
    left = [round(sparsity * weights.size) - int((~kept).sum())]

    def choose(cost, still, n_own):
        open_costs = np.sort(cost[still])
        bound = open_costs[left[0] - 1] if left[0] else -1.0
        gone = (still & (cost <= bound))[:, :, :n_own]
        left[0] -= int(gone.sum())
        return gone

    expected = moments.weight(slow(fed, choose, window))
    assert pruned.values.size == weights.size - round(sparsity * weights.size)
    np.testing.assert_array_equal(pruned.mask, expected != 0)
    np.testing.assert_allclose(floats(pruned), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 2), (3, 4)])
@pytest.mark.parametrize("case", ["long rows", "groups", "transposed", "transposed kernels of 4"])
def test_n_of_m_is_that_of_a_loop_over_columns(case, n, m):
    if case == "transposed kernels of 4":
        rng = np.random.default_rng(3)
        inputs = rng.normal(size=(2, 80, 3 * 4))
        weights, moments = (
            rng.normal(size=(6, 8, 2, 2)),
            moments_of(inputs, (6, 8, 2, 2), layout="transposed"),
        )
    else:
        weights, _, moments = layer(case, seed=2)
    kept = np.random.default_rng(5).random(weights.shape) < 0.8
    fed = Feedback.of("w", weights, kept, None, moments)
    pruned = prune_fed(fed, n_m=(n, m))
    counts = pruned.mask.reshape(weights.shape[0], -1, m, int(np.prod(weights.shape[2:]))).sum(2)
    there = kept.reshape(weights.shape[0], -1, m, int(np.prod(weights.shape[2:]))).sum(2)
    np.testing.assert_array_equal(counts, np.minimum(n, there))
    width = int(np.prod(weights.shape[2:]))

    def choose(cost, still, n_own):
        cost = np.where(still, cost, -1.0)[:, :, :n_own]
        gone = np.zeros(cost.shape, bool)
        groups, n_outputs, n_columns = cost.shape
        if moments.layout == "rows":
            runs = [(o, range(place, m * width, width)) for o in range(n_outputs) for place in range(width)]
            for group in range(groups):
                for output, run in runs:
                    for column in sorted(run, key=lambda at, g=group, o=output: cost[g, o, at])[: m - n]:
                        gone[group, output, column] = True
        else:
            for group in range(groups):
                for column in range(n_columns):
                    for first in range(0, n_outputs, m):
                        run = range(first, first + m)
                        order = sorted(run, key=lambda at, g=group, c=column: cost[g, at, c])
                        gone[group, order[: m - n], column] = True
        return gone

    window = m * width if moments.layout == "rows" else 1
    expected = moments.weight(slow(fed, choose, window))
    np.testing.assert_array_equal(pruned.mask, expected != 0)
    np.testing.assert_allclose(floats(pruned), expected, rtol=1e-5, atol=1e-7)


def test_n_of_m_that_does_not_fit():
    weights, kept, moments = layer("rows")
    with pytest.raises(RecipeError, match="4 does not divide the second dimension"):
        prune_fed(Feedback.of("w", weights, kept, None, moments), n_m=(2, 4))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
@pytest.mark.parametrize("case", CASES)
def test_what_is_kept_makes_up_for_what_is_pruned(case, dtype):
    weights, _, moments = layer(case, seed=4)
    tensor = tensor_of(weights.astype(np.float32) if dtype != "float64" else weights, dtype)
    weights = widen(tensor.words, tensor.dtype).reshape(weights.shape).astype(np.float64)
    rule = TensorRecipe(PruneRule(sparsity=0.5), explicit_prune=True)
    found = compress_tensor("w", tensor, rule, moments=moments)
    assert isinstance(found, TensorData)
    fed = widen(found.words, found.dtype).reshape(weights.shape).astype(np.float64)
    plain = np.where(sparsity_mask(weights, 0.5), weights, 0)
    assert (fed == 0).sum() == (plain == 0).sum()
    kept = fed != 0
    assert (fed[kept] != weights[kept]).mean() > 0.5
    most = 0.9 if case == "rows in blocks" else 0.7
    assert moments.output_error(fed - weights) < most * moments.output_error(plain - weights)
    if dtype == "float64":
        assert (fed != fed.astype(np.float32)).mean() > 0.4


RULES = {
    "threshold": PruneRule(threshold=0.6),
    "quality": PruneRule(quality=0.6),
    "n_m": PruneRule(n_m="2:4"),
    "sparsity": PruneRule(sparsity=0.45),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("case", ["long rows", "groups", "transposed"])
def test_every_rule_profits(case, rule):
    weights, _, moments = layer(case, seed=5)
    tensor, recipe = tensor_of(weights), TensorRecipe(RULES[rule], explicit_prune=True)
    weights = weights.astype(np.float32)
    plain, fed = (prune_named("w", tensor, recipe, one) for one in (None, moments))
    if rule in ("threshold", "quality"):
        np.testing.assert_array_equal(plain.mask, fed.mask)
    elif rule == "n_m":
        np.testing.assert_array_equal(plain.mask, n_m_mask(weights, 2, 4))
    assert plain.mask.sum() == fed.mask.sum()
    errors = [moments.output_error(floats(one) - weights) for one in (fed, plain)]
    assert errors[0] < 0.8 * errors[1]


@pytest.mark.parametrize("share", [RateRule(0.2), ShareRule(n_centroids=16)])
@pytest.mark.parametrize("case", ["long rows", "groups", "transposed"])
def test_pruning_and_sharing_make_up_for_each_other(case, share):
    weights, _, moments = layer(case, seed=6)
    recipe = TensorRecipe(PruneRule(sparsity=0.5), share, explicit=True, explicit_prune=True)
    errors = []
    for known in (moments, None):
        shared = compress_tensor("w", tensor_of(weights), recipe, moments=known)
        found = widen(shared.gather().words, shared.dtype).reshape(weights.shape)
        assert (found == 0).mean() >= 0.5
        errors.append(moments.output_error(found - weights))
    assert errors[0] < 0.6 * errors[1]


def test_rows_that_are_looked_up_less_lose_more():
    weights = np.random.default_rng(0).normal(size=(40, 10))
    nothing = np.zeros(1, np.int64)
    plain = moments_of(np.zeros((1, 1, 10)), weights.shape)
    seen = np.where(np.arange(40) < 20, 100.0, 1.0)
    moments = type(plain)(
        ("embedding",), weights.shape, "rows", nothing, plain.total, (), nothing, row_weights=seen
    )
    fed = Feedback.of("w", weights, weights != 0, None, moments)
    pruned = prune_fed(fed, sparsity=0.4)
    assert pruned.values.size == 240
    assert pruned.mask[:20].sum() > 1.3 * pruned.mask[20:].sum()
    np.testing.assert_array_equal(pruned.values, weights[pruned.mask].astype(np.float32))
    pruned = prune_fed(fed, n_m=(1, 2))
    np.testing.assert_array_equal(pruned.mask, n_m_mask(weights, 1, 2))


@pytest.mark.parametrize("sparsity", [0.0, 1.0])
def test_nothing_and_everything(sparsity):
    weights, kept, moments = layer("rows", seed=7)
    pruned = prune_fed(Feedback.of("w", weights, kept, None, moments), sparsity=sparsity)
    assert pruned.values.size == (0 if sparsity else kept.sum())
    np.testing.assert_array_equal(pruned.mask, kept & (sparsity == 0))
