"""Policy: which tensor is pruned and shared, and how. Standard library only.

A recipe is a preset, then top-level options, then rules in order, then exclusions; what comes later
overrides what came before, setting by setting. Its dictionary form is also its TOML form::

    preset = "balanced"
    exclude = ["head.*"]

    [[rule]]
    pattern = "fc*.weight"
    sparsity = 0.9
    bits = 5

The file may hold ``[[train]]`` tables too, for `dcompress.train`; its preset is ``lossless`` then by default.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from dcompress.constants import DType
from dcompress.errors import RecipeError
from dcompress.presets import FLOATS, OPTION_KEYS, PRESETS, preset_settings, weights_of
from dcompress.profiles import PROFILES
from dcompress.rules import PruneRule, RateRule, Rule, ShareRule, TensorRecipe, resolve
from dcompress.settings import RATE_KEYS, check_settings, near, parse_set

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = [
    "PRESETS",
    "PruneRule",
    "RateRule",
    "Recipe",
    "RecipeLike",
    "Rule",
    "ShareRule",
    "TensorRecipe",
    "as_recipe",
]


@dataclass(frozen=True)
class Recipe:
    """The policy for a whole checkpoint.

    Attributes
    ----------
    preset : {"balanced", "lossless", "paper"}
        ``lossless`` changes nothing. ``balanced`` prunes nothing and gives every weight matrix and kernel
        of at least 2,048 float weights an 8-bit codebook. ``paper`` is Han's: 8 bits for kernels (rank 3
        and up), 5 for matrices (rank 2, embeddings included), each pruned by a threshold of its own.
    rules : tuple of Rule
        In order.
    excludes : tuple of str
        Globs of tensors that stay lossless whatever the rules say.
    sparsity, bits : float, int, optional
        For all weight matrices and kernels (float tensors with at least two dimensions larger than 1), in
        place of the preset's, and also for those that are too small for the preset. A codebook still has
        no more than one value for each 8 weights, and at least 2.
    step : float, optional
        Turns on rate-aware sharing, method "rate", for the whole model: every weight matrix and kernel is
        rounded to multiples of this step, and every other float tensor (biases, norms, statistics) to
        multiples of a finer step of its own. In place of ``bits``; rules and exclusions stay in force. It
        holds for tensors of few values too. Targets (`dcompress.step_search`) find it.
    profile : {"full", "baseline"}
        What the file may ask of its reader: ``baseline`` keeps to what a small device has (small chunks, few
        values), at the price of some bytes.
    slope, states : float, int, optional
        Of method "rate", for the tensors whose rules say nothing else; by default the effort decides.
    exclude_origins : mapping of str to str
        Where an exclusion was written, for errors.

    Notes
    -----
    The paper's threshold is a quality parameter times a layer's standard deviation, found by trial for
    each network. The preset takes the quantile that leaves the paper's densities instead (66 % of the
    first convolution, 38 % of the others, 9 % of fully connected layers, 25 % of the last one): a quality
    of 1.7, which leaves 9 % of a Gaussian, leaves 2 to 13 % of the layers of real networks, and would
    prune further each time it is applied. Those who have tuned it can set ``quality`` by a rule. A preset
    never prunes a tensor that is a quarter zeros already: it was pruned in training, and keeps its mask.

    A rule prunes by one of ``sparsity``, ``threshold``, ``quality`` and ``n_m``: "2:4" keeps two of every
    four weights along the second dimension, which is the inputs of a linear layer or a convolution.

    The paper fine-tunes a network after pruning it; so should those who use ``paper`` on a dense one.

    "First" and "last" go by the order of the tensors in the checkpoint. In ``.safetensors`` files that order
    is often alphabetical, and then need not be that of the layers: set those two layers by rules.
    """

    preset: str = "balanced"
    rules: tuple[Rule, ...] = ()
    excludes: tuple[str, ...] = ()
    sparsity: float | None = None
    bits: int | None = None
    step: float | None = None
    slope: float | None = None
    states: int | None = None
    profile: str = "full"
    exclude_origins: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise RecipeError(f"unknown preset {self.preset!r}{near(self.preset, PRESETS)}")
        if self.profile not in PROFILES:
            raise RecipeError(f"unknown profile {self.profile!r}{near(self.profile, PROFILES)}")
        check_settings(self.options, "recipe")
        for rule in self.rules:
            check_settings(rule.settings, rule.origin or f"rule {rule.pattern!r}")

    @property
    def options(self) -> dict[str, Any]:
        """The top-level options that are set."""
        keys = (*OPTION_KEYS, *RATE_KEYS)
        return {key: getattr(self, key) for key in keys if getattr(self, key) is not None}

    def plan(self, specs: Mapping[str, tuple[DType, tuple[int, ...]]]) -> dict[str, TensorRecipe]:
        """Return what is done to each tensor.

        Parameters
        ----------
        specs : mapping of str to (DType, shape)
            Every tensor of the checkpoint, in order.

        Raises
        ------
        RecipeError
            A pattern matches nothing, or nothing that its rule can apply to; settings that do not fit
            together, or the shape.
        """
        floats = [name for name, (dtype, _) in specs.items() if dtype.name in FLOATS]
        for rule in self.rules:
            where = f"{rule.origin}: " if rule.origin else ""
            matched = _match(rule.pattern, specs, where)
            if not rule.settings.get("lossless") and not set(matched) & set(floats):
                raise RecipeError(
                    f"{where}pattern {rule.pattern!r} matches only tensors that cannot be pruned or "
                    f"shared, such as {matched[0]!r} ({specs[matched[0]][0].name})"
                )
        excluded: set[str] = set()
        for pattern in self.excludes:
            where = self.exclude_origins.get(pattern, "exclude")
            excluded |= set(_match(pattern, specs, f"{where}: "))
        options = self.options
        rate: dict[str, Any] = {} if self.step is None else {"method": "rate"}
        weights = weights_of(specs)
        asked = {key: options[key] for key in OPTION_KEYS if key in options} | rate
        presets = preset_settings(self.preset, asked, weights)
        plan = {name: TensorRecipe(excluded=name in excluded) for name in specs}
        for name in floats:
            if name not in excluded:
                rules = [rule for rule in self.rules if fnmatchcase(name, rule.pattern)]
                own = presets.get(name, ({}, rate))
                plan[name] = resolve(name, specs[name][1], own, rules, options, fine=name not in weights)
        return plan

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as plain values, defaults left out: what `from_dict` and TOML take."""
        result: dict[str, Any] = {} if self.preset == "balanced" else {"preset": self.preset}
        result |= {} if self.profile == "full" else {"profile": self.profile}
        result |= self.options
        if self.excludes:
            result["exclude"] = list(self.excludes)
        if self.rules:
            result["rule"] = [{"pattern": rule.pattern, **rule.settings} for rule in self.rules]
        return result

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, origin: str = "recipe") -> Recipe:
        """Return the recipe that plain values describe; ``origin`` names them in errors.

        Raises
        ------
        RecipeError
            An unknown key, or a value of the wrong type or out of range, named by file, rule and key.
        """
        # Stages of training ([[train]]) stand in the same file; dcompress.train reads and checks them. What
        # was trained to be small is to stay as it is, unless a preset says otherwise.
        known = ("preset", "profile", *OPTION_KEYS, *RATE_KEYS, "exclude", "rule", "train")
        for key in data:
            if key not in known:
                raise RecipeError(f"{origin}: unknown key {key!r}{near(key, known)}")
        options = {key: data[key] for key in (*OPTION_KEYS, *RATE_KEYS) if key in data}
        check_settings(options, origin)
        excludes, rules = data.get("exclude", []), data.get("rule", [])
        if isinstance(excludes, str):
            excludes = [excludes]
        if not isinstance(excludes, list) or not all(isinstance(item, str) for item in excludes):
            raise RecipeError(f"{origin}: exclude must be a list of patterns")
        if not isinstance(rules, list) or not all(isinstance(item, dict) for item in rules):
            raise RecipeError(f"{origin}: rule must be a list of tables ([[rule]])")
        parsed = []
        for place, table in enumerate(rules, 1):
            pattern = table.get("pattern")
            if not isinstance(pattern, str):
                raise RecipeError(f"{origin}: rule {place}: pattern must be given, as a string")
            settings = {key: value for key, value in table.items() if key != "pattern"}
            parsed.append(Rule(pattern, settings, f"{origin}: rule {place} ({pattern!r})"))
        preset = data.get("preset", "lossless" if "train" in data else "balanced")
        if preset not in PRESETS:
            raise RecipeError(f"{origin}: unknown preset {preset!r}{near(str(preset), PRESETS)}")
        options["profile"] = data.get("profile", "full")
        if options["profile"] not in PROFILES:
            named = str(options["profile"])
            raise RecipeError(f"{origin}: unknown profile {named!r}{near(named, PROFILES)}")
        origins = dict.fromkeys(excludes, f"{origin}: exclude")
        return cls(preset, tuple(parsed), tuple(excludes), exclude_origins=origins, **options)

    @classmethod
    def from_toml(cls, source: str | Path) -> Recipe:
        """Return the recipe in a TOML file (a `Path`) or a TOML text (a `str`).

        Raises
        ------
        RecipeError
            Not TOML, or not a recipe.
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
    def from_options(
        cls,
        preset: str = "balanced",
        sets: Iterable[str] = (),
        excludes: Iterable[str] = (),
        sparsity: float | None = None,
        bits: int | None = None,
        profile: str = "full",
    ) -> Recipe:
        """Return the recipe that command-line options describe.

        Parameters
        ----------
        preset : str
            Name of a preset.
        sets : iterable of str
            Rules as ``PATTERN:key=value,key=value``; the values of a codebook are parted by ``/``, and a
            bare ``lossless`` is true.
        excludes : iterable of str
            Patterns.
        sparsity, bits, profile
            As in `Recipe`.

        Raises
        ------
        RecipeError
            As for `from_dict`; the option is named.
        """
        rules = tuple(Rule(*parse_set(text)) for text in sets)
        for key, value in (("sparsity", sparsity), ("bits", bits)):
            if value is not None:
                try:
                    check_settings({key: value}, "")
                except RecipeError as error:
                    raise RecipeError(f"--{error}") from None
        excludes = tuple(excludes)
        origins = dict.fromkeys(excludes, "--exclude")
        return cls(preset, rules, excludes, sparsity, bits, profile=profile, exclude_origins=origins)

    def extended(self, other: Recipe) -> Recipe:
        """Return this recipe with another's rules, exclusions and top-level options on top of its own."""
        own = self.options
        if "bits" in other.options:
            own = {key: value for key, value in own.items() if key not in RATE_KEYS}
        elif "step" in other.options:
            own.pop("bits", None)
        return Recipe(
            self.preset,
            self.rules + other.rules,
            self.excludes + other.excludes,
            **(own | other.options),
            profile=self.profile if other.profile == "full" else other.profile,
            exclude_origins={**self.exclude_origins, **other.exclude_origins},
        )


def _match(pattern: str, names: Iterable[str], where: str) -> list[str]:
    """Return the names that a glob matches; at least one."""
    known = list(names)
    matched = [name for name in known if fnmatchcase(name, pattern)]
    if not matched:
        some = ", ".join(repr(name) for name in known[:3])
        hint = near(pattern, known, 3) or (f"; the tensors are {some}" + ", ..." * (len(known) > 3))
        raise RecipeError(f"{where}pattern {pattern!r} matches no tensor{hint}")
    return matched


RecipeLike = Recipe | str | os.PathLike[str] | Mapping[str, Any] | None


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
