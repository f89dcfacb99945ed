"""Weights on grids while they are trained: multiples of a step, and what each costs in bits.

What a network is used with are rounded copies of its weights; the gradients go to the weights beneath as if
there were no rounding (Bengio et al. 2013). What a multiple costs follows from how often it occurs in its
tensor, and between two multiples costs lie on a line, which gives the price of a weight a gradient as well.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

MOST = 31  # multiples of a step, either way, that have prices of their own
LEAN = 0.4  # of a step, from a multiple towards the next, at most
MEMORY = 0.9  # of counts, from one count to the next
FLOOR = 1e-4  # of the probability of a multiple


class Grids:
    """The weights beneath the parameters of a model.

    Parameters
    ----------
    model : Module
        Its parameters are overwritten by `place`.
    steps : mapping of str to float
        By parameter name; others are not touched.
    """

    def __init__(self, model: nn.Module, steps: Mapping[str, float]) -> None:
        self.steps = dict(steps)
        self._used = {name: value for name, value in model.named_parameters() if name in self.steps}
        if missing := sorted(self.steps.keys() - self._used.keys()):
            raise KeyError(f"the model has no parameter {missing[0]!r}")
        self.beneath = {name: nn.Parameter(value.detach().clone()) for name, value in self._used.items()}
        self._counts: dict[str, Tensor] = {}

    @torch.no_grad()
    def lean(self, towards: Mapping[str, Tensor]) -> None:
        """Move weights beneath towards other values, as far as their multiples stay what they are."""
        for name, value in towards.items():
            reach = LEAN * self.steps[name]
            middle = self.multiples()[name] * self.steps[name]
            self.beneath[name].copy_(torch.minimum(torch.maximum(value, middle - reach), middle + reach))

    @torch.no_grad()
    def multiples(self) -> dict[str, Tensor]:
        """Return which multiples of its step each tensor is made of: whole numbers as floats."""
        return {name: (value / self.steps[name]).round_() for name, value in self.beneath.items()}

    @torch.no_grad()
    def place(self) -> None:
        """Put the rounded weights into the model."""
        for name, levels in self.multiples().items():
            self._used[name].copy_(levels * self.steps[name] + 0.0)

    @torch.no_grad()
    def collect(self) -> None:
        """Move the gradients of the model to the weights beneath."""
        for name, value in self.beneath.items():
            value.grad, self._used[name].grad = self._used[name].grad, None

    @torch.no_grad()
    def count(self) -> None:
        """Count how often each multiple occurs; earlier counts fade."""
        for name, levels in self.multiples().items():
            found = torch.bincount(_places(levels), minlength=2 * MOST + 1).float()
            known = self._counts.get(name)
            self._counts[name] = found if known is None else MEMORY * known + (1 - MEMORY) * found

    @torch.no_grad()
    def charge(self, weight: float, names: list[str]) -> None:
        """Add the gradient of the mean bits of the named tensors' weights to what `collect` has moved.

        Parameters
        ----------
        weight : float
            Of that mean, in the loss.
        names : list of str
            Some tensors that were counted.
        """
        total = sum(self.beneath[name].numel() for name in names)
        for name in names:
            value, step = self.beneath[name], self.steps[name]
            assert value.grad is not None
            rise = self.bits(name).diff()
            cell = (value / step).floor_().clamp_(-MOST, MOST - 1).long() + MOST
            value.grad.add_(rise[cell], alpha=weight / (total * step))

    def bits(self, name: str) -> Tensor:
        """Return what each multiple costs, from the smallest to the largest."""
        counts = self._counts[name]
        return -((counts / counts.sum() + FLOOR) / (1 + FLOOR * len(counts))).log2()

    @torch.no_grad()
    def mean_bits(self, names: list[str]) -> float:
        """Return the entropy of the named tensors' multiples, in bits a weight."""
        total, n_weights = 0.0, 0
        for name, levels in self.multiples().items():
            if name in names:
                counts = torch.bincount(_places(levels))
                total -= float(torch.xlogy(counts, counts / counts.sum()).sum()) / math.log(2)
                n_weights += levels.numel()
        return total / n_weights


def _places(levels: Tensor) -> Tensor:
    """Return where multiples stand in a table of counts."""
    return levels.clamp(-MOST, MOST).long().flatten() + MOST
