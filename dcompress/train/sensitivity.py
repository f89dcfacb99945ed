"""How much each layer can lose: the user's metric against sparsity and bits, one tensor at a time."""

from __future__ import annotations

import glob
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from dcompress.checkpoint import checkpoint_from_state_dict, data_to_tensor
from dcompress.compression import compress_checkpoint
from dcompress.errors import RecipeError
from dcompress.evaluation import Evaluate, Evaluator
from dcompress.presets import weights_of
from dcompress.recipe import Recipe, Rule
from dcompress.settings import MAX_BITS, near
from dcompress.stages import Checkpoint, SharedTensor, tensor_specs
from dcompress.train.recipe import TrainRecipe
from dcompress.train.settings import PruneStage, ShareStage, Stage
from dcompress.train.text import align

__all__ = ["Sensitivity", "SensitivityPoint", "scan_sensitivity"]

SPARSITIES = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95)
BITS = (2, 3, 4, 5, 6)


@dataclass(frozen=True)
class SensitivityPoint:
    """The metric with one tensor compressed.

    Attributes
    ----------
    name : str
        The tensor.
    kind : {"sparsity", "bits"}
        What was done to it: pruned by magnitude, or shared by k-means.
    amount : float
        How far.
    metric : float
        What the user's function gave.
    drop : float
        How much worse that is than the model's own; below 0, if it is better; infinite for NaN.
    """

    name: str
    kind: str
    amount: float
    metric: float
    drop: float


