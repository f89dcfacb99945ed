"""k-means of one tensor's weights, in three steps so that its cost hardly depends on the tensor's size.

The weights are put into a fine weighted histogram, scikit-learn clusters a coarser one from the paper's
start, and Lloyd steps with prefix sums polish the result on the fine one, with swaps of centroids where
those steps are stuck. scikit-learn is imported only when there is something to cluster.
"""

from __future__ import annotations

import threading
import warnings
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dcompress.blas import one_blas_thread
from dcompress.errors import RecipeError
from dcompress.floats import FloatArray, blocks

__all__ = ["MAX_CENTROIDS", "Centroids", "cluster", "distinct_values"]

Centroids = NDArray[np.float64]

MAX_CENTROIDS = 4095  # with the zero apart, the 4,096 labels that the format codes

_EXACT_SIZE = 1 << 18  # up to here every distinct weight is a point of the fine histogram
_BUCKETS = 1 << 18  # beyond, points are so many buckets for each sign
_MAX_SPAN = 24 << 23  # of at most 24 octaves: a bucket is at most 2**-13 of its magnitude wide
_BLOCK = 1 << 20
_COARSE_PER_CENTROID = 8  # points that scikit-learn gets for every centroid, at least
_COARSE_MIN = 1 << 11
_SKLEARN_STEPS = 10  # enough to settle the start and to move empty clusters; the polish does the rest
_POLISH_STEPS = 1000
_SWAP_ROUNDS = 8
_SWAP_GAIN = 1e-3  # of the squared error: less is not worth another round
_SPLIT_GAIN = 0.6  # of a cluster's squared error goes when it is split, or a little more
_ONE_AT_A_TIME = threading.Lock()


class _Histogram(NamedTuple):
    """Weighted points, ascending: what the clustering sees instead of the weights."""

    points: NDArray[np.float64]
    counts: NDArray[np.float64]


def cluster(values: FloatArray, n_centroids: int, *, init: str = "linear", seed: int = 0) -> Centroids:
    """Return the centroids that k-means finds for some weights.

    Parameters
    ----------
    values : ndarray of shape (n_values,), float32 or float64
        Finite weights, in any order.
    n_centroids : int
        1..4095.
    init : {"linear", "density", "random", "k-means++"}
        Start: equal steps over the range (the paper's best), equal steps over the cumulative
        distribution, weights drawn at random, or k-means++.
    seed : int
        For the last two.

    Returns
    -------
    centroids : ndarray of shape (n,), float64
        Ascending and distinct. Fewer than asked where clusters stay empty; the distinct weights
        themselves if there are no more than asked.

    Raises
    ------
    RecipeError
        ``n_centroids`` is out of range or ``init`` is unknown.

    Notes
    -----
    Han et al. 2016, section 3. One BLAS thread, so the result does not depend on the thread count.
    """
    if not 1 <= n_centroids <= MAX_CENTROIDS:
        raise RecipeError(f"the number of centroids must be 1 to {MAX_CENTROIDS}, not {n_centroids}")
    if init not in ("linear", "density", "random", "k-means++"):
        raise RecipeError(f"unknown init {init!r}: linear, density, random or k-means++")
    if not values.size:
        return np.empty(0)
    distinct = distinct_values(values, n_centroids)
    if distinct is not None:
        return distinct
    exponent = 0
    if values.dtype == np.float64:  # powers of two keep squares and sums in range
        exponent = int(np.frexp(max(abs(float(values.min())), abs(float(values.max()))))[1])
        values = np.ldexp(values, -exponent)
    fine = _histogram(values, n_centroids)
    centroids = _polish(fine, _kmeans(_coarsen(fine, n_centroids), n_centroids, init, seed))
    error = _errors(fine, centroids).sum()
    for _ in range(_SWAP_ROUNDS):
        swapped = _polish(fine, _swap(fine, centroids, n_centroids - centroids.size))
        swapped_error = _errors(fine, swapped).sum()
        if swapped_error >= (1 - _SWAP_GAIN) * error:
            break
        centroids, error = swapped, swapped_error
    return np.ldexp(centroids, exponent)


