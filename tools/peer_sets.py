"""The sets of labels that `peers.py` gives to every coder: a synthetic layer, and real models."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dcompress.constants import DTYPE_BY_NAME
from dcompress.decibels import to_decibels
from dcompress.floats import SHAREABLE, widen
from dcompress.model_file import read_checkpoint
from dcompress.presets import weights_of
from dcompress.prune import global_threshold, prune, threshold_mask
from dcompress.share import share
from dcompress.stages import Checkpoint, SharedTensor, tensor_specs

Weights = dict[str, NDArray[np.float32]]

FLOAT32 = DTYPE_BY_NAME["float32"]
FIXTURES = Path(__file__).parent.parent / "fixtures" / "models"
SYNTHETIC = "Laplace layer"
WEIGHTS_PER_VALUE = 4  # a codebook has at most one value for so many kept weights


@dataclass(frozen=True)
class SuiteEntry:
    """One set of the suite.

    Attributes
    ----------
    title : str
        What it is called.
    file : str
        Name of the model's file; "" for the synthetic layer.
    sparsity : float
        Fraction pruned, over all matrices and kernels together.
    n_values : int
        Shared values of each tensor, the zero not counted.
    """

    title: str
    file: str
    sparsity: float
    n_values: int

    @property
    def full_title(self) -> str:
        """Title with sparsity and values."""
        return set_title(self.title, self.sparsity, self.n_values)


def set_title(model: str, sparsity: float, n_values: int) -> str:
    """Return the title of a set."""
    return f"{model} {100 * sparsity:.3g} % pruned, {n_values} values"


SUITE = (
    SuiteEntry("ResNet-20", "cifar10_resnet20.safetensors", 0.5, 32),
    SuiteEntry("ResNet-20", "cifar10_resnet20.safetensors", 0.66, 255),
    SuiteEntry("MobileNet", "facedet_mobilenet025.safetensors", 0.67, 255),
    SuiteEntry("GRU g2p", "g2p_gru.safetensors", 0.9, 31),
    SuiteEntry("GRU g2p", "g2p_gru.safetensors", 0.7, 16),
    SuiteEntry("LeNet-300-100", "lenet_300_100.safetensors", 0.92, 63),
    SuiteEntry("LeNet-5", "lenet_5.safetensors", 0.986, 31),
    SuiteEntry("transformer", "transformer260k_bf16.safetensors", 0.5, 64),
    SuiteEntry(SYNTHETIC, "", 0.9, 31),
)


@dataclass(frozen=True, eq=False)
class LabelSet:
    """Tensors as labels and codebooks, the same for every coder.

    Attributes
    ----------
    title : str
        Name of the set.
    tensors : dict of str to SharedTensor
        float32, one codebook each.
    sqnr : float
        Of the shared weights against the dense ones, in dB; the same for all coders.
    """

    title: str
    tensors: dict[str, SharedTensor]
    sqnr: float

    @cached_property
    def labels(self) -> dict[str, NDArray[np.int32]]:
        """Labels in the shapes of the tensors: 0 for zero, otherwise the rank of the value from zero."""
        return {name: _signed(tensor) for name, tensor in self.tensors.items()}

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """The weights as a float32 state dict."""
        return Checkpoint({name: tensor.gather() for name, tensor in self.tensors.items()})

    @property
    def n_weights(self) -> int:
        """Weights, zeros counted."""
        return sum(tensor.labels.size for tensor in self.tensors.values())

    @property
    def density(self) -> float:
        """Fraction of the weights that are not zero."""
        kept = sum(np.count_nonzero(labels) for labels in self.labels.values())
        return float(kept / self.n_weights)

    @property
    def codebook_bytes(self) -> int:
        """Four bytes for every shared value."""
        return 4 * sum(tensor.codebook.size for tensor in self.tensors.values())

    @property
    def entropy_bytes(self) -> float:
        """Order-0 entropy of the labels, each tensor by itself."""
        bits = 0.0
        for tensor in self.tensors.values():
            counts = np.bincount(tensor.labels)
            counts = counts[counts > 0]
            bits -= float((counts * np.log2(counts / tensor.labels.size)).sum())
        return bits / 8


def _signed(tensor: SharedTensor) -> NDArray[np.int32]:
    """Return labels as signed ranks: the values next to zero are -1 and 1."""
    n_negative = int(np.count_nonzero(widen(tensor.codebook[0], tensor.dtype) < 0))
    ranks = np.arange(tensor.n_centroids, dtype=np.int32) - n_negative
    ranks[n_negative:] += 1
    if tensor.has_zero:
        ranks = np.concatenate([np.zeros(1, np.int32), ranks])
    return ranks[tensor.labels].reshape(tensor.shape)


def read_floats(path: Path) -> Weights:
    """Return every float tensor of a model file as float32; single numbers as vectors of length 1."""
    tensors = read_checkpoint(path).tensors
    weights: Weights = {}
    for name, (dtype, shape) in tensor_specs(tensors).items():
        if dtype.name in SHAREABLE:
            values = widen(tensors[name].words, dtype).astype(np.float32)
            weights[name] = values.reshape(shape or (1,))
    return weights


def matrices(weights: Weights) -> Weights:
    """Return the matrices and kernels: at least two dimensions above 1."""
    specs = {name: (FLOAT32, array.shape) for name, array in weights.items()}
    return {name: weights[name] for name in weights_of(specs)}


def make_set(title: str, weights: Weights, sparsity: float, n_values: int) -> LabelSet:
    """Return a label set: one threshold for all tensors, then k-means for each of them.

    Parameters
    ----------
    title : str
        Name of the set.
    weights : dict of str to ndarray of float32
        Finite weights.
    sparsity : float
        Fraction pruned, in [0, 1].
    n_values : int
        1..4095 shared values of each tensor, fewer for tensors that keep few weights.
    """
    threshold = global_threshold([lambda array=array: array for array in weights.values()], sparsity)
    tensors: dict[str, SharedTensor] = {}
    signal = noise = 0.0
    for name, array in weights.items():
        pruned = prune(array, threshold_mask(array, threshold))
        most = max(2, pruned.values.size // WEIGHTS_PER_VALUE)
        tensor = share(pruned, FLOAT32, n_centroids=min(n_values, most))
        tensors[name] = tensor
        wide = array.astype(np.float64).reshape(-1)
        signal += float(np.square(wide).sum())
        noise += float(np.square(wide - widen(tensor.gather().words, FLOAT32)).sum())
    return LabelSet(title, tensors, to_decibels(signal, noise))


def laplace_layer(side: int) -> Weights:
    """Return a square layer of Laplace weights."""
    weights = np.random.default_rng(0).laplace(size=(side, side)).astype(np.float32)
    return {"fc.weight": weights}


def suite_sets(models: Path, side: int, only: str = "") -> Iterator[LabelSet]:
    """Give the sets of the suite, those left out whose model is neither in a folder nor in the fixtures.

    Parameters
    ----------
    models : Path
        Folder with the models.
    side : int
        Rows and columns of the synthetic layer.
    only : str
        Text that the title must contain, in capitals or not.
    """
    for entry in SUITE:
        if only.lower() not in entry.full_title.lower():
            continue
        if not entry.file:
            weights = laplace_layer(side)
        else:
            paths = [folder / entry.file for folder in (models, FIXTURES)]
            found = [path for path in paths if path.is_file()]
            if not found:
                print(f"left out, no {entry.file}: {entry.title}")
                continue
            weights = matrices(read_floats(found[0]))
        yield make_set(entry.full_title, weights, entry.sparsity, entry.n_values)
