"""What weights on a grid cost in bits, while they are trained. Differentiable, pure.

A multiple of the step costs what its frequency in its tensor says; between two multiples costs lie on a line,
so that a weight beneath feels which way is cheaper.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["MOST", "bit_costs", "code_bits", "count_multiples"]

MOST = 31  # multiples of a step, either way, that have costs of their own
_FLOOR = 1e-4  # of the probability of a multiple


def count_multiples(levels: Tensor) -> Tensor:
    """Return how often each multiple from -MOST to MOST occurs; what is beyond counts as the outermost.

    Parameters
    ----------
    levels : Tensor
        Whole numbers as floats; NaN counts as 0.

    Returns
    -------
    counts : Tensor of shape (2 * MOST + 1,), float32
    """
    places = levels.nan_to_num().clamp(-MOST, MOST).long().flatten() + MOST
    return torch.bincount(places, minlength=2 * MOST + 1).float()


def bit_costs(counts: Tensor) -> Tensor:
    """Return what each multiple costs in bits, by how often it occurs; at most about 13."""
    return -((counts / counts.sum() + _FLOOR) / (1 + _FLOOR * len(counts))).log2()


def code_bits(weight: Tensor, step: float, costs: Tensor) -> Tensor:
    """Return the bits of all weights together: 0-d, differentiable.

    Parameters
    ----------
    weight : Tensor
        Beneath the grid, not rounded.
    step : float
        Of the grid.
    costs : Tensor of shape (2 * MOST + 1,)
        As `bit_costs` returns them.
    """
    places = (weight.float() / step).clamp(-MOST, MOST)
    cells = places.detach().floor().clamp_(max=MOST - 1)
    below = cells.long() + MOST
    return (costs[below] + costs.diff()[below] * (places - cells)).sum()
