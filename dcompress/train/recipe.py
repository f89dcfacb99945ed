"""Training recipes: the ``[[train]]`` tables of the TOML file that `dcz encode --recipe` reads too.

Each table is one stage for the tensors that its pattern matches: it prunes, shares, quantises or penalises.
Its settings are called as in ``[[rule]]`` wherever both have them::

    preset = "lossless"         # how the file is encoded in the end

    [[train]]
    pattern = "fc*.weight"
    sparsity = 0.9
    schedule = "cubic"
    begin = 100
    end = 500
    every = 20

    [[train]]
    pattern = "fc*.weight"
    bits = 5
    begin = 600
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from dcompress.errors import RecipeError
from dcompress.presets import PRESETS
from dcompress.recipe import Recipe
from dcompress.settings import near
from dcompress.train.settings import PenaltyStage, PruneStage, QuantizeStage, RateStage, ShareStage, Stage

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["RecipeLike", "TrainRecipe", "match"]

_FEATURES: tuple[tuple[type[Stage], frozenset[str]], ...] = (
    (PenaltyStage, frozenset({"l1", "group_lasso"})),
    (RateStage, frozenset({"step", "price"})),
    (QuantizeStage, frozenset({"integer_bits", "fraction_bits", "per_channel"})),
    (ShareStage, frozenset({"centroids", "init", "reassign_every", "latent", "bits"})),
)


@dataclass(frozen=True)
class TrainRecipe:
    """What happens to a model while it is trained.

    Attributes
    ----------
    stages : tuple of Stage
        In order; of several that act at the same step the earlier one comes first.
    encode : Recipe
        How the trained model is encoded: the rest of the file; "lossless", which codes few distinct values
        as they are, unless the file says otherwise.
    """

    stages: tuple[Stage, ...]
    encode: Recipe = field(default_factory=lambda: Recipe("lossless"))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, origin: str = "recipe") -> TrainRecipe:
        """Return the recipe that plain values describe; ``origin`` names them in errors.

        Raises
        ------
        RecipeError
            No ``train`` table, an unknown key, or a value of the wrong type or out of range.
        """
        tables = data.get("train")
        if not isinstance(tables, list) or not tables or not all(isinstance(item, dict) for item in tables):
            hint = "; in a dict: {'train': [{'pattern': ...}]}" if "pattern" in data else ""
            raise RecipeError(f"{origin}: train must be a list of tables ([[train]]), at least one{hint}")
        rest = {key: value for key, value in data.items() if key != "train"}
        encode = Recipe.from_dict({"preset": "lossless", **rest}, origin=origin)
        return cls(tuple(_stage(table, origin, place) for place, table in enumerate(tables, 1)), encode)

    @classmethod
    def from_toml(cls, source: str | Path) -> TrainRecipe:
        """Return the recipe in a TOML file (a `Path`) or a TOML text (a `str`).

        Raises
        ------
        RecipeError
            Not TOML, or not a training recipe.
        OSError
            The file cannot be read.
        """
        origin = source.name if isinstance(source, Path) else "recipe"
        try:
            text = source.read_text(encoding="utf-8") if isinstance(source, Path) else source
            return cls.from_dict(tomllib.loads(text), origin=origin)
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise RecipeError(f"{origin}: not valid TOML: {error}") from error

    @classmethod
    def of(cls, recipe: RecipeLike) -> TrainRecipe:
        """Return what a recipe, a path, a dict, a stage or a list of stages means."""
        if isinstance(recipe, TrainRecipe):
            return recipe
        if isinstance(recipe, Mapping):
            return cls.from_dict(recipe)
        if isinstance(recipe, (str, Path)):
            if str(recipe) in PRESETS:
                raise RecipeError(
                    f"preset {str(recipe)!r} says nothing of training: give stages, or a TOML file"
                )
            if isinstance(recipe, str) and ("\n" in recipe or "[[" in recipe):
                raise RecipeError("this is no path but the text of a recipe: use TrainRecipe.from_toml")
            return cls.from_toml(Path(recipe))
        if not isinstance(recipe, Iterable) and not isinstance(recipe, Stage):
            raise RecipeError(
                f"a recipe is wanted: stages, a dict or the path of a TOML file, not {type(recipe).__name__}"
            )
        stages = (recipe,) if isinstance(recipe, Stage) else tuple(recipe)
        for stage in stages:
            if not isinstance(stage, Stage):
                raise RecipeError(f"a stage is wanted, such as PruneStage, not {type(stage).__name__}")
        return cls(stages)


RecipeLike = TrainRecipe | Stage | Iterable[Stage] | Mapping[str, Any] | str | Path


def match(stage: Stage, names: Iterable[str]) -> list[str]:
    """Return the parameter names that the pattern of a stage matches, in order.

    Raises
    ------
    RecipeError
        It matches none.
    """
    known = list(names)
    matched = [name for name in known if fnmatchcase(name, stage.pattern)]
    if not matched:
        some = ", ".join(repr(name) for name in known[:3])
        hint = near(stage.pattern, known, 3)
        hint = hint or f"; the parameters are {some}" + ", ..." * (len(known) > 3)
        stage.fail(f"pattern {stage.pattern!r} matches no parameter{hint}")
    return matched


def _stage(table: Mapping[str, Any], origin: str, place: int) -> Stage:
    """Return the stage that a table describes; its settings tell of which kind it is."""
    pattern = table.get("pattern")
    if not isinstance(pattern, str):
        raise RecipeError(f"{origin}: train {place}: pattern must be given, as a string")
    where = f"{origin}: train {place} ({pattern!r})"
    settings = dict(table)
    kind = _kind(settings)
    if kind is ShareStage:
        settings.pop("method", None)
    known = _settings_of(kind)
    for key in settings:
        if key not in known:
            hint = near(key, known) or f"; the settings are {', '.join(known)}"
            for other in (PruneStage, ShareStage, PenaltyStage, RateStage):
                if key in _settings_of(other):
                    hint = f"; it is one of a {other.__name__}: give that a [[train]] table of its own"
                    break
            raise RecipeError(f"{where}: unknown setting {key!r} of a {kind.__name__}{hint}")
    return kind(**settings, origin=where)


def _settings_of(kind: type[Stage]) -> list[str]:
    """Return what can be set of a kind of stage."""
    return [item.name for item in dataclasses.fields(kind) if item.name != "origin"]


def _kind(settings: Mapping[str, Any]) -> type[Stage]:
    """Return the kind of stage that settings are for."""
    method = settings.get("method")
    if method == "kmeans":
        return ShareStage
    if method is not None:
        return QuantizeStage
    for kind, features in _FEATURES:
        if features & settings.keys():
            return kind
    return PruneStage
