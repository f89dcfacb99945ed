"""What a recipe comes to for one tensor: its rules, put on top of each other. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dcompress.errors import RecipeError
from dcompress.settings import (
    MAX_BITS,
    MAX_CENTROIDS,
    PRUNE_KEYS,
    RATE_KEYS,
    SHARE_KEYS,
    SIZE_KEYS,
    parse_n_m,
    share_kind,
)

__all__ = ["PruneRule", "RateRule", "Rule", "ShareRule", "TensorRecipe", "resolve"]


@dataclass(frozen=True)
class PruneRule:
    """Stage 1 for one tensor: exactly one of sparsity, threshold, quality and n_m ("2:4") is set.

    ``scope`` is "tensor", or the name of a group of tensors that share one threshold ("global" is one).
    """

    sparsity: float | None = None
    threshold: float | None = None
    quality: float | None = None
    scope: str = "tensor"
    n_m: str | None = None


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
class RateRule:
    """Stage 2 for one tensor, method "rate": the arguments of `dcompress.rate.RatePlan`.

    What is None is left to the effort. ``fine``: the step is that of the model's matrices and kernels, and
    this tensor, which is none of them, takes a finer one of its own. ``own``: the step is not the model's, a
    rule gives it. ``price``: by what the slope is multiplied, where errors are fed on.
    """

    step: float
    slope: float | None = None
    states: int | None = None
    fine: bool = False
    own: bool = False
    price: float = 1.0

    @property
    def takes_model_step(self) -> bool:
        """Whether this tensor is rounded to multiples of the model's step."""
        return not self.fine and not self.own


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
    excluded : bool
        The user excluded the tensor, and thereby all that are tied to it.
    """

    prune: PruneRule | None = None
    share: ShareRule | RateRule | None = None
    explicit: bool = False
    explicit_prune: bool = False
    excluded: bool = field(default=False, compare=False)


@dataclass(frozen=True)
class Rule:
    """Settings for the tensors that a glob matches; ``origin`` is where it was written, for errors."""

    pattern: str
    settings: Mapping[str, Any]
    origin: str = field(default="", compare=False)


def resolve(
    name: str,
    shape: tuple[int, ...],
    presets: tuple[Mapping[str, Any], Mapping[str, Any]],
    rules: Sequence[Rule],
    model: Mapping[str, Any],
    *,
    fine: bool,
) -> TensorRecipe:
    """Return the recipe of one tensor.

    Parameters
    ----------
    name, shape
        The tensor.
    presets : pair of mappings
        Settings of preset and options.
    rules : sequence of Rule
        Those that match, on top of them; a later one overrides an earlier one.
    model : mapping
        Settings of "rate" for the whole model, for what the tensor has none of its own.
    fine : bool
        Whether a step of the model, not the tensor's own, is too coarse for the tensor.

    Raises
    ------
    RecipeError
        The settings do not fit together, or the shape.
    """
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
        amounts = {key: merged.get(key) for key in PRUNE_KEYS}
        prune = PruneRule(**amounts, scope=merged.get("scope", "tensor"))
        if prune.scope != "tensor" and prune.sparsity is None:
            raise RecipeError(f"{where}scope {prune.scope!r} needs a sparsity")
    share = _share_rule(merged, where, model, fine) if share_kind(merged) else None
    if prune is not None and prune.n_m is not None:
        _, m = parse_n_m(prune.n_m)
        if len(shape) < 2 or shape[1] % m:
            raise RecipeError(
                f"{where}n_m = {prune.n_m}: {m} does not divide the second dimension of {shape}"
            )
    if isinstance(share, ShareRule) and share.groups > 1 and (not shape or shape[0] % share.groups):
        raise RecipeError(f"{where}groups = {share.groups} does not divide the first dimension of {shape}")
    return TensorRecipe(
        prune,
        share,
        explicit=share is not None and bool(asked & set(SHARE_KEYS)),
        explicit_prune=prune is not None and bool(asked & set(PRUNE_KEYS)),
    )


def _share_rule(
    settings: Mapping[str, Any], where: str, model: Mapping[str, Any], fine: bool
) -> ShareRule | RateRule:
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
    if kind == "rate":
        alien = [key for key in ("codebook_dtype", "groups") if key in settings]
        if alien:
            raise RecipeError(f"{where}{alien[0]} does not go with method 'rate'")
        rate = {key: settings.get(key, model.get(key)) for key in RATE_KEYS}
        if rate["step"] is None:
            raise RecipeError(
                f"{where}method 'rate' needs a step: give step, for the tensor or the model, or a target"
            )
        own = "step" in settings
        return RateRule(**rate, fine=fine and not own, own=own)
    n_centroids = settings.get("centroids", min(1 << settings.get("bits", 8), MAX_CENTROIDS))
    return ShareRule(settings.get("method", "kmeans"), n_centroids, **plain)
