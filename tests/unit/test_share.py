from __future__ import annotations

import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from dcompress.constants import DTYPE_BY_NAME
from dcompress.errors import RecipeError
from dcompress.floats import SHAREABLE, count_nonfinite, narrow, widen
from dcompress.prune import prune, sparsity_mask
from dcompress.share import assign_labels, cluster, share

F32 = DTYPE_BY_NAME["float32"]
BF16 = DTYPE_BY_NAME["bfloat16"]


def laplace(n=20_000, seed=0):
    return (np.random.default_rng(seed).laplace(size=n) * 0.05).astype(np.float32)


def floats(shared):
    return widen(shared.gather().words, shared.dtype)


def squared_error(values, centroids):
    distances = np.abs(values.astype(np.float64)[:, None] - centroids)
    return float(np.square(distances.min(1)).sum())


def slow_lloyd(values, centroids, steps=300):
    values = values.astype(np.float64)
    for _ in range(steps):
        labels = np.abs(values[:, None] - centroids).argmin(1)
        centroids = np.array(
            [values[labels == k].mean() for k in range(centroids.size) if (labels == k).any()]
        )
    return centroids


@pytest.mark.parametrize("init", ["linear", "density", "random", "k-means++"])
@pytest.mark.parametrize("n_centroids", [1, 4, 32])
def test_cluster_is_no_worse_than_plain_lloyd(init, n_centroids):
    values = laplace(3000)
    centroids = cluster(values, n_centroids, init=init)
    assert centroids.size == n_centroids
    assert (np.diff(centroids) > 0).all()
    plain = slow_lloyd(values, np.linspace(values.min(), values.max(), n_centroids))
    assert squared_error(values, centroids) <= 1.01 * squared_error(values, plain)


def test_cluster_is_no_worse_than_scikit_learn_on_heavy_tails():
    from sklearn.cluster import KMeans

    values = np.random.default_rng(0).standard_t(3, 5000)
    start = np.linspace(values.min(), values.max(), 16)[:, None]
    model = KMeans(16, init=start, n_init=1).fit(values[:, None])
    assert squared_error(values, cluster(values, 16)) <= 1.01 * model.inertia_


def test_centroids_of_a_large_tensor_are_the_means_of_their_weights():
    values = laplace(400_000)  # beyond the size where every weight is a point
    centroids = cluster(values, 16)
    labels = assign_labels(values, centroids)
    means = [values[labels == label].mean(dtype=np.float64) for label in range(16)]
    np.testing.assert_allclose(centroids, means, rtol=2e-3)


@pytest.mark.parametrize("n", [500, 400_000])
def test_few_distinct_values_come_back_exactly(n):
    levels = np.array([-2.5, -1e-3, 1.0, 1.0000001], np.float32)
    values = levels[np.random.default_rng(0).integers(0, 4, n)]
    assert cluster(values, 4).tolist() == levels.tolist()
    assert cluster(values, 9).tolist() == levels.tolist()
    assert cluster(values, 3).size <= 3
    assert floats(share(values, F32, method="uniform", n_centroids=4)).tolist() == values.tolist()


def test_cluster_of_extreme_float64_values():
    rng = np.random.default_rng(0)
    for scale in (1e300, 1e-300):
        values = rng.normal(size=2000) * scale
        np.testing.assert_allclose(cluster(values, 8) / scale, cluster(values / scale, 8), rtol=1e-6)
    close = 1 + rng.normal(size=5000) * 1e-12  # float32 cannot tell these apart
    assert cluster(close, 16).size == 16
    assert cluster(np.repeat(close, 60), 16).size == 16


def test_cluster_of_nothing():
    assert cluster(np.empty(0, np.float32), 8).size == 0


@pytest.mark.parametrize("init", ["linear", "density", "random", "k-means++"])
def test_cluster_is_deterministic_in_threads_too(init):
    values = laplace(50_000)
    expected = cluster(values, 20, init=init, seed=3).tobytes()
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(cluster, values, 20, init=init, seed=3) for _ in range(8)]
        assert {job.result().tobytes() for job in jobs} == {expected}


def test_clustering_leaves_the_thread_limits_as_they_were():
    from threadpoolctl import threadpool_info

    def limits():
        return {pool["filepath"]: pool["num_threads"] for pool in threadpool_info()}

    cluster(laplace(), 4)
    before = limits()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda seed: cluster(laplace(seed=seed), 8), range(8)))
    assert limits() == before


