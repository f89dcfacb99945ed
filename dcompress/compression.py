"""Stages 1 and 2 of a whole checkpoint, one tensor at a time.

But for rate-aware sharing: there the price of a label depends on all that is coded beside it, so tensors go
through stage 2 together, in groups of consecutive ones.
"""

from __future__ import annotations

import dataclasses
import inspect
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar
from weakref import WeakValueDictionary

from dcompress.calibration import Calibration, Moments
from dcompress.errors import DcompressWarning, RecipeError
from dcompress.feedback import Calibrated
from dcompress.floats import count_nonfinite, widen
from dcompress.profiles import FULL, PROFILES, Profile
from dcompress.prune_rules import prune_named, prune_tensor, with_values, with_zeros
from dcompress.rate_groups import GroupPlan, RateJob, rate_groups
from dcompress.recipe import RateRule, Recipe, TensorRecipe
from dcompress.scopes import is_compressible, resolve_global_scopes
from dcompress.settings import DEFAULT_EFFORT
from dcompress.share import share
from dcompress.stages import Checkpoint, PrunedTensor, SharedTensor, TensorData, TensorSpec, tensor_specs
from dcompress.step_weights import weigh_steps
from dcompress.values import find_values

__all__ = [
    "CompressedTensors",
    "compress_checkpoint",
    "compress_tensor",
    "resolve_global_scopes",
]

_Known = TypeVar("_Known")

# How many values a tensor may hold to be taken as shared already, by bytes of a weight. The format codes up
# to 4,096 as labels; but an ordinary bfloat16 tensor holds one or two thousand.
_MAX_VALUES = {2: 512, 4: 4096, 8: 4096}


