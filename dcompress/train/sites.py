"""Where the tensors of a training recipe are in a model: found, checked, taken hold of, let go."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dcompress.errors import RecipeError
from dcompress.settings import near
from dcompress.train.parametrizations import (
    CodebookParametrization,
    GridParametrization,
    MaskParametrization,
    RoundParametrization,
)
from dcompress.train.recipe import match
from dcompress.train.recurrent import is_recurrent, let_list_follow, renew_list
from dcompress.train.settings import PenaltyStage, PruneStage, QuantizeStage, RateStage, ShareStage, Stage
from dcompress.train.units import check_shape

__all__ = ["Site", "attach", "detach", "find_sites", "plain_state"]

_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(eq=False)
class Site:
    """One tensor of the model, and what stands between it and its use.

    Attributes
    ----------
    name : str
        As in the state dict of the plain model.
    module : Module
        Owns it.
    attribute : str
        What the module calls it.
    order : tuple of str
        The module's parameters, in order.
    mask, codebook, rounding : Module, optional
        Its parametrizations.
    """

    name: str
    module: nn.Module
    attribute: str
    order: tuple[str, ...]
    mask: MaskParametrization | None = None
    codebook: CodebookParametrization | None = None
    rounding: RoundParametrization | None = None

    @property
    def used(self) -> Tensor:
        """The tensor as the module uses it."""
        return cast("Tensor", getattr(self.module, self.attribute))

    def peek(self) -> Tensor:
        """Return the tensor as the module uses it, without counting this use as a pass that is watched."""
        if self.mask is None:
            return self.used
        watcher, self.mask.watcher = self.mask.watcher, None
        try:
            return self.used
        finally:
            self.mask.watcher = watcher

    @property
    def original(self) -> Tensor:
        """The parameter beneath."""
        if not parametrize.is_parametrized(self.module, self.attribute):
            return self.used
        parametrizations = cast("nn.ModuleDict", self.module.parametrizations)
        return cast("Tensor", parametrizations[self.attribute].original)


def _weights_first(stage: Stage, found: list[str], weights: Container[str]) -> list[str]:
    """Return the matrices and kernels that a glob matches; without any, or of a name, what it matches.

    So "*.weight" leaves the scales of norms alone, as the patterns of `dcz encode` do.
    """
    is_glob = any(sign in stage.pattern for sign in "*?[")
    return [name for name in found if name in weights] or found if is_glob else found


def find_sites(
    model: nn.Module, stages: Sequence[Stage], masks: Mapping[str, Tensor]
) -> tuple[dict[str, Site], list[list[str]]]:
    """Return the tensors that stages and given masks are about, and those of each stage.

    Parameters
    ----------
    model : Module
        Plain: not pruned by torch.nn.utils.prune, not parametrized.
    stages : sequence of Stage
        Each matches at least one parameter.
    masks : mapping of str to Tensor
        Given masks by name.

    Returns
    -------
    sites : dict of str to Site
        In the order of the model.
    matched : list of list of str
        Names for each stage.

    Raises
    ------
    RecipeError
        A name or pattern matches nothing, a tensor is tied, pruned already, or not of a kind that can be
        pruned, or its shape does not fit; the tensor is named.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, parameter in parameters.items():
        if isinstance(parameter, nn.UninitializedParameter):
            raise RecipeError(f"parameter {name!r} has no shape yet: run the model once before")
    names = [_plain_name(model, name) for name in parameters]
    weights = {
        name
        for name, parameter in zip(names, parameters.values(), strict=True)
        if sum(size > 1 for size in parameter.shape) > 1
    }
    matched = [_weights_first(stage, match(stage, names), weights) for stage in stages]
    for name in masks:
        if name not in names:
            raise RecipeError(f"masks: the model has no parameter {name!r}{near(name, names, 3)}")
    wanted = {name for found in matched for name in found} | set(masks)
    ties: dict[int, list[str]] = {}
    for name, parameter in parameters.items():
        ties.setdefault(id(parameter), []).append(name)
    sites = {}
    for (raw, parameter), name in zip(parameters.items(), names, strict=True):
        if name in wanted:
            _check(raw, name, parameter, ties[id(parameter)])
            path, _, attribute = name.rpartition(".")
            module = model.get_submodule(path)
            sites[name] = Site(name, module, attribute, tuple(module._parameters))
    for stage, found in zip(stages, matched, strict=True):
        for name in found:
            _check_stage(stage, name, tuple(sites[name].original.shape))
    for name, mask in masks.items():
        _check_mask(name, mask, tuple(sites[name].original.shape))
    return sites, matched


