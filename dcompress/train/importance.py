"""Importance: how much each unit of a tensor matters. Pure functions; the least important goes first.

All but the norms give a score to each weight, and a unit has the mean of its weights, so that units of
different sizes compare.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dcompress.errors import RecipeError
from dcompress.train.granularity import Granularity
from dcompress.train.units import n_units, to_units, unit_sizes

__all__ = ["Sample", "Score", "unit_scores"]

_BLOCK_ROWS = 512  # distances of so many units to all others at a time


@dataclass(frozen=True, eq=False)
class Sample:
    """What is known of a tensor when it is judged.

    Attributes
    ----------
    weight : Tensor
        As it is in use: zero where it is pruned, shared where it is shared.
    grad : Tensor, optional
        Mean gradient of the loss over the passes that were watched, pruned places included.
    square_grad : Tensor, optional
        Mean square of those gradients: the diagonal of the empirical Fisher information.
    activation : Tensor of shape (n_channels,), optional
        Mean magnitude of each output channel, or of each input channel for the granularity "channel".
    positive : Tensor of shape (n_channels,), optional
        How often each channel is above zero, as a fraction: 1 - APoZ.
    channel_dim : int
        The dimension of the weight that these channels are.
    seed : int
        For "random".
    """

    weight: Tensor
    grad: Tensor | None = None
    square_grad: Tensor | None = None
    activation: Tensor | None = None
    positive: Tensor | None = None
    channel_dim: int = 0
    seed: int = 0


Score = Callable[[Sample], Tensor]


def unit_scores(sample: Sample, importance: str | Score, grains: Granularity) -> Tensor:
    """Return the importance of every unit of a tensor.

    Parameters
    ----------
    sample : Sample
        The tensor, and what was watched of it as far as the importance needs it.
    importance : str or callable
        ``l1``, ``l2``, ``linf``: mean magnitude, root of the mean square, largest magnitude.
        ``random``: uniform, the same on every device for the same seed.
        ``gradient``: mean magnitude of the gradient. ``taylor``: magnitude of the mean of weight times
        gradient (Molchanov et al. 2017). ``fisher``: half the mean of squared weight times squared
        gradient (LeCun et al. 1990 with the Fisher diagonal; Theis et al. 2018).
        ``activation_mean``, ``apoz``: of the channel that a weight belongs to (Molchanov et al. 2017; Hu
        et al. 2016). ``geometric_median``: sum of the distances to all other units (He et al. 2019).
        Or a function from the sample to a score for each weight.
    grains : Granularity
        The units; for N:M the scores are those of single weights, laid out by group.

    Returns
    -------
    scores : Tensor of shape (n_units,), or (n_groups, M) for N:M; float32 or float64

    Raises
    ------
    RecipeError
        A function returned something other than a tensor of the shape of the weight, or what the
        importance needs was not watched.
    """
    shape, is_groups = tuple(sample.weight.shape), grains.kind == "n:m"
    single = Granularity("element") if is_groups else grains
    if importance == "random":
        scores = _random(sample, n_units(shape, single))
    elif importance == "geometric_median":
        scores = _distances(to_units(_float(sample.weight), grains))
    else:
        rows = to_units(_element_scores(sample, importance), single)
        scores = rows.amax(1) if importance == "linf" else rows.sum(1) / _sizes(rows, shape, single)
        if importance == "l2":
            scores = scores.sqrt()
        elif importance == "taylor":
            scores = scores.abs()
    return to_units(scores.reshape(shape), grains) if is_groups else scores


def _element_scores(sample: Sample, importance: str | Score) -> Tensor:
    """Return what is summed up over a unit, for each weight."""
    if not isinstance(importance, str):
        return _given(sample, importance)
    weight = _float(sample.weight)
    if importance in ("l1", "linf"):
        return weight.abs()
    if importance == "l2":
        return weight.square()
    if importance in ("activation_mean", "apoz"):
        return _channels(sample, sample.activation if importance == "activation_mean" else sample.positive)
    if importance == "fisher":
        return 0.5 * weight.square() * _watched(sample.square_grad).to(weight.dtype)
    grad = _watched(sample.grad).to(weight.dtype)
    return grad.abs() if importance == "gradient" else weight * grad


def _float(tensor: Tensor) -> Tensor:
    """Return a tensor without its history, as float32 or float64."""
    detached = tensor.detach()
    return detached if detached.dtype == torch.float64 else detached.float()


def _sizes(rows: Tensor, shape: tuple[int, ...], grains: Granularity) -> Tensor:
    """Return the number of weights of each unit, where the rows are."""
    return unit_sizes(shape, grains).to(rows.device)


def _watched(statistic: Tensor | None) -> Tensor:
    """Return a statistic that must be there."""
    if statistic is None:
        raise RecipeError("nothing was watched: call Compressor.step() after each training step, not before")
    return statistic


def _channels(sample: Sample, statistic: Tensor | None) -> Tensor:
    """Return a statistic of channels, spread over the weights of each."""
    values, shape = _float(_watched(statistic)), sample.weight.shape
    dim = sample.channel_dim
    if values.numel() != shape[dim]:
        raise RecipeError(
            f"what is watched has {values.numel()} channels, dimension {dim} of the weight {shape[dim]}"
        )
    return values.reshape([-1 if place == dim else 1 for place in range(len(shape))]).expand(shape)


def _given(sample: Sample, function: Score) -> Tensor:
    """Return the scores of the user's own function."""
    scores: object = function(sample)
    if not isinstance(scores, Tensor) or scores.shape != sample.weight.shape:
        found = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise RecipeError(
            f"the importance function must return a tensor of shape {tuple(sample.weight.shape)}, not {found}"
        )
    return _float(scores)


def _random(sample: Sample, count: int) -> Tensor:
    """Return random scores; drawn on the CPU, so that no device differs."""
    generator = torch.Generator().manual_seed(sample.seed)
    return torch.rand(count, generator=generator).to(sample.weight.device)


def _distances(rows: Tensor) -> Tensor:
    """Return the sum of the Euclidean distances of each row to all others."""
    parts = [
        torch.cdist(rows[first : first + _BLOCK_ROWS], rows, compute_mode="donot_use_mm_for_euclid_dist").sum(
            1
        )
        for first in range(0, rows.shape[0], _BLOCK_ROWS)
    ]
    return torch.cat(parts)
