"""The statistics of one weight tensor: what its inputs were, summed over all batches."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["LAYOUTS", "Moments", "block_bounds", "pack_triangles", "unpack_triangles"]

LAYOUTS = ("rows", "transposed")

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Moments:
    """What was multiplied with a weight tensor.

    The tensor is seen as one matrix for each group, its rows being outputs: see `matrices`. If ``change`` is
    what is added to these matrices, then the outputs change by ``change @ x``, and the squares of that,
    summed over all inputs ``x``, are `output_error`.

    Attributes
    ----------
    kinds : tuple of str
        What used the tensor: "linear", "convolution", "embedding", ...; several if it is tied.
    shape : tuple of int
        Of the weight tensor.
    layout : str
        "rows": a row of the matrix is an element of dimension 0. "transposed": of dimension 1, as in
        transposed convolutions and in ``x @ weight``.
    n_vectors : ndarray of shape (n_groups,), int64
        How many inputs were summed.
    total : ndarray of shape (n_groups, n_columns), float32
        Sum of the inputs.
    second : tuple of ndarray of shape (n_groups, n_block, n_block), float32
        Sum of ``x x^T``, symmetric: blocks along the diagonal that cover all columns in order, mostly just
        one. Empty for a tensor that is only looked up.
    holdout_n_vectors : ndarray of shape (n_groups,), int64
        The same for the batches that were held out, which are in none of the above.
    holdout : tuple of ndarray of shape (n_groups, n_block, n_block), float32
        As ``second``; empty if nothing was held out.
    row_weights : ndarray of shape (n_rows,), float64, optional
        For a tensor whose rows are looked up: how often each was, over all batches; in bags that take
        the mean, or have weights, the squares of the factors instead.
    influence : ndarray of shape (n_groups * n_outputs,), float64, optional
        Sum of the squares of the loss's gradient at each output channel, over all batches and positions.
    cross, holdout_cross : tuple of ndarray of shape (n_groups, n_block, n_block), float32
        If not empty, the other inputs ``x`` are those that the layer gets when what comes before it is
        compressed already, and this is the sum of ``y x^T`` for those inputs ``y`` that it got before.
    """

    kinds: tuple[str, ...]
    shape: tuple[int, ...]
    layout: str
    n_vectors: NDArray[np.int64]
    total: Floats
    second: tuple[Floats, ...]
    holdout_n_vectors: NDArray[np.int64]
    holdout: tuple[Floats, ...] = ()
    row_weights: NDArray[np.float64] | None = None
    influence: NDArray[np.float64] | None = None
    cross: tuple[Floats, ...] = ()
    holdout_cross: tuple[Floats, ...] = ()

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS or len(self.shape) < 2 or not self.kinds:
            raise ValueError(f"no such statistics: {self.layout}, {self.shape}, {self.kinds}")
        groups = self.n_groups
        counts = (self.n_vectors, self.holdout_n_vectors)
        if any(one.shape != (groups,) or one.dtype != np.int64 or (one < 0).any() for one in counts):
            raise ValueError("counts must be non-negative int64, one a group")
        n_outputs = self.shape[1] if self.layout == "transposed" else self.shape[0]
        outer = self.shape[0] if self.layout == "transposed" else n_outputs
        if not groups or outer % groups or self.total.shape != (groups, self.n_columns):
            raise ValueError(f"{groups} groups do not fit the shape {self.shape}")
        for blocks, crossed in ((self.second, self.cross), (self.holdout, self.holdout_cross)):
            if crossed and [block.shape for block in crossed] != [block.shape for block in blocks]:
                raise ValueError("cross moments must have the shapes of the second moments")
        if bool(self.cross and self.holdout) != bool(self.holdout_cross):
            raise ValueError("cross moments are wanted for what is held out too, or not at all")
        for blocks in (self.second, self.holdout):
            sizes = [block.shape[-1] for block in blocks]
            if blocks and sum(sizes) != self.n_columns:
                raise ValueError(f"blocks of {sizes} do not cover {self.n_columns} columns")
            if any(block.shape != (groups, n, n) for block, n in zip(blocks, sizes, strict=True)):
                raise ValueError("blocks must be square, one a group")
        if self.row_weights is not None and self.row_weights.shape != (self.shape[0],):
            raise ValueError(f"row weights of shape {self.row_weights.shape} for {self.shape[0]} rows")
        if self.influence is not None and self.influence.shape != (self.n_output_channels,):
            raise ValueError(f"influence of shape {self.influence.shape} on {self.n_output_channels} outputs")
        if any(block.dtype != np.float32 for block in self._floats):
            raise ValueError("sums must be float32")

    @property
    def _floats(self) -> tuple[Floats, ...]:
        return (self.total, *self.second, *self.holdout, *self.cross, *self.holdout_cross)

    @property
    def n_groups(self) -> int:
        """Number of matrices that the tensor is cut into, along dimension 0."""
        return len(self.n_vectors)

    @property
    def n_columns(self) -> int:
        """Columns of each matrix: the length of an input."""
        rest = math.prod(self.shape[1:])
        if self.layout == "rows":
            return rest
        return self.shape[0] // max(1, self.n_groups) * math.prod(self.shape[2:])

    @property
    def n_output_channels(self) -> int:
        """Rows of all matrices together."""
        return self.shape[0] if self.layout == "rows" else self.shape[1] * self.n_groups

    @property
    def blocks(self) -> tuple[slice, ...]:
        """The columns of each block of ``second``."""
        ends = np.cumsum([0, *(block.shape[-1] for block in self.second)]).tolist()
        return tuple(slice(begin, end) for begin, end in itertools.pairwise(ends))

    @property
    def mean(self) -> NDArray[np.float64]:
        """Mean input, of shape (n_groups, n_columns), float64; zero where there was none."""
        result: NDArray[np.float64] = self.total / np.maximum(self.n_vectors, 1)[:, None]
        return result

    def matrices(self, weight: NDArray[Any]) -> NDArray[Any]:
        """Return the weight tensor as what is multiplied with inputs.

        Parameters
        ----------
        weight : ndarray of shape ``shape``
            Or anything of as many elements, in C order.

        Returns
        -------
        matrices : ndarray of shape (n_groups, n_outputs, n_columns)
            A view where possible.
        """
        groups = self.n_groups
        if self.layout == "rows":
            return weight.reshape(groups, self.shape[0] // groups, self.n_columns)
        cut = weight.reshape(groups, self.shape[0] // groups, self.shape[1], -1)
        return cut.transpose(0, 2, 1, 3).reshape(groups, self.shape[1], self.n_columns)

    def weight(self, matrices: NDArray[Any]) -> NDArray[Any]:
        """Return the weight tensor, of shape ``shape``, that has these `matrices`."""
        if self.layout == "rows":
            return matrices.reshape(self.shape)
        groups = self.n_groups
        cut = matrices.reshape(groups, self.shape[1], self.shape[0] // groups, -1)
        return cut.transpose(0, 2, 1, 3).reshape(self.shape)

    def output_mean(self, weight: NDArray[Any]) -> NDArray[np.float64]:
        """Return the mean output for each output channel, of shape (n_groups * n_outputs,), without a bias.

        Parameters
        ----------
        weight : ndarray of shape ``shape``
            The layer's own, or what it becomes.
        """
        cut = self.matrices(np.asarray(weight, np.float64))
        result: NDArray[np.float64] = (cut @ self.mean[:, :, None]).reshape(-1)
        return result

    def output_variance(self, weight: NDArray[Any]) -> NDArray[np.float64]:
        """Return the variance of each output channel, as `output_mean`; without products across blocks."""
        cut = self.matrices(np.asarray(weight, np.float64))
        squares = np.zeros(cut.shape[:2])
        for block, here in zip(self.second, self.blocks, strict=True):
            centred = block / np.maximum(self.n_vectors, 1)[:, None, None]
            centred = centred - self.mean[:, here, None] * self.mean[:, None, here]
            squares += np.sum((cut[:, :, here] @ centred) * cut[:, :, here], 2)
        return np.maximum(squares, 0.0).reshape(-1)

    def output_error(self, change: NDArray[Any], *, holdout: bool = False) -> float:
        """Return the sum of squares by which the layer's outputs change, over all inputs.

        Parameters
        ----------
        change : ndarray of shape ``shape``
            What is added to the weights.
        holdout : bool
            Over the inputs that were held out, instead of the others.

        Returns
        -------
        error : float
            Without the products of columns in different blocks. Row weights are always those of all batches.
        """
        cut = self.matrices(np.asarray(change, np.float64))
        error, begin = 0.0, 0
        for block in self.holdout if holdout else self.second:
            end = begin + block.shape[-1]
            part = cut[:, :, begin:end]
            error += float(np.sum((part @ block.astype(np.float64)) * part))
            begin = end
        if self.row_weights is not None:
            squares = np.square(np.asarray(change, np.float64)).reshape(self.shape[0], -1).sum(1)
            error += float(squares @ self.row_weights)
        return error


def block_bounds(n_columns: int, max_columns: int) -> tuple[tuple[int, int], ...]:
    """Return begin and end of as few blocks as possible, of about the same size, that cover all columns."""
    n_blocks = max(1, -(-n_columns // max_columns))
    ends = [n_columns * number // n_blocks for number in range(n_blocks + 1)]
    return tuple(itertools.pairwise(ends))


def pack_triangles(block: Floats) -> Floats:
    """Return the upper triangles, row by row, of symmetric matrices: (n, d, d) to (n, d (d + 1) / 2)."""
    n, size, _ = block.shape
    packed = np.empty((n, size * (size + 1) // 2), np.float32)
    begin = 0
    for row in range(size):
        packed[:, begin : begin + size - row] = block[:, row, row:]
        begin += size - row
    return packed


def unpack_triangles(packed: Floats, size: int) -> Floats:
    """Return the symmetric matrices, of shape (n, size, size), whose upper triangles these are."""
    block = np.empty((len(packed), size, size), np.float32)
    begin = 0
    for row in range(size):
        values = packed[:, begin : begin + size - row]
        block[:, row, row:] = values
        block[:, row:, row] = values
        begin += size - row
    return block
