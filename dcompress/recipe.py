"""Policy: which tensor is pruned and shared, and how. Standard library only.

A recipe is a preset, then top-level options, then rules in order, then exclusions; what comes later
overrides what came before, setting by setting. Its dictionary form is also its TOML form::

    preset = "balanced"
    exclude = ["head.*"]

    [[rule]]
    pattern = "fc*.weight"
    sparsity = 0.9
    bits = 5
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from dcompress.constants import DType
from dcompress.errors import RecipeError
from dcompress.presets import FLOATS, OPTION_KEYS, PRESETS, preset_settings, weights_of
from dcompress.settings import (
    MAX_BITS,
    MAX_CENTROIDS,
    PRUNE_KEYS,
    SHARE_KEYS,
    SIZE_KEYS,
    check_settings,
    near,
    parse_set,
    share_kind,
)

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["PRESETS", "PruneRule", "Recipe", "Rule", "ShareRule", "TensorRecipe"]


@dataclass(frozen=True)
class PruneRule:
    """Stage 1 for one tensor: exactly one of sparsity, threshold and quality is set.

    ``scope`` is "tensor", or the name of a group of tensors that share one threshold ("global" is one).
    """

    sparsity: float | None = None
    threshold: float | None = None
    quality: float | None = None
    scope: str = "tensor"


@dataclass(frozen=True)
class ShareRule:
    """Stage 2 for one tensor: the arguments of `dcompress.share.share`."""

    method: str = "kmeans"
    n_centroids: int = 256
    init: str = "linear"
    codebook: tuple[float, ...] = ()
    codebook_dtype: str | None = None
    integer_bits: int = 0
    fraction_bits: int = 7
    groups: int = 1
    seed: int = 0


@dataclass(frozen=True)
class TensorRecipe:
    """What is done to one tensor.

    Attributes
    ----------
    prune : PruneRule or None
        None: only the zeros that are there.
    share : ShareRule or None
        None: lossless.
    explicit : bool
        The user asked for the sharing, so a tensor of few values is shared anew.
    explicit_prune : bool
        The user asked for the pruning, so a tensor that comes pruned, or shared, is pruned again.
    """

    prune: PruneRule | None = None
    share: ShareRule | None = None
    explicit: bool = False
    explicit_prune: bool = False


@dataclass(frozen=True)
class Rule:
    """Settings for the tensors that a glob matches; ``origin`` is where it was written, for errors."""

    pattern: str
    settings: Mapping[str, Any]
    origin: str = field(default="", compare=False)


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

    The paper fine-tunes a network after pruning it; so should those who use ``paper`` on a dense one.

    "First" and "last" go by the order of the tensors in the checkpoint. In ``.safetensors`` files that order
    is often alphabetical, and then need not be that of the layers: set those two layers by rules.
    """

    preset: str = "balanced"
    rules: tuple[Rule, ...] = ()
    excludes: tuple[str, ...] = ()
    sparsity: float | None = None
    bits: int | None = None
    exclude_origins: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise RecipeError(f"unknown preset {self.preset!r}{near(self.preset, PRESETS)}")
        options = {"sparsity": self.sparsity, "bits": self.bits}
        check_settings({key: value for key, value in options.items() if value is not None}, "recipe")
        for rule in self.rules:
            check_settings(rule.settings, rule.origin or f"rule {rule.pattern!r}")

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
        options = {key: getattr(self, key) for key in OPTION_KEYS if getattr(self, key) is not None}
        presets = preset_settings(self.preset, options, weights_of(specs))
        plan = dict.fromkeys(specs, TensorRecipe())
        for name in floats:
            if name not in excluded:
                rules = [rule for rule in self.rules if fnmatchcase(name, rule.pattern)]
                plan[name] = _resolve(name, specs[name][1], presets.get(name, ({}, {})), rules)
        return plan

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as plain values, defaults left out: what `from_dict` and TOML take."""
        result: dict[str, Any] = {} if self.preset == "balanced" else {"preset": self.preset}
        for key in OPTION_KEYS:
            if getattr(self, key) is not None:
                result[key] = getattr(self, key)
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
        known = ("preset", "sparsity", "bits", "exclude", "rule")
        for key in data:
            if key not in known:
                raise RecipeError(f"{origin}: unknown key {key!r}{near(key, known)}")
        options = {key: data[key] for key in OPTION_KEYS if key in data}
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
        preset = data.get("preset", "balanced")
        if preset not in PRESETS:
            raise RecipeError(f"{origin}: unknown preset {preset!r}{near(str(preset), PRESETS)}")
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
        sparsity, bits
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
        return cls(preset, rules, excludes, sparsity, bits, dict.fromkeys(excludes, "--exclude"))

    def extended(self, other: Recipe) -> Recipe:
        """Return this recipe with another's rules, exclusions and top-level options on top of its own."""
        return Recipe(
            self.preset,
            self.rules + other.rules,
            self.excludes + other.excludes,
            self.sparsity if other.sparsity is None else other.sparsity,
            self.bits if other.bits is None else other.bits,
            {**self.exclude_origins, **other.exclude_origins},
        )


