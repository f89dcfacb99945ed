"""What labels will cost: prices of rate-aware sharing, guessed from counts of an earlier pass.

A price table stands for the static tables of an entropy coder. Its context is the scale class of a weight
(rows and columns each add theirs), the quantiser that the trellis has come to, and the levels of two
neighbours in the row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dcompress.coding.symbols import BUCKET_BASES, N_SYMBOLS, SYMBOL_RAW_BITS, symbol_of
from dcompress.kernels.trellis import LEVELS, NO_LEVEL

__all__ = ["Placed", "PriceModel", "Prices", "context_prices", "levels_of", "neighbour_levels"]

_N_CLASSES = 32
_CLASSES_PER_OCTAVE = 2
_MIDDLE = 12  # class of a mean magnitude of 1
_THRESHOLDS = (0.3, 1.0, 2.0)  # of levels, by mean magnitude
_WEIGHT = 6.0  # words that the next wider context counts for


class Placed(NamedTuple):
    """A tensor as an earlier pass left it.

    Attributes
    ----------
    shape : tuple of int
        Of the tensor.
    row_words : int
        Words of a row.
    places : ndarray of shape (n,), dtype int32
        Place of each weight in its quantiser.
    quantisers : ndarray of shape (n,), dtype uint8
        Which one that is.
    n_quantisers : int
        2 in a trellis, or else 1.
    """

    shape: tuple[int, ...]
    row_words: int
    places: NDArray[np.int32]
    quantisers: NDArray[np.uint8]
    n_quantisers: int


class Prices(NamedTuple):
    """What the symbols of a tensor cost.

    Attributes
    ----------
    row_class, column_class : ndarray of dtype int32
        By row, and by place in a row. Their sum, held within the table, is the class.
    levels : ndarray of shape (n_quantisers, N_BUCKETS), dtype uint8
        Unsigned level, 0 .. 3, of a neighbour by its quantiser and bucket.
    distance : int
        Which word to the left is the second neighbour; 0 = none.
    bits : ndarray of shape (n_classes, n_quantisers, 7, 7, N_SYMBOLS), dtype int32
        In 1/256 bit, raw bits counted: by class, quantiser, levels of both neighbours (3 = that of zero).
    """

    row_class: NDArray[np.int32]
    column_class: NDArray[np.int32]
    levels: NDArray[np.uint8]
    distance: int
    bits: NDArray[np.int32]


PriceModel = Callable[[Sequence[Placed]], list[Prices]]


def context_prices(tensors: Sequence[Placed]) -> list[Prices]:
    """Return prices of tensors that are coded with the same tables.

    Parameters
    ----------
    tensors : sequence of Placed
        All of them with the same number of quantisers.

    Returns
    -------
    prices : list of Prices
        One for each, the table of bits in common. Classes follow the mean magnitudes of rows, columns and
        kernel positions, two to an octave; a context with few words leans on the wider one around it.
    """
    n_quantisers = max((tensor.n_quantisers for tensor in tensors), default=1)
    counts = np.zeros((_N_CLASSES, n_quantisers, LEVELS, LEVELS, N_SYMBOLS))
    found = []
    for tensor in tensors:
        row_class, column_class = _classes(tensor)
        levels = levels_of(tensor, _THRESHOLDS)
        distance = tensor.shape[-1] if len(tensor.shape) > 2 and tensor.shape[-1] > 1 else 0
        found.append((row_class, column_class, levels, distance))
        classes = np.clip(row_class[:, None] + column_class, 0, _N_CLASSES - 1).reshape(-1)
        symbols, _ = symbol_of(tensor.places)
        place = (classes * n_quantisers + tensor.quantisers) * LEVELS + neighbour_levels(tensor, levels, 1)
        place = (place * LEVELS + neighbour_levels(tensor, levels, distance)) * N_SYMBOLS + symbols
        counts += np.bincount(place, minlength=counts.size).reshape(counts.shape)
    bits = np.rint(256 * _bits(counts)).astype(np.int32)
    return [Prices(*one, bits) for one in found]


def levels_of(tensor: Placed, thresholds: Sequence[float]) -> NDArray[np.uint8]:
    """Return the level of each bucket: how many thresholds, by the mean magnitude, its smallest exceeds."""
    mean = float(np.abs(tensor.places).mean()) if tensor.places.size else 0.0
    row = (BUCKET_BASES[:, None] > np.array(thresholds) * mean).sum(1).astype(np.uint8)
    return np.tile(row, (tensor.n_quantisers, 1))


def neighbour_levels(tensor: Placed, levels: NDArray[np.uint8], distance: int) -> NDArray[np.uint8]:
    """Return the signed level, 0 .. 6, of the word ``distance`` before each in its row; 3 where none is."""
    found = np.full(tensor.places.size, NO_LEVEL, np.uint8)
    if distance and distance < tensor.row_words:
        symbols, _ = symbol_of(tensor.places)
        sizes = levels[tensor.quantisers, (symbols + 1) // 2].astype(np.int8)
        signed = (NO_LEVEL + sizes * np.sign(tensor.places)).astype(np.uint8)
        rows = found.reshape(-1, tensor.row_words)
        rows[:, distance:] = signed.reshape(-1, tensor.row_words)[:, :-distance]
    return found


def _classes(tensor: Placed) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return the classes of rows and of the places in a row, from mean magnitudes."""
    sizes = np.abs(tensor.places).reshape(-1, tensor.row_words)
    channels = tensor.shape[1] if len(tensor.shape) > 1 else 1
    kernel = (
        sizes.reshape(sizes.shape[0], channels, -1) if tensor.row_words % channels == 0 else sizes[:, :, None]
    )

    def steps(mean: NDArray[np.float64]) -> NDArray[np.float64]:
        return _CLASSES_PER_OCTAVE * np.log2(mean + 0.02)

    middle = steps(kernel.mean())
    row_class = np.rint(steps(kernel.mean((1, 2))) + _MIDDLE)
    column_class = np.rint(steps(kernel.mean((0, 2))) - middle)[:, None]
    column_class = column_class + np.rint(steps(kernel.mean((0, 1))) - middle)
    return row_class.astype(np.int32), column_class.reshape(-1).astype(np.int32)


def _bits(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return code lengths in bits: each context leans on the same one with less known of its neighbours."""
    shares = np.exp2(-np.minimum(np.arange(N_SYMBOLS) + 1, 64) / 4.0)
    shares /= shares.sum()
    for wider in ((0, 1, 2, 3), (0, 2, 3), (2, 3), (3,), ()):
        total = counts.sum(wider, keepdims=True) if wider else counts
        shares = (total + _WEIGHT * shares) / (total.sum(-1, keepdims=True) + _WEIGHT)
    return SYMBOL_RAW_BITS.astype(np.float64) - np.log2(shares)