def compress_tensor(
    name: str,
    tensor: TensorData,
    recipe: TensorRecipe,
    *,
    effort: int = DEFAULT_EFFORT,
    moments: Moments | None = None,
) -> SharedTensor | TensorData:
    """Return one tensor pruned and shared as its recipe says. A pure function that pickles.

    Parameters
    ----------
    name : str
        For warnings and errors.
    tensor : TensorData
        Any dtype and shape.
    recipe : TensorRecipe
        With its thresholds absolute, see `resolve_global_scopes`.
    effort : int
        From 1, fast, to 9, smallest; for rate-aware sharing, here of this tensor alone.
    moments : Moments, optional
        Of what flows into it: then its layer's output is kept rather than its weights.

    Returns
    -------
    compressed : SharedTensor or TensorData
        The tensor itself where the recipe asks for nothing, where the dtype is no float of 16 bits or
        more, where a value is NaN or infinite (with a `DcompressWarning`), and where it holds few
        distinct values already, unless sharing was asked for explicitly. A tensor that is pruned only
        is a `TensorData` with zeros.

    Raises
    ------
    RecipeError
        The recipe does not fit the tensor.
    """
    if (recipe.prune is None and recipe.share is None) or not _is_usable(name, tensor):
        return tensor
    share_rule = recipe.share
    if share_rule is not None and not recipe.explicit:
        most = min(_MAX_VALUES[tensor.dtype.word_bytes], tensor.words.size // 4)
        if find_values(tensor.words, most) is not None:
            share_rule = None
            if not recipe.explicit_prune:
                return tensor
    try:
        pruned = prune_tensor(name, tensor, recipe, moments)
        if share_rule is None:
            return _unshared(tensor, pruned, moments)
        known = _calibrated(name, tensor, pruned, recipe, moments)
        if isinstance(share_rule, RateRule):
            plan = GroupPlan({name: (pruned, tensor.dtype, share_rule)}, effort)
            return plan.share(name, known) or _unshared(tensor, pruned, moments)
        return share(pruned, tensor.dtype, calibrated=known, **dataclasses.asdict(share_rule))
    except RecipeError as error:
        raise RecipeError(f"tensor {name!r}: {error}") from error


def compress_checkpoint(
    checkpoint: Checkpoint,
    recipe: Recipe,
    *,
    effort: int = DEFAULT_EFFORT,
    threads: int | None = None,
    calibration: Calibration | None = None,
) -> CompressedTensors:
    """Return the tensors of a checkpoint, each compressed when it is looked up.

    Parameters
    ----------
    checkpoint : Checkpoint
        Its tensors may be lazy; one at a time is in memory, of those shared by rate one group.
    recipe : Recipe
        The policy.
    effort : int
        From 1, fast, to 9, smallest; for rate-aware sharing.
    threads : int, optional
        For rate-aware sharing; all there are by default. The result is the same.
    calibration : Calibration, optional
        Of this model: what is known of the inputs of its layers.

    Returns
    -------
    tensors : CompressedTensors
        A mapping in the order of the checkpoint; tied names give the same object while it is alive.

    Raises
    ------
    RecipeError
        A pattern matches nothing, settings do not fit, or tied names are given different rules.
    EncodeError
        The calibration is of another model.
    """
    specs = tensor_specs(checkpoint.tensors)
    if calibration is not None:
        calibration = _serving(calibration, specs, recipe, effort)
    plan = resolve_global_scopes(_tie(recipe.plan(specs), checkpoint.ties), checkpoint.tensors.__getitem__)
    if calibration is not None:
        plan = weigh_steps(plan, specs, _by_first_name(calibration.sensitivity, checkpoint.ties))
    groups = rate_groups(plan, specs)
    profile = PROFILES[recipe.profile]
    return CompressedTensors(checkpoint, plan, groups, effort, threads, profile, calibration)


class CompressedTensors(Mapping[str, "SharedTensor | TensorData"]):
    """The compressed tensors of a checkpoint, made one by one as they are asked for.

    Attributes
    ----------
    checkpoint : Checkpoint
        Where the tensors come from.
    plan : dict of str to TensorRecipe
        What is done to each; tied names have no entry of their own.
    groups : dict of str to tuple of str
        By tensor that is shared by rate: those that are shared together with it, itself among them. Of one
        such group all are made at once, and kept until another group is asked for.
    effort, threads : int
        For rate-aware sharing.
    profile : Profile
        Likewise.
    moments : mapping of str to Moments
        Of those whose inputs are known, by the names that the checkpoint stores.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        plan: dict[str, TensorRecipe],
        groups: Mapping[str, tuple[str, ...]],
        effort: int = DEFAULT_EFFORT,
        threads: int | None = None,
        profile: Profile = FULL,
        calibration: Calibration | None = None,
    ) -> None:
        self.checkpoint = checkpoint
        self.plan = plan
        self.groups = groups
        self.effort = effort
        self.threads = threads
        self.profile = profile
        self.moments = {} if calibration is None else _by_first_name(calibration.moments, checkpoint.ties)
        self._made: WeakValueDictionary[str, SharedTensor | TensorData] = WeakValueDictionary()
        self._group: dict[str, SharedTensor | TensorData | None] = {}

    def __getitem__(self, name: str) -> SharedTensor | TensorData:
        first = self.checkpoint.ties.get(name, name)
        made = self._made.get(first)
        if made is None:
            made = self.compress(first, self.checkpoint.tensors[first])
            self._made[first] = made
        return made

    def __iter__(self) -> Iterator[str]:
        return iter(self.checkpoint.tensors)

    def __len__(self) -> int:
        return len(self.checkpoint.tensors)

    def compress(self, name: str, tensor: TensorData) -> SharedTensor | TensorData:
        """Return a tensor compressed, or itself; ``tensor`` is what the checkpoint has under this name."""
        names = self.groups.get(name)
        if names is None:
            return compress_tensor(name, tensor, self.plan[name], moments=self.moments.get(name))
        if name not in self._group:
            self._group = {}  # free the memory of the last one first
            self._group = self._share(names)
        made = self._group[name]
        return tensor if made is None else made

    def opened(self, names: Sequence[str]) -> OpenGroup:
        """Return tensors of one group before their last pass, for those who have no calibration yet."""
        jobs: dict[str, RateJob] = {}
        for name in names:
            tensor, recipe = self.checkpoint.tensors[name], self.plan[name]
            if _is_usable(name, tensor):
                assert isinstance(recipe.share, RateRule)
                jobs[name] = prune_named(name, tensor, recipe), tensor.dtype, recipe.share
        group = GroupPlan(jobs, self.effort, self.threads, self.profile)
        return OpenGroup(self.checkpoint.tensors, self.plan, jobs, group)

    def _share(self, names: Sequence[str]) -> dict[str, SharedTensor | TensorData | None]:
        """Return the tensors of a group; None for those that stay as they are."""
        group = self.opened(names)
        return dict.fromkeys(names) | group.share_all(self.moments)


class OpenGroup:
    """Tensors that are shared by rate together, before their last pass.

    What labels cost depends on weights alone; so what becomes of a tensor does not depend on what is known of
    the inputs of others, nor on the order in which that is found out.

    Attributes
    ----------
    jobs : mapping of str to RateJob
        What stage 1 leaves of them by magnitudes.
    """

    def __init__(
        self,
        tensors: Mapping[str, TensorData],
        plan: Mapping[str, TensorRecipe],
        jobs: Mapping[str, RateJob],
        group: GroupPlan,
    ) -> None:
        self.jobs = jobs
        self._tensors = tensors
        self._plan = plan
        self._group = group

    def share(self, name: str, moments: Moments | None = None) -> SharedTensor | TensorData:
        """Return one tensor compressed, with error feedback if its moments are known.

        Raises
        ------
        EncodeError
            They do not fit the tensor.
        """
        if name not in self.jobs:
            return self._tensors[name]
        pruned, known = self._known(name, moments)
        return self._group.share(name, known) or _unshared(self._tensors[name], pruned, moments)

    def share_all(self, moments: Mapping[str, Moments]) -> dict[str, SharedTensor | TensorData]:
        """Return all tensors compressed."""
        known = {name: self._known(name, moments.get(name)) for name in self.jobs}
        shared = self._group.share_all({name: one for name, (_, one) in known.items() if one is not None})
        return {
            name: one or _unshared(self._tensors[name], known[name][0], moments.get(name))
            for name, one in shared.items()
        }

    def _known(self, name: str, moments: Moments | None) -> tuple[PrunedTensor, Calibrated | None]:
        """Return what stage 1 leaves of a tensor, and what error feedback needs."""
        if moments is None:
            return self.jobs[name][0], None
        tensor = self._tensors[name]
        pruned = prune_named(name, tensor, self._plan[name], moments)
        return pruned, _calibrated(name, tensor, pruned, self._plan[name], moments)


def _unshared(tensor: TensorData, pruned: PrunedTensor, moments: Moments | None) -> TensorData:
    """Return a tensor that is pruned only."""
    return with_zeros(tensor, pruned) if moments is None else with_values(tensor, pruned)


def _serving(
    calibration: Calibration, specs: Mapping[str, TensorSpec], recipe: Recipe, effort: int
) -> Calibration:
    """Return what of some statistics serves a model and a recipe."""
    calibration.check(specs)
    if calibration.serves(recipe.to_dict(), effort):
        return calibration
    warnings.warn(
        f"the statistics were gathered layer by layer for the recipe {calibration.recipe} and effort "
        f"{calibration.effort}: for another one they serve as plain ones; calibrate again for it",
        DcompressWarning,
        stacklevel=levels_to_caller(),
    )
    return calibration.plain()


def _by_first_name(found: Mapping[str, _Known], ties: Mapping[str, str]) -> dict[str, _Known]:
    """Return what is known of tensors by the names that a checkpoint stores."""
    return {ties.get(name, name): one for name, one in found.items()}


def _calibrated(
    name: str, tensor: TensorData, pruned: PrunedTensor, recipe: TensorRecipe, moments: Moments | None
) -> Calibrated | None:
    """Return what error feedback needs, if anything is known of the inputs."""
    if moments is None:
        return None
    weights = widen(tensor.words, tensor.dtype).reshape(tensor.shape)
    price = recipe.share.price if isinstance(recipe.share, RateRule) else 1.0
    return Calibrated(name, weights, pruned.mask, moments, price)


def levels_to_caller() -> int:
    """Return the stack level, for a warning of the calling function, of the first frame outside of here."""
    here = inspect.currentframe()
    frame = here.f_back if here is not None else None
    level = 1
    while frame is not None and frame.f_back is not None and _is_ours(frame.f_globals.get("__name__")):
        frame = frame.f_back
        level += 1
    return level


def _is_ours(module: object) -> bool:
    """Return whether this is the name of a module of the package."""
    return isinstance(module, str) and module.partition(".")[0] == "dcompress"


def _is_usable(name: str, tensor: TensorData) -> bool:
    """Return whether a tensor can be compressed; warn if that fails for its values."""
    if not is_compressible(tensor):
        return False
    n_bad = count_nonfinite(tensor.words, tensor.dtype)
    if n_bad:
        warnings.warn(
            f"tensor {name!r} holds {n_bad} NaN or infinite values: it is stored losslessly",
            DcompressWarning,
            stacklevel=levels_to_caller(),
        )
    return not n_bad


def _tie(plan: Mapping[str, TensorRecipe], ties: Mapping[str, str]) -> dict[str, TensorRecipe]:
    """Return a plan without tied names: what is asked for one holds for the first, and so does lossless.

    Who excludes one of them excludes all.
    """
    result = {name: recipe for name, recipe in plan.items() if name not in ties}
    askers: dict[str, str] = {}
    for name, recipe in plan.items():
        first = ties.get(name, name)
        if recipe.explicit or recipe.explicit_prune:
            asker = askers.setdefault(first, name)
            if recipe != plan[asker]:
                raise RecipeError(f"{asker!r} and {name!r} are one tied tensor, but their rules differ")
            result[first] = recipe
        elif first not in askers and recipe.share is None and recipe.prune is None:
            result[first] = recipe
    for name, recipe in plan.items():
        if recipe.excluded:
            result[ties.get(name, name)] = recipe
    return result
