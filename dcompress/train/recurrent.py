"""Recurrent layers: they keep a second list of their weights, which has to follow the parametrizations.

`torch.nn.RNN`, ``LSTM`` and ``GRU`` compute with a list of tensors, not with their attributes. Torch makes
the list anew in each pass in which an attribute gives another tensor, as a parametrized one does. Two things
stand in the way then: the list keeps tensors that have a history, which `copy.deepcopy` refuses, and
cuDNN's flattening moves the storage of tensors that a backward pass may still need.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

__all__ = ["is_recurrent", "let_list_follow", "renew_list"]


def is_recurrent(module: nn.Module) -> bool:
    """Return whether a module keeps a second list of its weights; an ``LSTMCell`` does not."""
    return isinstance(module, nn.RNNBase)


def let_list_follow(module: nn.Module) -> None:
    """Make a recurrent layer hold its parameters between two passes, and what is made of them within one.

    Parameters
    ----------
    module : RNNBase
        Parametrized: its class, which torch made for this module alone, is changed, and goes away with the
        last parametrization.

    Notes
    -----
    On CUDA its weights lie apart until then, so cuDNN copies them in each pass, and says so in a warning.
    """
    kind = type(module)
    plain = kind.__bases__[0]
    if not parametrize.is_parametrized(module) or "flatten_parameters" in vars(kind):
        return

    def forward(self: nn.Module, *args: Any, **settings: Any) -> Any:
        try:
            return plain.forward(self, *args, **settings)  # type: ignore[attr-defined]
        finally:
            _hold_parameters(self)

    def _apply(self: nn.Module, *args: Any, **settings: Any) -> nn.Module:
        done: nn.Module = plain._apply(self, *args, **settings)  # type: ignore[attr-defined]
        _hold_parameters(self)
        return done

    def flatten_parameters(self: nn.Module) -> None:
        pass

    for function in (forward, _apply, flatten_parameters):
        setattr(kind, function.__name__, function)


def renew_list(module: nn.Module) -> None:
    """Make a recurrent layer that is plain again compute with its parameters, flattened where cuDNN runs."""
    module._init_flat_weights()  # type: ignore[operator]


def _hold_parameters(module: nn.Module) -> None:
    """Put parameters, which have no history, into the second list."""
    names: list[str] = module._flat_weights_names  # type: ignore[assignment]
    module._flat_weights = [_parameter(module, name) for name in names]  # type: ignore[assignment]


def _parameter(module: nn.Module, name: str) -> Tensor | None:
    """Return a parameter of a module, or the one beneath its parametrizations."""
    if parametrize.is_parametrized(module, name):
        beneath: Tensor = module.parametrizations[name].original  # type: ignore[index, union-attr]
        return beneath
    return module._parameters.get(name)
