"""What labels will cost: prices of rate-aware sharing, which `fitted_prices` finds from an earlier pass.

A price table stands for the static tables of an entropy coder. Its context is the scale class of a weight
(rows and columns each add theirs), the quantiser that the trellis has come to, and the levels of two
neighbours in the row.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dcompress.coding.symbols import symbol_of
from dcompress.kernels.trellis import NO_LEVEL

__all__ = ["Layout", "Placed", "Prices", "neighbour_levels"]


class Layout(NamedTuple):
    """In which order a tensor is coded.

    Attributes
    ----------
    row_words : int
        Words of a row.
    rows : ndarray of shape (n_rows,), dtype int64
        Every row once, lane after lane.
    lane_starts : ndarray of shape (n_lanes,), dtype int64
        Places in ``rows`` where the trellis starts anew.
    """

    row_words: int
    rows: NDArray[np.int64]
    lane_starts: NDArray[np.int64]


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
