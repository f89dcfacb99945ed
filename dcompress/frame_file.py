"""Checkpoint -> file, as all faces do it: recipe resolved, frame encoded, written atomically."""

from __future__ import annotations

import os
from pathlib import Path

from dcompress.atomic import atomic_writer, check_writable_target
from dcompress.encode import EncodedFrame, encode_checkpoint
from dcompress.recipe import Recipe
from dcompress.stages import Checkpoint
from dcompress.threads import usable_threads

__all__ = ["as_recipe", "checkpoint_to_bytes", "save_checkpoint"]


def as_recipe(recipe: Recipe | str | os.PathLike[str] | None) -> Recipe:
    """Return a recipe from a recipe, the name of a preset, the path of a TOML file, or None.

    Raises
    ------
    RecipeError
        There is no such preset, or the file makes no sense.
    """
    if recipe is None:
        return Recipe()
    if isinstance(recipe, Recipe):
        return recipe
    if isinstance(recipe, os.PathLike) or recipe.endswith(".toml"):
        return Recipe.from_toml(Path(recipe))
    return Recipe(preset=recipe)


def save_checkpoint(
    checkpoint: Checkpoint,
    path: str | os.PathLike[str],
    recipe: Recipe | str | None = None,
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
    checkpoint: Checkpoint, recipe: Recipe | str | None = None, *, threads: int | None = None
) -> bytes:
    """Encode a checkpoint; return its frame."""
    return encode_checkpoint(checkpoint, as_recipe(recipe), threads=usable_threads(threads)).to_bytes()
