"""Codebooks for training: where they start, and which label a weight has. Pure."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dcompress.errors import RecipeError
from dcompress.kmeans import cluster
from dcompress.share import assign_labels

__all__ = ["first_codebook", "nearest_labels"]


def first_codebook(weight: Tensor, n_centroids: int, *, init: str = "linear", seed: int = 0) -> Tensor:
    """Return the centroids that k-means finds for the weights of a tensor that are not zero.

    Parameters
    ----------
    weight : Tensor of floats
        Zeros are pruned weights.
    n_centroids : int
        1..4095.
    init, seed
        See `dcompress.kmeans.cluster`.

    Returns
    -------
    codebook : Tensor of shape (n_centroids,), dtype and device of ``weight``
        Ascending. Where there are fewer distinct weights, the last one is repeated.

    Raises
    ------
    RecipeError
        A weight is NaN or infinite.
    """
    values = _values(weight)
    if not np.isfinite(values).all():
        raise RecipeError("a weight is NaN or infinite: it cannot be shared")
    kept = values[values != 0]
    codebook = np.zeros(n_centroids)
    if kept.size:
        centroids = cluster(kept, n_centroids, init=init, seed=seed)
        codebook[:] = centroids[-1]
        codebook[: centroids.size] = centroids
    return torch.from_numpy(codebook).to(weight.device, weight.dtype)


def nearest_labels(weight: Tensor, codebook: Tensor) -> Tensor:
    """Return the label of every weight: 0 for a zero, else 1 + the place of the nearest centroid.

    Parameters
    ----------
    weight : Tensor of floats
        Finite.
    codebook : Tensor of shape (n_centroids,)
        In any order; of equal centroids the first has the labels.

    Returns
    -------
    labels : Tensor of int32, in the shape of ``weight``
    """
    values = _values(weight)
    centroids, places = np.unique(_values(codebook).astype(np.float64), return_index=True)
    labels = 1 + places[assign_labels(values, centroids)]
    labels[values == 0] = 0
    return torch.from_numpy(labels.astype(np.int32).reshape(weight.shape)).to(weight.device)


def _values(tensor: Tensor) -> np.ndarray[tuple[int], np.dtype[np.floating]]:
    """Return the values of a tensor, flat, as float32, or float64 for float64."""
    flat = tensor.detach().reshape(-1)
    values: np.ndarray[tuple[int], np.dtype[np.floating]]
    values = (flat if flat.dtype == torch.float64 else flat.float()).cpu().numpy()
    return values
