"""Stages 1 and 2 of a whole checkpoint, one tensor at a time.

But for rate-aware sharing: there the price of a label depends on all that is coded beside it, so tensors go
through stage 2 together, in groups of consecutive ones.
"""

from __future__ import annotations

import dataclasses
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from weakref import WeakValueDictionary

import numpy as np

from dcompress.errors import DcompressWarning, RecipeError
from dcompress.floats import SHAREABLE, FloatArray, blocks, count_nonfinite, widen
from dcompress.profiles import FULL, PROFILES, Profile
from dcompress.prune import global_threshold, prune, quality_threshold, sparsity_mask, threshold_mask
from dcompress.rate_groups import rate_groups, share_group
from dcompress.recipe import PruneRule, RateRule, Recipe, TensorRecipe
from dcompress.settings import DEFAULT_EFFORT
from dcompress.share import share
from dcompress.stages import Checkpoint, PrunedTensor, SharedTensor, TensorData, tensor_specs
from dcompress.values import find_values

__all__ = [
    "CompressedTensors",
    "compress_checkpoint",
    "compress_tensor",
    "resolve_global_scopes",
]

# How many values a tensor may hold to be taken as shared already, by bytes of a weight. The format codes up
# to 4,096 as labels; but an ordinary bfloat16 tensor holds one or two thousand.
_MAX_VALUES = {2: 512, 4: 4096, 8: 4096}
_PRUNED_ALREADY = 0.25  # zeros, as a fraction, beyond which a preset takes a tensor as pruned


