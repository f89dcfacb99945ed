"""Granularity: which weights are pruned together. Pure functions between tensors and their units.

A tensor is cut into units; ``to_units`` lays them out as rows of equal length, short ones (at the edges of
blocks) filled up, and ``from_units`` spreads a value of each unit over its weights.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from dcompress.errors import RecipeError
from dcompress.train.granularity import Granularity

__all__ = ["check_shape", "from_units", "n_units", "to_units", "unit_sizes"]

_RANKS = {"element": 0, "kernel": 3, "filter": 1, "channel": 2, "block": 2, "n:m": 2}


def check_shape(shape: tuple[int, ...], grains: Granularity) -> None:
    """Raise unless a tensor can be cut into such units.

    Parameters
    ----------
    shape : tuple of int
        Of the tensor.
    grains : Granularity
        Its units.

    Raises
    ------
    RecipeError
        Too few dimensions, no weights, or a second dimension that M of N:M does not divide.
    """
    least = _RANKS[grains.kind]
    if len(shape) < least:
        raise RecipeError(f"granularity {grains} needs at least {least} dimensions, the shape is {shape}")
    if not math.prod(shape):
        raise RecipeError(f"there is nothing to prune in the shape {shape}")
    if grains.kind == "n:m" and shape[1] % grains.size[1]:
        raise RecipeError(
            f"granularity {grains} needs a second dimension that {grains.size[1]} divides, "
            f"the shape is {shape}"
        )


def n_units(shape: tuple[int, ...], grains: Granularity) -> int:
    """Return the number of units of a tensor; of N:M, the number of groups of M."""
    if grains.kind == "block":
        return math.prod(_blocks(shape, grains))
    if grains.kind == "n:m":
        return math.prod(shape) // grains.size[1]
    whole = {"element": len(shape), "kernel": 2, "filter": 1}
    return shape[1] if grains.kind == "channel" else math.prod(shape[: whole[grains.kind]])


def to_units(tensor: Tensor, grains: Granularity, fill: float = 0.0) -> Tensor:
    """Return a tensor as rows, one for each unit.

    Parameters
    ----------
    tensor : Tensor
        Of a shape that `check_shape` accepts.
    grains : Granularity
        Its units, in C order. Blocks are of the tensor as a matrix, its first dimension the rows; groups of
        N:M run along the second dimension.
    fill : float
        Stands where a block reaches beyond the edge.

    Returns
    -------
    rows : Tensor of shape (n_units, unit_size)
    """
    shape = tuple(tensor.shape)
    if grains.kind == "channel":
        tensor = tensor.transpose(0, 1)
    elif grains.kind == "n:m":
        tensor = tensor.movedim(1, -1)
    elif grains.kind == "block":
        (down, across), (height, width) = _blocks(shape, grains), grains.size
        matrix = tensor.flatten(1)
        over = (0, across * width - matrix.shape[1], 0, down * height - matrix.shape[0])
        cut = functional.pad(matrix, over, value=fill).reshape(down, height, across, width)
        return cut.transpose(1, 2).reshape(down * across, height * width)
    return tensor.reshape(n_units(shape, grains), -1)


def from_units(values: Tensor, shape: tuple[int, ...], grains: Granularity) -> Tensor:
    """Return a tensor in which every weight has the value of its unit, or its own: inverse of `to_units`.

    Parameters
    ----------
    values : Tensor of shape (n_units,) or (n_units, unit_size)
        A value for each unit, or for each weight of it.
    shape : tuple of int
        Of the result.
    grains : Granularity
        The units.
    """
    rows = values if values.ndim == 2 else values[:, None]
    if grains.kind == "block":
        (down, across), (height, width) = _blocks(shape, grains), grains.size
        cut = rows.reshape(down, across, *((height, width) if values.ndim == 2 else (1, 1)))
        full = (
            cut.transpose(1, 2).expand(down, height, across, width)
            if values.ndim == 2
            else (cut.expand(down, across, height, width).transpose(1, 2))
        )
        whole = full.reshape(down * height, across * width)
        return whole[: shape[0], : math.prod(shape[1:])].reshape(shape)
    if grains.kind == "n:m":
        moved = (shape[0], *shape[2:], shape[1])
        return rows.expand(-1, grains.size[1]).reshape(moved).movedim(-1, 1).contiguous()
    rows = rows.expand(-1, math.prod(shape) // rows.shape[0])
    if grains.kind == "channel":
        return rows.reshape(shape[1], shape[0], *shape[2:]).transpose(0, 1).contiguous()
    return rows.reshape(shape)


def unit_sizes(shape: tuple[int, ...], grains: Granularity) -> Tensor:
    """Return how many weights each unit has: shape (n_units,), int64, on the CPU."""
    if grains.kind != "block":
        count = n_units(shape, grains)
        return torch.full((count,), math.prod(shape) // count)
    return to_units(torch.ones(shape, dtype=torch.int64), grains).sum(1)


def _blocks(shape: tuple[int, ...], grains: Granularity) -> tuple[int, int]:
    """Return how many blocks there are down and across."""
    height, width = grains.size
    return -(-shape[0] // height), -(-math.prod(shape[1:]) // width)
