"""Recognise tensors that are shared already: few distinct values, or multiples of a step."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dcompress.coding.tables import ascending_order, even_step, even_values, may_be_even, rounding_of
from dcompress.constants import MAX_LABELS
from dcompress.floats import count_nonfinite, widen
from dcompress.stages import SharedTensor, TensorData, Words
from dcompress.values import find_values

__all__ = ["find_step", "recognise"]

_DIVISORS = (1, 2, 3)  # of the smallest gap between values: the step may be one of these parts
_MANY = 512  # multiples, beyond which those of a tensor of few words would not pay
_FEWEST = 3  # distinct values: fewer ones take little as they are


def recognise(tensor: TensorData, max_labels: int = MAX_LABELS) -> list[SharedTensor]:
    """Return the ways to say a tensor as labels and codebook, exactly: none, one, or two.

    Parameters
    ----------
    tensor : TensorData
        Any dtype and shape.
    max_labels : int
        Most values; by default 4,096, the largest alphabet of the format: beyond it, byte planes come out
        smaller.

    Returns
    -------
    shared : list of SharedTensor
        With its distinct values, if they are few. And if they are multiples of a step, as training on a grid
        leaves them, with all multiples between the least and the largest: such a codebook takes next to
        nothing in a file, and there may be as many of them as there are weights.
    """
    if tensor.words.size == 0:
        return []

    def label_order(values: Words) -> NDArray[np.intp]:
        # Label 0 means the word 0; the others follow in ascending order of value.
        order = ascending_order(tensor.dtype, values)
        return np.concatenate([order[values[order] == 0], order[values[order] != 0]])

    def rank(values: Words) -> NDArray[np.uint16]:
        ranks = np.empty(values.size, np.uint16)
        ranks[label_order(values)] = np.arange(values.size, dtype=np.uint16)
        return ranks

    few = min(max_labels, tensor.words.size // 4 + 1)
    found = find_values(tensor.words, max_labels if may_be_even(tensor.dtype, 1, True, 1) else few, rank)
    if found is None:
        return []
    values, labels = found
    codebook = values[label_order(values)]
    has_zero = bool(codebook[0] == 0)
    shared = SharedTensor(tensor.dtype, tensor.shape, codebook[None, has_zero:], labels, has_zero)
    even = _evened(shared, max_labels if values.size <= few else min(max_labels, _MANY))
    if values.size > few:
        return [] if even is None else [even]
    return [shared] if even is None or even.n_labels == shared.n_labels else [shared, even]


def _evened(shared: SharedTensor, max_labels: int) -> SharedTensor | None:
    """Return the same with all multiples of a step as its codebook; None if its values are no multiples."""
    dtype, words = shared.dtype, shared.codebook[0]
    if words.size < _FEWEST or not may_be_even(dtype, 1, True, words.size) or count_nonfinite(words, dtype):
        return None
    values = widen(words, dtype).astype(np.float64)
    step = find_step(values, rounding_of(values, dtype), max_labels)
    if step is None:
        return None
    places = np.rint(values / step).astype(np.int64)
    low, high = min(0, int(places[0])), max(0, int(places[-1]))
    if high - low >= max_labels:
        return None
    own = places - low - (places > 0)  # where each value is in a codebook of all multiples, without zero
    for candidate in _around(np.float32(step)):
        codebook = even_values(dtype, candidate, -low, high - low)
        if np.unique(codebook).size < codebook.size:
            continue  # too fine for the type to tell them apart
        if np.array_equal(codebook[own], words) and even_step(dtype, codebook, -low) is not None:
            labels = np.concatenate([[0] * shared.has_zero, own + 1]).astype(np.uint16)
            return SharedTensor(dtype, shared.shape, codebook[None], labels[shared.labels], True)
    return None


def find_step(values: NDArray[np.float64], rounding: NDArray[np.float64], most: int) -> float | None:
    """Return a step that some values are multiples of, each as far as its type can hold it.

    Parameters
    ----------
    values : ndarray of shape (n_values,), float64
        Distinct.
    rounding : ndarray of shape (n_values,), float64
        By how much each may be off.
    most : int
        Steps that a value may be, at most.

    Returns
    -------
    step : float or None
        About; None if there is none, or none that is a gap between two values, its half or its third.
    """
    order = np.argsort(np.abs(values), kind="stable")
    sizes, reaches = np.abs(values)[order], rounding[order]
    if not sizes.size or not sizes[0] or not np.isfinite(sizes[-1]):
        return None
    gap = float(np.diff(np.unique(np.append(values, 0.0))).min())
    if sizes[-1] > most * gap:
        return None
    for divisor in _DIVISORS:
        step, low, high = gap / divisor, 0.0, np.inf
        # From small to large: each value bounds the step closer, and so tells which multiple the next one is.
        for size, reach in zip(sizes.tolist(), reaches.tolist(), strict=True):
            place = max(1, round(size / step))
            low = max(low, (size - reach) / place)
            high = min(high, (size + reach) / place)
            if low > high or place > most:
                break
            step = (low + high) / 2
        else:
            return step
    return None


def _around(step: np.float32) -> tuple[np.float32, np.float32, np.float32]:
    """Return a number and its neighbours."""
    return step, np.nextafter(step, np.float32(0)), np.nextafter(step, np.float32(np.inf))
