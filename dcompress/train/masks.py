"""From scores to masks: which units are kept. Pure functions; True = kept, ties go by position."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["keep_n_of_m", "kept_above", "kept_units", "n_to_prune", "standard_deviation"]


def n_to_prune(sizes: Tensor, order: Tensor, sparsity: float) -> int:
    """Return how many units, taken in order, prune a fraction of the weights.

    Parameters
    ----------
    sizes : Tensor of shape (n_units,), int64
        Weights of each unit.
    order : Tensor of shape (n_units,), int64
        Units, the first to go first.
    sparsity : float
        Fraction of the weights, in [0, 1].

    Returns
    -------
    n_pruned : int
        ``round(sparsity * n_units)`` if all units are equally large; else the number that comes nearest, the
        smaller of two.
    """
    if not sizes.numel() or bool((sizes == sizes[0]).all()):
        return round(sparsity * sizes.numel())
    ends = torch.cat([sizes.new_zeros(1), sizes[order].cumsum(0)])
    return int((ends.double() - sparsity * float(ends[-1])).abs().argmin())


def kept_units(scores: Sequence[Tensor], sizes: Sequence[Tensor], amount: float | int) -> list[Tensor]:
    """Return which units of several tensors are kept when all of them compete.

    Parameters
    ----------
    scores : sequence of Tensors of shape (n_units,)
        Importance of the units of each tensor. The least go first, of equal ones the earlier; NaN goes last.
    sizes : sequence of Tensors of shape (n_units,), int64
        Weights of each unit.
    amount : float or int
        A float is the sparsity, an int a number of units.

    Returns
    -------
    kept : list of Tensors of shape (n_units,), bool
    """
    device = scores[0].device
    every = torch.cat([score.detach().to(device) for score in scores])
    order = every.sort(stable=True).indices
    n_pruned = (
        amount if isinstance(amount, int) else n_to_prune(torch.cat(list(sizes)).to(device), order, amount)
    )
    kept = torch.ones(every.numel(), dtype=torch.bool, device=device)
    kept[order[:n_pruned]] = False
    parts = torch.split(kept, [score.numel() for score in scores])
    return [part.to(score.device) for part, score in zip(parts, scores, strict=True)]


def kept_above(scores: Tensor, threshold: float) -> Tensor:
    """Return which units are kept by a threshold: those not below it. Shape (n_units,), bool."""
    return ~(scores < threshold)


def keep_n_of_m(scores: Tensor, n_kept: int) -> Tensor:
    """Return which weights of each group are kept.

    Parameters
    ----------
    scores : Tensor of shape (n_groups, M)
        The least go first, of equal ones the earlier.
    n_kept : int
        Weights to keep in each group.

    Returns
    -------
    kept : Tensor of shape (n_groups, M), bool
    """
    order = scores.sort(dim=1, stable=True).indices
    kept = torch.ones_like(scores, dtype=torch.bool)
    return kept.scatter(1, order[:, : scores.shape[1] - n_kept], False)


def standard_deviation(weight: Tensor) -> float:
    """Return the standard deviation of a tensor, zeros included; 0 for an empty one.

    That is what the paper's quality multiplies; see `dcompress.prune.quality_threshold`.
    """
    if not weight.numel():
        return 0.0
    return float(weight.detach().double().std(correction=0))