def compress_tensor(
    name: str, tensor: TensorData, recipe: TensorRecipe, *, effort: int = DEFAULT_EFFORT
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
        pruned = _prune(tensor, recipe)
        if share_rule is None:
            return _with_zeros(tensor, pruned)
        if isinstance(share_rule, RateRule):
            shared = share_group({name: (pruned, tensor.dtype, share_rule)}, effort)[name]
            return _with_zeros(tensor, pruned) if shared is None else shared
        return share(pruned, tensor.dtype, **dataclasses.asdict(share_rule))
    except RecipeError as error:
        raise RecipeError(f"tensor {name!r}: {error}") from error


def compress_checkpoint(
    checkpoint: Checkpoint, recipe: Recipe, *, effort: int = DEFAULT_EFFORT, threads: int | None = None
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

    Returns
    -------
    tensors : CompressedTensors
        A mapping in the order of the checkpoint; tied names give the same object while it is alive.

    Raises
    ------
    RecipeError
        A pattern matches nothing, settings do not fit, or tied names are given different rules.
    """
    specs = tensor_specs(checkpoint.tensors)
    plan = resolve_global_scopes(_tie(recipe.plan(specs), checkpoint.ties), checkpoint.tensors.__getitem__)
    groups = rate_groups(plan, specs)
    return CompressedTensors(checkpoint, plan, groups, effort, threads, PROFILES[recipe.profile])


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
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        plan: dict[str, TensorRecipe],
        groups: Mapping[str, tuple[str, ...]],
        effort: int = DEFAULT_EFFORT,
        threads: int | None = None,
        profile: Profile = FULL,
    ) -> None:
        self.checkpoint = checkpoint
        self.plan = plan
        self.groups = groups
        self.effort = effort
        self.threads = threads
        self.profile = profile
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
            return compress_tensor(name, tensor, self.plan[name])
        if name not in self._group:
            self._group = {}  # free the memory of the last one first
            self._group = self._share(names)
        made = self._group[name]
        return tensor if made is None else made

    def _share(self, names: Sequence[str]) -> dict[str, SharedTensor | TensorData | None]:
        """Return the tensors of a group; None for those that stay as they are."""
        jobs = {}
        for name in names:
            tensor, recipe = self.checkpoint.tensors[name], self.plan[name]
            if _is_usable(name, tensor):
                assert isinstance(recipe.share, RateRule)
                jobs[name] = _prune_named(name, tensor, recipe), tensor.dtype, recipe.share
        result: dict[str, SharedTensor | TensorData | None] = dict.fromkeys(names)
        for name, shared in share_group(jobs, self.effort, self.threads, self.profile).items():
            result[name] = shared or _with_zeros(self.checkpoint.tensors[name], jobs[name][0])
        return result


def resolve_global_scopes(
    plan: Mapping[str, TensorRecipe], loader: Callable[[str], TensorData]
) -> dict[str, TensorRecipe]:
    """Return a plan in which every sparsity over a group of tensors has become a threshold.

    Parameters
    ----------
    plan : mapping of str to TensorRecipe
        Of the tensors that are compressed: tied names only once.
    loader : callable
        Returns a tensor by name; called twice for each tensor of a group, none is kept.

    Raises
    ------
    RecipeError
        Tensors of one group are given different sparsities.
    """
    groups: dict[str, dict[str, PruneRule]] = {}
    for name, recipe in plan.items():
        if recipe.prune is not None and recipe.prune.scope != "tensor":
            groups.setdefault(recipe.prune.scope, {})[name] = recipe.prune
    resolved = dict(plan)
    for scope, rules in groups.items():
        sparsities = {rule.sparsity for rule in rules.values()}
        sparsity = sparsities.pop()
        if sparsities or sparsity is None:
            raise RecipeError(f"tensors of scope {scope!r} are given different sparsities")
        threshold = global_threshold([_Loader(loader, name, plan[name]) for name in rules], sparsity)
        for name in rules:
            resolved[name] = dataclasses.replace(plan[name], prune=PruneRule(threshold=threshold))
    return resolved


@dataclasses.dataclass(frozen=True)
class _Loader:
    """Loads the weights that one tensor adds to a group: none if it will not be pruned."""

    load: Callable[[str], TensorData]
    name: str
    recipe: TensorRecipe

    def __call__(self) -> FloatArray:
        tensor = self.load(self.name)
        if not _compressible(tensor) or count_nonfinite(tensor.words, tensor.dtype):
            return np.empty(0, np.float32)
        return widen(tensor.words, tensor.dtype)


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


def _compressible(tensor: TensorData) -> bool:
    """Return whether a tensor has weights that can be pruned and shared."""
    return tensor.dtype.name in SHAREABLE and tensor.words.size > 0


def _is_usable(name: str, tensor: TensorData) -> bool:
    """Return whether a tensor can be compressed; warn if that fails for its values."""
    if not _compressible(tensor):
        return False
    n_bad = count_nonfinite(tensor.words, tensor.dtype)
    if n_bad:
        warnings.warn(
            f"tensor {name!r} holds {n_bad} NaN or infinite values: it is stored losslessly",
            DcompressWarning,
            stacklevel=levels_to_caller(),
        )
    return not n_bad


def _prune_named(name: str, tensor: TensorData, recipe: TensorRecipe) -> PrunedTensor:
    """Return what stage 1 keeps of a tensor; errors name it."""
    try:
        return _prune(tensor, recipe)
    except RecipeError as error:
        raise RecipeError(f"tensor {name!r}: {error}") from error


def _prune(tensor: TensorData, recipe: TensorRecipe) -> PrunedTensor:
    """Return what stage 1 keeps of a tensor."""
    weights = widen(tensor.words, tensor.dtype).reshape(tensor.shape)
    rule = recipe.prune
    if not recipe.explicit_prune and np.count_nonzero(weights) < (1 - _PRUNED_ALREADY) * weights.size:
        rule = None  # a preset's sparsity is for dense networks: one pruned in training keeps its mask
    if rule is None:
        return prune(weights)
    if rule.sparsity is not None:
        return prune(weights, sparsity_mask(weights, rule.sparsity))
    threshold = rule.threshold
    if threshold is None:
        threshold = quality_threshold(weights, rule.quality or 0.0)
    return prune(weights, threshold_mask(weights, threshold))


def _with_zeros(tensor: TensorData, pruned: PrunedTensor) -> TensorData:
    """Return a tensor with zeros where it is pruned, and the exact words it had elsewhere."""
    words = np.zeros_like(tensor.words)
    mask = pruned.mask.reshape(-1)
    for part in blocks(words.size):
        np.copyto(words[part], tensor.words[part], where=mask[part])
    return TensorData(tensor.dtype, tensor.shape, words)


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