@dataclass(frozen=True)
class Sensitivity:
    """What a scan found.

    Attributes
    ----------
    baseline : float
        The metric of the model as it is.
    points : tuple of SensitivityPoint
        In the order of the model; by rising sparsity, and then by rising bits.
    """

    baseline: float
    points: tuple[SensitivityPoint, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors, in order."""
        return tuple(dict.fromkeys(point.name for point in self.points))

    def __str__(self) -> str:
        amounts = {
            kind: sorted({p.amount for p in self.points if p.kind == kind}) for kind in ("sparsity", "bits")
        }
        heads = [f"{100 * one:g} %" for one in amounts["sparsity"]] + [
            f"{one:g} bits" for one in amounts["bits"]
        ]
        columns = [("sparsity", one) for one in amounts["sparsity"]] + [
            ("bits", one) for one in amounts["bits"]
        ]
        metrics = {(point.name, point.kind, point.amount): point.metric for point in self.points}
        rows = [
            [name, *(format(metrics.get((name, *key), math.nan), ".5g") for key in columns)]
            for name in self.names
        ]
        return "\n".join(
            [f"metric of the model as it is: {self.baseline:.5g}", *align(["tensor", *heads], rows)]
        )

    def limits(self, max_drop: float, n_milder: int = 0) -> dict[str, tuple[float | None, int | None]]:
        """Return the largest sparsity and the fewest bits that lose no more, each tensor by itself.

        Parameters
        ----------
        max_drop : float
            How much worse the metric may become.
        n_milder : int
            By how many of the amounts that were tried to stay away from these limits.

        Returns
        -------
        limits : dict of str to (float or None, int or None)
            By tensor; None where even the mildest that was tried loses more.
        """
        limits = {}
        for name in self.names:
            sparsity = self._last_kept(name, "sparsity", max_drop, n_milder)
            bits = self._last_kept(name, "bits", max_drop, n_milder)
            limits[name] = sparsity, None if bits is None else int(bits)
        return limits

    def propose(self, max_drop: float, n_milder: int = 0) -> Recipe:
        """Return a recipe that prunes and shares each tensor as far as it bears it by itself.

        Together the tensors lose more: see `fit`.

        Parameters
        ----------
        max_drop, n_milder
            As for `limits`.
        """
        rules = []
        for name, (sparsity, bits) in self.limits(max_drop, n_milder).items():
            settings: dict[str, Any] = {}
            if sparsity is not None:
                settings["sparsity"] = sparsity
            if bits is not None:
                settings["bits"] = bits
            if settings:
                rules.append(Rule(glob.escape(name), settings))
        return Recipe("lossless", tuple(rules))

    def propose_training(self, max_drop: float, *, begin: int, end: int, every: int = 1) -> TrainRecipe:
        """Return a recipe for training: gradual pruning from one step to another, then sharing.

        Training makes up for much, so ``max_drop`` can be larger than what may be lost in the end.

        Parameters
        ----------
        max_drop : float
            How much worse each tensor may make the metric, before training.
        begin, end, every : int
            Steps, see `PruneStage`; sharing begins at ``end``.
        """
        prunes: list[Stage] = []
        shares: list[Stage] = []
        for name, (sparsity, bits) in self.limits(max_drop).items():
            pattern = glob.escape(name)
            if sparsity is not None:
                prunes.append(
                    PruneStage(pattern, begin, sparsity=sparsity, schedule="cubic", end=end, every=every)
                )
            if bits is not None:
                shares.append(ShareStage(pattern, end, bits=bits))
        if not prunes and not shares:
            raise RecipeError(f"no tensor bears anything within {max_drop:g}: allow more")
        return TrainRecipe((*prunes, *shares))

    def fit(
        self,
        model: nn.Module,
        evaluate: Evaluate,
        *,
        max_drop: float,
        lower_is_better: bool = False,
        max_evaluations: int = 8,
    ) -> tuple[Recipe, float]:
        """Return the proposal that keeps the metric with all tensors compressed together, and its metric.

        What each tensor may lose by itself is halved twice, and then all amounts become milder step by step,
        until the tensors lose no more than ``max_drop`` together.

        Parameters
        ----------
        model, evaluate, lower_is_better
            As for `scan_sensitivity`.
        max_drop : float
            How much worse the metric may become.
        max_evaluations : int
            Proposals to try.

        Raises
        ------
        RecipeError
            None of them keeps the metric.
        """
        _check_drop(max_drop)
        recipes: list[Recipe] = []
        for place in range(max_evaluations):
            recipe = self.propose(max_drop / 2 ** min(place, 2), max(0, place - 2))
            if recipe.rules and recipe not in recipes:
                recipes.append(recipe)
        with Evaluator(model, evaluate, lower_is_better=lower_is_better) as evaluator:
            checkpoint = checkpoint_from_state_dict(evaluator.state_dict())
            for recipe in recipes:
                metric = evaluator.measure(_compressed(checkpoint, recipe, list(checkpoint.tensors)))
                if evaluator.margin(metric, self.baseline, max_drop) >= 0:
                    return recipe, metric
        raise RecipeError(
            f"no proposal keeps the metric within {max_drop:g} of {self.baseline:.6g}: scan milder "
            "sparsities and more bits, or allow more"
        )

    def plot(self, path: str | os.PathLike[str], *, title: str = "", overwrite: bool = True) -> None:
        """Draw the metric of each tensor against sparsity and bits; see `sensitivity_plot.draw`."""
        from dcompress.train.sensitivity_plot import draw

        draw(self, path, title, overwrite)

    def _last_kept(self, name: str, kind: str, max_drop: float, n_milder: int) -> float | None:
        """Return the hardest amount before the first that loses too much, or a milder one."""
        points = sorted(
            (point for point in self.points if point.name == name and point.kind == kind),
            key=lambda point: point.amount if kind == "sparsity" else -point.amount,
        )
        n_kept = next((place for place, point in enumerate(points) if point.drop > max_drop), len(points))
        place = n_kept - 1 - n_milder
        return points[place].amount if place >= 0 else None


def scan_sensitivity(
    model: nn.Module,
    evaluate: Evaluate,
    *,
    sparsities: Sequence[float] = SPARSITIES,
    bits: Sequence[int] = BITS,
    pattern: str = "*",
    lower_is_better: bool = False,
    watch: Callable[[SensitivityPoint], None] | None = None,
) -> Sensitivity:
    """Return how a metric falls when each matrix and kernel is pruned, or shared, by itself.

    Parameters
    ----------
    model : Module
        Left as it was.
    evaluate : callable
        Given the model, returns a number. Called once for the model itself, and once for each tensor and
        amount.
    sparsities : sequence of float
        Fractions to prune by magnitude, in [0, 1].
    bits : sequence of int
        Codebooks of ``2**bits`` values, 1 to 12.
    pattern : str
        A glob of the tensors to scan.
    lower_is_better : bool
        Whether less is better, as of a loss.
    watch : callable, optional
        Told of each point.

    Raises
    ------
    RecipeError
        The pattern matches no matrix and no kernel, or an amount is out of range.
    EncodeError
        ``evaluate`` returns no number.
    """
    for amount in sparsities:
        if isinstance(amount, bool) or not isinstance(amount, (int, float)) or not 0 <= amount <= 1:
            raise RecipeError(f"sparsities must be fractions from 0 to 1, not {amount!r}")
    for amount in bits:
        if type(amount) is not int or not 1 <= amount <= MAX_BITS:
            raise RecipeError(f"bits must be whole numbers from 1 to {MAX_BITS}, not {amount!r}")
    if not sparsities and not bits:
        raise RecipeError("give sparsities, bits, or both")
    points = []
    with Evaluator(model, evaluate, lower_is_better=lower_is_better) as evaluator:
        checkpoint = checkpoint_from_state_dict(evaluator.state_dict())
        known = [name for name in weights_of(tensor_specs(checkpoint.tensors)) if name not in checkpoint.ties]
        names = [name for name in known if fnmatchcase(name, pattern)]
        if not names:
            hint = near(pattern, known, 3) or f"; they are {', '.join(map(repr, known[:3]))}"
            raise RecipeError(f"pattern {pattern!r} matches no matrix and no kernel{hint}")
        baseline = evaluator.measure_own()
        for name in names:
            tied = [name, *(other for other, first in checkpoint.ties.items() if first == name)]
            amounts = [("sparsity", one) for one in sorted(set(sparsities))]
            amounts += [("bits", one) for one in sorted(set(bits))]
            for kind, amount in amounts:
                recipe = Recipe("lossless", (Rule(glob.escape(name), {kind: amount}),))
                metric = evaluator.measure(_compressed(checkpoint, recipe, tied))
                drop = -evaluator.margin(metric, baseline, 0.0)
                point = SensitivityPoint(name, kind, amount, metric, drop)
                points.append(point)
                if watch is not None:
                    watch(point)
    return Sensitivity(baseline, tuple(points))


def _check_drop(max_drop: float) -> None:
    """Raise unless a loss makes sense."""
    if isinstance(max_drop, bool) or not isinstance(max_drop, (int, float)) or not 0 <= max_drop < math.inf:
        raise RecipeError(f"max_drop must be a number, at least 0, not {max_drop!r}")


def _compressed(checkpoint: Checkpoint, recipe: Recipe, names: Sequence[str]) -> dict[str, Tensor]:
    """Return some tensors after stages 1 and 2."""
    compressed = compress_checkpoint(checkpoint, recipe)
    tensors = {}
    for name in names:
        tensor = compressed[name]
        tensors[name] = data_to_tensor(tensor.gather() if isinstance(tensor, SharedTensor) else tensor)
    return tensors
