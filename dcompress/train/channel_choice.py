"""Which channels to keep, from the products of what they contribute: pure functions, float64.

``gram[i, j]`` is the inner product of what channels i and j add to the next layers' outputs, ``target[i]``
that of channel i and the outputs that are wanted.
"""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray

__all__ = ["Array", "feature_error", "keep_by_features", "keep_by_lasso", "keep_by_score"]

Array = NDArray[np.float64]

_BISECTIONS = 40
_RANK = 1e-12  # eigenvalues below this part of the largest are none


def feature_error(gram: Array, target: Array, energy: float, kept: list[int]) -> float:
    """Return the squared error of the next layers' outputs with some channels alone, weights as they are.

    Parameters
    ----------
    gram : ndarray of shape (n_channels, n_channels)
        Inner products of contributions.
    target : ndarray of shape (n_channels,)
        Inner products of contributions and the outputs wanted.
    energy : float
        Sum of squares of the outputs wanted.
    kept : list of int
        Channels.
    """
    return max(0.0, float(energy - 2 * target[kept].sum() + gram[np.ix_(kept, kept)].sum()))


def keep_by_score(score: Array, n_kept: int) -> list[int]:
    """Return the channels of the largest scores, in order; of equals the first ones."""
    return sorted(np.argsort(-score, kind="stable")[:n_kept].tolist())


def keep_by_features(gram: Array, target: Array, n_kept: int) -> list[int]:
    """Return the channels that are left when the least missed is taken away again and again (ThiNet).

    Parameters
    ----------
    gram, target
        As for `feature_error`.
    n_kept : int
        How many to keep.

    Returns
    -------
    kept : list of int
        In order.

    Notes
    -----
    Luo et al. 2017. Without a channel the error grows by ``2 * target[i] - 2 * gram[i, kept].sum() +
    gram[i, i]``; of equals the first one goes.
    """
    kept = np.ones(len(gram), bool)
    sums = gram.sum(1)  # over what is kept
    for _ in range(len(gram) - n_kept):
        growth = np.where(kept, 2 * target - 2 * sums + gram.diagonal(), np.inf)
        worst = int(np.argmin(growth))
        kept[worst] = False
        sums = sums - gram[:, worst]
    return np.flatnonzero(kept).tolist()


def keep_by_lasso(gram: Array, target: Array, n_kept: int) -> list[int]:
    """Return the channels to which a LASSO of the wanted outputs on the contributions gives weight.

    Parameters
    ----------
    gram, target
        As for `feature_error`.
    n_kept : int
        How many to keep.

    Returns
    -------
    kept : list of int
        In order.

    Notes
    -----
    He et al. 2017: the penalty is raised until no more than ``n_kept`` coefficients are left. Where it jumps
    over that number, the largest coefficients of the next smaller penalty fill it up.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import Lasso

    scale = float(gram.diagonal().max(initial=0.0))
    if scale <= 0:
        return list(range(n_kept))
    # A small problem with the same products: design.T @ design = gram, design.T @ wanted = target.
    values, vectors = np.linalg.eigh((gram + gram.T) / (2 * scale))
    used = values > _RANK * values[-1]
    root = np.sqrt(values[used])
    design = root[:, None] * vectors[:, used].T
    wanted = (vectors[:, used].T @ (target / scale)) / root

    def solve(alpha: float) -> Array:
        lasso = Lasso(alpha / len(wanted), fit_intercept=False, max_iter=10_000, tol=1e-8)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            coefficients: Array = np.abs(lasso.fit(design, wanted).coef_)
        return coefficients

    # In octaves: at the coarse end nothing is left, at the fine end (nearly) everything.
    coarse = float(np.abs(design.T @ wanted).max()) or 1.0
    fine = coarse * 1e-9
    few, many = np.zeros(len(gram)), solve(fine)
    for _ in range(_BISECTIONS):
        if np.count_nonzero(few) == n_kept or coarse < fine * (1 + 1e-9):
            break
        middle = float(np.sqrt(fine * coarse))
        found = solve(middle)
        if np.count_nonzero(found) > n_kept:
            fine, many = middle, found
        else:
            coarse, few = middle, found
    # First those with weight at the larger penalty, then by weight at the smaller one.
    order = np.lexsort((-many, -few))
    chosen = order[:n_kept] if np.count_nonzero(few) else np.argsort(-many, kind="stable")[:n_kept]
    return sorted(chosen.tolist())
