"""One object around a training loop: it prunes, shares and quantises a model while it learns."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from dcompress.errors import DcompressWarning, EncodeError, RecipeError
from dcompress.train.charges import charge, is_charging, recount, start_rounding
from dcompress.train.parametrizations import CodebookParametrization, RoundParametrization
from dcompress.train.pruner import prune_jobs, set_watchers, update_masks, watch
from dcompress.train.recipe import RecipeLike, TrainRecipe
from dcompress.train.schedules import is_due
from dcompress.train.settings import PenaltyStage, PruneStage, QuantizeStage, RateStage, ShareStage, Stage
from dcompress.train.sharer import assign, check_trained, start_sharing
from dcompress.train.sites import Site, attach, detach, find_sites, plain_state

__all__ = ["Compressor", "StepReport"]

_PATIENCE = 10  # steps


@dataclass(frozen=True)
class StepReport:
    """What a call of `Compressor.step` changed.

    Attributes
    ----------
    step : int
        Number of calls so far.
    pruned, shared, quantized : tuple of str
        Parameters whose mask was chosen anew; whose labels were; whose rounding began.
    rewound : bool
        Whether the parameters went back to their saved values.
    """

    step: int
    pruned: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()
    quantized: tuple[str, ...] = ()
    rewound: bool = False


class Compressor:
    """Prunes, shares and quantises a model while it is trained.

    Make it before the optimizer (or give it the optimizer) and before `torch.compile`; add `regularizer` to
    the loss if the recipe has penalties or prices, call `step` after each step of the optimizer, and
    `finish` in the end. For a checkpoint, save the ``state_dict`` of the model, of the optimizer and of
    this; to resume, make all three anew and load them.

    Under DistributedDataParallel all ranks choose the same masks only by importances of the weights:
    gradients and activations are watched on each rank by itself.

    Parameters
    ----------
    model : Module
        Plain; until `finish` the parameters that the recipe names are parametrized.
    recipe : TrainRecipe, Stage, sequence of Stage, dict, str or path
        The stages, or a TOML file with ``[[train]]`` tables.
    optimizer : Optimizer, optional
        One that exists already: it is given the codebooks, with the settings of their weights, and made to
        forget the momentum of what regrows or is rewound.
    masks : mapping of str to Tensor, optional
        Given masks: bool, True = kept, in the shape of the parameter; kept to from the first step on.

    Raises
    ------
    RecipeError
        The recipe does not fit the model: the stage and the parameter are named, and nothing is changed.

    Examples
    --------
    >>> model = nn.Linear(8, 2)
    >>> compressor = Compressor(model, PruneStage("weight", sparsity=0.75))
    >>> compressor.sparsity("weight")
    0.75
    >>> type(compressor.finish())
    <class 'torch.nn.modules.linear.Linear'>
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: RecipeLike,
        *,
        optimizer: torch.optim.Optimizer | None = None,
        masks: Mapping[str, Tensor] | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise RecipeError(f"a model (torch.nn.Module) is wanted, not {type(model).__name__}")
        if hasattr(model, "_orig_mod"):
            raise RecipeError("the model is compiled: make the Compressor first, then call torch.compile")
        if optimizer is not None:
            known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
            if not any(id(parameter) in known for parameter in model.parameters()):
                raise RecipeError("the optimizer has no parameter of this model")
        self.model = model
        self.recipe = TrainRecipe.of(recipe)
        self.n_steps = 0
        self._optimizer = optimizer
        self._finished = False
        self._keys = list(model.state_dict())
        self._steps: dict[str, Tensor] = {}
        self._n_unpaid: int | None = 0  # steps in which a charge was due; None once someone asked for it
        stages = self.recipe.stages
        given = dict(masks or {})
        self._sites, matched = find_sites(model, stages, given)
        self._stages: list[tuple[Stage, list[Site]]] = [
            (stage, [self._sites[name] for name in names])
            for stage, names in zip(stages, matched, strict=True)
        ]
        pairs = [(stage, sites) for stage, sites in self._stages if isinstance(stage, PruneStage)]
        self._jobs = prune_jobs([stage for stage, _ in pairs], [sites for _, sites in pairs])
        self._saved: dict[str, Tensor] = {}
        try:
            for job in self._jobs:
                watch(job, model)
            attach(self._sites, stages, matched, given)
            if any(job.stage.rewind for job in self._jobs):
                self.save_weights()
            self._act(0)
        except BaseException:
            self._let_go(keep_used=False)
            raise
        self._adopt_codebooks()
        set_watchers(self._jobs, self._sites.values(), 0)

    def step(self) -> StepReport:
        """Count a training step, do what the recipe says for it, and return what changed.

        Call it after ``optimizer.step()``.

        Raises
        ------
        RecipeError
            An importance needs what was not watched.
        EncodeError
            `finish` was called already.

        Warns
        -----
        DcompressWarning
            A codebook has not changed since it is in use, so the optimizer does not know it; or the recipe
            has penalties or prices, but nobody asks for the `regularizer`.
        """
        self._check_open()
        if self._n_unpaid is not None:
            self._n_unpaid += is_charging(self._stages, self.n_steps)
            if self._n_unpaid == _PATIENCE:
                self._remind()
        self.n_steps += 1
        report = self._act(self.n_steps)
        set_watchers(self._jobs, self._sites.values(), self.n_steps)
        return report

    def regularizer(self) -> Tensor:
        """Return what the recipe's penalties and prices of bits add to the loss now: 0-d, differentiable."""
        self._check_open()
        self._n_unpaid = None
        return charge(self._stages, self.n_steps, self._device)

    def reassign(self, pattern: str = "*") -> tuple[str, ...]:
        """Give the weights of shared parameters the labels of their nearest centroids.

        Parameters
        ----------
        pattern : str
            A glob of their names.

        Returns
        -------
        names : tuple of str
            The parameters.

        Raises
        ------
        RecipeError
            None of them is shared now, or one has no latent weights.
        """
        self._check_open()
        found = [site for site in self._sites.values() if fnmatchcase(site.name, pattern)]
        shared = [site for site in found if site.codebook is not None and site.codebook.active]
        if not shared:
            raise RecipeError(f"pattern {pattern!r} matches no parameter that is shared at this step")
        for site in shared:
            assert site.codebook is not None
            if not site.codebook.latent:
                raise RecipeError(
                    f"parameter {site.name!r} has no latent weights, so each is on its centroid already: "
                    "set latent = true in its stage"
                )
            assign(site)
        return tuple(site.name for site in shared)

    def save_weights(self) -> None:
        """Save the parameters as they are now, for stages that rewind; done once when this object is made.

        Call it again after some steps for late rewinding (Frankle et al. 2019).
        """
        self._saved = {
            name: parameter.detach().clone()
            for name, parameter in self.model.named_parameters()
            if id(parameter) not in self._codebooks
        }

    def masks(self) -> dict[str, Tensor]:
        """Return copies of the masks: bool, True = kept, by name, in the order of the model."""
        self._check_open()
        return {name: site.mask.mask.clone() for name, site in self._sites.items() if site.mask is not None}

    def sparsity(self, pattern: str = "*") -> float:
        """Return the fraction of zeros among the parameters of the recipe that a pattern matches."""
        self._check_open()
        with torch.no_grad():
            used = [site.peek() for site in self._sites.values() if fnmatchcase(site.name, pattern)]
        if not used:
            raise RecipeError(f"pattern {pattern!r} matches no parameter of the recipe")
        return sum(int((weight == 0).sum()) for weight in used) / sum(weight.numel() for weight in used)

    def steps(self) -> dict[str, Tensor]:
        """Return the steps of the tensors that are rounded now, by name; still there after `finish`.

        Each is 0-d, or has one step for each channel, in a shape that broadcasts; see `to_integers`.
        """
        if self._finished:
            return dict(self._steps)
        rounded = [
            site for site in self._sites.values() if site.rounding is not None and site.rounding.active
        ]
        return {site.name: site.rounding.steps(site.original.detach()) for site in rounded if site.rounding}

    def plain_state_dict(self) -> dict[str, Any]:
        """Return copies of what the state dict would hold if `finish` were called now; ties stay tied.

        For a file of the best epoch so far; training goes on. (Torch cannot copy a parametrized model in a
        way that the copy could be finished.)
        """
        self._check_open()
        return plain_state(self.model, self._sites, self._keys)

    def finish(self) -> nn.Module:
        """Return the model, plain again: its class, its state-dict keys and their order are as they were.

        The parameters have the values that were in use: pruned, shared, rounded.

        Warns
        -----
        DcompressWarning
            A stage has not come to its end, or nobody added penalties or prices to the loss.
        """
        self._check_open()
        if self._n_unpaid is not None and 0 < self._n_unpaid < _PATIENCE:
            self._remind()
        self._steps = self.steps()
        self._finished = True
        self._let_go(keep_used=True)
        last = max((_last_step(stage) for stage, _ in self._stages), default=0)
        if self.n_steps < last:
            warnings.warn(
                f"finish() was called after {self.n_steps} steps, but the recipe goes on to step {last}",
                DcompressWarning,
                stacklevel=2,
            )
        return self.model

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs beside the model and the optimizer; `torch.save` takes it."""
        self._check_open()
        return {
            "n_steps": self.n_steps,
            "stages": self._fingerprint(),
            "active": [bool(one.active) for one in self._switches],
            "statistics": [
                {name: statistics.state_dict() for name, statistics in job.statistics.items()}
                for job in self._jobs
            ],
            "saved": {name: tensor.clone() for name, tensor in self._saved.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a checkpoint left off; the model and the optimizer load theirs by themselves.

        Raises
        ------
        RecipeError
            The checkpoint was made with another recipe.
        """
        self._check_open()
        if "stages" not in state:
            raise RecipeError("this is no checkpoint of a Compressor: its state_dict() makes one")
        if state["stages"] != self._fingerprint():
            raise RecipeError("this checkpoint was made with another recipe, or for another model")
        self.n_steps = state["n_steps"]
        for one, active in zip(self._switches, state["active"], strict=True):
            one.active = active
        for job, by_name in zip(self._jobs, state["statistics"], strict=True):
            for name, statistics in job.statistics.items():
                statistics.load_state_dict(by_name[name], self._sites[name].original.device)
        self._saved = {name: tensor.to(self._device).clone() for name, tensor in state["saved"].items()}
        set_watchers(self._jobs, self._sites.values(), self.n_steps)

    @property
    def _device(self) -> torch.device:
        return next(iter(self.model.parameters())).device

    @property
    def _switches(self) -> list[CodebookParametrization | RoundParametrization]:
        return [one for site in self._sites.values() for one in (site.codebook, site.rounding) if one]

    @property
    def _codebooks(self) -> set[int]:
        return {id(site.codebook.codebook) for site in self._sites.values() if site.codebook}

    def _let_go(self, *, keep_used: bool) -> None:
        """Leave the model without hooks and parametrizations."""
        for job in self._jobs:
            for hook in job.hooks:
                hook.remove()
        for site in self._sites.values():
            if site.mask is not None:
                site.mask.watcher = None
        detach(self._sites, keep_used=keep_used)

    def _check_open(self) -> None:
        if self._finished:
            raise EncodeError("finish() was called: make a new Compressor to go on")

    def _remind(self) -> None:
        """Warn of what should be part of the loss, and is not."""
        warnings.warn(
            "the recipe has penalties or prices, but the loss has none of them: add regularizer() to it",
            DcompressWarning,
            stacklevel=3,
        )

    def _act(self, step: int) -> StepReport:
        """Do what the recipe says for a step."""
        pruned: list[str] = []
        shared: list[str] = []
        quantized: list[str] = []
        rewind = False
        for job in self._jobs:
            if is_due(job.stage, step):
                update_masks(job, step, self._optimizer)
                pruned += [site.name for site in job.sites]
                rewind |= job.stage.rewind
        if rewind:
            self._rewind()
        for stage, sites in self._stages:
            names = [site.name for site in sites]
            if isinstance(stage, ShareStage) and step >= stage.begin:
                elapsed = step - stage.begin
                if elapsed == 0 or (stage.reassign_every and elapsed % stage.reassign_every == 0):
                    for site in sites:
                        start_sharing(site, stage) if elapsed == 0 else assign(site)
                    shared += names
                check_trained(sites, elapsed)
            elif isinstance(stage, (QuantizeStage, RateStage)) and step == stage.begin:
                for site in sites:
                    start_rounding(site, stage)
                quantized += names
        recount(self._stages, step)
        return StepReport(step, tuple(pruned), tuple(shared), tuple(quantized), rewind)

    def _rewind(self) -> None:
        """Set all parameters back to their saved values, and make the optimizer forget."""
        parameters = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, saved in self._saved.items():
                parameters[name].copy_(saved)
        if self._optimizer is not None:
            self._optimizer.state.clear()

    def _adopt_codebooks(self) -> None:
        """Give the optimizer the codebooks, each with the settings that its weight has."""
        for site in self._sites.values():
            if self._optimizer is None or site.codebook is None:
                continue
            for group in list(self._optimizer.param_groups):
                if any(parameter is site.original for parameter in group["params"]):
                    settings = {key: group[key] for key in group if key != "param_names"}
                    self._optimizer.add_param_group({**settings, "params": [site.codebook.codebook]})

    def _fingerprint(self) -> list[str]:
        """Return what tells recipes apart, the user's functions aside."""
        return [f"{stage.fingerprint} {[site.name for site in sites]}" for stage, sites in self._stages]


def _last_step(stage: Stage) -> int:
    """Return the last step at which a stage does something."""
    end: int | None = getattr(stage, "end", None)
    return stage.begin if end is None or isinstance(stage, PenaltyStage) else end
