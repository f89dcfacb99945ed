"""Options of ``dcz`` that make up a recipe."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from dcompress.recipe import Recipe

__all__ = ["make_recipe", "recipe_options"]

Command = TypeVar("Command", bound=Callable[..., Any])

_OPTIONS = (
    click.option("--preset", metavar="NAME", help="lossless, balanced or paper.  [default: balanced]"),
    click.option(
        "--profile",
        metavar="NAME",
        help="baseline: the file can be read by small devices, a few percent larger.  [default: full]",
    ),
    click.option("--recipe", "recipe_file", metavar="FILE.toml", help="Read preset and rules from a file."),
    click.option(
        "--set",
        "sets",
        multiple=True,
        metavar="RULE",
        help="Settings for some tensors: 'PATTERN:key=value,...' with the settings above; a later rule "
        "overrides an earlier one.",
    ),
    click.option(
        "--exclude", "excludes", multiple=True, metavar="PATTERN", help="Keep these tensors lossless."
    ),
    click.option(
        "--sparsity", type=float, metavar="S", help="Fraction of every weight tensor to prune, 0 to 1."
    ),
)


def recipe_options(command: Command) -> Command:
    """Add the options that several commands have; see `make_recipe`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def make_recipe(
    file: str | None,
    preset: str | None,
    sets: tuple[str, ...],
    excludes: tuple[str, ...],
    sparsity: float | None,
    bits: int | None = None,
    profile: str | None = None,
) -> Recipe:
    """Return the recipe that the options ask for: those of the command line on top of the file."""
    from dcompress.recipe import Recipe

    options = Recipe.from_options(preset or "balanced", sets, excludes, sparsity, bits, profile or "full")
    if file is None:
        return options
    recipe = Recipe.from_toml(Path(file)).extended(options)
    return recipe if preset is None else dataclasses.replace(recipe, preset=preset)
