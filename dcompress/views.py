"""What the context coder's tables are fitted to: symbols of every word, and which neighbours it has."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dcompress.coding.context import Geometry, Neighbourhood, flipped, grid_symbols, lanes_of
from dcompress.coding.symbols import N_SYMBOLS
from dcompress.coding.table_set import CANONICAL, PLACES, TURNED
from dcompress.grid import GridTensor, neighbourhood_of

__all__ = ["Candidate", "View", "canonical_view"]

_SAMPLE = 1024  # words of a row or column by which its class is found
_KEPT_WORDS = 1 << 22  # of a tensor, up to which its views are kept


_EITHER = np.zeros(256, np.uint8)  # by 128 * turned + symbol
_EITHER[:N_SYMBOLS] = np.arange(N_SYMBOLS)
_EITHER[128 : 128 + N_SYMBOLS] = flipped(np.arange(N_SYMBOLS, dtype=np.uint8))


class View(NamedTuple):
    """What classes are found from: symbols and canonical neighbours of every word."""

    geometry: Geometry
    symbols: NDArray[np.uint8]
    neighbours: NDArray[np.uint8]

    def thinned(self, rows: bool) -> tuple[NDArray[np.uint8], NDArray[np.uint8], slice]:
        """Return as many rows, or columns, of both as serve to find classes, and which they are."""
        step = max(1, self.symbols.shape[0 if rows else 1] // _SAMPLE)
        some = slice(None, None, step)
        cut = (some, slice(None)) if rows else (slice(None), some)
        return np.ascontiguousarray(self.symbols[cut]), np.ascontiguousarray(self.neighbours[cut]), some


def _view_of(tensor: GridTensor, neighbourhood: Neighbourhood) -> View:
    """Return symbols and canonical neighbours of a tensor, chunk by chunk as they will be coded."""
    geometry = tensor.geometry
    symbols = np.empty(tensor.grid.shape, np.uint8)
    neighbours = np.empty(tensor.grid.shape, np.uint8)
    shift = tensor.chunk_shift
    step = 1 << shift if shift else geometry.n_rows
    for first in range(0, geometry.n_rows, step):
        part = slice(first, first + step)
        grid = tensor.grid[part]
        some, _, near = grid_symbols(grid, neighbourhood, tensor.states, lanes_of(grid.shape[0], grid.size))
        view = canonical_view(geometry, some, near)
        symbols[part], neighbours[part] = view.symbols, view.neighbours
    return View(geometry, symbols, neighbours)


def canonical_view(geometry: Geometry, symbols: NDArray[np.uint8], near: NDArray[np.uint8]) -> View:
    """Return symbols with the signs turned that their neighbours ask for, and the canonical neighbours."""
    turned = np.take(TURNED.view(np.uint8), near & np.uint8(63))
    places = np.take(PLACES, near & np.uint8(63)) + (near >> np.uint8(6)) * np.uint8(len(CANONICAL))
    return View(geometry, np.take(_EITHER, turned << np.uint8(7) | symbols), places)


@dataclass(frozen=True, eq=False)
class Candidate:
    """A tensor that may be coded by contexts; what several fits of it have in common is found once.

    Attributes
    ----------
    tensor : GridTensor
        The tensor.
    """

    tensor: GridTensor
    _seen: dict[int, tuple[Neighbourhood, View]] = field(default_factory=dict)

    def view(self, reach: int) -> tuple[Neighbourhood, View]:
        """Return which of at most ``reach`` words to the left count, and the view that they give."""
        if reach in self._seen:
            return self._seen[reach]
        near = neighbourhood_of(self.tensor, reach)
        view = near, _view_of(self.tensor, near)
        if self.tensor.grid.size <= _KEPT_WORDS:
            self._seen[reach] = view
        return view
