"""What a tensor takes after each stage, counted as the paper counts (Han et al. 2016).

- P: each weight that is kept takes what its dtype takes; positions are not counted.
- P+Q: each kept weight takes a label, and the gap to the one before: 8 bits in kernels, 5 in matrices; there
  is a filler, with a label of its own, wherever a gap does not fit; and the codebook.
- P+Q+H: the same with Huffman codes for labels and gaps; code tables are not counted.

A tensor without zeros has no gaps. One that P+Q would make larger is not shared. The size of a real
file, which has headers and checksums and is coded in better ways, is another matter.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dcompress.coding.huffman import optimal_lengths
from dcompress.constants import MAX_ALPHABET

__all__ = ["StageBits", "count_stages"]

_GAP_BITS = {"kernel": 8, "matrix": 5}


@dataclass(frozen=True)
class StageBits:
    """Bits of one tensor by stage.

    Attributes
    ----------
    dense, pruned, shared, coded : int
        Before, and after P, P+Q and P+Q+H.
    n_kept : int
        Weights that are not zero.
    n_values : int
        Their distinct values.
    label_bits, gap_bits : int
        Bits of a label and of a gap in P+Q; the dtype's, and 0, if the tensor is not shared.
    """

    dense: int
    pruned: int
    shared: int
    coded: int
    n_kept: int
    n_values: int
    label_bits: int
    gap_bits: int


def count_stages(words: NDArray[np.unsignedinteger], shape: tuple[int, ...]) -> StageBits:
    """Return the bits of a tensor after each stage.

    Parameters
    ----------
    words : ndarray of shape (n_words,), unsigned
        The bits of floats.
    shape : tuple of int
        Of the tensor: at least two dimensions above 1, or it is neither pruned nor shared.

    Examples
    --------
    >>> weights = np.zeros((4, 16), np.float32)
    >>> weights[:, 3] = 0.5
    >>> bits = count_stages(weights.view(np.uint32).reshape(-1), weights.shape)
    >>> bits.dense, bits.pruned, bits.shared, bits.coded
    (2048, 128, 56, 40)
    """
    word_bits = 8 * words.itemsize
    dense = word_bits * words.size
    zero_or_sign = words.dtype.type((1 << (word_bits - 1)) - 1)
    positions = np.flatnonzero(words & zero_or_sign)
    kept = words[positions]
    values, labels = np.unique(kept, return_inverse=True)
    n_kept, n_values = kept.size, values.size
    if sum(n > 1 for n in shape) < 2:
        return StageBits(dense, dense, dense, dense, n_kept, n_values, word_bits, 0)
    pruned = word_bits * n_kept
    if n_values >= MAX_ALPHABET:
        return StageBits(dense, pruned, pruned, pruned, n_kept, n_values, word_bits, 0)
    gap_bits = 0
    gap_counts = np.zeros(1, np.int64)
    n_fillers = 0
    if n_kept < words.size:
        gap_bits = _GAP_BITS["kernel" if sum(n > 1 for n in shape) > 2 else "matrix"]
        runs = np.diff(positions, prepend=-1) - 1
        reach = 1 << gap_bits  # what a filler bridges: its run, and itself
        n_fillers = int((runs // reach).sum())
        gap_counts = np.bincount(runs % reach, minlength=reach).astype(np.int64)
        gap_counts[reach - 1] += n_fillers
    label_counts = np.append(np.bincount(labels, minlength=n_values), n_fillers).astype(np.int64)
    label_bits = max(1, (n_values + (n_fillers > 0) - 1).bit_length()) if n_kept else 0
    codebook = word_bits * n_values
    shared = codebook + (n_kept + n_fillers) * (label_bits + gap_bits)
    if shared >= pruned:  # sharing does not pay
        return StageBits(dense, pruned, pruned, pruned, n_kept, n_values, word_bits, 0)
    coded = codebook + _huffman_bits(label_counts) + (_huffman_bits(gap_counts) if gap_bits else 0)
    return StageBits(dense, pruned, shared, coded, n_kept, n_values, label_bits, gap_bits)


def _huffman_bits(counts: NDArray[np.int64]) -> int:
    """Return what a Huffman code of these counts takes."""
    return int(counts @ optimal_lengths(counts).astype(np.int64))
