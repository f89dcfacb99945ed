"""What is seen of a tensor in the passes before its mask changes: gradients, activations. Running sums."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dcompress.errors import RecipeError
from dcompress.train.importance import Sample

__all__ = ["Statistics"]


def _call(function: Callable[..., None], *args: Any) -> None:
    function(*args)


# A compiled model steps out of its graph for this.
_uncompiled: Callable[..., None] = torch.compiler.disable(_call)  # type: ignore[no-untyped-call]


class Statistics:
    """Running sums of one tensor; empty until something is watched.

    Attributes
    ----------
    watching : bool
        Whether passes count now.
    """

    def __init__(self) -> None:
        self.watching = False
        self.n_grads = self.n_activations = 0
        self._sums: dict[str, Tensor] = {}

    def add_grad(self, grad: Tensor) -> None:
        """Count the gradient of a backward pass; one that is not finite (a skipped AMP step) is left out."""
        if not bool(grad.isfinite().all()):
            return
        grad = grad.detach()
        grad = grad if grad.dtype == torch.float64 else grad.float()
        self._add("grad", grad)
        self._add("square_grad", grad.square())
        self.n_grads += 1

    def watch_channels(
        self, _module: nn.Module, inputs: tuple[Any, ...], output: Any, of_inputs: bool
    ) -> None:
        """Count the activations of one forward pass; a forward hook."""
        seen = inputs[0] if of_inputs else output
        if not self.watching or not isinstance(seen, Tensor) or not torch.is_grad_enabled():
            return  # an evaluation is no training step
        _uncompiled(self._add_channels, seen.detach(), _channel_dim(_module, seen))

    def _add_channels(self, seen: Tensor, dim: int) -> None:
        rest = [place for place in range(seen.ndim) if place != dim]
        wide = seen.float()
        self._add("activation", wide.abs().mean(rest) if rest else wide.abs())
        positive = (wide > 0).float()
        self._add("positive", positive.mean(rest) if rest else positive)
        self.n_activations += 1

    def sample(self, weight: Tensor, channel_dim: int, seed: int) -> Sample:
        """Return what is known of a tensor now."""
        means = {
            name: total / (self.n_grads if "grad" in name else self.n_activations)
            for name, total in self._sums.items()
        }
        return Sample(weight.detach(), channel_dim=channel_dim, seed=seed, **means)

    def clear(self) -> None:
        """Forget everything."""
        self.n_grads = self.n_activations = 0
        self._sums = {}

    def state_dict(self) -> dict[str, Any]:
        """Return the sums, for a checkpoint."""
        counts = {"n_grads": self.n_grads, "n_activations": self.n_activations}
        return {**counts, **{name: total.clone() for name, total in self._sums.items()}}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Take the sums of a checkpoint."""
        self.n_grads, self.n_activations = state["n_grads"], state["n_activations"]
        self._sums = {
            name: value.to(device).clone() for name, value in state.items() if isinstance(value, Tensor)
        }

    def _add(self, name: str, values: Tensor) -> None:
        old = self._sums.get(name)
        if old is not None and old.shape != values.shape:
            raise RecipeError(
                f"activations changed from {tuple(old.shape)} to {tuple(values.shape)} channels"
            )
        self._sums[name] = values.clone() if old is None else old + values


def _channel_dim(module: nn.Module, seen: Tensor) -> int:
    """Return the dimension of the channels: the last of a linear layer, else that after the batch."""
    if isinstance(module, nn.Linear) or seen.ndim <= 2:
        return seen.ndim - 1
    convolution = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}
    for kind, n_places in convolution.items():
        if isinstance(module, kind):
            return seen.ndim - 1 - n_places
    return 1
