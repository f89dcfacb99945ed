"""What stands between a parameter and its use: masks, codebooks, rounding.

These are modules for `torch.nn.utils.parametrize`. They hold state and apply it; when it changes is decided
elsewhere. A tensor has them in the order quantize, share, mask: what is pruned is zero whatever comes before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dcompress.train.rate import MOST

__all__ = [
    "MOST_STEPS",
    "CodebookParametrization",
    "GridParametrization",
    "MaskParametrization",
    "RoundParametrization",
    "Watcher",
]

Watcher = Callable[[Tensor], None]
MOST_STEPS = 2047  # either way: a codebook has no more than 4,095 values


def _watch(tensor: Tensor, watcher: Watcher) -> None:
    """Call a function with the gradient of a tensor once it is known."""
    tensor.register_hook(watcher)  # type: ignore[no-untyped-call]


# A compiled model steps out of its graph for this: hooks with state have no place in one.
_watch_uncompiled: Callable[[Tensor, Watcher], None] = torch.compiler.disable(_watch)  # type: ignore[no-untyped-call]


class MaskParametrization(nn.Module):
    """Zero where the mask is False; no gradient goes there.

    Parameters
    ----------
    shape : tuple of int
        Of the parameter.
    device : torch.device
        Where it is.
    """

    mask: Tensor

    def __init__(self, shape: tuple[int, ...], device: torch.device) -> None:
        super().__init__()
        self.register_buffer("mask", torch.ones(shape, dtype=torch.bool, device=device))
        self.watcher: Watcher | None = None

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight as it is used, in its shape and dtype."""
        # No product: that would make zeros with a sign, and NaN of an infinity.
        used = torch.where(self.mask, weight, torch.zeros((), dtype=weight.dtype, device=weight.device))
        if self.watcher is not None and used.requires_grad:
            _watch_uncompiled(used, self.watcher)
        return used


class CodebookParametrization(nn.Module):
    """Centroids in place of weights, once labels are there; autograd sums the gradients of each centroid.

    Label 0 is zero and stays it; label ``k`` is ``codebook[k - 1]``. The codebook is a parameter from the
    start, so that an optimizer made then knows it, and has no gradient until it is in use.

    Parameters
    ----------
    shape : tuple of int
        Of the weight.
    n_centroids : int
        Values of the codebook.
    latent : bool
        Whether the weight beneath gets the gradient of its centroid's place too.
    like : Tensor
        Gives dtype and device, and whether it is trained.
    """

    labels: Tensor

    def __init__(self, shape: tuple[int, ...], n_centroids: int, latent: bool, like: Tensor) -> None:
        super().__init__()
        start = torch.zeros(n_centroids, dtype=like.dtype, device=like.device)
        self.codebook = nn.Parameter(start, requires_grad=like.requires_grad)
        self.register_buffer("labels", torch.zeros(shape, dtype=torch.int32, device=like.device))
        self.latent = latent
        self.active = False
        self.start: Tensor | None = None  # where training began, if it did here

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight as it is used, in its shape and dtype."""
        if not self.active:
            return weight
        lookup = torch.cat([self.codebook.new_zeros(1), self.codebook])
        used = lookup.index_select(0, self.labels.reshape(-1)).reshape(self.labels.shape)
        # The difference is exactly zero, and where its sign matters the sum is the codebook's value.
        return used + (weight - weight.detach()) if self.latent else used


class _Round(torch.autograd.Function):
    """Rounding with a straight-through gradient inside the range, none outside (Bengio et al. 2013)."""

    @staticmethod
    def forward(weight: Tensor, step: Tensor, low: int, high: int) -> Tensor:
        return (weight / step).round().clamp(low, high) * step + 0.0  # -0.0 becomes 0.0

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int, int], output: Tensor) -> None:
        weight, step, low, high = inputs
        ctx.save_for_backward(weight, step)
        ctx.range = low, high

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None, None]:
        weight, step = ctx.saved_tensors
        levels = (weight / step).round()
        low, high = ctx.range
        return grads[0] * ((levels >= low) & (levels <= high)), None, None, None


class RoundParametrization(nn.Module):
    """Multiples of a step in place of weights, once active.

    Parameters
    ----------
    low, high : int
        Smallest and largest multiple.
    step : float or None
        The step; None: what makes the largest magnitude ``high`` steps, anew at every use.
    per_channel : bool
        Whether each slice of the first dimension has its own step.
    """

    def __init__(self, low: int, high: int, step: float | None, per_channel: bool) -> None:
        super().__init__()
        self.low, self.high = low, high
        self.step = step
        self.per_channel = per_channel
        self.active = False

    def steps(self, weight: Tensor) -> Tensor:
        """Return the step for a weight: 0-d, or one for each channel, in a shape that broadcasts."""
        if self.step is not None:
            return torch.full((), self.step, dtype=weight.dtype, device=weight.device)
        magnitudes = weight.detach().abs()
        if self.per_channel and weight.ndim > 1:
            largest = magnitudes.amax(tuple(range(1, weight.ndim)), keepdim=True)
        else:
            largest = magnitudes.amax()
        step = largest / self.high
        return torch.where(step > 0, step, torch.ones_like(step))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight as it is used, in its shape and dtype."""
        if not self.active:
            return weight
        used: Tensor = _Round.apply(weight, self.steps(weight), self.low, self.high)  # type: ignore[no-untyped-call]
        return used


class GridParametrization(RoundParametrization):
    """Multiples of a given step in place of weights, which are counted now and then.

    Parameters
    ----------
    step : float
        Of the grid.
    device : torch.device
        Where the weight is.
    """

    frequencies: Tensor

    def __init__(self, step: float, device: torch.device) -> None:
        super().__init__(-MOST_STEPS, MOST_STEPS, step, per_channel=False)
        self.register_buffer("frequencies", torch.zeros(2 * MOST + 1, device=device))