def _resolve(
    name: str,
    shape: tuple[int, ...],
    presets: tuple[dict[str, Any], dict[str, Any]],
    rules: list[Rule],
) -> TensorRecipe:
    """Return the recipe of one tensor: settings of preset, options and rules, the later ones on top."""
    preset, options = presets
    merged: dict[str, Any] = dict(preset)
    asked: set[str] = set(options)
    where = ""
    for settings, origin in [(options, ""), *((rule.settings, rule.origin) for rule in rules)]:
        if settings.get("lossless"):
            merged, asked = {}, set()
            continue
        replaced = [family for family in (PRUNE_KEYS, SIZE_KEYS) if set(family) & set(settings)]
        if share_kind(settings) not in ("", share_kind(merged)):
            replaced.append(SHARE_KEYS)
        for key in [key for family in replaced for key in family]:
            merged.pop(key, None)
        merged |= settings
        asked |= settings.keys()
        where = origin or where
    where = f"{where}: tensor {name!r}: " if where else f"tensor {name!r}: "
    prune = None
    if any(key in merged for key in PRUNE_KEYS):
        sparsity, threshold, quality = (merged.get(key) for key in PRUNE_KEYS)
        prune = PruneRule(sparsity, threshold, quality, merged.get("scope", "tensor"))
        if prune.scope != "tensor" and prune.sparsity is None:
            raise RecipeError(f"{where}scope {prune.scope!r} needs a sparsity")
    share = _share_rule(merged, where) if share_kind(merged) else None
    if share is not None and share.groups > 1 and (not shape or shape[0] % share.groups):
        raise RecipeError(f"{where}groups = {share.groups} does not divide the first dimension of {shape}")
    return TensorRecipe(
        prune,
        share,
        explicit=share is not None and bool(asked & set(SHARE_KEYS)),
        explicit_prune=prune is not None and bool(asked & set(PRUNE_KEYS)),
    )


def _share_rule(settings: Mapping[str, Any], where: str) -> ShareRule:
    """Return the share rule of merged settings; the method follows from what is given."""
    plain = {key: settings[key] for key in ("init", "codebook_dtype", "groups", "seed") if key in settings}
    kind = share_kind(settings)
    if kind == "given":
        if "codebook" not in settings:
            raise RecipeError(f"{where}method 'given' needs a codebook")
        return ShareRule("given", codebook=tuple(float(value) for value in settings["codebook"]), **plain)
    if kind == "fixed_point":
        if "fraction_bits" not in settings:
            raise RecipeError(f"{where}fixed point needs fraction_bits")
        integer, fraction = settings.get("integer_bits", 0), settings["fraction_bits"]
        if not 0 <= integer + fraction < MAX_BITS:
            raise RecipeError(f"{where}integer_bits and fraction_bits must add up to 0 to {MAX_BITS - 1}")
        return ShareRule("fixed_point", integer_bits=integer, fraction_bits=fraction, **plain)
    n_centroids = settings.get("centroids", min(1 << settings.get("bits", 8), MAX_CENTROIDS))
    return ShareRule(settings.get("method", "kmeans"), n_centroids, **plain)


def _match(pattern: str, names: Iterable[str], where: str) -> list[str]:
    """Return the names that a glob matches; at least one."""
    known = list(names)
    matched = [name for name in known if fnmatchcase(name, pattern)]
    if not matched:
        some = ", ".join(repr(name) for name in known[:3])
        hint = near(pattern, known, 3) or (f"; the tensors are {some}" + ", ..." * (len(known) > 3))
        raise RecipeError(f"{where}pattern {pattern!r} matches no tensor{hint}")
    return matched
