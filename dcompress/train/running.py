"""Running a model on an example, without a trace left in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["as_inputs", "evaluating", "leaves"]


def as_inputs(inputs: Tensor | tuple[Any, ...] | list[Any]) -> tuple[Any, ...]:
    """Return what a model is called with: a tuple, or one tensor."""
    return tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Return a context in which a model is in evaluation mode, and no gradients are kept."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def leaves(outputs: object) -> list[Tensor]:
    """Return the tensors of an output, however they are packed."""
    if isinstance(outputs, Tensor):
        return [outputs]
    if isinstance(outputs, dict):
        outputs = list(outputs.values())
    return [leaf for one in outputs for leaf in leaves(one)] if isinstance(outputs, (list, tuple)) else []
