"""Stage 1 with error feedback: zeros where they cost the layer's output least, the others make up for them.

SparseGPT's way (Frantar and Alistarh 2023): from left to right, a few columns at a time; what is pruned, and
how the weights that are kept must change, follows from the second moments of the layer's inputs.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dcompress.errors import RecipeError
from dcompress.feedback import F64, Feedback, Mask
from dcompress.stages import PrunedTensor

__all__ = ["prune_fed"]

_WINDOW = 128
_SMALL = 64  # matrices that are not inverted in parts


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
    width = math.prod(shape[2:])  # columns of one input channel
    if n_m is not None and shape[1] % n_m[1]:
        raise RecipeError(
            f"N:M = {n_m[0]}:{n_m[1]}: {n_m[1]} does not divide the second dimension of {shape}"
        )
    values, kept = fed.targets.copy(), fed.kept.copy()
    n_columns = values.shape[2]
    window = _WINDOW
    if n_m is not None and fed.moments.layout == "rows":
        window = n_m[1] * width
    n_left = 0
    if sparsity is not None:
        n_left = max(0, round(sparsity * kept.size) - int(np.count_nonzero(~kept)))
    worth = fed.worth() if fed.factors else fed.worth().reshape(1, -1, 1)
    # Rows of these inverses say how columns that follow make up for one: then values are always the best
    # that there are as long as nothing else is pruned, and what a zero costs can be told from them.
    inverses = [_inverse(factor) for factor in fed.factors]
    for begin in range(0, n_columns, window):
        here = slice(begin, min(begin + window, n_columns))
        cost = values[:, :, begin:] ** 2 * (worth[:, None, begin:] if fed.factors else worth)
        own = cost[:, :, : here.stop - begin]
        if n_m is None:
            chosen = _least(np.where(kept[:, :, begin:], cost, np.inf), n_left)[:, :, : here.stop - begin]
            n_left -= int(np.count_nonzero(chosen))
        elif fed.moments.layout == "rows":
            chosen = _all_but(own.reshape(*own.shape[:2], n_m[1], width).transpose(0, 1, 3, 2), n_m[0])
            chosen = chosen.transpose(0, 1, 3, 2).reshape(own.shape)
        else:
            turned = own.transpose(0, 2, 1)
            chosen = _all_but(turned.reshape(*turned.shape[:2], -1, n_m[1]), n_m[0])
            chosen = chosen.reshape(turned.shape).transpose(0, 2, 1)
        kept[:, :, here] &= ~chosen
        if fed.factors:
            makeup = fed.cut(inverses, here, slice(begin, n_columns))
            makeup /= -makeup.diagonal(0, 1, 2)[:, :, None]
            _settle(values, kept, makeup, here)
    values *= kept
    weights = fed.moments.weight(values) if fed.factors else values.reshape(shape)
    mask = (fed.moments.weight(kept) if fed.factors else kept.reshape(shape)) & (weights != 0)
    found = np.ascontiguousarray(weights[mask], dtype)
    mask[mask] = found != 0
    return PrunedTensor(mask, found[found != 0])


def _settle(values: F64, kept: Mask, makeup: F64, window: slice) -> None:
    """Put zeros into some columns, and change all that follow for it."""
    errors = np.zeros((*values.shape[:2], window.stop - window.start))
    for own in range(window.stop - window.start):
        column = window.start + own
        errors[:, :, own] = np.where(kept[:, :, column], 0.0, values[:, :, column])
        values[:, :, column] *= kept[:, :, column]
        rest = slice(own + 1, window.stop - window.start)
        values[:, :, column + 1 : window.stop] += errors[:, :, own, None] * makeup[:, None, own, rest]
    values[:, :, window.stop :] += errors @ makeup[:, :, window.stop - window.start :]


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
