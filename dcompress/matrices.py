"""What a search knows of a model's matrices and kernels."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from dcompress.errors import RecipeError
from dcompress.floats import blocks, count_nonfinite, energy, widen
from dcompress.stages import Checkpoint, TensorData

__all__ = ["Matrix", "hold", "measure_matrix"]

_SMALLEST, _LARGEST = 1e-140, 1e140  # weights whose squares can be summed up
_SAMPLE = 1024  # words that tell whether a matrix has few values


@dataclass(frozen=True)
class Matrix:
    """What is known of a matrix or kernel.

    Attributes
    ----------
    n_weights : int
        Its weights.
    energy, largest : float
        Sum of squares, and largest magnitude; 0 if a value is NaN or infinite.
    free : bool
        Whether the model's step is that of this tensor.
    few : bool
        Whether it looks as if it had few values already.
    """

    n_weights: int
    energy: float
    largest: float
    free: bool
    few: bool = False


def hold(checkpoint: Checkpoint) -> Checkpoint:
    """Return a checkpoint whose tensors are in memory, tied ones once."""
    tensors: dict[str, TensorData] = {}
    for name in checkpoint.tensors:
        first = checkpoint.ties.get(name, name)
        tensors[name] = tensors[first] if first in tensors else checkpoint.tensors[name]
    return dataclasses.replace(checkpoint, tensors=tensors)


def measure_matrix(name: str, tensor: TensorData, free: bool) -> Matrix:
    """Return what is known of a matrix; refuse weights whose squares no float64 can hold."""
    n_weights = tensor.words.size
    if count_nonfinite(tensor.words, tensor.dtype):
        return Matrix(n_weights, 0.0, 0.0, False)
    total = largest = 0.0
    for part in blocks(n_weights):
        values = widen(tensor.words[part], tensor.dtype).astype(np.float64)
        largest = max(largest, float(np.abs(values).max()))
        if largest < _LARGEST:
            total += energy(values)
    if largest and not _SMALLEST < largest < _LARGEST:
        if free:
            raise RecipeError(
                f"weights of {largest:.3g} in {name!r} are beyond what can be squared and summed; exclude it"
            )
        return Matrix(n_weights, 0.0, 0.0, False)
    sample = np.unique(tensor.words[:: max(1, n_weights // _SAMPLE)])
    return Matrix(n_weights, total, largest, free, n_weights > _SAMPLE and 4 * sample.size < _SAMPLE)