def distinct_values(values: FloatArray, max_values: int) -> Centroids | None:
    """Return the distinct weights, ascending, or None if there are more than so many."""
    # A strided probe dismisses nearly every large tensor without sorting it.
    if values.size > _EXACT_SIZE and np.unique(values[:: values.size // _EXACT_SIZE]).size > max_values:
        return None
    distinct = np.unique(values)
    return distinct.astype(np.float64) if distinct.size <= max_values else None


def _histogram(values: FloatArray, n_centroids: int) -> _Histogram:
    """Return the fine histogram: distinct weights, or buckets with the means of what they hold."""
    if values.size > _EXACT_SIZE:
        histogram = _bucket(values)
        if histogram.points.size > n_centroids:
            return histogram
    # Small, or with so few buckets that the weights may be as few: look at them one by one.
    points, counts = np.unique(values, return_counts=True)
    return _Histogram(points.astype(np.float64), counts.astype(np.float64))


def _bucket(values: FloatArray) -> _Histogram:
    """Return weights counted in equal steps of their float32 bits: each as wide as it is large."""
    extremes = [(np.abs(values[part]).min(), np.abs(values[part]).max()) for part in blocks(values.size)]
    ends = np.array([min(low for low, _ in extremes), max(high for _, high in extremes)], np.float32)
    low, high = (int(word) for word in ends.view(np.uint32))
    low = max(low, high - _MAX_SPAN)  # what is smaller counts as one
    shift = max(0, ((high - low) // _BUCKETS).bit_length())
    counts, sums = np.zeros(2 * _BUCKETS), np.zeros(2 * _BUCKETS)
    for start in range(0, values.size, _BLOCK):
        block = values[start : start + _BLOCK]
        bits = block.astype(np.float32, copy=False).view(np.int32)
        steps = np.maximum((bits & 0x7FFFFFFF) - low, 0) >> shift
        buckets = np.where(bits < 0, _BUCKETS - 1 - steps, _BUCKETS + steps).astype(np.intp)
        counts += np.bincount(buckets, minlength=counts.size)
        sums += np.bincount(buckets, weights=block, minlength=sums.size)
    filled = counts > 0
    return _Histogram(sums[filled] / counts[filled], counts[filled])


def _coarsen(fine: _Histogram, n_centroids: int) -> _Histogram:
    """Return neighbouring points merged: as few as scikit-learn needs for so many centroids."""
    enough = max(_COARSE_MIN, _COARSE_PER_CENTROID * n_centroids)
    if fine.points.size <= enough:
        return fine
    bits = fine.points.astype(np.float32).view(np.uint32)
    for shift in range(20, -1, -1):
        buckets = bits >> np.uint32(shift)
        starts = np.flatnonzero(np.concatenate([[True], buckets[1:] != buckets[:-1]]))
        if starts.size >= enough:
            break
    else:  # float64 weights that differ less than float32 can tell
        starts = np.linspace(0, fine.points.size, enough, endpoint=False).astype(np.intp)
    counts = np.add.reduceat(fine.counts, starts)
    return _Histogram(np.add.reduceat(fine.points * fine.counts, starts) / counts, counts)


def _kmeans(histogram: _Histogram, n_centroids: int, init: str, seed: int) -> Centroids:
    """Return centroids after a few steps of scikit-learn's KMeans, which also moves empty clusters."""
    from sklearn.cluster import KMeans, kmeans_plusplus
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    points, counts = histogram.points[:, None], histogram.counts
    if init == "linear":
        start = np.linspace(points[0], points[-1], n_centroids)
    elif init == "density":
        ranks = (np.arange(n_centroids) + 0.5) / n_centroids * counts.sum()
        start = points[np.searchsorted(np.cumsum(counts), ranks)]
    elif init == "random":
        # RandomState is frozen for good: the same draws in every version of NumPy.
        draws = np.random.RandomState(seed).choice(
            len(points), n_centroids, replace=False, p=counts / counts.sum()
        )
        start = points[draws]
    # These contexts change the whole process, so one thread at a time: it takes milliseconds.
    with (
        _ONE_AT_A_TIME,
        one_blas_thread(),
        threadpool_limits(1, user_api="openmp"),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", ConvergenceWarning)  # of clusters that stay empty
        if init == "k-means++":
            start, _ = kmeans_plusplus(points, n_centroids, sample_weight=counts, random_state=seed)
        model = KMeans(n_centroids, init=start, n_init=1, max_iter=_SKLEARN_STEPS, tol=0)
        model.fit(points, sample_weight=counts)
    centroids: Centroids = np.unique(model.cluster_centers_)
    rounded = np.unique(centroids.astype(np.float32))  # hides how a machine's BLAS orders its sums
    return rounded.astype(np.float64) if rounded.size == centroids.size else centroids


def _polish(histogram: _Histogram, centroids: Centroids) -> Centroids:
    """Return centroids after Lloyd steps with momentum, until they stay where they are.

    A step costs a search for every centroid. Plain Lloyd creeps, in about ``n_centroids**2`` steps;
    with Nesterov's momentum, begun anew whenever the error grows, it takes about ``n_centroids``.
    """
    points, counts = histogram
    masses = points * counts
    n_below = np.concatenate([[0.0], np.cumsum(counts)])
    mass_below = np.concatenate([[0.0], np.cumsum(masses)])
    ahead, best, n_steps = centroids, -np.inf, 0
    for _ in range(_POLISH_STEPS):
        bounds = _bounds(points, ahead)
        sizes, sums = np.diff(n_below[bounds]), np.diff(mass_below[bounds])
        if n_steps and not sizes.all():  # momentum has emptied a cluster
            ahead, n_steps = centroids, 0
            continue
        filled = sizes > 0
        means = sums[filled] / sizes[filled]
        explained = float((sums[filled] * means).sum())  # the squared error is a constant less this
        if explained <= best:
            if n_steps == 0:
                break
            ahead, n_steps = centroids, 0
            continue
        best = explained
        if means.size == centroids.size:
            ahead = np.sort(means + n_steps / (n_steps + 3) * (means - centroids))
        else:
            ahead = means
        centroids, n_steps = means, n_steps + 1
    # Once more without the cancellation that prefix sums suffer where magnitudes differ greatly.
    starts = np.unique(_bounds(points, centroids)[:-1])
    return np.unique(np.add.reduceat(masses, starts) / np.add.reduceat(counts, starts))


def _swap(histogram: _Histogram, centroids: Centroids, n_more: int) -> Centroids:
    """Return centroids with neighbours merged where that costs little and split where it gains more.

    Lloyd steps cannot do that: a centroid that sits on a lone outlier stays there. ``n_more`` centroids
    are added besides, for clusters that came out empty.
    """
    points, counts = histogram
    starts = _bounds(points, centroids)[:-1]
    sizes, errors = np.add.reduceat(counts, starts), _errors(histogram, centroids)
    costs = sizes[1:] * sizes[:-1] / (sizes[1:] + sizes[:-1]) * np.square(np.diff(centroids))
    around = np.concatenate([[np.inf], costs, [np.inf]])
    cheap = np.flatnonzero((costs < around[:-2]) & (costs <= around[2:]))  # no two that touch
    cheap = cheap[np.argsort(costs[cheap], kind="stable")]
    widest = np.argsort(-errors, kind="stable")
    rivals = widest[n_more : n_more + cheap.size]
    n_swaps = int(np.count_nonzero(_SPLIT_GAIN * errors[rivals] > costs[cheap[: rivals.size]]))
    merged, split = cheap[:n_swaps], widest[: n_more + n_swaps]
    split = split[(errors[split] > 0) & ~np.isin(split, merged) & ~np.isin(split, merged + 1)]
    steps = np.sqrt(errors[split] / sizes[split])
    means = (sizes[merged] * centroids[merged] + sizes[merged + 1] * centroids[merged + 1]) / (
        sizes[merged] + sizes[merged + 1]
    )
    stay = np.delete(centroids, np.concatenate([merged, merged + 1, split]))
    return np.unique(np.concatenate([stay, means, centroids[split] - steps, centroids[split] + steps]))


def _errors(histogram: _Histogram, centroids: Centroids) -> NDArray[np.float64]:
    """Return the squared error of each cluster."""
    points, counts = histogram
    bounds = _bounds(points, centroids)
    errors: NDArray[np.float64] = counts * np.square(points - np.repeat(centroids, np.diff(bounds)))
    return np.add.reduceat(errors, np.minimum(bounds[:-1], points.size - 1))


def _bounds(points: NDArray[np.float64], centroids: Centroids) -> NDArray[np.intp]:
    """Return where the clusters of sorted points begin, and the end of the last."""
    inner = np.searchsorted(points, centroids[:-1] / 2 + centroids[1:] / 2, side="right")
    return np.concatenate([[0], inner, [points.size]])
