"""Recognise a tensor that holds few distinct values, so that it is coded exactly, without a k-means."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dcompress import kernels
from dcompress.stages import Words

__all__ = ["find_values"]

_PROBE = 1 << 16
_BLOCK = 1 << 20


def find_values(
    words: Words, max_values: int, rank: Callable[[Words], NDArray[np.uint16]] | None = None
) -> tuple[Words, NDArray[np.uint16]] | None:
    """Return the distinct words of a tensor and a label for each word.

    Parameters
    ----------
    words : ndarray of shape (n_words,), unsigned
        Bits of the tensor; compared as bits, so -0.0 and 0.0 are two values.
    max_values : int
        Give up beyond this many distinct values; at most 65,536.
    rank : callable, optional
        Returns the label of each of the distinct values; by default its place among them.

    Returns
    -------
    values : ndarray of shape (n_values,), same dtype
        Distinct words, ascending as unsigned integers.
    labels : ndarray of shape (n_words,), dtype uint16
        ``rank(values)`` of each word; ``values[labels]`` equals ``words`` by default. The result is None if
        there are too many values.
    """
    rank = rank or (lambda values: np.arange(values.size, dtype=np.uint16))
    # A strided probe dismisses nearly every ordinary tensor, and mostly finds all values of a shared one.
    values: NDArray[Any] = np.unique(words[:: max(1, words.size // _PROBE)])
    if values.size > max_values:
        return None
    labels = np.empty(words.size, np.uint16)
    kernel = kernels.select(words.size)
    # Values that the probe missed get labels as they turn up, and their proper ones at the end.
    places = rank(values)
    n_probed = values.size
    done = kernel.label_words(words, values, places, labels)
    while done < words.size:
        block = words[done : done + _BLOCK]
        fresh = np.setdiff1d(block[np.concatenate([[True], block[1:] != block[:-1]])], values)
        if values.size + fresh.size > max_values:
            return None
        places = np.concatenate([places, np.arange(values.size, values.size + fresh.size, dtype=np.uint16)])
        values = np.concatenate([values, fresh])
        order = np.argsort(values)
        values, places = values[order], places[order]
        done += kernel.label_words(words[done:], values, places, labels[done:])
    if values.size > n_probed:
        proper = np.empty(values.size, np.uint16)
        proper[places] = rank(values)
        for first in range(0, words.size, _BLOCK):
            part = labels[first : first + _BLOCK]
            kernel.gather(proper, part.copy(), part)
    return values, labels
