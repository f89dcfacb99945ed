"""How the size of a model's file depends on the error that is allowed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dcompress.recipe import Recipe
from dcompress.step_search import Figures, Search

__all__ = ["Curve", "spread", "trace_curve"]


@dataclass(frozen=True)
class Curve:
    """Size against quality for one model.

    Attributes
    ----------
    points : tuple of Figures
        By rising quality.
    lossless, balanced : Figures
        To compare with: nothing changed, and the preset ``balanced``.
    missed : tuple of float
        Qualities, in dB, that no step comes near to.
    """

    points: tuple[Figures, ...]
    lossless: Figures
    balanced: Figures
    missed: tuple[float, ...] = ()


def trace_curve(search: Search, qualities: Sequence[float], slack: float) -> Curve:
    """Return the curve through some qualities.

    Parameters
    ----------
    search : Search
        Of the model; its recipe holds for every point.
    qualities : sequence of float
        In dB.
    slack : float
        How far, in dB, a point may be off; small ones take more trials.

    Raises
    ------
    RecipeError
        The model has no weights to quantise.
    """
    points = {}
    missed = []
    for quality in sorted(qualities):
        near = search.approach(quality, slack)
        if abs(near.sqnr - quality) <= max(slack, 1.0):
            points[near.step] = near
        else:
            missed.append(quality)
    ordered = sorted(points.values(), key=lambda one: (one.sqnr, -one.step))
    return Curve(tuple(ordered), search.lossless(), search.try_recipe(Recipe()), tuple(missed))


def spread(low: float, high: float, n_points: int) -> list[float]:
    """Return so many qualities from one to another.

    Examples
    --------
    >>> spread(8, 40, 3)
    [8.0, 24.0, 40.0]
    """
    return [low + (high - low) * place / max(1, n_points - 1) for place in range(n_points)]
