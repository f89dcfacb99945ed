"""What a rule prunes of one tensor, and the tensor that this leaves."""

from __future__ import annotations

import numpy as np

from dcompress.calibration import Moments
from dcompress.errors import RecipeError
from dcompress.feedback import Feedback
from dcompress.floats import blocks, narrow, widen
from dcompress.prune import n_m_mask, prune, quality_threshold, sparsity_mask, threshold_mask
from dcompress.prune_feedback import prune_fed
from dcompress.rules import TensorRecipe
from dcompress.settings import parse_n_m
from dcompress.stages import PrunedTensor, TensorData

__all__ = ["prune_named", "prune_tensor", "with_values", "with_zeros"]

_PRUNED_ALREADY = 0.25  # zeros, as a fraction, beyond which a preset takes a tensor as pruned


def prune_named(
    name: str, tensor: TensorData, recipe: TensorRecipe, moments: Moments | None = None
) -> PrunedTensor:
    """Return what stage 1 keeps of a tensor; errors name it."""
    try:
        return prune_tensor(name, tensor, recipe, moments)
    except RecipeError as error:
        raise RecipeError(f"tensor {name!r}: {error}") from error


def prune_tensor(
    name: str, tensor: TensorData, recipe: TensorRecipe, moments: Moments | None = None
) -> PrunedTensor:
    """Return what stage 1 keeps of a tensor."""
    weights = widen(tensor.words, tensor.dtype).reshape(tensor.shape)
    rule = recipe.prune
    if not recipe.explicit_prune and np.count_nonzero(weights) < (1 - _PRUNED_ALREADY) * weights.size:
        rule = None  # a preset's sparsity is for dense networks: one pruned in training keeps its mask
    if rule is None:
        return prune(weights)
    n_m = None if rule.n_m is None else parse_n_m(rule.n_m)
    kept = weights != 0
    if n_m is None and rule.sparsity is None:
        threshold = rule.threshold
        kept &= threshold_mask(
            weights, quality_threshold(weights, rule.quality or 0.0) if threshold is None else threshold
        )
    fed = None if moments is None else Feedback.of(name, weights, kept, None, moments)
    if fed is not None:
        dtype = np.float64 if weights.dtype == np.float64 else np.float32
        return prune_fed(fed, sparsity=rule.sparsity, n_m=n_m, dtype=dtype)
    if n_m is not None:
        kept = n_m_mask(weights, *n_m)
    elif rule.sparsity is not None:
        kept = sparsity_mask(weights, rule.sparsity)
    return prune(weights, kept)


def with_values(tensor: TensorData, pruned: PrunedTensor) -> TensorData:
    """Return a tensor with the values that stage 1 gave it."""
    words = np.zeros_like(tensor.words)
    words[pruned.mask.reshape(-1)] = narrow(pruned.values, tensor.dtype)
    return TensorData(tensor.dtype, tensor.shape, words)


def with_zeros(tensor: TensorData, pruned: PrunedTensor) -> TensorData:
    """Return a tensor with zeros where it is pruned, and the exact words it had elsewhere."""
    words = np.zeros_like(tensor.words)
    mask = pruned.mask.reshape(-1)
    for part in blocks(words.size):
        np.copyto(words[part], tensor.words[part], where=mask[part])
    return TensorData(tensor.dtype, tensor.shape, words)
