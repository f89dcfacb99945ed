"""Stage 1 with error feedback: zeros where they cost the layer's output least, the others make up for them.

SparseGPT's way (Frantar and Alistarh 2023): from left to right, a few columns at a time; what is pruned, and
how the weights that are kept must change, follows from the second moments of the layer's inputs.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dcompress.blas import one_blas_thread
from dcompress.errors import RecipeError
from dcompress.feedback import F64, Feedback, Mask
from dcompress.stages import PrunedTensor

__all__ = ["prune_fed"]

_WINDOW = 128
_SMALL = 64  # matrices that are not inverted in parts


@one_blas_thread()
def prune_fed(
    fed: Feedback,
    *,
    sparsity: float | None = None,
    n_m: tuple[int, int] | None = None,
    dtype: type[np.floating[Any]] = np.float32,
) -> PrunedTensor:
    """Return the weights of a tensor that are kept, changed so that its layer's output is.

    Parameters
    ----------
    fed : Feedback
        The tensor; what it prunes already stays pruned.
    sparsity : float, optional
        Fraction to prune, in [0, 1]: ``round(sparsity * size)`` weights, or all zeros if there are more.
    n_m : pair of int, optional
        Instead: of every M weights along the second dimension N are kept.
    dtype : dtype
        Of the values that are returned: float32 or float64.

    Raises
    ------
    RecipeError
        M does not divide the second dimension.
    """
    shape = fed.moments.shape
    if n_m is not None and shape[1] % n_m[1]:
        raise RecipeError(
            f"N:M = {n_m[0]}:{n_m[1]}: {n_m[1]} does not divide the second dimension of {shape}"
        )
    values, kept = fed.targets.copy(), fed.kept.copy()
    choice = _Choice(fed, values, kept)
    if n_m is not None:
        choice = _ChoiceByRun(fed, values, kept, n_m)
    elif sparsity is not None:
        choice = _ChoiceBySparsity(fed, values, kept, sparsity)
    n_columns = values.shape[2]
    window = max(1, _WINDOW // choice.unit) * choice.unit
    # Rows of these inverses say how columns that follow make up for one: then values are always the best
    # that there are as long as nothing else is pruned, and what a zero costs can be told from them.
    inverses = [_inverse(factor) for factor in fed.factors]
    for begin in range(0, n_columns, window):
        here = slice(begin, min(begin + window, n_columns))
        if fed.factors:
            makeup = fed.cut(inverses, here, slice(begin, n_columns))
            makeup /= -makeup.diagonal(0, 1, 2)[:, :, None]
            _settle(values, kept, makeup, here, choice)
        else:
            choice.make(here)
    values *= kept
    weights = fed.moments.weight(values) if fed.factors else values.reshape(shape)
    mask = (fed.moments.weight(kept) if fed.factors else kept.reshape(shape)) & (weights != 0)
    found = np.ascontiguousarray(weights[mask], dtype)
    mask[mask] = found != 0
    return PrunedTensor(mask, found[found != 0])


class _Choice:
    """What is pruned beside what is pruned already: nothing.

    Attributes
    ----------
    unit : int
        Columns that are chosen from at a time, when all that comes before them is settled.
    """

    def __init__(self, fed: Feedback, values: F64, kept: Mask) -> None:
        self.unit = min(_WINDOW, values.shape[2]) or 1
        self._values, self._kept = values, kept
        worth = fed.worth()
        self._worth = worth[:, None, :] if fed.factors else worth.reshape(1, -1, 1)

    def _cost(self, columns: slice) -> F64:
        """Return what a zero costs in each place of some columns; infinite where there is one."""
        worth = self._worth[:, :, columns] if self._worth.shape[2] > 1 else self._worth
        return np.where(self._kept[:, :, columns], self._values[:, :, columns] ** 2 * worth, np.inf)

    def make(self, columns: slice) -> None:
        """Choose from some columns: change the mask."""


class _ChoiceBySparsity(_Choice):
    """So many weights, where they cost least of all that is left."""

    def __init__(self, fed: Feedback, values: F64, kept: Mask, sparsity: float) -> None:
        super().__init__(fed, values, kept)
        self._n_left = round(sparsity * kept.size) - int(np.count_nonzero(~kept))

    def make(self, columns: slice) -> None:
        """Choose from some columns those that are among the least of all."""
        if self._n_left > 0:
            chosen = _least(self._cost(slice(columns.start, None)), self._n_left)
            chosen = chosen[:, :, : columns.stop - columns.start]
            self._n_left -= int(np.count_nonzero(chosen))
            self._kept[:, :, columns] &= ~chosen


class _ChoiceByRun(_Choice):
    """All but N of every M weights along the second dimension of the tensor."""

    def __init__(self, fed: Feedback, values: F64, kept: Mask, n_m: tuple[int, int]) -> None:
        super().__init__(fed, values, kept)
        self._n, self._m = n_m
        self._by_columns = fed.moments.layout == "rows"
        self._width = math.prod(fed.moments.shape[2:])
        self.unit = self._m * self._width if self._by_columns else 1

    def make(self, columns: slice) -> None:
        """Choose from some columns, in which all runs are whole."""
        cost = self._cost(columns)
        cost[np.isinf(cost)] = -1.0  # what is pruned goes first, and is not counted as kept
        if self._by_columns:
            runs = cost.reshape(*cost.shape[:2], -1, self._m, self._width).swapaxes(3, 4)
            chosen: Mask = _all_but(runs, self._n).swapaxes(3, 4).reshape(cost.shape)
        else:
            runs = cost.swapaxes(1, 2)
            runs = runs.reshape(*runs.shape[:2], -1, self._m)
            chosen = _all_but(runs, self._n).reshape(cost.shape[0], cost.shape[2], -1).swapaxes(1, 2)
        self._kept[:, :, columns] &= ~chosen


def _settle(values: F64, kept: Mask, makeup: F64, window: slice, choice: _Choice) -> None:
    """Put zeros into some columns, and change all that follow for it."""
    n_own = window.stop - window.start
    errors = np.zeros((*values.shape[:2], n_own))
    for own in range(n_own):
        column = window.start + own
        if own % choice.unit == 0:
            choice.make(slice(column, min(column + choice.unit, window.stop)))
        errors[:, :, own] = np.where(kept[:, :, column], 0.0, values[:, :, column])
        values[:, :, column] *= kept[:, :, column]
        rest = makeup[:, None, own, own + 1 : n_own]
        values[:, :, column + 1 : window.stop] += errors[:, :, own, None] * rest
    values[:, :, window.stop :] += errors @ makeup[:, :, n_own:]


def _inverse(upper: F64) -> F64:
    """Return the inverses of upper triangular matrices of shape (n, size, size)."""
    size = upper.shape[1]
    if size <= _SMALL:
        found: F64 = np.triu(np.linalg.inv(upper))
        return found
    half = size // 2
    result = np.zeros_like(upper)
    result[:, :half, :half] = _inverse(upper[:, :half, :half])
    result[:, half:, half:] = _inverse(upper[:, half:, half:])
    result[:, :half, half:] = -(result[:, :half, :half] @ upper[:, :half, half:]) @ result[:, half:, half:]
    return result


def _least(costs: F64, n: int) -> NDArray[np.bool_]:
    """Return where the ``n`` least are, of equal ones the earlier; none that is infinite."""
    flat = costs.reshape(-1)
    result = np.zeros(flat.size, np.bool_)
    n = min(n, int(np.count_nonzero(np.isfinite(flat))))
    if n > 0:
        bound = np.partition(flat, n - 1)[n - 1]
        result = flat < bound
        result[np.flatnonzero(flat == bound)[: n - int(np.count_nonzero(result))]] = True
    return result.reshape(costs.shape)


def _all_but(costs: F64, n: int) -> NDArray[np.bool_]:
    """Return where all but the ``n`` largest of the last dimension are; of equal ones the earlier goes."""
    order = np.argsort(costs, axis=-1, kind="stable")
    result = np.zeros(costs.shape, np.bool_)
    np.put_along_axis(result, order[..., : costs.shape[-1] - n], True, axis=-1)
    return result
