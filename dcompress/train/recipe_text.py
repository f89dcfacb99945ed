"""Recipes as TOML text, which `Recipe.from_toml` and `TrainRecipe.from_toml` read back."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from dcompress.errors import RecipeError
from dcompress.recipe import Recipe
from dcompress.train.recipe import TrainRecipe
from dcompress.train.settings import PruneStage, QuantizeStage, ShareStage, Stage

__all__ = ["to_toml"]


def to_toml(recipe: Recipe | TrainRecipe) -> str:
    """Return a recipe as a TOML text.

    Parameters
    ----------
    recipe : Recipe or TrainRecipe
        What to write.

    Raises
    ------
    RecipeError
        A stage has an importance that is a function, which no text can hold.

    Examples
    --------
    >>> print(to_toml(Recipe("lossless")), end="")
    preset = "lossless"
    """
    encode = recipe.encode if isinstance(recipe, TrainRecipe) else recipe
    content = {"preset": encode.preset, **encode.to_dict()}
    tables = {"rule": content.pop("rule", [])}
    if isinstance(recipe, TrainRecipe):
        tables["train"] = [_stage_table(stage) for stage in recipe.stages]
    lines = _lines(content)
    for key, items in tables.items():
        for item in items:
            lines += ["", f"[[{key}]]", *_lines(item)]
    return "\n".join(lines) + "\n"


def _stage_table(stage: Stage) -> dict[str, Any]:
    """Return what makes a stage: its settings that are not the default ones."""
    table: dict[str, Any] = {}
    for field in dataclasses.fields(stage):
        value = getattr(stage, field.name)
        if field.name == "origin" or (field.default == value and field.name != "pattern"):
            continue
        if callable(value):
            stage.fail(f"{field.name} is a function: a text cannot hold it")
        table[field.name] = value
    if isinstance(stage, QuantizeStage):
        table["method"] = stage.method
    elif isinstance(stage, ShareStage):
        table["method"] = "kmeans"
    elif not isinstance(stage, PruneStage) and "l1" not in table and "group_lasso" not in table:
        table["l1"] = 0.0
    return table


def _lines(content: Mapping[str, Any]) -> list[str]:
    """Return one line for each setting. A JSON value is a TOML value too, but for one character."""
    lines = []
    for key, value in content.items():
        try:
            text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError):
            raise RecipeError(f"{key} = {value!r} cannot be written as text") from None
        lines.append(f"{key} = {text}".replace("\x7f", "\\u007f"))
    return lines