def attach(
    sites: Mapping[str, Site],
    stages: Sequence[Stage],
    matched: Sequence[Sequence[str]],
    masks: Mapping[str, Tensor],
) -> None:
    """Put the parametrizations in place that stages need: all of them at once, not yet active.

    So the names in the state dict are the same from the first step to the last, and an optimizer that is
    made afterwards knows every codebook.

    Parameters
    ----------
    sites, matched
        As `find_sites` returns them.
    stages, masks
        As `find_sites` takes them.

    Raises
    ------
    RecipeError
        A tensor would be shared or quantised twice; nothing was changed then.
    """
    for stage, names in zip(stages, matched, strict=True):
        for name in names:
            _prepare(sites[name], stage)
    for name in masks:
        sites[name].mask = sites[name].mask or _mask_of(sites[name])
    for site in sites.values():
        for one in (site.rounding, site.codebook, site.mask):
            if one is not None:
                parametrize.register_parametrization(site.module, site.attribute, one)
        if is_recurrent(site.module):
            let_list_follow(site.module)
    for name, mask in masks.items():
        site_mask = sites[name].mask
        assert site_mask is not None
        site_mask.mask.copy_(mask)


def detach(sites: Mapping[str, Site], *, keep_used: bool = True) -> None:
    """Take all parametrizations away.

    Parameters
    ----------
    sites : mapping of str to Site
        As `find_sites` returns them.
    keep_used : bool
        Whether the plain parameter becomes what they made of it, or stays as it was beneath them.
    """
    for site in sites.values():
        if parametrize.is_parametrized(site.module, site.attribute):
            parametrize.remove_parametrizations(site.module, site.attribute, leave_parametrized=keep_used)
            parameters = site.module._parameters
            for name in [name for name in site.order if name in parameters]:
                parameters[name] = parameters.pop(name)  # torch puts it last
            if is_recurrent(site.module) and not parametrize.is_parametrized(site.module):
                renew_list(site.module)


def plain_state(model: nn.Module, sites: Mapping[str, Site], order: Sequence[str]) -> dict[str, Any]:
    """Return copies of what the state dict of the plain model would hold, without changing the model.

    Parameters
    ----------
    model : Module
        With parametrizations.
    sites : mapping of str to Site
        Where they are.
    order : sequence of str
        Keys as the plain model had them; what came later comes last.
    """
    state = {key: value for key, value in model.state_dict().items() if ".parametrizations." not in f".{key}"}
    with torch.no_grad():
        state |= {name: site.peek() for name, site in sites.items()}
    copies: dict[object, Tensor] = {}
    found: dict[str, Any] = {}
    for key in dict.fromkeys([*(key for key in order if key in state), *state]):
        value = found[key] = state[key]
        if isinstance(value, Tensor):
            # Tied tensors have one storage: so have their copies.
            place = (value.data_ptr(), value.shape, value.stride()) if value.numel() else key
            if place not in copies:
                copies[place] = value.detach().clone()
            found[key] = copies[place]
    return found


def _plain_name(model: nn.Module, raw: str) -> str:
    """Return what a parameter was called before it was parametrized, or pruned by torch."""
    parts = raw.split(".")
    if "parametrizations" in parts[:-1]:
        place = parts.index("parametrizations")
        return ".".join([*parts[:place], parts[place + 1]])
    plain = raw.removesuffix("_orig")
    path, _, attribute = plain.rpartition(".")
    return plain if plain != raw and hasattr(model.get_submodule(path), f"{attribute}_mask") else raw


