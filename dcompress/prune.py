"""Stage 1: which weights are kept. Pure functions from magnitudes to boolean masks, True = kept.

A zero of the input is never kept, whatever its sign; a NaN always is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from dcompress.errors import RecipeError
from dcompress.floats import FloatArray, blocks
from dcompress.stages import PrunedTensor

__all__ = [
    "global_threshold",
    "n_m_mask",
    "prune",
    "quality_threshold",
    "sparsity_mask",
    "threshold_mask",
]

_HALF_BITS = 16  # the global histogram settles the upper half of a float32, then the lower one


def prune(weights: FloatArray, mask: NDArray[np.bool_] | None = None) -> PrunedTensor:
    """Return the weights that a mask keeps.

    Parameters
    ----------
    weights : ndarray of floats, any shape
        The tensor.
    mask : ndarray of bool, in the shape of ``weights``, optional
        True = kept. Without it only the zeros that are there are pruned.

    Returns
    -------
    pruned : PrunedTensor
        Its mask is cleared where a weight is zero; its values are float64 for float64 weights and
        float32 for all others.

    Raises
    ------
    RecipeError
        The mask is not boolean, or not of the same shape.
    """
    kept = weights != 0
    if mask is not None:
        if mask.dtype != np.bool_ or mask.shape != weights.shape:
            raise RecipeError(f"a mask for shape {weights.shape} must be boolean and of that shape")
        kept &= mask
    values = weights[kept]
    if values.dtype not in (np.float32, np.float64):
        values = values.astype(np.float32)
    return PrunedTensor(kept, values)


def threshold_mask(weights: FloatArray, threshold: float) -> NDArray[np.bool_]:
    """Return the mask that prunes magnitudes below a threshold.

    Parameters
    ----------
    weights : ndarray of floats, any shape
        The tensor.
    threshold : float
        At least 0; a magnitude equal to it is kept, unless it is zero.

    Returns
    -------
    mask : ndarray of bool, in the shape of ``weights``
        True = kept.

    Raises
    ------
    RecipeError
        The threshold is negative or NaN.
    """
    if not threshold >= 0:
        raise RecipeError(f"threshold must be at least 0, not {threshold}")
    flat = weights.reshape(-1)
    mask = np.empty(flat.shape, np.bool_)
    for part in blocks(flat.size):
        magnitudes = np.abs(flat[part])
        # Written with "below", so that a NaN compares false and stays.
        mask[part] = ~((magnitudes < threshold) | (magnitudes == 0))
    return mask.reshape(weights.shape)


def sparsity_mask(weights: FloatArray, sparsity: float) -> NDArray[np.bool_]:
    """Return the mask that prunes a fraction of the weights, the smallest magnitudes first.

    Parameters
    ----------
    weights : ndarray of floats, any shape
        The tensor.
    sparsity : float
        Fraction to prune, in [0, 1]: ``round(sparsity * size)`` weights, or all zeros if there are more
        of them. Of equal magnitudes the earlier in C order goes first.

    Returns
    -------
    mask : ndarray of bool, in the shape of ``weights``
        True = kept. NaN is kept even at sparsity 1.

    Raises
    ------
    RecipeError
        The sparsity is outside [0, 1].

    Examples
    --------
    >>> sparsity_mask(np.array([3.0, -1.0, 1.0, 2.0]), 0.25).tolist()
    [True, False, True, True]
    """
    _check_sparsity(sparsity)
    magnitudes = np.abs(weights.reshape(-1))
    n_pruned = round(sparsity * magnitudes.size)
    mask: NDArray[np.bool_] = magnitudes != 0
    if n_pruned > magnitudes.size - int(np.count_nonzero(mask)):
        cut = np.partition(magnitudes, n_pruned - 1)[n_pruned - 1]  # NaN sorts last
        if np.isnan(cut):
            mask = np.isnan(magnitudes)
        else:
            mask = ~(magnitudes < cut)
            n_more = n_pruned - (mask.size - int(np.count_nonzero(mask)))
            mask[np.flatnonzero(magnitudes == cut)[:n_more]] = False
    return mask.reshape(weights.shape)


def n_m_mask(weights: FloatArray, n: int, m: int) -> NDArray[np.bool_]:
    """Return the mask that keeps the N largest magnitudes of every M weights along the second dimension.

    Parameters
    ----------
    weights : ndarray of floats
        The tensor, of at least two dimensions.
    n, m : int
        With 0 < n < m.

    Returns
    -------
    mask : ndarray of bool, in the shape of ``weights``
        True = kept. Of equal magnitudes the earlier goes.

    Raises
    ------
    RecipeError
        Not 0 < n < m, or M does not divide the second dimension.

    Examples
    --------
    >>> n_m_mask(np.array([[3.0, -1.0, 1.0, 2.0]]), 2, 4).tolist()
    [[True, False, False, True]]
    """
    if not 0 < n < m:
        raise RecipeError(f"N:M = {n}:{m}: of every M weights N are kept, so 0 < N < M")
    if weights.ndim < 2 or weights.shape[1] % m:
        raise RecipeError(f"N:M = {n}:{m}: {m} does not divide the second dimension of {weights.shape}")
    cut = np.abs(weights).reshape(weights.shape[0], weights.shape[1] // m, m, *weights.shape[2:])
    order = np.argsort(cut, axis=2, kind="stable")
    mask = np.ones(cut.shape, np.bool_)
    np.put_along_axis(mask, order[:, :, : m - n], False, axis=2)
    return mask.reshape(weights.shape)


def quality_threshold(weights: FloatArray, quality: float) -> float:
    """Return the paper's threshold: a quality parameter times the standard deviation of the layer.

    Parameters
    ----------
    weights : ndarray of floats, any shape
        The tensor, zeros included.
    quality : float
        At least 0.

    Returns
    -------
    threshold : float
        For `threshold_mask`; 0 for an empty tensor.

    Raises
    ------
    RecipeError
        The quality parameter is negative or NaN.

    Notes
    -----
    Han et al. 2015, "Learning both weights and connections", section 4. Sums are float64, by block.
    """
    if not quality >= 0:
        raise RecipeError(f"quality must be at least 0, not {quality}")
    flat = weights.reshape(-1)
    if not flat.size:
        return 0.0
    mean = math.fsum(float(flat[part].sum(dtype=np.float64)) for part in blocks(flat.size)) / flat.size
    squares = (np.square(flat[part].astype(np.float64) - mean).sum() for part in blocks(flat.size))
    return quality * math.sqrt(math.fsum(squares) / flat.size)


def global_threshold(loaders: Sequence[Callable[[], FloatArray]], sparsity: float) -> float:
    """Return the one threshold that prunes a fraction of several tensors taken together.

    Parameters
    ----------
    loaders : sequence of callables
        Each returns the weights of one tensor; called twice, so that one tensor is in memory at a time.
    sparsity : float
        Fraction to prune over all of them, in [0, 1].

    Returns
    -------
    threshold : float
        A float32 value for `threshold_mask`. It prunes ``round(sparsity * size)`` weights, or as near to
        that as weights of equal magnitude allow.

    Raises
    ------
    RecipeError
        The sparsity is outside [0, 1].

    Notes
    -----
    Magnitudes are ordered by their float32 bits: one pass counts the upper 16, a second the lower 16
    within the bucket that holds the wanted rank. Exact for float32 and narrower.
    """
    _check_sparsity(sparsity)
    upper = np.zeros(1 << _HALF_BITS, np.int64)
    for load in loaders:
        for bits in _magnitude_bits(load()):
            upper += np.bincount(bits >> _HALF_BITS, minlength=upper.size)
    n_pruned = round(sparsity * int(upper.sum()))
    if n_pruned == 0:
        return 0.0
    ends = np.cumsum(upper)
    bucket = int(np.searchsorted(ends, n_pruned))
    n_below = int(ends[bucket] - upper[bucket])
    lower = np.zeros(1 << _HALF_BITS, np.int64)
    for load in loaders:
        for bits in _magnitude_bits(load()):
            inside = bits[bits >> _HALF_BITS == bucket] & ((1 << _HALF_BITS) - 1)
            lower += np.bincount(inside, minlength=lower.size)
    ends = n_below + np.cumsum(lower)
    last = int(np.searchsorted(ends, n_pruned))  # magnitude of rank n_pruned, counted from 1
    short, over = n_pruned - int(ends[last] - lower[last]), int(ends[last]) - n_pruned
    # "Below the threshold" takes all weights of one magnitude or none: whichever is nearer.
    word = (bucket << _HALF_BITS) + last + (1 if over <= short else 0)
    return float(np.array([min(word, 0x7F800000)], np.uint32).view(np.float32)[0])


def _magnitude_bits(weights: FloatArray) -> Iterator[NDArray[np.uint32]]:
    """Yield the float32 bits of the magnitudes, by block: ordered as the magnitudes, NaN last."""
    flat = weights.reshape(-1)
    for part in blocks(flat.size):
        with np.errstate(over="ignore"):  # a float64 beyond float32 counts as infinite
            magnitudes = np.abs(flat[part]).astype(np.float32)
        yield magnitudes.view(np.uint32)


def _check_sparsity(sparsity: float) -> None:
    """Raise unless a sparsity is a fraction."""
    if not 0 <= sparsity <= 1:
        raise RecipeError(f"sparsity must be between 0 and 1, not {sparsity}")
