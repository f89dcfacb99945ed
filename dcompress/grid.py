"""Labels as signed places in a grid of ascending values, in the order in which they will be coded."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dcompress.coding.base import Codebook
from dcompress.coding.context import Geometry, Neighbourhood, lane_order, lanes_of
from dcompress.coding.symbols import MAX_MAGNITUDE
from dcompress.profiles import FULL, Profile
from dcompress.stages import SharedTensor

__all__ = ["GridTensor", "coding_rows", "fits_grid", "neighbourhood_of", "rows_shift"]

_CHUNK_WORDS = 1 << 19
_SAMPLE_ROWS = 64
_MAX_DISTANCE = 64
_WORTHWHILE = 4e-4  # squared correlation, below which a neighbour says nothing

Floats = NDArray[np.float64]


def rows_shift(geometry: Geometry, profile: Profile = FULL) -> int:
    """Return the chunk shift in rows, 0 if the tensor is one chunk, or little more."""
    n_words = geometry.n_rows * geometry.row_words
    if profile.chunk_words is not None:
        # Rows so long that four of them are no chunk are none of the context coder's: see `fits_grid`.
        within = max(4, profile.chunk_words // max(1, geometry.row_words))
        shift = within.bit_length() - 1
        return shift if n_words > profile.chunk_words and geometry.n_rows > 1 << shift else 0
    if 2 * geometry.n_rows * geometry.row_words <= 3 * _CHUNK_WORDS:
        return 0
    shift = max(3, int(np.ceil(np.log2(_CHUNK_WORDS / geometry.row_words))) if geometry.row_words else 3)
    return shift if geometry.n_rows > 1 << shift else 0


def coding_rows(geometry: Geometry, profile: Profile = FULL) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows of a tensor lane after lane, chunk by chunk, and where among them each lane starts."""
    shift = rows_shift(geometry, profile)
    step = 1 << shift if shift else geometry.n_rows
    rows, starts = [], []
    for first in range(0, geometry.n_rows, step):
        n_rows = min(step, geometry.n_rows - first)
        order, lanes = lane_order(n_rows, lanes_of(n_rows, n_rows * geometry.row_words))
        rows.append(order + first)
        starts.append(lanes + first)
    return np.concatenate(rows), np.concatenate(starts)


@dataclass(frozen=True, eq=False)
class GridTensor:
    """Labels of a tensor as signed places in the grid of its values.

    Attributes
    ----------
    geometry : Geometry
        Rows and columns.
    grid : ndarray of shape (n_rows, row_words), dtype int16
        Places, counted from ``origin``.
    origin : int
        Place of the zero, or of the value nearest to it.
    states : int
        States of the trellis that the places walk; 0 = none.
    kernel_width : int
        Size of the last dimension of a kernel, 0 for matrices.
    chunk_shift : int
        Each chunk but the last has ``2 ** chunk_shift`` rows; 0 = one chunk.
    """

    geometry: Geometry
    grid: NDArray[np.int16]
    origin: int
    states: int
    kernel_width: int = 0
    chunk_shift: int = 0

    @classmethod
    def of(cls, shared: SharedTensor, profile: Profile = FULL) -> GridTensor:
        """Return the grid of a shared tensor."""
        codebook = Codebook.of(shared)
        origin = codebook.n_negative
        if not codebook.has_zero:
            origin = min(origin, codebook.n_labels - 1)
        labels = np.arange(codebook.n_labels, dtype=np.int32)
        places = labels - origin
        if codebook.has_zero:
            places = np.where(
                labels == 0, 0, np.where(labels <= origin, labels - 1 - origin, labels - origin)
            )
        geometry = Geometry.of(shared.shape, shared.labels.size)
        grid = places.astype(np.int16)[shared.labels].reshape(geometry.n_rows, geometry.row_words)
        width = shared.shape[-1] if len(shared.shape) > 2 else 0
        return cls(geometry, grid, origin, shared.states, width, rows_shift(geometry, profile))


def fits_grid(shared: SharedTensor, profile: Profile = FULL) -> bool:
    """Return whether the context coder can hold a tensor."""
    geometry = Geometry.of(shared.shape, shared.labels.size)
    return (
        shared.n_groups == 1
        and 1 < shared.n_labels <= MAX_MAGNITUDE
        and geometry.row_words <= profile.row_words
        and sum(geometry) <= profile.classes
    )


def neighbourhood_of(tensor: GridTensor, reach: int = 2) -> Neighbourhood:
    """Return which words to the left say most about a word, at most ``reach``, and thresholds for levels."""
    if reach == 0:
        return Neighbourhood(0, (MAX_MAGNITUDE, MAX_MAGNITUDE, MAX_MAGNITUDE))
    mean = float(np.abs(tensor.grid).mean()) if tensor.grid.size else 0.0
    first = int(0.3 * mean)
    second = max(first + 1, int(mean))
    thresholds = (first, second, max(second + 1, int(2 * mean)))
    if reach == 1:
        return Neighbourhood(0, thresholds)
    rows = np.linspace(0, tensor.geometry.n_rows - 1, _SAMPLE_ROWS).astype(np.int64)
    sample = tensor.grid[np.unique(rows)].astype(np.float64)
    width = sample.shape[1]
    lags = set(range(2, min(width, _MAX_DISTANCE)))
    lags |= {lag for lag in (tensor.kernel_width, tensor.geometry.n_positions) if 1 < lag < width}
    sizes = np.abs(sample) - np.abs(sample).mean()
    best, distance = _WORTHWHILE, 0
    for lag in sorted(lags):
        gain = _correlation(sample, lag) ** 2 + _correlation(sizes, lag) ** 2
        if gain > best:
            best, distance = gain, lag
    return Neighbourhood(distance, thresholds)


def _correlation(values: Floats, lag: int) -> float:
    """Return how values correlate with those ``lag`` to the left."""
    total = float((values * values).sum())
    return float((values[:, lag:] * values[:, :-lag]).sum()) / total if total else 0.0
