from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dcompress.constants import DTYPE_BY_NAME
from dcompress.floats import SHAREABLE, narrow, widen
from dcompress.prune import global_threshold, prune, sparsity_mask, threshold_mask
from dcompress.share import assign_labels, cluster, share

finite = st.floats(-(2.0**100), 2.0**100, width=32)
tensors = st.lists(finite | st.sampled_from([0.0, -0.0, 1.0, -1.0]), max_size=60).map(np.float32)
names = st.sampled_from(sorted(SHAREABLE))


@given(tensors, st.floats(0, 1))
def test_sparsity_prunes_exactly_and_only_smaller_magnitudes(weights, sparsity):
    mask = sparsity_mask(weights, sparsity)
    n_zeros = weights.size - np.count_nonzero(weights)
    assert np.count_nonzero(~mask) == max(round(sparsity * weights.size), n_zeros)
    if mask.any() and not mask.all():
        assert np.abs(weights[~mask]).max() <= np.abs(weights[mask]).min()


@given(st.lists(tensors, max_size=4), st.floats(0, 1))
def test_global_threshold_is_as_near_as_ties_allow(weights, sparsity):
    threshold = global_threshold([lambda one=one: one for one in weights], sparsity)
    magnitudes = np.abs(np.concatenate([*weights, np.float32([])]))
    wanted = round(sparsity * magnitudes.size)
    got = np.count_nonzero(magnitudes < threshold)
    choices = [0, *(np.count_nonzero(magnitudes <= value) for value in np.unique(magnitudes))]
    assert abs(got - wanted) == min(abs(choice - wanted) for choice in choices)
    for one in weights:
        assert (threshold_mask(one, threshold) == ((np.abs(one) >= threshold) & (one != 0))).all()


@given(tensors, st.lists(finite, min_size=1, max_size=20, unique=True))
def test_every_label_is_the_nearest_the_lower_of_two(weights, centroids):
    codebook = np.unique(np.float64(centroids) + 0.0)
    labels = assign_labels(weights, codebook)
    cuts = [low / 2 + high / 2 for low, high in itertools.pairwise(codebook.tolist())]
    for weight, label in zip(weights.tolist(), labels.tolist(), strict=True):
        assert label == sum(weight > cut for cut in cuts)


@settings(deadline=None)
@given(tensors, st.integers(1, 40))
def test_cluster_is_sorted_distinct_within_range_and_repeatable(weights, n_centroids):
    weights = weights[weights != 0]
    centroids = cluster(weights, n_centroids)
    assert centroids.size <= n_centroids
    assert (np.diff(centroids) > 0).all()
    assert centroids.tobytes() == cluster(weights.copy(), n_centroids).tobytes()
    if weights.size:
        assert weights.min() <= centroids.min()
        assert centroids.max() <= weights.max()
    if np.unique(weights).size <= n_centroids:
        assert centroids.tolist() == np.unique(weights).tolist()


@settings(deadline=None)
@given(tensors, names, st.integers(1, 40), st.sampled_from([None, "float16"]), st.booleans())
def test_shared_tensors_keep_their_promises(weights, name, n_centroids, codebook_dtype, two_groups):
    dtype = DTYPE_BY_NAME[name]
    weights = widen(narrow(weights, dtype), dtype)
    groups = 2 if two_groups and weights.size and weights.size % 2 == 0 else 1
    pruned = prune(weights, sparsity_mask(weights, 0.3))
    shared = share(pruned, dtype, n_centroids=n_centroids, codebook_dtype=codebook_dtype, groups=groups)
    rows = widen(shared.codebook.reshape(-1), dtype).reshape(shared.codebook.shape).astype(np.float64)
    assert rows.shape[1] <= n_centroids
    assert (np.diff(rows) > 0).all()
    assert (rows != 0).all()
    assert np.isfinite(rows).all()
    labels = shared.labels.reshape(groups, -1)
    assert labels.max(initial=0) < max(1, rows.shape[1] + shared.has_zero)
    values = widen(shared.gather().words, dtype)
    assert not np.signbit(values[values == 0]).any()
    assert (values[~pruned.mask] == 0).all()
    if codebook_dtype is None and groups == 1 and np.unique(pruned.values).size <= n_centroids:
        assert values.tolist() == np.where(pruned.mask, weights, 0).tolist()
    again = share(pruned, dtype, n_centroids=n_centroids, codebook_dtype=codebook_dtype, groups=groups)
    assert again.labels.tobytes() == shared.labels.tobytes()
    assert again.codebook.tobytes() == shared.codebook.tobytes()