def _check(raw: str, name: str, parameter: Tensor, ties: Sequence[str]) -> None:
    """Raise unless a parameter, now called ``raw``, can be taken hold of."""
    if ".parametrizations." in f".{raw}":
        raise RecipeError(
            f"parameter {name!r} is parametrized already: call finish() of its Compressor before, or "
            "torch.nn.utils.parametrize.remove_parametrizations"
        )
    if raw != name:
        raise RecipeError(
            f"parameter {name!r} is pruned already, by torch.nn.utils.prune: call "
            "masks = dcompress.train.from_torch_prune(model) before, and give Compressor these masks"
        )
    others = [tie for tie in ties if tie != name]
    if others:
        raise RecipeError(
            f"parameter {name!r} is shared: it is also {', '.join(map(repr, others))}; "
            "leave it out of the pattern, and prune it when the model is encoded ([[rule]])"
        )
    if parameter.is_meta:
        raise RecipeError(f"parameter {name!r} is on the meta device, without values: load the model before")
    if not parameter.numel():
        raise RecipeError(f"parameter {name!r} is empty: leave it out of the pattern")
    if parameter.dtype not in _FLOATS:
        raise RecipeError(f"parameter {name!r} is of {parameter.dtype}: only floats are trained and pruned")


def _check_stage(stage: Stage, name: str, shape: tuple[int, ...]) -> None:
    """Raise unless the units of a stage fit a tensor."""
    if isinstance(stage, PruneStage) or (isinstance(stage, PenaltyStage) and stage.group_lasso):
        try:
            check_shape(shape, stage.grains)
        except RecipeError as error:
            stage.fail(f"parameter {name!r}: {error}")


def _check_mask(name: str, mask: object, shape: tuple[int, ...]) -> None:
    """Raise unless a given mask is one for a shape."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or tuple(mask.shape) != shape:
        found = f"{mask.dtype}, {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
        raise RecipeError(f"the mask of {name!r} must be a bool tensor of shape {shape}, not {found}")


def _mask_of(site: Site) -> MaskParametrization:
    """Return a new mask for a tensor, that keeps everything."""
    return MaskParametrization(tuple(site.original.shape), site.original.device)


def _prepare(site: Site, stage: Stage) -> None:
    """Give a site the parametrization that a stage needs."""
    if isinstance(stage, PruneStage):
        site.mask = site.mask or _mask_of(site)
    elif isinstance(stage, RateStage) and isinstance(site.rounding, GridParametrization):
        if site.rounding.step != stage.step:
            stage.fail(f"parameter {site.name!r} has the step {site.rounding.step} by another stage already")
    elif isinstance(stage, (ShareStage, QuantizeStage, RateStage)):
        if site.codebook is not None or site.rounding is not None:
            stage.fail(f"parameter {site.name!r} is shared or quantised by another stage already")
        like = site.original
        if isinstance(stage, ShareStage):
            site.codebook = CodebookParametrization(tuple(like.shape), stage.n_centroids, stage.latent, like)
        elif isinstance(stage, RateStage):
            step = torch.tensor(stage.step, dtype=like.dtype)
            if not step.isfinite() or step <= 0:
                stage.fail(f"parameter {site.name!r}: {like.dtype} cannot hold a step of {stage.step:g}")
            site.rounding = GridParametrization(stage.step, like.device)
        elif stage.method == "uniform":
            high = (1 << (stage.bits - 1)) - 1
            site.rounding = RoundParametrization(-high, high, None, stage.per_channel)
        else:
            half = 1 << (stage.integer_bits + stage.fraction_bits)
            site.rounding = RoundParametrization(-half, half - 1, 2.0**-stage.fraction_bits, False)
