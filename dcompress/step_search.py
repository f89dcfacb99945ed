"""The step of rate-aware sharing that makes a file as small, or as good, as it is asked to be.

A coarser step makes the file smaller and the error larger, both nearly in a straight line over the logarithm
of the step. So a few trials are enough: each encodes the whole model, from memory, and the best is the file.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from dcompress.calibration import Calibration
from dcompress.decibels import to_decibels
from dcompress.encode import EncodedFrame, Progress, TensorReport, encode_checkpoint
from dcompress.errors import DcompressWarning, RecipeError
from dcompress.matrices import hold, measure_matrix
from dcompress.presets import weights_of
from dcompress.rate import MAX_STEPS
from dcompress.recipe import Recipe
from dcompress.settings import DEFAULT_EFFORT, EFFORT_STATES, share_kind
from dcompress.solve import solve
from dcompress.stages import Checkpoint, tensor_specs
from dcompress.targets import Target

__all__ = ["Figures", "Found", "Search", "describe_miss", "encode_to_target"]

Calibrate = Callable[[Recipe], Calibration]
Watch = Callable[[int], AbstractContextManager[Progress | None]]

_EXACT_DB = 300.0  # stands for no error at all
_WITHIN = 0.01  # of the target
_TRELLIS_STEPS = 1.7  # the step of plain rounding that is as good and as small as a trellis with step 1
_WITHIN_DB = 0.1  # and no further than this from a quality


@dataclass(frozen=True)
class Figures:
    """What one step came to.

    Attributes
    ----------
    step : float
        The model's step; infinite, if there was none: without loss.
    n_bytes : int
        Size of the file.
    ratio : float
        Decoded bytes over the size of the file.
    bits_per_weight : float
        Bits of the whole file per weight of matrices and kernels, tied ones once.
    sqnr : float
        In dB, over all matrices and kernels together, those that are kept lossless among them; tensors with
        NaN or infinite values left out.
    """

    step: float
    n_bytes: int
    ratio: float
    bits_per_weight: float
    sqnr: float

    def of(self, kind: str) -> float:
        """Return the figure of a kind of target."""
        figures = {
            "target_size": self.n_bytes,
            "target_ratio": self.ratio,
            "target_bpw": self.bits_per_weight,
            "quality": self.sqnr,
        }
        return figures[kind]


@dataclass(frozen=True, eq=False)
class Found:
    """A frame that meets its target, as nearly as the model allows.

    Attributes
    ----------
    frame : EncodedFrame
        Ready to be written.
    recipe : Recipe
        With the step; encoding by it, with the same effort and calibration, gives the same frame.
    target : Target
        What was asked.
    figures : Figures
        What it came to. Never on the wrong side of the target.
    met : bool
        Whether that is within 1 % of it, of a quality within 0.1 dB too.
    n_trials : int
        How often the model was encoded.
    """

    frame: EncodedFrame
    recipe: Recipe
    target: Target
    figures: Figures
    met: bool
    n_trials: int


class Search:
    """One model and one recipe, encoded with different steps.

    Parameters
    ----------
    checkpoint : Checkpoint
        Read once, and held in memory.
    recipe : Recipe
        Its own step is not looked at. Rules, exclusions and sparsity stay in force.
    receipt, effort, threads
        As for `dcompress.encode.encode_checkpoint`.
    watch : callable, optional
        Given the number of a trial, returns a context around it with the progress to call, or None.
    calibration : Calibration or callable, optional
        Of the model; or what returns it for a recipe with a step.

    Raises
    ------
    RecipeError
        The recipe states bits for all tensors, which is for the target to choose, its preset is lossless, or
        it does not fit the model.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        recipe: Recipe,
        *,
        receipt: bool = True,
        effort: int = DEFAULT_EFFORT,
        threads: int = 1,
        watch: Watch | None = None,
        calibration: Calibration | Calibrate | None = None,
    ) -> None:
        if recipe.bits is not None:
            raise RecipeError(
                f"bits = {recipe.bits} for all tensors and a target do not go together: the target chooses "
                "the precision; leave bits out, or set it by rules for some tensors"
            )
        if recipe.preset == "lossless":
            raise RecipeError(
                "preset lossless changes nothing, and a target must: leave one of them out, or exclude "
                "the tensors that are to stay as they are"
            )
        self.checkpoint = hold(checkpoint)
        self.recipe = recipe
        self.trials: dict[float, Figures] = {}
        self.n_trials = 0
        self._options: dict[str, Any] = {"receipt": receipt, "effort": effort, "threads": threads}
        self._watch: Watch = watch or (lambda _: nullcontext())
        self._calibration = calibration
        self._memo: dict[Any, TensorReport] | None = None if callable(calibration) else {}
        specs = tensor_specs(self.checkpoint.tensors)
        one, other = (dataclasses.replace(recipe, step=step).plan(specs) for step in (1.0, 2.0))
        stored = [name for name in specs if name not in checkpoint.ties]
        tensors = self.checkpoint.tensors
        self._names = [name for name in weights_of(specs) if name in stored]
        self._matrices = [
            measure_matrix(name, tensors[name], one[name] != other[name]) for name in self._names
        ]
        self._decoded = sum(tensors[name].n_bytes for name in stored)
        self._rest = sum(tensors[name].n_bytes for name in stored if name not in self._names)

    def try_step(self, step: float) -> EncodedFrame:
        """Return the frame of a step; its figures go into ``trials``."""
        frame = self._encode(dataclasses.replace(self.recipe, step=step))
        self.trials[step] = self._figures(step, frame)
        return frame

    def try_recipe(self, recipe: Recipe) -> Figures:
        """Return the figures of another recipe for the same model, to compare with."""
        return self._figures(math.inf, self._encode(recipe))

    def lossless(self) -> Figures:
        """Return the figures without any sharing, but for what rules say; pruning stays."""
        rules = tuple(rule for rule in self.recipe.rules if share_kind(rule.settings) != "rate")
        recipe = dataclasses.replace(self.recipe, preset="lossless", rules=rules, step=None)
        return self.try_recipe(dataclasses.replace(recipe, slope=None, states=None))

    def places(self, quality: float) -> tuple[float, tuple[float, float]]:
        """Return where by theory a quality in dB is, and the bounds: logarithms of base 2 of steps.

        Raises
        ------
        RecipeError
            The model has no weights to quantise.
        """
        target = Target("quality", quality)
        bounds = self._bounds(target)
        return self._guess(target, bounds)[0], bounds

    def approach(self, quality: float, slack: float) -> Figures:
        """Return the figures of the step that comes nearest to a quality, on either side of it.

        Parameters
        ----------
        quality : float
            In dB.
        slack : float
            How far off, in dB, is near enough.
        """
        target = Target("quality", quality)
        self._solve(target, (quality - slack, quality + slack))
        return min(self.trials.values(), key=lambda trial: (abs(trial.sqnr - quality), trial.step))

    def find(self, target: Target) -> Found:
        """Return the best frame on the right side of a target.

        Raises
        ------
        RecipeError
            There is none; or the model comes out as small, or as good, without any loss.
        """
        n_before, window = self.n_trials, _window(target)
        kept = self._solve(target, window)
        best = self._best(target)
        if best is None:
            raise RecipeError(self._out_of_reach(target))
        met = window[0] <= self._level(target, best) <= window[1]
        if not met or 2 * best.n_bytes >= self._decoded or any(matrix.few for matrix in self._matrices):
            self._check_lossless(target, best)
        frame = kept[1] if kept is not None and kept[0] == best.step else self.try_step(best.step)
        recipe = dataclasses.replace(self.recipe, step=best.step)
        return Found(frame, recipe, target, best, met, self.n_trials - n_before)

    def _solve(self, target: Target, window: tuple[float, float]) -> tuple[float, EncodedFrame] | None:
        """Try steps until one is in a window; return step and frame of the best, unless it is an old one."""
        bounds = self._bounds(target)
        kept: tuple[float, EncodedFrame] | None = None

        def measure(place: float) -> float:
            nonlocal kept
            step = float(f"{2.0**place:.6g}")
            frame = self.try_step(step)
            if self._best(target) is self.trials[step]:
                kept = step, frame
            return self._level(target, self.trials[step])

        known = [(math.log2(step), self._level(target, trial)) for step, trial in self.trials.items()]
        start, slope = self._guess(target, bounds)
        solve(measure, start, slope, bounds, window, known)
        return kept

    def _bounds(self, aim: object) -> tuple[float, float]:
        """Return the finest and the coarsest step worth a trial, as logarithms of base 2."""
        largest = [matrix.largest for matrix in self._matrices if matrix.free and matrix.largest]
        if not largest:
            raise RecipeError(
                f"{aim} cannot be aimed at: the model has no matrix or kernel that is free to be "
                "quantised (not excluded, not lossless, without a step of its own, finite, not all zero)"
            )
        # At the finest every tensor is exact, as its step cannot be held; at the coarsest all is zero.
        return math.log2(min(largest) / MAX_STEPS / 4), math.log2(4 * max(largest))

    def _level(self, target: Target, figures: Figures) -> float:
        """Return what falls with a coarser step: the quality, or the size in octaves above its limit."""
        if target.kind == "quality":
            return min(figures.sqnr, _EXACT_DB)
        return math.log2(figures.n_bytes / self._limit(target))

    def _limit(self, target: Target) -> float:
        """Return the bytes that the file may have."""
        if target.kind == "target_ratio":
            return self._decoded / target.value
        if target.kind == "target_bpw":
            return target.value * sum(matrix.n_weights for matrix in self._matrices) / 8
        return target.value

    def _best(self, target: Target) -> Figures | None:
        """Return, of the trials on the right side of a target, the one nearest to it."""
        window = _window(target)
        trials = [(self._level(target, trial), -step, trial) for step, trial in self.trials.items()]
        if target.kind == "quality":
            fitting = [trial for trial in trials if trial[0] >= window[0]]
            return min(fitting)[2] if fitting else None
        fitting = [trial for trial in trials if trial[0] <= window[1]]
        return max(fitting)[2] if fitting else None

    def _encode(self, recipe: Recipe) -> EncodedFrame:
        self.n_trials += 1
        with warnings.catch_warnings(), self._watch(self.n_trials) as progress:
            if self.n_trials > 1:  # they have been said
                warnings.simplefilter("ignore", DcompressWarning)
            known = self._calibration
            if callable(known):
                known = None if recipe.step is None else known(recipe)
            options = {"progress": progress, "memo": self._memo, "calibration": known, **self._options}
            return encode_checkpoint(self.checkpoint, recipe, **options)

    def _figures(self, step: float, frame: EncodedFrame) -> Figures:
        noise = math.fsum(report.noise for report in frame.reports if report.name in self._names)
        energy = math.fsum(matrix.energy for matrix in self._matrices)
        n_weights = sum(matrix.n_weights for matrix in self._matrices)
        n_bytes = frame.n_bytes
        bits = 8 * n_bytes / n_weights if n_weights else math.inf
        return Figures(step, n_bytes, self._decoded / n_bytes, bits, to_decibels(energy, noise))

    def _guess(self, target: Target, bounds: tuple[float, float]) -> tuple[float, float]:
        """Return where to begin, and how steep it is there, by theory: Gaussian weights, 6.02 dB a bit."""
        energy = sum(matrix.energy for matrix in self._matrices)
        states = EFFORT_STATES[self._options["effort"]] if self.recipe.states is None else self.recipe.states
        wider = math.log2(_TRELLIS_STEPS) if states else 0.0

        def quality(place: float) -> float:
            area = 4.0 ** (place + wider)
            noise = [min(m.energy, m.n_weights * area / 12) for m in self._matrices if m.free]
            return to_decibels(energy, sum(noise))

        def size(place: float) -> float:
            n_bytes = 100.0 + 0.5 * self._rest
            for m in self._matrices:
                if m.free and m.n_weights:
                    spread = m.energy / m.n_weights / 4.0 ** (place + wider)
                    n_bytes += m.n_weights * math.log2(1 + 2 * math.pi * math.e * spread) / 16
                else:
                    n_bytes += 3 * m.n_weights
            return math.log2(n_bytes / self._limit(target))

        model = quality if target.kind == "quality" else size
        aim = sum(_window(target)) / 2
        low, high = bounds
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (middle, high) if model(middle) > aim else (low, middle)
        return low, min(model(low + 0.5) - model(low - 0.5), -1e-3)

    def _check_lossless(self, target: Target, best: Figures) -> None:
        """Raise if the file would be as small without loss, or no loss is all that is as good."""
        exact = self.lossless()
        most = best.n_bytes if target.kind == "quality" else self._limit(target)
        if exact.n_bytes <= most or (target.kind == "quality" and best.sqnr == math.inf):
            raise RecipeError(
                f"{target}: the model comes to {exact.n_bytes:,} bytes without any loss (ratio "
                f"{exact.ratio:.2f}, {exact.bits_per_weight:.2f} bits/weight): use preset lossless, no target"
            )

    def _out_of_reach(self, target: Target) -> str:
        """Return what is the nearest that can be reached."""
        if target.kind == "quality":
            best = max(figures.sqnr for figures in self.trials.values())
            return (
                f"{target} cannot be reached: pruning, and what rules say of some tensors, leave "
                f"{best:.2f} dB at most; relax them"
            )
        least = min(self.trials.values(), key=lambda figures: figures.n_bytes)
        return (
            f"{target} cannot be reached: with nothing left of the weights that are free to be quantised, "
            f"the file still takes {least.n_bytes:,} bytes (ratio {least.ratio:.2f}, "
            f"{least.bits_per_weight:.3f} bits/weight)"
        )


def encode_to_target(checkpoint: Checkpoint, recipe: Recipe, target: Target, **options: Any) -> Found:
    """Return the frame of a checkpoint that meets a target; ``options`` are those of `Search`."""
    return Search(checkpoint, recipe, **options).find(target)


def describe_miss(found: Found) -> str:
    """Return why a frame is not within 1 % of its target, in one line."""
    reached = Target(found.target.kind, found.figures.of(found.target.kind))
    return (
        f"{found.target} cannot be met within {_WITHIN:.0%}: {reached} is the nearest on its right side "
        f"(quality {found.figures.sqnr:.2f} dB)"
    )


def _window(target: Target) -> tuple[float, float]:
    """Return the least and largest level that meet a target."""
    if target.kind == "quality":
        return target.value, target.value + min(_WITHIN * target.value, _WITHIN_DB)
    return math.log2(1 - _WITHIN) if target.kind != "target_ratio" else -math.log2(1 + _WITHIN), 0.0
