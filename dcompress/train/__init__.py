"""Pruning, weight sharing and quantisation while a model is trained, in any PyTorch loop.

`Compressor` does what a `TrainRecipe` says; what it leaves behind is a plain model, which ``save_file``
codes exactly. `prune_channels` makes the tensors themselves smaller, `scan_sensitivity` tells what each layer
bears, and `measure` what came of it all.
"""

from __future__ import annotations

from dcompress.train.channels import ChannelGroup, ChannelPruning, cut_channels, prune_channels
from dcompress.train.compressor import Compressor, StepReport
from dcompress.train.importance import Sample
from dcompress.train.integers import from_integers, to_integers
from dcompress.train.interop import from_torch_prune, to_torch_prune, zero_masks
from dcompress.train.metrics import CompressionReport, TensorMetrics, measure
from dcompress.train.recipe import TrainRecipe
from dcompress.train.recipe_text import to_toml
from dcompress.train.sensitivity import Sensitivity, SensitivityPoint, scan_sensitivity
from dcompress.train.settings import PenaltyStage, PruneStage, QuantizeStage, RateStage, ShareStage, Stage

__all__ = [
    "ChannelGroup",
    "ChannelPruning",
    "CompressionReport",
    "Compressor",
    "PenaltyStage",
    "PruneStage",
    "QuantizeStage",
    "RateStage",
    "Sample",
    "Sensitivity",
    "SensitivityPoint",
    "ShareStage",
    "Stage",
    "StepReport",
    "TensorMetrics",
    "TrainRecipe",
    "cut_channels",
    "from_integers",
    "from_torch_prune",
    "measure",
    "prune_channels",
    "scan_sensitivity",
    "to_integers",
    "to_toml",
    "to_torch_prune",
    "zero_masks",
]
