"""What weights on a grid cost in bits, while they are trained. Differentiable, pure.

A multiple of the step costs what its frequency in its tensor says; between two multiples costs lie on a line,
so that a weight beneath feels which way is cheaper.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["MOST", "bit_costs", "code_bits", "frequencies_of"]

MOST = 31  # multiples of a step, either way, that have costs of their own
_FLOOR = 1e-4  # of the probability of a multiple


def frequencies_of(levels: Tensor) -> Tensor:
    """Return the frequency of each multiple from -MOST to MOST; what is beyond counts as the outermost.

    Parameters
    ----------
    levels : Tensor
        Whole numbers as floats; NaN counts as 0.

    Returns
    -------
    frequencies : Tensor of shape (2 * MOST + 1,), float32
        Their sum is 1.
    """
    places = levels.nan_to_num().clamp(-MOST, MOST).long().flatten() + MOST
    return torch.bincount(places, minlength=2 * MOST + 1).float() / max(1, places.numel())


def bit_costs(frequencies: Tensor) -> Tensor:
    """Return what each multiple costs in bits, by how often it occurs; at most about 13."""
    return -((frequencies.float() + _FLOOR) / (1 + _FLOOR * len(frequencies))).log2()


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
    cells = places.detach().nan_to_num().floor_().clamp_(max=MOST - 1)  # the sum stays NaN
    below = cells.long() + MOST
    return (costs[below] + costs.diff()[below] * (places - cells)).sum()
