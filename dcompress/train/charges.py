"""What a recipe adds to the loss: penalties, and bits at their prices."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dcompress.train.parametrizations import MOST_STEPS, GridParametrization
from dcompress.train.rate import bit_costs, code_bits, frequencies_of
from dcompress.train.regularizers import group_lasso, l1_norm
from dcompress.train.schedules import is_active
from dcompress.train.settings import PenaltyStage, RateStage, Stage
from dcompress.train.sites import Site

__all__ = ["charge", "is_charging", "recount", "start_rounding"]

_COUNTED_EVERY = 4  # steps
_MEMORY = 0.9  # of counts, from one count to the next

Pairs = Sequence[tuple[Stage, Sequence[Site]]]


def start_rounding(site: Site, stage: Stage) -> None:
    """Round a tensor from now on.

    Raises
    ------
    RecipeError
        It is not finite, or too large for a step.
    """
    assert site.rounding is not None
    if isinstance(stage, RateStage):
        largest = float(site.original.detach().abs().max())
        if not math.isfinite(largest):
            stage.fail(f"parameter {site.name!r}: a weight is NaN or infinite: it is no multiple of a step")
        if largest > (MOST_STEPS + 0.5) * stage.step:
            stage.fail(
                f"parameter {site.name!r}: a weight of {largest:.3g} is more than {MOST_STEPS:,} steps of "
                f"{stage.step:g}: take a step of at least {largest / MOST_STEPS:.3g}"
            )
    site.rounding.active = True


def recount(stages: Pairs, step: int) -> None:
    """Count how often each multiple occurs in tensors whose bits have a price; earlier counts fade."""
    for site, stage in _rated(stages, step).items():
        elapsed = step - stage.begin
        if stage.price and elapsed % _COUNTED_EVERY == 0:
            with torch.no_grad():
                fresh = frequencies_of((site.peek() / stage.step).round())
                known = _grid_of(site).frequencies
                known.copy_(_MEMORY * known + (1 - _MEMORY) * fresh if elapsed else fresh)


def charge(stages: Pairs, step: int, device: torch.device) -> Tensor:
    """Return what the stages add to the loss at a step: 0-d, differentiable.

    Parameters
    ----------
    stages : sequence of (Stage, sequence of Site)
        In order.
    step : int
        Steps so far.
    device : torch.device
        Where the loss is.
    """
    total = torch.zeros((), device=device)
    for stage, sites in stages:
        if isinstance(stage, PenaltyStage) and is_active(stage, step):
            for site in sites:
                total = total + _penalty(stage, site.peek()).to(device)
    return total + _price_of_bits(_rated(stages, step), device)


def is_charging(stages: Pairs, step: int) -> bool:
    """Return whether the stages add anything to the loss at a step."""
    penalised = any(isinstance(stage, PenaltyStage) and is_active(stage, step) for stage, _ in stages)
    return penalised or any(stage.price > 0 for stage in _rated(stages, step).values())


def _penalty(stage: PenaltyStage, weight: Tensor) -> Tensor:
    """Return what a stage asks for a tensor."""
    total = torch.zeros((), device=weight.device)
    if stage.l1:
        total = total + stage.l1 * l1_norm(weight)
    if stage.group_lasso:
        total = total + stage.group_lasso * group_lasso(weight, stage.grains)
    return total


def _rated(stages: Pairs, step: int) -> dict[Site, RateStage]:
    """Return the tensors on grids, each with the last stage that has begun."""
    begun = [pair for pair in stages if isinstance(pair[0], RateStage) and pair[0].begin <= step]
    found: dict[Site, RateStage] = {}
    for stage, sites in sorted(begun, key=lambda pair: pair[0].begin):
        assert isinstance(stage, RateStage)
        found.update(dict.fromkeys(sites, stage))
    return found


def _price_of_bits(rated: dict[Site, RateStage], device: torch.device) -> Tensor:
    """Return the bits of a mean weight, at their prices."""
    priced = {site: stage for site, stage in rated.items() if stage.price}
    n_weights = sum(site.original.numel() for site in priced)
    total = torch.zeros((), device=device)
    for site, stage in priced.items():
        weight = site.original if site.mask is None else site.original * site.mask.mask
        bits = code_bits(weight, stage.step, bit_costs(_grid_of(site).frequencies))
        total = total + (stage.price / n_weights * bits).to(device)
    return total


def _grid_of(site: Site) -> GridParametrization:
    assert isinstance(site.rounding, GridParametrization)
    return site.rounding
