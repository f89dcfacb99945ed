"""The smallest file that keeps a user's own metric, in few evaluations."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from dcompress.atomic import atomic_writer
from dcompress.calibration import Calibration, CalibrationLike, as_calibration
from dcompress.calibration.collect import calibrator
from dcompress.checkpoint import checkpoint_from_state_dict
from dcompress.crossing import find_crossing
from dcompress.encode import EncodedFrame
from dcompress.errors import EncodeError, RecipeError
from dcompress.evaluation import Evaluate, Evaluator
from dcompress.recipe import Recipe, RecipeLike, as_recipe
from dcompress.settings import DEFAULT_EFFORT, check_effort
from dcompress.step_search import Figures, Search
from dcompress.threads import usable_threads
from dcompress.torch import load

__all__ = ["Evaluation", "SearchResult", "search"]

_START_DB = 20.0  # where most networks begin to lose
_FEWEST = 5  # evaluations: two of the model itself, two to compare, one to make sure


@dataclass(frozen=True)
class Evaluation:
    """One file that was tried.

    Attributes
    ----------
    step : float
        The model's step; 0 if it was encoded without loss.
    n_bytes : int
        Size of the file.
    sqnr : float
        In dB, over all matrices and kernels together.
    metric : float
        What the user's function gave for the decoded file.
    kept : bool
        Whether that is within what may be lost.
    """

    step: float
    n_bytes: int
    sqnr: float
    metric: float
    kept: bool


@dataclass(frozen=True, eq=False)
class SearchResult:
    """The smallest file found that keeps the metric.

    Attributes
    ----------
    frame : EncodedFrame
        The file, ready to be written; see `save`.
    recipe : Recipe
        Encoding by it, with the same effort, metadata and calibration, gives the same file: where that is
        done layer by layer, the calibration for this recipe.
    figures : Figures
        Its size and quality.
    baseline, metric : float
        The metric of the model as it is, and with the decoded weights of the file (the mean, if it was
        measured more than once).
    history : tuple of Evaluation
        Every file that was evaluated, in order.
    n_evaluations : int
        How often the metric was measured, the model's own included.
    """

    frame: EncodedFrame
    recipe: Recipe
    figures: Figures
    baseline: float
    metric: float
    history: tuple[Evaluation, ...]
    n_evaluations: int

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = True) -> None:
        """Write the file, atomically.

        Raises
        ------
        OSError
            The file cannot be written, or exists and may not be replaced; an old file is kept.
        """
        with atomic_writer(path, overwrite=overwrite) as stream:
            self.frame.write(stream)

    def to_bytes(self) -> bytes:
        """Return the file as one byte string."""
        return self.frame.to_bytes()

    def __str__(self) -> str:
        lines = [f"{'step':>10}  {'bytes':>12}  {'SQNR':>8}  {'metric':>12}"]
        for one in self.history:
            chosen = one.step == self.figures.step or (one.step == 0 and math.isinf(self.figures.step))
            mark = "  <- chosen" if chosen else "" if one.kept else "  lost"
            quality = "exact" if math.isinf(one.sqnr) else f"{one.sqnr:.2f} dB"
            lines.append(f"{one.step:10.6g}  {one.n_bytes:12,}  {quality:>8}  {one.metric:12.6g}{mark}")
        ratio = f"ratio {self.figures.ratio:.2f}"
        lines.append(
            f"{self.figures.n_bytes:,} bytes, {ratio}; metric {self.metric:.6g} of {self.baseline:.6g}, "
            f"{self.n_evaluations} evaluations"
        )
        return "\n".join(lines)


def search(
    model: nn.Module,
    evaluate: Evaluate,
    *,
    max_drop: float = 0.5,
    lower_is_better: bool = False,
    recipe: RecipeLike = None,
    baseline: float | None = None,
    noisy: bool = False,
    max_evaluations: int = 12,
    metadata: Mapping[str, str] | None = None,
    effort: int = DEFAULT_EFFORT,
    threads: int | None = None,
    watch: Callable[[Evaluation], None] | None = None,
    calibration: CalibrationLike | Iterable[Any] = None,
) -> SearchResult:
    """Return the smallest file of a model that keeps its metric, in few evaluations.

    The precision of all matrices and kernels is searched for, as for the targets of `save_file`; each trial
    is encoded, decoded and put into the model before it is evaluated.

    Parameters
    ----------
    model : Module
        Left as it was: weights, buffers and modes.
    evaluate : callable
        Given the model, returns a number, such as the accuracy on data that was held out. It need not be
        smooth, nor the same each time. It is asked twice for the model itself: if the two differ, files
        beside the border are evaluated up to three times too, and their means count.
    max_drop : float
        How much worse it may become, in the units of ``evaluate``; at least 0.
    lower_is_better : bool
        Whether less is better, as of a loss.
    recipe : Recipe, str, path-like, dict or None
        Rules, exclusions and sparsity that stay in force; ``balanced`` if None.
    baseline : float, optional
        The metric of the model as it is, if it is known: saves two evaluations.
    noisy : bool
        With a ``baseline``: whether ``evaluate`` gives something else each time.
    max_evaluations : int
        Of ``evaluate``; at least 5.
    metadata : mapping of str to str, optional
        Free string metadata of the file.
    effort : int
        From 1, fast, to 9, smallest.
    threads : int, optional
        Threads that encode; all there are by default.
    watch : callable, optional
        Told of each trial.
    calibration : Calibration, path-like or iterable, optional
        What `dcompress.calibrate` gathered from the model, or its file. Or batches for it, all of them kept
        in memory: the model is then calibrated layer by layer for each trial, which gives the smallest files.

    Returns
    -------
    result : SearchResult
        With the file, its recipe, its figures, and all that was tried.

    Raises
    ------
    RecipeError
        Even the finest file loses too much, or the recipe does not fit the model.
    EncodeError
        ``evaluate`` returns no number, or an argument is out of range.

    Examples
    --------
    >>> result = search(model, accuracy, max_drop=0.5)  # doctest: +SKIP
    >>> result.save("model.dcz")  # doctest: +SKIP
    """
    if not isinstance(max_drop, (int, float)) or isinstance(max_drop, bool) or not 0 <= max_drop < math.inf:
        raise EncodeError(f"max_drop must be a number, at least 0, not {max_drop!r}")
    if type(max_evaluations) is not int or max_evaluations < _FEWEST:
        raise EncodeError(
            f"max_evaluations must be a whole number, at least {_FEWEST}, not {max_evaluations!r}"
        )
    if baseline is not None and not math.isfinite(baseline):
        raise EncodeError(f"baseline must be a finite number, not {baseline!r}")
    check_effort(effort)
    chosen = as_recipe(recipe)
    with Evaluator(model, evaluate, lower_is_better=lower_is_better) as evaluator:
        checkpoint = checkpoint_from_state_dict(evaluator.state_dict(), dict(metadata or {}))
        known = _calibrator(model, calibration, effort)
        steps = Search(checkpoint, chosen, effort=effort, threads=usable_threads(threads), calibration=known)
        trials = _Trials(steps, evaluator, max_drop, watch)
        start, bounds = steps.places(_START_DB)
        own = [evaluator.measure_own() for _ in range(2)] if baseline is None else [baseline]
        trials.baseline = sum(own) / len(own)
        found = find_crossing(
            trials.margin,
            start,
            bounds,
            scale=max_drop or 1e-9 + abs(trials.baseline) / 100,
            max_calls=max_evaluations - evaluator.n_calls,
            noisy=len(set(own)) > 1 if baseline is None else noisy,
        )
        if found is None:
            raise RecipeError(trials.describe_failure())
        result = trials.result(_step(found), evaluator.n_calls)
    if result.figures.ratio <= 2 and (exact := steps.lossless()).n_bytes <= result.figures.n_bytes:
        raise RecipeError(
            f"the smallest file that keeps the metric has {result.figures.n_bytes:,} bytes, and the model "
            f"comes to {exact.n_bytes:,} without any sharing: use preset lossless"
        )
    return result


def _calibrator(
    model: nn.Module, calibration: object, effort: int
) -> Calibration | Callable[[Recipe], Calibration] | None:
    """Return statistics, or what gathers them for a recipe."""
    given = isinstance(calibration, (Calibration, str, os.PathLike))
    if calibration is None or given or not isinstance(calibration, Iterable):
        return as_calibration(calibration)
    if isinstance(calibration, (Tensor, Mapping)):
        kind = type(calibration).__name__
        raise EncodeError(f"calibration must be statistics, their file, or batches in a list, not {kind}")
    return calibrator(model, calibration, effort=effort)


class _Trials:
    """The files that are tried, and what becomes of the metric."""

    def __init__(
        self,
        steps: Search,
        evaluator: Evaluator,
        max_drop: float,
        watch: Callable[[Evaluation], None] | None,
    ) -> None:
        self.baseline = 0.0
        self._steps = steps
        self._evaluator = evaluator
        self._max_drop = max_drop
        self._watch = watch
        self._frames: dict[float, EncodedFrame] = {}
        self._history: list[Evaluation] = []

    def margin(self, place: float) -> float:
        """Return how much of what may be lost is left, with the weights of a decoded file."""
        step = _step(place)
        if step not in self._frames:
            self._frames[step] = self._steps.try_step(step)
        metric = self._evaluator.measure(load(self._frames[step].to_bytes()))
        margin = self._evaluator.margin(metric, self.baseline, self._max_drop)
        figures = self._steps.trials[step]
        one = Evaluation(step, figures.n_bytes, figures.sqnr, metric, margin >= 0)
        self._history.append(one)
        if self._watch is not None:
            self._watch(one)
        return margin

    def result(self, step: float, n_evaluations: int) -> SearchResult:
        """Return what was found."""
        metrics = [one.metric for one in self._history if one.step == step]
        return SearchResult(
            self._frames[step],
            dataclasses.replace(self._steps.recipe, step=step),
            self._steps.trials[step],
            self.baseline,
            sum(metrics) / len(metrics),
            tuple(self._history),
            n_evaluations,
        )

    def describe_failure(self) -> str:
        """Return why there is no file."""
        finest = min(self._history, key=lambda one: one.step)
        return (
            f"no file keeps the metric within {self._max_drop:g} of {self.baseline:.6g}: the finest that "
            f"was tried ({finest.sqnr:.1f} dB, {finest.n_bytes:,} bytes) gives {finest.metric:.6g}; allow a "
            "larger max_drop, relax what the recipe prunes and shares, or make evaluate less noisy"
        )


def _step(place: float) -> float:
    """Return the step at a place of the search."""
    return float(f"{2.0**place:.6g}")
