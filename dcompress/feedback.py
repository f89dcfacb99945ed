"""Error feedback: stage 2 with the second moments of a layer's inputs, so that its output is kept.

Rounding each weight to the nearest value keeps the weights. But the inputs of a layer are correlated: what
one weight loses, others can make up for (Optimal Brain Surgeon; OBQ and GPTQ, Frantar et al. 2022). Here
weights are settled from left to right, and each error is fed on to those that are still open. Where the
moments were taken layer by layer from a model that is compressed already, what the weights should be is
solved for first: the least squares from the inputs that the layer gets to the outputs that it should give.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dcompress.blas import one_blas_thread
from dcompress.calibration.moments import Moments
from dcompress.errors import EncodeError

__all__ = ["F64", "I32", "I64", "Calibrated", "Feedback", "Mask"]

DAMPINGS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # of the mean second moment of a column
_DAMPING = 0.03  # where nothing was held out to choose by
_TRIAL_ROWS, _TRIAL_COLUMNS = 64, 512  # by which damping is chosen
_TRIAL_WINDOW = 32
_SEEN = 0.1  # of the mean, which rows that are looked up less often are worth

F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
Mask = NDArray[np.bool_]


class Calibrated(NamedTuple):
    """What error feedback needs to know of a tensor.

    Attributes
    ----------
    name : str
        For errors.
    weights : ndarray of floats, in the shape of the tensor
        As they were before anything was pruned.
    kept : ndarray of bool, in the shape of the tensor
        What stage 1 keeps of them.
    moments : Moments
        Of what flows into it.
    price : float
        Of a bit, where sharing weighs bits against error: see `dcompress.rules.RateRule`.
    """

    name: str
    weights: NDArray[Any]
    kept: Mask
    moments: Moments
    price: float = 1.0


@dataclass(frozen=True, eq=False)
class Feedback:
    """A weight tensor with what is known of its inputs, ready to be settled.

    Attributes
    ----------
    moments : Moments
        Of its inputs.
    targets : ndarray of shape (n_groups, n_outputs, n_columns), float64
        What the weights should be: see `Moments.matrices`.
    kept : ndarray of the same shape, bool
        Where a weight is not pruned.
    factors : tuple of ndarray of shape (n_groups, n_block, n_block), float64
        For each block of columns: upper triangular, times its transpose the second moments. Empty for a
        tensor that is only looked up: then rows that are used more often are worth more, and that is all.
    damping : float
        What was added to the diagonal of the second moments, as a fraction of its mean.
    """

    moments: Moments
    targets: F64
    kept: Mask
    factors: tuple[F64, ...]
    damping: float

    @classmethod
    def of(
        cls, name: str, weights: NDArray[Any], kept: Mask, step: float | None, moments: Moments
    ) -> Feedback | None:
        """Return what a tensor needs, or None if nothing flowed into it.

        Parameters
        ----------
        name : str
            For errors.
        weights : ndarray in the shape of the tensor
            Finite.
        kept : ndarray of the same shape, bool
            False where it is pruned.
        step : float, optional
            About how far apart its values will be, to choose the damping by.
        moments : Moments
            Of this tensor.

        Raises
        ------
        EncodeError
            The moments are of another shape, or not finite, or no second moments at all.
        """
        if moments.shape != weights.shape:
            raise EncodeError(f"tensor {name!r} is {weights.shape}, its calibration is of {moments.shape}")
        blocks = [*moments.second, *moments.cross, *moments.holdout, *moments.holdout_cross]
        if not all(np.isfinite(block).all() for block in blocks):
            raise EncodeError(f"tensor {name!r}: its calibration has NaN or infinite values")
        seen = moments.row_weights
        if seen is not None and not (np.isfinite(seen).all() and (seen >= 0).all()):
            raise EncodeError(f"tensor {name!r}: its calibration has row weights that are no numbers of uses")
        if any((block.diagonal(0, 1, 2) < 0).any() for block in moments.second):
            raise EncodeError(f"tensor {name!r}: its calibration has squares below zero")
        if not moments.second and seen is not None:
            flat = np.asarray(weights, np.float64).reshape(1, moments.shape[0], -1)
            return cls(moments, flat, np.ascontiguousarray(kept.reshape(flat.shape)), (), 0.0)
        if not any(block.diagonal(0, 1, 2).any() for block in moments.second):
            return None
        matrices = moments.matrices(np.asarray(weights, np.float64))
        keep = np.ascontiguousarray(moments.matrices(kept))
        try:
            with one_blas_thread():
                damping = _choose_damping(moments, matrices, step)
                solved = [
                    _solve(
                        block,
                        moments.cross[number] if moments.cross else None,
                        matrices[:, :, here],
                        damping,
                    )
                    for number, (block, here) in enumerate(zip(moments.second, moments.blocks, strict=True))
                ]
        except np.linalg.LinAlgError as error:
            raise EncodeError(
                f"tensor {name!r}: its calibration is no sum of squares: not positive definite"
            ) from error
        targets = np.ascontiguousarray(np.concatenate([target for target, _ in solved], 2))
        return cls(moments, targets, keep, tuple(factor for _, factor in solved), damping)

    def worth(self) -> F64:
        """Return what a squared error is worth by group and column, or by row: 1 in the geometric mean.

        Columns whose inputs were always zero do not count in that mean: else they would make all others dear.
        """
        if not self.factors:
            seen = self.moments.row_weights
            assert seen is not None
            seen = np.maximum(seen, _SEEN * seen.mean() or 1.0)
            rows: F64 = (seen / np.exp(np.log(seen).mean()))[:, None]
            return rows
        squares = np.concatenate([factor.diagonal(0, 1, 2) ** 2 for factor in self.factors], 1)
        inputs = np.concatenate([block.diagonal(0, 1, 2) for block in self.moments.second], 1)
        result: F64 = squares / np.exp(np.log(squares[inputs > 0]).mean())
        return result

    def spread(self, rows: slice, columns: slice) -> F64:
        """Return how much of the error of some columns is fed to others, all groups."""
        found = self.cut(self.factors, rows, columns)
        scale = np.concatenate([factor.diagonal(0, 1, 2) for factor in self.factors], 1)
        result: F64 = found / scale[:, None, columns]
        return result

    def cut(self, matrices: Sequence[F64], rows: slice, columns: slice) -> F64:
        """Return some rows and columns, all groups, of matrices that are one for each block of columns."""
        result = np.zeros((self.moments.n_groups, rows.stop - rows.start, columns.stop - columns.start))
        for matrix, here in zip(matrices, self.moments.blocks, strict=True):
            one, other = _overlap(rows, here), _overlap(columns, here)
            if one is not None and other is not None:
                result[:, one[1], other[1]] = matrix[:, one[0], other[0]]
        return result


def _overlap(wanted: slice, block: slice) -> tuple[slice, slice] | None:
    """Return what is wanted of a block, as places in the block and in what is wanted."""
    begin, end = max(wanted.start, block.start), min(wanted.stop, block.stop)
    if begin >= end:
        return None
    return slice(begin - block.start, end - block.start), slice(begin - wanted.start, end - wanted.start)


def _solve(second: NDArray[Any], cross: NDArray[Any] | None, weights: F64, damping: float) -> tuple[F64, F64]:
    """Return what the weights of a block should be, and the factor of its second moments, damped."""
    damped = second.astype(np.float64)
    extra = damping * damped.diagonal(0, 1, 2).mean(1)
    extra[extra <= 0] = 1.0  # a group that nothing flowed into: nearest values will do
    places = np.arange(damped.shape[1])
    damped[:, places, places] += extra[:, None]
    targets = weights
    if cross is not None:
        wanted = weights @ cross.astype(np.float64) + extra[:, None, None] * weights
        targets = np.linalg.solve(damped, wanted.transpose(0, 2, 1)).transpose(0, 2, 1)
    turned = np.linalg.cholesky(damped[:, ::-1, ::-1])
    return targets, np.ascontiguousarray(turned[:, ::-1, ::-1])


def _choose_damping(moments: Moments, matrices: F64, step: float | None) -> float:
    """Return the damping that leaves the least error in what was held out, of a part of the tensor."""
    if step is None or not moments.holdout or not moments.holdout_n_vectors.all():
        return _DAMPING
    columns = slice(0, min(_TRIAL_COLUMNS, moments.second[0].shape[-1]))
    group = int(np.argmax(moments.n_vectors))
    rows = np.unique(np.linspace(0, matrices.shape[1] - 1, _TRIAL_ROWS).astype(np.int64))
    part = matrices[group : group + 1, rows, columns]

    def cut(blocks: tuple[NDArray[Any], ...]) -> F64 | None:
        return blocks[0][group : group + 1, columns, columns].astype(np.float64) if blocks else None

    second, cross = cut(moments.second), cut(moments.cross)
    held, held_cross = cut(moments.holdout), cut(moments.holdout_cross)
    assert second is not None
    assert held is not None
    losses = []
    for damping in DAMPINGS:
        targets, factor = _solve(second, cross, part, damping)
        found = _round_fed(targets[0], factor[0], step)
        # |W x - Q x'|**2 over what was held out, without what does not depend on Q.
        wanted = part[0] @ (held if held_cross is None else held_cross)[0]
        losses.append(float(np.sum((found @ held[0] - 2 * wanted) * found)))
    return DAMPINGS[int(np.argmin(losses))]


def _round_fed(targets: F64, factor: F64, step: float) -> F64:
    """Return multiples of a step, errors fed on: the plain way, for few rows."""
    values, found = targets.copy(), np.empty_like(targets)
    n_columns = targets.shape[1]
    share = factor / factor.diagonal()
    for begin in range(0, n_columns, _TRIAL_WINDOW):
        end = min(begin + _TRIAL_WINDOW, n_columns)
        for column in range(begin, end):
            found[:, column] = np.rint(values[:, column] / step) * step
            error = targets[:, column] - found[:, column]
            values[:, column + 1 : end] += error[:, None] * share[column, column + 1 : end]
        values[:, end:] += (targets[:, begin:end] - found[:, begin:end]) @ share[begin:end, end:]
    return found
