"""What the stages hand to each other: frozen records of NumPy arrays, no behaviour beyond checks.

A tensor of any dtype is held as its *words*: a flat, C-ordered array of unsigned integers that carry the
bits. Complex numbers are two words an element; everything else is one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dcompress.constants import DType

__all__ = [
    "Checkpoint",
    "PrunedTensor",
    "SharedTensor",
    "TensorData",
    "TensorSpec",
    "Words",
    "tensor_specs",
    "values_by_label",
    "word_dtype",
]

TensorSpec = tuple[DType, tuple[int, ...]]

Words = NDArray[np.unsignedinteger[Any]]

_WORD_DTYPES: dict[int, np.dtype[Any]] = {
    1: np.dtype("<u1"),
    2: np.dtype("<u2"),
    4: np.dtype("<u4"),
    8: np.dtype("<u8"),
}


def word_dtype(n_bytes: int) -> np.dtype[Any]:
    """Return the little-endian unsigned NumPy dtype of a word of 1, 2, 4 or 8 bytes."""
    return _WORD_DTYPES[n_bytes]


@dataclass(frozen=True, eq=False)
class TensorData:
    """One tensor, exactly: its bits, its dtype, its shape.

    Attributes
    ----------
    dtype : DType
        Element type.
    shape : tuple of int
        Shape as the framework shows it.
    words : ndarray of shape (n_words,), unsigned
        Flat words in C order, of ``dtype.word_bytes`` each.
    """

    dtype: DType
    shape: tuple[int, ...]
    words: Words

    def __post_init__(self) -> None:
        if self.words.dtype != word_dtype(self.dtype.word_bytes) or self.words.ndim != 1:
            raise ValueError(f"words of {self.dtype.name} must be a flat array of unsigned words")
        if self.words.size != math.prod(self.shape) * self.dtype.words_per_element:
            raise ValueError(f"{self.words.size} words do not fill the shape {self.shape}")

    @property
    def n_bytes(self) -> int:
        """Decoded size in bytes."""
        return int(self.words.nbytes)


@dataclass(frozen=True, eq=False)
class PrunedTensor:
    """Stage 1: which weights are kept, and their values.

    Attributes
    ----------
    mask : ndarray of bool, in the shape of the tensor
        True = kept. Zeros of the input are never kept.
    values : ndarray of shape (n_kept,), float32 or float64
        The kept weights in C order.
    """

    mask: NDArray[np.bool_]
    values: NDArray[np.floating[Any]]


def values_by_label(codebook: Words, has_zero: bool) -> Words:
    """Return codebook rows with the word 0 put before them, if label 0 means it."""
    if not has_zero:
        return codebook
    return np.concatenate([np.zeros((codebook.shape[0], 1), codebook.dtype), codebook], axis=1)


@dataclass(frozen=True, eq=False, repr=False)
class SharedTensor:
    """Stage 2: a tensor as labels into codebooks. Exact: gathering gives the words back.

    The words are cut into ``n_groups`` equal stretches (groups of output channels); each has its own row
    of the codebook.

    Attributes
    ----------
    dtype : DType
        Element type of the tensor.
    shape : tuple of int
        Shape of the tensor.
    codebook : ndarray of shape (n_groups, n_centroids), unsigned words
        Shared values as words. With ``has_zero``, label 0 is the word 0 and is not in the codebook:
        label ``k`` is ``codebook[g, k - 1]``. Otherwise label ``k`` is ``codebook[g, k]``.
    labels : ndarray of shape (n_words,), uint16
        Which shared value each word uses.
    has_zero : bool
        Whether label 0 means a pruned word (all bits zero).
    states : int
        States of the trellis that the labels walk; 0 = none.
    """

    dtype: DType
    shape: tuple[int, ...]
    codebook: Words
    labels: NDArray[np.uint16]
    has_zero: bool
    states: int = 0

    def __repr__(self) -> str:
        return (
            f"SharedTensor({self.dtype.name}, {self.shape}, {self.n_groups} x {self.n_centroids} centroids"
            f"{', zero apart' if self.has_zero else ''})"
        )

    @property
    def n_groups(self) -> int:
        """Number of codebooks."""
        return int(self.codebook.shape[0])

    @property
    def n_centroids(self) -> int:
        """Shared values per group, zero not counted when it stands apart."""
        return int(self.codebook.shape[1])

    @property
    def n_labels(self) -> int:
        """Values a label can mean in one group, zero counted."""
        return self.n_centroids + self.has_zero

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Kept words (True), flat: all of them unless zero stands apart."""
        return self.labels != 0 if self.has_zero else np.ones(self.labels.shape, np.bool_)

    def lookup(self) -> Words:
        """Return the codebook with the zero put in: shape (n_groups, n_labels), by label."""
        return values_by_label(self.codebook, self.has_zero)

    def gather(self) -> TensorData:
        """Return the tensor that these labels and codebooks stand for."""
        lookup = self.lookup()
        if self.n_groups == 1:
            words = lookup[0][self.labels]
        else:
            labels = self.labels.reshape(self.n_groups, -1)
            words = np.take_along_axis(lookup, labels.astype(np.intp), axis=1).reshape(-1)
        return TensorData(self.dtype, self.shape, words)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A state dict without its framework.

    Attributes
    ----------
    tensors : mapping of str to TensorData
        In state-dict order, tied names too. May be lazy: each look-up reads the tensor anew, so hold on to
        it no longer than needed.
    ties : dict of str to str
        Tied tensors: later name -> the first name with the same storage, shape and strides.
    metadata : dict of str to str
        Free string metadata.
    torch_extra : dict
        JSON-safe Python side of a torch state dict: ``"_metadata"``, non-tensor ``"values"`` and their
        ``"value_positions"`` among all keys.
    notes : tuple of str
        What the reader had to say about the file (left out, unwrapped, folded), for stderr.
    """

    tensors: Mapping[str, TensorData]
    ties: dict[str, str] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    torch_extra: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def tensor_specs(tensors: Mapping[str, TensorData]) -> dict[str, TensorSpec]:
    """Return element type and shape of every tensor; looks each up only if the mapping has no ``specs``."""
    specs = getattr(tensors, "specs", None)
    if specs is not None:
        return dict(specs)
    return {name: (data.dtype, data.shape) for name, data in tensors.items()}
