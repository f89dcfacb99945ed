"""Second moments of made-up inputs, and error feedback by its textbook."""

from __future__ import annotations

import itertools

import numpy as np

from dcompress.calibration.moments import Moments


def correlated(n, n_columns, rng, rank=0.3, noise=0.2):
    """Return inputs of few directions and a little noise."""
    n_directions = max(1, round(rank * n_columns))
    plane = rng.normal(size=(n, n_directions)) @ rng.normal(size=(n_directions, n_columns))
    return plane / np.sqrt(n_directions) + noise * rng.normal(size=(n, n_columns))


def moments_of(inputs, shape, *, layout="rows", held=None, blocks=1, before=None):
    """Return the moments of inputs, of shape (n_groups, n, n_columns); ``before``: as the layer got them."""
    ends = [inputs.shape[2] * number // blocks for number in range(blocks + 1)]
    places = [slice(*pair) for pair in itertools.pairwise(ends)]

    def sums(one, other):
        return tuple(
            np.stack([a[:, here].T @ b[:, here] for a, b in zip(one, other, strict=True)]).astype(np.float32)
            for here in places
        )

    groups = len(inputs)
    counts = np.full(groups, inputs.shape[1]), np.full(groups, 0 if held is None else held.shape[1])
    second = tuple((block + block.transpose(0, 2, 1)) / 2 for block in sums(inputs, inputs))
    return Moments(
        ("linear",),
        tuple(shape),
        layout,
        counts[0],
        inputs.sum(1).astype(np.float32),
        second,
        counts[1],
        () if held is None else sums(held, held),
        cross=() if before is None else sums(before, inputs),
        holdout_cross=() if before is None or held is None else sums(held, held),
    )


def damped(block, damping):
    """Return second moments of one group in float64, with what is added to their diagonal."""
    second = block.astype(np.float64)
    return second + damping * np.mean(np.diag(second)) * np.eye(len(second))


def gptq(weights, second, quantise, kept):
    """Return a matrix rounded column by column: Frantar et al. 2022, algorithm 1, with blocks of one.

    ``quantise`` is given a column of values and its place; pruned weights become zero.
    """
    inverse = np.linalg.inv(second)
    factor = np.linalg.cholesky(inverse).T
    values, found = weights.copy(), np.zeros_like(weights)
    for column in range(weights.shape[1]):
        found[:, column] = np.where(kept[:, column], quantise(values[:, column], column), 0.0)
        error = (values[:, column] - found[:, column]) / factor[column, column]
        values[:, column:] -= error[:, None] * factor[column, column:]
    return found
