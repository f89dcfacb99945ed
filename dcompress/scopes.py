"""Sparsities over several tensors: one threshold for all that are in the same scope."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from dcompress.errors import RecipeError
from dcompress.floats import SHAREABLE, FloatArray, count_nonfinite, widen
from dcompress.prune import global_threshold
from dcompress.rules import PruneRule, TensorRecipe
from dcompress.stages import TensorData

__all__ = ["is_compressible", "resolve_global_scopes"]


def resolve_global_scopes(
    plan: Mapping[str, TensorRecipe], loader: Callable[[str], TensorData]
) -> dict[str, TensorRecipe]:
    """Return a plan in which every sparsity over a group of tensors has become a threshold.

    Parameters
    ----------
    plan : mapping of str to TensorRecipe
        Of the tensors that are compressed: tied names only once.
    loader : callable
        Returns a tensor by name; called twice for each tensor of a group, none is kept.

    Raises
    ------
    RecipeError
        Tensors of one group are given different sparsities.
    """
    groups: dict[str, dict[str, PruneRule]] = {}
    for name, recipe in plan.items():
        if recipe.prune is not None and recipe.prune.scope != "tensor":
            groups.setdefault(recipe.prune.scope, {})[name] = recipe.prune
    resolved = dict(plan)
    for scope, rules in groups.items():
        sparsities = {rule.sparsity for rule in rules.values()}
        sparsity = sparsities.pop()
        if sparsities or sparsity is None:
            raise RecipeError(f"tensors of scope {scope!r} are given different sparsities")
        threshold = global_threshold([_Loader(loader, name, plan[name]) for name in rules], sparsity)
        for name in rules:
            resolved[name] = dataclasses.replace(plan[name], prune=PruneRule(threshold=threshold))
    return resolved


@dataclasses.dataclass(frozen=True)
class _Loader:
    """Loads the weights that one tensor adds to a group: none if it will not be pruned."""

    load: Callable[[str], TensorData]
    name: str
    recipe: TensorRecipe

    def __call__(self) -> FloatArray:
        tensor = self.load(self.name)
        if not is_compressible(tensor) or count_nonfinite(tensor.words, tensor.dtype):
            return np.empty(0, np.float32)
        return widen(tensor.words, tensor.dtype)


def is_compressible(tensor: TensorData) -> bool:
    """Return whether a tensor has weights that can be pruned and shared."""
    return tensor.dtype.name in SHAREABLE and tensor.words.size > 0
