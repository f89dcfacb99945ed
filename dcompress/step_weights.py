"""Which tensors take a finer step than others: those whose errors the outputs feel. Standard library only.

Squared errors of tensors add up in a model's outputs. If a tensor of n weights with a step s costs an error
of k s^2 and n log2(1 / s) bits, the least error for all bits has k s^2 / n alike everywhere. Most weights
of a small file are zero, though, and cost less than that: steps that follow the fourth root of n / k instead
of the square root gave the smaller files.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from dcompress.constants import DType
from dcompress.rules import RateRule, TensorRecipe

__all__ = ["weigh_steps"]

_MOST = 8.0  # times finer or coarser than the model's step
_GRID = 8  # factors are powers of two with this denominator: the last bits of a measurement change nothing


def weigh_steps(
    plan: Mapping[str, TensorRecipe],
    specs: Mapping[str, tuple[DType, tuple[int, ...]]],
    sensitivity: Mapping[str, float],
) -> dict[str, TensorRecipe]:
    """Return a plan in which the model's step has become a step for each tensor, and bits a price.

    Parameters
    ----------
    plan : mapping of str to TensorRecipe
        Of all tensors. Those that are not shared by rate, are no weights, or have a step of their own, stay
        as they are; so do those whose sensitivity is not known.
    specs : mapping of str to (DType, shape)
        Of all tensors.
    sensitivity : mapping of str to float
        See `dcompress.calibration.Calibration`. 0 says nothing, as does a name that is not there.

    Returns
    -------
    plan : dict of str to TensorRecipe
        The geometric mean of the steps, over all weights, is about the model's step.
    """
    rules = {
        name: recipe.share
        for name, recipe in plan.items()
        if isinstance(recipe.share, RateRule) and recipe.share.takes_model_step
    }
    sizes = {name: math.prod(specs[name][1]) for name in rules if sensitivity.get(name)}
    wanted = {name: math.log2(n / sensitivity[name]) / 4 for name, n in sizes.items() if n}
    result = dict(plan)
    if len(wanted) < 2:
        return result
    mean = sum(sizes[name] * one for name, one in wanted.items()) / sum(sizes[name] for name in wanted)
    most = math.log2(_MOST)
    for name, one in wanted.items():
        octaves = min(most, max(-most, one - mean))
        factor = 2.0 ** (round(_GRID * octaves) / _GRID)
        rule = rules[name]
        price = factor if rule.slope is None else 1.0
        weighed = dataclasses.replace(rule, step=factor * rule.step, price=price)
        result[name] = dataclasses.replace(plan[name], share=weighed)
    return result
