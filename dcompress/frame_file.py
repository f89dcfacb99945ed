"""Checkpoint -> file, as all faces do it: recipe resolved, frame encoded, written atomically."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dcompress.atomic import atomic_writer, check_writable_target
from dcompress.encode import EncodedFrame, encode_checkpoint
from dcompress.errors import RecipeError
from dcompress.recipe import Recipe
from dcompress.stages import Checkpoint
from dcompress.threads import usable_threads

RecipeLike = Recipe | str | os.PathLike[str] | Mapping[str, Any] | None

__all__ = ["RecipeLike", "as_recipe", "checkpoint_to_bytes", "save_checkpoint"]


def as_recipe(recipe: RecipeLike) -> Recipe:
    """Return a recipe from a recipe, the name of a preset, the path of a TOML file, a dict, or None.

    Raises
    ------
    RecipeError
        There is no such preset, or the file makes no sense.
    """
    if recipe is None:
        return Recipe()
    if isinstance(recipe, Recipe):
        return recipe
    if isinstance(recipe, Mapping):
        return Recipe.from_dict(recipe)
    if not isinstance(recipe, (str, os.PathLike)):
        raise RecipeError(f"a recipe, a preset or the path of a TOML file is wanted, not {recipe!r}")
    if isinstance(recipe, os.PathLike) or recipe.endswith(".toml"):
        return Recipe.from_toml(Path(recipe))
    return Recipe(preset=recipe)


def save_checkpoint(
    checkpoint: Checkpoint,
    path: str | os.PathLike[str],
    recipe: RecipeLike = None,
    *,
    overwrite: bool = True,
    threads: int | None = None,
) -> EncodedFrame:
    """Encode a checkpoint and write its frame; an old file stays until the new one is complete."""
    check_writable_target(path, overwrite)
    frame = encode_checkpoint(checkpoint, as_recipe(recipe), threads=usable_threads(threads))
    with atomic_writer(path, overwrite=overwrite) as stream:
        frame.write(stream)
    return frame


def checkpoint_to_bytes(
    checkpoint: Checkpoint, recipe: RecipeLike = None, *, threads: int | None = None
) -> bytes:
    """Encode a checkpoint; return its frame."""
    return encode_checkpoint(checkpoint, as_recipe(recipe), threads=usable_threads(threads)).to_bytes()
