"""Codebooks of the tensors of a model: started, and their labels assigned."""

from __future__ import annotations

import torch

from dcompress.errors import RecipeError
from dcompress.train.settings import ShareStage
from dcompress.train.sharing import first_codebook, nearest_labels
from dcompress.train.sites import Site

__all__ = ["assign", "start_sharing"]


def start_sharing(site: Site, stage: ShareStage) -> None:
    """Give a tensor the codebook that k-means finds for its weights, and use it from now on.

    Raises
    ------
    RecipeError
        The weights are not finite; the tensor is named.
    """
    assert site.codebook is not None
    with torch.no_grad():
        try:
            start = first_codebook(site.peek(), stage.n_centroids, init=stage.init, seed=stage.seed)
        except RecipeError as error:
            stage.fail(f"parameter {site.name!r}: {error}")
        site.codebook.codebook.copy_(start)
    assign(site)
    site.codebook.active = True


def assign(site: Site) -> None:
    """Give the weights beneath a codebook the labels of their nearest centroids; a zero has label 0."""
    assert site.codebook is not None
    active, site.codebook.active = site.codebook.active, False
    try:
        with torch.no_grad():
            site.codebook.labels.copy_(nearest_labels(site.peek(), site.codebook.codebook))
    finally:
        site.codebook.active = active
