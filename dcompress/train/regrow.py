"""Regrowth: weak units make room for those whose gradient asks for them. Pure."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["regrown_units"]


def regrown_units(kept: Tensor, scores: Tensor, gradients: Tensor, fraction: float) -> Tensor:
    """Return the kept units after one round of RigL; their number is the same.

    Parameters
    ----------
    kept : Tensor of shape (n_units,), bool
        True = kept so far.
    scores : Tensor of shape (n_units,)
        Importance; the least of the kept units are dropped, of equal ones the earlier.
    gradients : Tensor of shape (n_units,)
        Magnitude of the gradient; of the units that are not kept then, those with the largest grow, of equal
        ones the earlier. A unit that was just dropped may come back.
    fraction : float
        Of the kept units, in [0, 1].

    Returns
    -------
    kept : Tensor of shape (n_units,), bool

    Notes
    -----
    Evci et al. (2020), "Rigging the lottery: making all tickets winners", algorithm 1.
    """
    n_moved = round(fraction * int(kept.sum()))
    order = torch.where(kept, scores.double(), torch.inf).sort(stable=True).indices
    staying = kept.clone()
    staying[order[:n_moved]] = False
    wanted = torch.where(staying, -torch.inf, gradients.double()).sort(stable=True, descending=True).indices
    staying[wanted[:n_moved]] = True
    return staying
