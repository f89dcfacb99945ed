"""Codebooks of the tensors of a model: started, and their labels assigned."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch

from dcompress.errors import DcompressWarning, RecipeError
from dcompress.train.settings import ShareStage
from dcompress.train.sharing import first_codebook, nearest_labels
from dcompress.train.sites import Site

__all__ = ["assign", "check_trained", "start_sharing"]

_PATIENCE = 10  # steps in which a codebook that is trained has moved


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
        site.codebook.start = start
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


def check_trained(sites: Sequence[Site], elapsed: int) -> None:
    """Warn of codebooks that no optimizer trains, once they should have changed.

    Parameters
    ----------
    sites : sequence of Site
        Tensors that are shared.
    elapsed : int
        Steps since they are.

    Warns
    -----
    DcompressWarning
        A codebook had gradients, but is as k-means left it.
    """
    idle = [site.name for site in sites if elapsed == _PATIENCE and _is_idle(site)]
    if idle:
        warnings.warn(
            f"the codebook of {', '.join(map(repr, idle))} is not trained: make the Compressor before the "
            "optimizer, or give it the optimizer",
            DcompressWarning,
            stacklevel=4,
        )


def _is_idle(site: Site) -> bool:
    shared = site.codebook
    if (
        shared is None
        or shared.start is None
        or shared.codebook.grad is None
        or not shared.codebook.grad.any()
    ):
        return False
    return torch.equal(shared.codebook.detach(), shared.start.to(shared.codebook.device))
