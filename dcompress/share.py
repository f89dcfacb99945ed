"""Stage 2: kept weights become labels into a codebook.

The codebook comes first (k-means, equal steps, fixed point, or given), is rounded to what the tensor's type
can hold, and only then does every weight get the label of its nearest value.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dcompress.constants import DType
from dcompress.errors import RecipeError
from dcompress.feedback import Calibrated, Feedback
from dcompress.feeding import fed_places
from dcompress.floats import SHAREABLE, FloatArray, blocks, narrow, widen
from dcompress.kmeans import MAX_CENTROIDS, Centroids, cluster, distinct_values
from dcompress.prune import prune
from dcompress.stages import PrunedTensor, SharedTensor, Words, word_dtype

__all__ = ["assign_labels", "cluster", "share"]

_TABLE_SHIFT = 14  # upper 18 bits of a float32 pick a row of the label table
_TABLE_SIZE = 1 << 17  # fewer weights than this are faster without the table


def share(
    weights: PrunedTensor | FloatArray,
    dtype: DType,
    *,
    method: str = "kmeans",
    n_centroids: int = 256,
    init: str = "linear",
    codebook: Sequence[float] = (),
    codebook_dtype: str | None = None,
    integer_bits: int = 0,
    fraction_bits: int = 7,
    groups: int = 1,
    seed: int = 0,
    calibrated: Calibrated | None = None,
) -> SharedTensor:
    """Return a tensor as labels into a codebook.

    Parameters
    ----------
    weights : PrunedTensor or ndarray of floats
        What stage 1 kept, all finite; of a bare array, everything but its zeros.
    dtype : DType
        Element type of the tensor: float64, float32, float16 or bfloat16.
    method : {"kmeans", "uniform", "fixed_point", "given"}
        k-means; equal steps over the range; multiples of ``2**-fraction_bits``; the caller's values.
    n_centroids : int
        1..4095, for k-means and uniform; a tensor with no more distinct weights keeps them as they are.
    init, seed
        Start of the k-means, see `cluster`.
    codebook : sequence of float
        Values for "given", finite; the order does not matter.
    codebook_dtype : str, optional
        "float16" rounds the codebook to that precision (saturating), whatever the tensor's type.
    integer_bits, fraction_bits : int
        For "fixed_point": a sign bit beside them, so values -2**i .. 2**i - 2**-f; together 0..11.
    groups : int
        Codebooks: one for each of so many equal stretches of the first dimension.
    calibrated : Calibrated, optional
        What is known of the inputs: labels are then given with error feedback.

    Returns
    -------
    shared : SharedTensor
        Rows ascending by value; no value twice in a row, none unused but the padding of shorter rows.
        The zero stands apart wherever there is one: where the mask prunes, and where the nearest
        centroid rounds to zero. Unlike a centroid it does not count as one of ``n_centroids``.

    Raises
    ------
    RecipeError
        An argument is out of range, or ``groups`` does not divide the first dimension.
    """
    pruned = weights if isinstance(weights, PrunedTensor) else prune(weights)
    shape = pruned.mask.shape
    if groups < 1 or (groups > 1 and (not shape or shape[0] % groups)):
        raise RecipeError(f"{groups} groups do not divide the first dimension of shape {shape}")
    if codebook_dtype not in (None, "float16"):
        raise RecipeError(f"codebook_dtype must be float16 if given, not {codebook_dtype!r}")
    masks = pruned.mask.reshape(groups, -1)
    ends = np.cumsum([np.count_nonzero(row) for row in masks])
    books: list[Centroids] = []
    parts = np.split(pruned.values, ends[:-1])
    for values in parts:
        if method == "kmeans":
            centroids = cluster(values, n_centroids, init=init, seed=seed)
        elif method == "uniform":
            centroids = _uniform(values, n_centroids)
        elif method == "fixed_point":
            centroids = _fixed_point(integer_bits, fraction_bits)
        elif method == "given":
            centroids = _given(codebook)
        else:
            raise RecipeError(f"unknown method {method!r}: kmeans, uniform, fixed_point or given")
        books.append(_storable(centroids, dtype, codebook_dtype == "float16"))
    places = None if calibrated is None else _fed_places(calibrated, books)
    labels = np.zeros(masks.shape, np.uint16)
    rows: list[Words] = []
    for row, (values, centroids) in enumerate(zip(parts, books, strict=True)):
        nearest = assign_labels(values, centroids) if places is None else places.reshape(groups, -1)[row]
        own = nearest if places is None else nearest[masks[row]].astype(np.uint16)
        words, kept_labels = _used(centroids, own, dtype)
        rows.append(words)
        labels[row][masks[row]] = kept_labels
    has_zero = labels.size == 0 or not labels.min()
    if not has_zero:
        labels -= 1
    return SharedTensor(dtype, shape, _stack(rows, dtype), labels.reshape(-1), has_zero)


def assign_labels(values: FloatArray, centroids: Centroids) -> NDArray[np.uint16]:
    """Return the label of the nearest centroid of each weight, the lower one of two equally near.

    Parameters
    ----------
    values : ndarray of shape (n_values,), float32 or float64
        Finite weights.
    centroids : ndarray of shape (n_centroids,), float64
        Ascending and distinct; at most 65,536.

    Returns
    -------
    labels : ndarray of shape (n_values,), dtype uint16
        Places in ``centroids``.

    Notes
    -----
    A weight belongs to the lower centroid if it is at most their float64 midpoint. For float32 weights
    the midpoints are rounded down to float32, which changes no outcome. The upper bits of a weight then
    mostly settle its label; where one midpoint lies among the weights of a bucket it is compared with,
    and where several do they are searched.
    """
    midpoints = centroids[:-1] / 2 + centroids[1:] / 2
    labels = np.empty(values.size, np.uint16)
    if values.dtype != np.float32:
        for part in blocks(values.size):
            labels[part] = np.searchsorted(midpoints, values[part])
        return labels
    with np.errstate(over="ignore", under="ignore"):
        cuts = midpoints.astype(np.float32)
    cuts = np.where(cuts > midpoints, np.nextafter(cuts, np.float32(-np.inf)), cuts)
    if values.size < _TABLE_SIZE:
        labels[:] = np.searchsorted(cuts, values)
        return labels
    ends = np.arange(1 << (32 - _TABLE_SHIFT), dtype=np.uint32) << _TABLE_SHIFT
    one = np.searchsorted(cuts, ends.view(np.float32))
    other = np.searchsorted(cuts, (ends | ((1 << _TABLE_SHIFT) - 1)).view(np.float32))
    low, n_cuts = np.minimum(one, other), np.abs(other - one)
    base = low.astype(np.uint16)
    cut = np.where(n_cuts == 1, np.append(cuts, np.float32(np.inf))[low], np.float32(np.inf))
    crowded = n_cuts > 1
    any_crowded = bool(crowded.any())
    for part in blocks(values.size):
        block = values[part]
        buckets = (block.view(np.uint32) >> _TABLE_SHIFT).astype(np.intp)
        found = base.take(buckets)
        found += block > cut.take(buckets)
        if any_crowded:
            hard = np.flatnonzero(crowded.take(buckets))
            found[hard] = np.searchsorted(cuts, block[hard])
        labels[part] = found
    return labels


def _storable(centroids: Centroids, dtype: DType, half: bool) -> Centroids:
    """Return the values that a codebook can hold, ascending."""
    if half:
        centroids = np.clip(centroids, -65504, 65504).astype(np.float16).astype(np.float64)
    return np.unique(widen(narrow(centroids, dtype), dtype)).astype(np.float64)


def _fed_places(calibrated: Calibrated, books: Sequence[Centroids]) -> NDArray[np.int32] | None:
    """Return the place of every weight in its codebook, errors fed on; None where nothing can be fed."""
    moments = calibrated.moments
    n_most = max((book.size for book in books), default=0)
    if not n_most or (len(books) > 1 and moments.layout != "rows"):
        return None
    gaps = [float(np.diff(book).mean()) for book in books if book.size > 1]
    step = sum(gaps) / len(gaps) if gaps else None
    fed = Feedback.of(calibrated.name, calibrated.weights, calibrated.kept, step, moments)
    if fed is None:
        return None
    codebooks = np.full((len(books), n_most), np.inf)
    for row, book in enumerate(books):
        codebooks[row, : book.size] = book
    n_outputs = fed.targets.shape[0] * fed.targets.shape[1]
    return fed_places(fed, codebooks, np.arange(n_outputs) * len(books) // n_outputs)


def _used(centroids: Centroids, labels: NDArray[np.uint16], dtype: DType) -> tuple[Words, NDArray[np.uint16]]:
    """Return the words of a codebook that are used, zero left out, and labels: 0 = zero, then those words."""
    n_uses = np.zeros(centroids.size, np.int64)
    for part in blocks(labels.size):
        n_uses += np.bincount(labels[part], minlength=centroids.size)
    used = (n_uses > 0) & (centroids != 0)
    places = np.where(centroids == 0, 0, np.cumsum(used)).astype(np.uint16)
    for part in blocks(labels.size):
        labels[part] = places.take(labels[part])
    return narrow(centroids[used], dtype), labels


def _stack(rows: list[Words], dtype: DType) -> Words:
    """Return rows of words as one array, shorter ones padded with the next values above their last one.

    Zeros are skipped, and padded rows ascend too; a row at the end of the finite range is padded with the
    next values below its last one that it does not hold.
    """
    width = max(row.size for row in rows)
    sign = 1 << (8 * dtype.word_bytes - 1)
    infinite = SHAREABLE[dtype.name]
    codebook = np.zeros((len(rows), width), word_dtype(dtype.word_bytes))
    for place, row in enumerate(rows):
        # Signed magnitudes are in the order of the values; both zeros are 0, which is left out.
        keys = [-(int(word) - sign) if int(word) & sign else int(word) for word in row]
        key = keys[-1] if keys else 0
        while len(keys) < width and key + 1 < infinite:
            key += 1
            if key:
                keys.append(key)
        key = keys[-1] if keys else 0
        while len(keys) < width:
            key -= 1
            if key and key not in keys:
                keys.append(key)
        codebook[place] = [sign - key if key < 0 else key for key in sorted(keys)]
    return codebook


def _uniform(values: FloatArray, n_centroids: int) -> Centroids:
    """Return equal steps over the range of the weights, or the distinct weights if they are as few."""
    if not 1 <= n_centroids <= MAX_CENTROIDS:
        raise RecipeError(f"the number of centroids must be 1 to {MAX_CENTROIDS}, not {n_centroids}")
    if not values.size:
        return np.empty(0)
    distinct = distinct_values(values, n_centroids)
    if distinct is not None:
        return distinct
    low, high = float(values.min()), float(values.max())
    if n_centroids == 1:
        return np.array([low / 2 + high / 2])
    steps = np.arange(n_centroids) / (n_centroids - 1)
    return np.unique(low * (1 - steps) + high * steps)  # never overflows, unlike high - low


def _fixed_point(integer_bits: int, fraction_bits: int) -> Centroids:
    """Return every value of a signed fixed-point number."""
    total = integer_bits + fraction_bits
    if not 0 <= total <= 11 or abs(fraction_bits) > 64:
        raise RecipeError(f"integer and fraction bits must add up to 0 to 11, not {total}")
    return np.ldexp(np.arange(-(1 << total), 1 << total, dtype=np.float64), -fraction_bits)


def _given(codebook: Sequence[float]) -> Centroids:
    """Return the caller's codebook, sorted and checked."""
    values = np.unique(np.asarray(codebook, np.float64)) + 0.0
    if not 1 <= values.size <= MAX_CENTROIDS or not np.isfinite(values).all():
        raise RecipeError(f"a codebook must hold 1 to {MAX_CENTROIDS} finite values")
    return values