@pytest.mark.parametrize("n_centroids", [0, 4096])
def test_number_of_centroids_out_of_range(n_centroids):
    for method in ("kmeans", "uniform"):
        with pytest.raises(RecipeError, match="number of centroids must be 1 to 4095"):
            share(laplace(10), F32, method=method, n_centroids=n_centroids)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [1000, 200_000])
@pytest.mark.parametrize("k", [1, 2, 37, 2000])
def test_labels_name_the_nearest_centroid(dtype, n, k):
    rng = np.random.default_rng(k)
    centroids = np.unique(rng.normal(size=k).astype(np.float32)).astype(np.float64)
    values = (rng.normal(size=n) * 1.2).astype(dtype)
    values[:k] = centroids[: values[:k].size]
    labels = assign_labels(values, centroids)
    wide = values.astype(np.float64)
    chosen = np.abs(wide - centroids[labels])
    for step in (-1, 1):
        other = np.abs(wide - centroids[np.clip(labels.astype(int) + step, 0, centroids.size - 1)])
        assert (chosen <= other).all()


@pytest.mark.parametrize("n", [5, 200_000])
def test_a_weight_halfway_goes_to_the_lower_centroid(n):
    values = np.resize(np.float32([-1.5, -0.5, 0.5, 1.5, 1.5000001]), n)
    expected = np.resize([0, 1, 2, 3, 4], n)
    assert assign_labels(values, np.arange(-2.0, 3.0)).tolist() == expected.tolist()


def test_pruned_zeros_stand_apart():
    values = laplace()
    mask = sparsity_mask(values, 0.9)
    shared = share(prune(values, mask), F32, n_centroids=31)
    assert shared.has_zero
    assert shared.n_centroids == 31
    assert ((floats(shared) != 0) == mask).all()
    assert ((shared.labels != 0) == mask).all()
    assert shared.labels.dtype == np.uint16


def test_dense_tensor_has_no_zero_and_an_ascending_codebook():
    shared = share(laplace().reshape(100, 200), F32, n_centroids=16)
    assert not shared.has_zero
    assert shared.shape == (100, 200)
    row = widen(shared.codebook[0], F32)
    assert (np.diff(row) > 0).all()
    assert np.bincount(shared.labels).all()


def test_a_centroid_that_rounds_to_zero_prunes():
    values = np.float32([-1, -0.01, 0.01, 1, 0.0, -0.0])
    shared = share(values, F32, method="given", codebook=[1, 0.0, -1, -0.0])
    assert shared.has_zero
    assert shared.labels.tolist() == [1, 0, 0, 2, 0, 0]
    assert shared.gather().words.tolist() == np.float32([-1, 0, 0, 1, 0, 0]).view(np.uint32).tolist()
    tiny = share(np.float32([1e-9, 1e-9, 1.0]), F32, codebook_dtype="float16")
    assert floats(tiny).tolist() == [0, 0, 1]


def test_everything_pruned():
    shared = share(np.zeros((4, 4), np.float32), F32, groups=2)
    assert shared.codebook.shape == (2, 0)
    assert not floats(shared).any()


@pytest.mark.parametrize("name", sorted(SHAREABLE))
def test_codebook_is_in_the_type_of_the_tensor(name):
    dtype = DTYPE_BY_NAME[name]
    words = narrow(laplace(5000), dtype)
    shared = share(widen(words, dtype), dtype, n_centroids=8)
    assert shared.gather().words.dtype == words.dtype
    error = np.abs(floats(shared).astype(np.float64) - widen(words, dtype))
    assert error.mean() < 0.02


def test_codebook_in_half_precision():
    shared = share(laplace(), F32, n_centroids=32, codebook_dtype="float16")
    row = widen(shared.codebook[0], F32)
    assert (row == row.astype(np.float16)).all()
    large = share(np.float32([1e6, -1e6]), F32, codebook_dtype="float16")
    assert floats(large).tolist() == [65504, -65504]


def test_uniform_steps():
    values = np.linspace(-1, 3, 1001).astype(np.float32)
    shared = share(prune(values), F32, method="uniform", n_centroids=5)
    assert widen(shared.codebook[0], F32).tolist() == [-1, 1, 2, 3]  # 0 stands apart
    assert share(values[:9], F32, method="uniform", n_centroids=1).n_centroids == 1


