"""What each preset does to which tensor. Standard library only."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from dcompress.constants import DType

__all__ = ["FLOATS", "OPTION_KEYS", "PRESETS", "preset_settings", "weights_of"]

PRESETS = ("lossless", "balanced", "paper")
OPTION_KEYS = ("sparsity", "bits")  # settings that a recipe may state for all weights
FLOATS = ("float64", "float32", "float16", "bfloat16")  # these can be pruned and shared

_BALANCED_MIN_SIZE = 2048  # below, codebook and code lengths eat up most of what sharing saves
_PAPER_MIN_SIZE = 256
_WEIGHTS_PER_CENTROID = 8  # a codebook is no larger than that, for small tensors
_PAPER_SPARSITY = {"first conv": 0.34, "conv": 0.62, "fc": 0.91, "last fc": 0.75}


def weights_of(specs: Mapping[str, tuple[DType, tuple[int, ...]]]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the weight matrices and kernels, in order.

    They are floats with at least two dimensions larger than 1: one of size 1 makes no matrix of a vector.
    """
    return {
        name: shape
        for name, (dtype, shape) in specs.items()
        if dtype.name in FLOATS and sum(n > 1 for n in shape) >= 2
    }


def preset_settings(
    preset: str, options: Mapping[str, Any], weights: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Return, for each weight tensor, the settings of the preset and those of the options.

    Parameters
    ----------
    preset : str
        One of ``PRESETS``; it leaves small tensors alone.
    options : mapping
        ``sparsity``, and ``bits`` or ``method``, for every weight tensor, as far as they are given.
    weights : mapping of str to tuple of int
        As `weights_of` gives them.
    """
    smallest = _PAPER_MIN_SIZE if preset == "paper" else _BALANCED_MIN_SIZE
    kinds = {
        name: "conv" if len(shape) > 2 else "fc"
        for name, shape in weights.items()
        if math.prod(shape) >= smallest
    }
    by_kind = {kind: [name for name in kinds if kinds[name] == kind] for kind in ("conv", "fc")}
    if by_kind["conv"]:
        kinds[by_kind["conv"][0]] = "first conv"
    if by_kind["fc"]:
        kinds[by_kind["fc"][-1]] = "last fc"
    settings = {}
    for name, shape in weights.items():
        most = max(1, (math.prod(shape) // _WEIGHTS_PER_CENTROID).bit_length() - 1)
        kind = kinds.get(name)
        own: dict[str, Any] = {}
        if kind is not None and preset == "balanced":
            own = {"bits": min(8, most)}
        elif kind is not None and preset == "paper":
            own = {"bits": min(8 if "conv" in kind else 5, most), "sparsity": _PAPER_SPARSITY[kind]}
        asked = dict(options)
        if "bits" in asked:
            asked["bits"] = min(asked["bits"], most)
        settings[name] = own, asked
    return settings
