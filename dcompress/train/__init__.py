"""Pruning, weight sharing and quantisation while a model is trained, in any PyTorch loop.

`Compressor` does what a `TrainRecipe` says; what it leaves behind is a plain model, which ``save_file``
codes exactly.
"""

from __future__ import annotations

from dcompress.train.compressor import Compressor, StepReport
from dcompress.train.importance import Sample
from dcompress.train.integers import from_integers, to_integers
from dcompress.train.interop import from_torch_prune, to_torch_prune, zero_masks
from dcompress.train.recipe import TrainRecipe
from dcompress.train.settings import PenaltyStage, PruneStage, QuantizeStage, ShareStage, Stage

__all__ = [
    "Compressor",
    "PenaltyStage",
    "PruneStage",
    "QuantizeStage",
    "Sample",
    "ShareStage",
    "Stage",
    "StepReport",
    "TrainRecipe",
    "from_integers",
    "from_torch_prune",
    "to_integers",
    "to_torch_prune",
    "zero_masks",
]