def test_fixed_point_rounds_to_steps_and_saturates():
    values = np.float32([-9, -0.3, -0.25, 0.1, 0.126, 0.9, 9])
    shared = share(values, F32, method="fixed_point", integer_bits=0, fraction_bits=2)
    assert floats(shared).tolist() == [-1, -0.25, -0.25, 0, 0.25, 0.75, 0.75]
    assert shared.has_zero


def test_each_group_of_channels_has_its_own_codebook():
    values = np.concatenate([laplace(4000), 10 + laplace(4000, 1)]).reshape(40, 200)
    shared = share(values, F32, n_centroids=8, groups=2)
    assert shared.codebook.shape == (2, 8)
    halves = [floats(share(half, F32, n_centroids=8)) for half in (values[:20], values[20:])]
    assert floats(shared).tolist() == np.concatenate(halves).tolist()


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("low", [[1.0], [-1e-45], [3.3e38], []])
def test_shorter_rows_are_padded_with_unused_ascending_values(dtype, low):
    values = np.zeros((2, 6), np.float32)
    values[0, : len(low)] = low
    values[1] = [1, 2, 3, 4, 5, 6]
    shared = share(widen(narrow(values.reshape(-1), dtype), dtype).reshape(2, 6), dtype, groups=2)
    rows = widen(shared.codebook.reshape(-1), dtype).reshape(2, 6)
    assert (np.diff(rows.astype(np.float64)) > 0).all()
    assert np.isfinite(rows).all()
    assert (rows != 0).all()
    kept = widen(narrow(np.float32(low), dtype), dtype)
    assert np.isin(kept[kept != 0], rows[0]).all()
    assert floats(shared)[6:].tolist() == [1, 2, 3, 4, 5, 6]


def test_wrong_arguments():
    values = laplace(12).reshape(3, 4)
    for arguments, message in (
        ({"groups": 2}, "2 groups do not divide the first dimension"),
        ({"groups": 0}, "0 groups do not divide"),
        ({"method": "magic"}, "unknown method 'magic'"),
        ({"init": "magic"}, "unknown init 'magic'"),
        ({"codebook_dtype": "int8"}, "codebook_dtype must be float16"),
        ({"method": "given"}, "a codebook must hold 1 to 4095 finite values"),
        ({"method": "given", "codebook": [float("nan")]}, "a codebook must hold"),
        ({"method": "fixed_point", "integer_bits": 9, "fraction_bits": 3}, "must add up to 0 to 11"),
    ):
        with pytest.raises(RecipeError, match=message):
            share(values, F32, **arguments)


def test_shared_tensor_pickles():
    shared = share(laplace(100), F32, n_centroids=4)
    copy = pickle.loads(pickle.dumps(shared))
    assert copy.gather().words.tolist() == shared.gather().words.tolist()


def test_narrow_rounds_to_nearest_even_and_saturates():
    ties = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x80000001, 0x80000000], np.uint32).view(np.float32)
    assert narrow(ties, BF16).tolist() == [0x3F80, 0x3F82, 0x3F81, 0, 0]
    assert narrow(np.array([3.4e38, -1e300]), BF16).tolist() == [0x7F7F, 0xFF7F]
    assert narrow(np.array([1e300, 1.0]), F32).view(np.float32).tolist() == [np.finfo(np.float32).max, 1]


@pytest.mark.parametrize("name", sorted(SHAREABLE))
def test_non_finite_words_are_counted(name):
    dtype = DTYPE_BY_NAME[name]
    exponent = SHAREABLE[name]
    words = narrow(np.float64([1, -2, 3, 4]), dtype)
    assert count_nonfinite(words, dtype) == 0
    words[1], words[3] = exponent, exponent | 1
    assert count_nonfinite(words, dtype) == 2


def test_scikit_learn_is_imported_only_to_cluster():
    code = (
        "import sys, numpy as np, dcompress.share as s, dcompress.compression\n"
        "from dcompress.constants import DTYPE_BY_NAME as d\n"
        "s.share(np.float32([1, 2, 0]), d['float32'])\n"
        "s.share(np.arange(99.), d['float64'], method='uniform', n_centroids=4)\n"
        "assert 'sklearn' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
