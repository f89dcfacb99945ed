"""One change of masks: the stages of `settings`, carried out on the tensors of a model."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dcompress.errors import RecipeError
from dcompress.train.importance import unit_scores
from dcompress.train.masks import keep_n_of_m, kept_above, kept_units, standard_deviation
from dcompress.train.parametrizations import Watcher
from dcompress.train.recurrent import is_recurrent
from dcompress.train.regrow import regrown_units
from dcompress.train.schedules import is_due, level, regrow_fraction
from dcompress.train.settings import PruneStage
from dcompress.train.sites import Site
from dcompress.train.statistics import Statistics
from dcompress.train.units import from_units, n_units, to_units, unit_sizes

__all__ = ["PruneJob", "prune_jobs", "set_watchers", "update_masks", "watch"]


@dataclass(eq=False)
class PruneJob:
    """A stage and the tensors that compete with each other in it.

    Attributes
    ----------
    stage : PruneStage
        What is done; of several tables with one scope the first.
    sites : list of Site
        The tensors.
    statistics : dict of str to Statistics
        What was watched of each, by name.
    hooks : list
        Forward hooks, to be removed in the end.
    """

    stage: PruneStage
    sites: list[Site]
    statistics: dict[str, Statistics] = field(default_factory=dict)
    hooks: list[RemovableHandle] = field(default_factory=list)

    @property
    def watches_gradients(self) -> bool:
        """Whether gradients are needed."""
        asked = self.stage.importance in ("gradient", "taylor", "fisher") or callable(self.stage.importance)
        return asked or self.stage.schedule == "regrow"

    @property
    def watches_channels(self) -> bool:
        """Whether activations are needed."""
        return self.stage.importance in ("activation_mean", "apoz") or callable(self.stage.importance)

    def wants_to_watch(self, step: int) -> bool:
        """Return whether the pass after a step is one of those that the next change of masks goes by."""
        if not self.watches_gradients and not self.watches_channels:
            return False
        soon = range(step + 1, step + 1 + self.stage.n_observed)
        return any(is_due(self.stage, later) for later in soon)


def prune_jobs(stages: Sequence[PruneStage], sites: Sequence[Sequence[Site]]) -> list[PruneJob]:
    """Return the jobs of a recipe: one for each tensor, or for each scope.

    Raises
    ------
    RecipeError
        Tables of one scope differ in more than their pattern, or a number of units is larger than what
        there is.
    """
    jobs: list[PruneJob] = []
    by_scope: dict[str, PruneJob] = {}
    for stage, found in zip(stages, sites, strict=True):
        if stage.scope == "tensor":
            jobs += [PruneJob(stage, [site]) for site in found]
        elif stage.scope not in by_scope:
            by_scope[stage.scope] = PruneJob(stage, list(found))
            jobs.append(by_scope[stage.scope])
        else:
            job = by_scope[stage.scope]
            if _without_pattern(stage) != _without_pattern(job.stage):
                stage.fail(f"scope {stage.scope!r} has other settings in the stage for {job.stage.pattern!r}")
            job.sites += [site for site in found if site not in job.sites]
    for job in jobs:
        total = sum(n_units(tuple(site.original.shape), job.stage.grains) for site in job.sites)
        if job.stage.n_pruned is not None and job.stage.n_pruned > total:
            names = ", ".join(repr(site.name) for site in job.sites)
            job.stage.fail(f"n_pruned is {job.stage.n_pruned}, but {names} has only {total} units")
    return jobs


def update_masks(job: PruneJob, step: int, optimizer: torch.optim.Optimizer | None) -> None:
    """Choose the masks of a job anew, from the weights as they are.

    What is pruned stays pruned, but for the schedule "regrow": what grows again starts from zero, and the
    optimizer forgets its past.

    Raises
    ------
    RecipeError
        Something that the importance needs was not watched; the tensor is named.
    """
    stage, grains = job.stage, job.stage.grains
    scores = [_scores(job, site, step) for site in job.sites]
    if stage.schedule == "regrow" and step > stage.begin:
        _regrow(job, scores, regrow_fraction(stage, step), optimizer)
    else:
        amount = level(stage, step)
        if grains.kind == "n:m":
            kept = [keep_n_of_m(score, int(amount)) for score in scores]
        elif stage.sparsity is not None or stage.n_pruned is not None:
            shapes = [tuple(site.original.shape) for site in job.sites]
            kept = kept_units(scores, [unit_sizes(shape, grains) for shape in shapes], amount)
        else:
            kept = []
            for site, score in zip(job.sites, scores, strict=True):
                deviation = standard_deviation(site.peek()) if stage.quality is not None else 1.0
                kept.append(kept_above(score, amount * deviation))
        for site, units in zip(job.sites, kept, strict=True):
            mask = _mask(site)
            mask &= from_units(units, tuple(mask.shape), grains)
    for statistics in job.statistics.values():
        statistics.clear()


def watch(job: PruneJob, model: nn.Module) -> None:
    """Give a job its statistics, and the modules whose activations it needs their hooks.

    The hooks stand from the start, so that `torch.compile` sees them; they do nothing until asked.

    Raises
    ------
    RecipeError
        The module to observe is not there, or the channels of a recurrent layer are asked for.
    """
    is_channel = job.stage.grains.kind == "channel"
    for site in job.sites:
        statistics = job.statistics[site.name] = Statistics()
        if not job.watches_channels:
            continue
        module, of_inputs = site.module, is_channel
        if job.stage.observe is not None:
            try:
                module = model.get_submodule(job.stage.observe)
            except AttributeError:
                job.stage.fail(f"observe: the model has no module {job.stage.observe!r}")
            of_inputs = False
        elif is_recurrent(module):  # several rows of a weight for each channel, and hidden inputs
            if not callable(job.stage.importance):
                job.stage.fail(
                    f"parameter {site.name!r}: importance {job.stage.importance!r} watches channels, but the "
                    f"rows of a {type(module).__name__} are gates: take one of weights or gradients, as 'l2'"
                )
            continue
        elif hasattr(module, "transposed") and module.transposed:
            of_inputs = not is_channel  # its weight has the inputs first
        hook = partial(statistics.watch_channels, of_inputs=of_inputs)
        job.hooks.append(module.register_forward_hook(hook))


def set_watchers(jobs: Sequence[PruneJob], sites: Collection[Site], step: int) -> None:
    """Have gradients and activations watched after a step, if a change of masks will need them."""
    wanted: dict[str, list[Watcher]] = {site.name: [] for site in sites}
    for job in jobs:
        on = job.wants_to_watch(step)
        for name, statistics in job.statistics.items():
            statistics.watching = on
            if on and job.watches_gradients:
                wanted[name].append(statistics.add_grad)
    for site in sites:
        if site.mask is not None:
            site.mask.watcher = partial(_call_each, wanted[site.name]) if wanted[site.name] else None


def _call_each(watchers: Sequence[Watcher], grad: Tensor) -> None:
    """Call several functions with a gradient."""
    for watcher in watchers:
        watcher(grad)


def _scores(job: PruneJob, site: Site, step: int) -> Tensor:
    """Return the importance of the units of a tensor; minus infinity where they are pruned already."""
    stage, grains = job.stage, job.stage.grains
    statistics = job.statistics.get(site.name, Statistics())
    seed = zlib.crc32(f"{stage.seed} {site.name} {step}".encode())
    sample = statistics.sample(site.peek(), 1 if grains.kind == "channel" else 0, seed)
    try:
        scores = unit_scores(sample, stage.importance, grains)
    except RecipeError as error:
        stage.fail(f"parameter {site.name!r}: {error}")
    rows = to_units(_mask(site), grains)
    return torch.where(rows if grains.kind == "n:m" else rows.any(1), scores, -torch.inf)


def _regrow(
    job: PruneJob, scores: Sequence[Tensor], fraction: float, optimizer: torch.optim.Optimizer | None
) -> None:
    """Drop the least important units of a job's tensors, and grow as many where the gradient is largest."""
    grains = job.stage.grains
    for site, score in zip(job.sites, scores, strict=True):
        mask = _mask(site)
        shape = tuple(mask.shape)
        kept = to_units(mask, grains).any(1)
        seen = job.statistics[site.name].sample(site.peek(), 0, 0)
        if seen.grad is None:
            job.stage.fail(f"parameter {site.name!r}: no gradient was seen since the masks last changed")
        gradients = to_units(seen.grad.abs(), grains).sum(1) / unit_sizes(shape, grains).to(mask.device)
        now = regrown_units(kept, score, gradients, fraction)
        grown = from_units(now & ~kept, shape, grains)
        mask.copy_((mask & from_units(now, shape, grains)) | grown)
        with torch.no_grad():
            site.original.masked_fill_(grown, 0.0)
        _forget(optimizer, site.original, grown)


def _forget(optimizer: torch.optim.Optimizer | None, parameter: Tensor, places: Tensor) -> None:
    """Make an optimizer forget what it knows of some places of a parameter, such as their momentum."""
    state = optimizer.state.get(parameter, {}) if optimizer is not None else {}
    for value in state.values():
        if isinstance(value, Tensor) and value.shape == places.shape:
            value.masked_fill_(places, 0.0)


def _mask(site: Site) -> Tensor:
    """Return the mask of a tensor that is pruned: the one in use, to be changed in place."""
    assert site.mask is not None
    return site.mask.mask


def _without_pattern(stage: PruneStage) -> dict[str, object]:
    """Return the settings of a stage but for its pattern."""
    return {key: value for key, value in vars(stage).items() if key not in ("pattern", "origin")}
