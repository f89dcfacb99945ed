"""Tensors of many steps, one for each channel, as integers and their steps: exact, and small in a file.

A tensor that is rounded to multiples of one step holds few values, and a ``.dcz`` file codes those as they
are. With a step for each channel it holds as many times more; then the integers are few, and are stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dcompress.errors import EncodeError

__all__ = ["from_integers", "to_integers"]

_SUFFIX = ".step"
_INTEGERS = (torch.int8, torch.int16)


def to_integers(state_dict: Mapping[str, Any], steps: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return a state dict in which rounded tensors are integers, for ``save_file``.

    Parameters
    ----------
    state_dict : mapping of str to Tensor
        Of the model that `Compressor.finish` returned.
    steps : mapping of str to Tensor
        By name, of a shape that broadcasts: what `Compressor.steps` returned.

    Returns
    -------
    integers : dict of str to Tensor
        A rounded tensor is int8 or int16 under its own name, its steps are under ``NAME.step``.

    Raises
    ------
    EncodeError
        A name is unknown or taken, or a tensor is not exactly a multiple of its steps, and would change.
    """
    for name in steps:
        if name not in state_dict:
            raise EncodeError(f"the state dict has no {name!r}")
        if name + _SUFFIX in state_dict:
            raise EncodeError(f"the state dict has a {name + _SUFFIX!r} already")
    result: dict[str, Any] = {}
    for name, value in state_dict.items():
        result[name] = value
        if name in steps:
            result[name] = _levels(name, value.detach(), steps[name].detach())
            result[name + _SUFFIX] = steps[name].detach().clone()
    return result


def from_integers(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state dict that `to_integers` was given, bit for bit: integers times their steps."""
    result = {}
    for name, value in state_dict.items():
        step = state_dict.get(name + _SUFFIX)
        if isinstance(step, Tensor) and isinstance(value, Tensor) and value.dtype in _INTEGERS:
            result[name] = _product(value, step)
        elif not _is_step(name, state_dict):
            result[name] = value
    return result


def _is_step(name: str, state_dict: Mapping[str, Any]) -> bool:
    """Return whether a name is that of the steps of another tensor."""
    whole = state_dict.get(name.removesuffix(_SUFFIX)) if name.endswith(_SUFFIX) else None
    return isinstance(whole, Tensor) and whole.dtype in _INTEGERS


def _levels(name: str, value: Tensor, step: Tensor) -> Tensor:
    """Return which multiples of its steps a tensor holds."""
    wide = (value / step).round()
    levels = (
        wide.to(torch.int8 if float(wide.abs().max()) < 128 else torch.int16) if wide.numel() else wide.char()
    )
    product = _product(levels, step)
    # A zero of either sign comes back as 0.0, but rounding never leaves -0.0.
    if not torch.equal(product, value) or bool((value.signbit() & (value == 0)).any()):
        raise EncodeError(f"{name!r} does not hold multiples of these steps")
    return levels


def _product(levels: Tensor, step: Tensor) -> Tensor:
    """Return what levels mean, computed as in training."""
    return levels.to(step.dtype) * step + 0.0
