"""Penalties that make weights and units small while a model learns. Differentiable, pure."""

from __future__ import annotations

import torch
from torch import Tensor

from dcompress.train.granularity import Granularity
from dcompress.train.units import to_units, unit_sizes

__all__ = ["group_lasso", "l1_norm"]


def l1_norm(weight: Tensor) -> Tensor:
    """Return the sum of the magnitudes of a tensor: 0-d."""
    return weight.abs().sum()


def group_lasso(weight: Tensor, grains: Granularity) -> Tensor:
    """Return the sum of the Euclidean norms of the units, each times the root of its size: 0-d.

    Its gradient at a unit that is all zero is 0.

    Parameters
    ----------
    weight : Tensor
        Of a shape that the units fit.
    grains : Granularity
        The groups; not N:M.

    Notes
    -----
    Yuan and Lin (2006); for filters and channels of networks Wen et al. (2016).
    """
    squares = to_units(weight, grains).square().sum(1)
    alive = squares > 0
    norms = torch.where(alive, squares, 1.0).sqrt() * alive
    sizes = unit_sizes(tuple(weight.shape), grains).to(weight.device, weight.dtype)
    return (norms * sizes.sqrt()).sum()
