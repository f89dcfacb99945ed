"""The stages of a training recipe: frozen, checked settings. Standard library only."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any, NoReturn

from dcompress.errors import RecipeError
from dcompress.settings import near
from dcompress.train.granularity import Granularity

__all__ = [
    "IMPORTANCES",
    "OBSERVING",
    "SCHEDULES",
    "PenaltyStage",
    "PruneStage",
    "QuantizeStage",
    "RateStage",
    "ShareStage",
    "Stage",
]

IMPORTANCES = (
    *("l1", "l2", "linf", "random", "gradient", "taylor", "fisher"),
    *("activation_mean", "apoz", "geometric_median"),
)
# These need forward or backward passes to be watched before a mask can be chosen.
OBSERVING = ("gradient", "taylor", "fisher", "activation_mean", "apoz")
SCHEDULES = ("one_shot", "iterative", "cubic", "regrow")
_AMOUNTS = ("sparsity", "n_pruned", "quality", "threshold")
_MAX_BITS = 12


@dataclass(frozen=True)
class Stage:
    """What every stage has.

    Attributes
    ----------
    pattern : str
        A glob of parameter names, as in the model's state dict.
    begin : int
        The stage acts once `Compressor.step` has been called so many times; 0 = from the start.
    origin : str
        Where the stage was written, for errors.
    """

    pattern: str
    begin: int = 0
    origin: str = field(default="", compare=False, kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.pattern, str):
            self.fail("pattern must be given, as a string")
        self._integer("begin", 0)

    @property
    def fingerprint(self) -> str:
        """What tells stages apart, the user's functions aside."""
        settings = {key: value for key, value in dataclasses.asdict(self).items() if key != "origin"}
        plain = {key: "function" if callable(value) else value for key, value in settings.items()}
        return f"{type(self).__name__} {plain}"

    def fail(self, message: str) -> NoReturn:
        """Raise a RecipeError that says where the stage stands."""
        raise RecipeError(f"{self.origin or f'stage {self.pattern!r}'}: {message}")

    def _plain(self, key: str) -> Any:
        """Return a setting; a number of NumPy's becomes one of Python's first."""
        value = getattr(self, key)
        if isinstance(value, Real) and type(value).__module__ != "builtins":
            value = int(value) if isinstance(value, Integral) else float(value)
            object.__setattr__(self, key, value)
        return value

    def _integer(self, key: str, low: int, high: int | None = None) -> None:
        value = self._plain(key)
        if type(value) is not int or value < low or (high is not None and value > high):
            upper = f"at least {low}" if high is None else f"from {low} to {high}"
            self.fail(f"{key} must be a whole number {upper}, not {value!r}")

    def _number(self, key: str, high: float = math.inf) -> None:
        value = self._plain(key)
        if type(value) not in (int, float) or not 0 <= value <= high or not math.isfinite(value):
            wanted = "a fraction from 0 to 1" if high == 1 else "a number, at least 0"
            is_percent = high == 1 and type(value) in (int, float) and 2 <= value <= 100
            hint = f"; {value:g} % is {value / 100:g}" if is_percent else ""
            self.fail(f"{key} must be {wanted}, not {value!r}{hint}")

    def _one_of(self, key: str, choices: tuple[str, ...]) -> None:
        value = getattr(self, key)
        if value not in choices:
            self.fail(f"{key} must be one of {', '.join(choices)}, not {value!r}{near(str(value), choices)}")

    def _granularity(self, text: str) -> Granularity:
        try:
            return Granularity.parse(text)
        except RecipeError as error:
            raise RecipeError(f"{self.origin or f'stage {self.pattern!r}'}: {error}") from None


@dataclass(frozen=True)
class PruneStage(Stage):
    """A stage that prunes: exactly one of sparsity, n_pruned, quality and threshold, but none for N:M.

    Attributes
    ----------
    sparsity : float, optional
        Fraction of the units to prune in the end, in [0, 1].
    n_pruned : int, optional
        Number of units to prune in the end.
    quality : float, optional
        The paper's: units whose magnitude is below this multiple of the layer's standard deviation.
    threshold : float, optional
        Units whose importance is below this.
    granularity : str
        See `Granularity`: "element", "kernel", "filter", "channel", a block such as "4x4", or "2:4".
    importance : str or callable
        One of ``IMPORTANCES``, or a function from a `dcompress.train.Sample` to a score for each weight.
    scope : str
        "tensor", or the name of a group of tensors that compete with each other ("global" is one).
    schedule : {"one_shot", "iterative", "cubic", "regrow"}
        At ``begin``; in rounds that each prune the same fraction of what is left; Zhu and Gupta's;
        one-shot, and then weights are dropped and others regrown at constant sparsity, as in RigL.
    end : int, optional
        Last step of the schedule.
    every : int
        Steps from one change of the masks to the next.
    initial_sparsity : float
        Where the schedule starts; for sparsity.
    regrow : float
        For "regrow": fraction of the kept units that is replaced in the first round.
    rewind : bool
        Whether the parameters of the model go back to their saved values after each change of the masks.
    observe : str, optional
        For "activation_mean" and "apoz": the module whose output channels are watched, in place of the
        one that holds the weight.
    n_observed : int
        Passes before each change of the masks that gradients and activations are watched for.
    seed : int
        For "random".
    """

    sparsity: float | None = None
    n_pruned: int | None = None
    quality: float | None = None
    threshold: float | None = None
    granularity: str = "element"
    importance: str | Callable[..., Any] = "l1"
    scope: str = "tensor"
    schedule: str = "one_shot"
    end: int | None = None
    every: int = 1
    initial_sparsity: float = 0.0
    regrow: float = 0.3
    rewind: bool = False
    observe: str | None = None
    n_observed: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        grains = self.grains
        given = [key for key in _AMOUNTS if getattr(self, key) is not None]
        if grains.kind == "n:m" and given:
            self.fail(f"granularity {grains} says how much is pruned: leave {given[0]} out")
        if grains.kind != "n:m" and len(given) != 1:
            self.fail(f"give exactly one of {', '.join(_AMOUNTS)}")
        for key in given:
            if key == "n_pruned":
                self._integer(key, 0)
            else:
                self._number(key, 1 if key == "sparsity" else math.inf)
        self._number("initial_sparsity", 1)
        self._number("regrow", 1)
        for key in ("every", "n_observed"):
            self._integer(key, 1)
        self._integer("seed", 0, (1 << 32) - 1)
        self._one_of("schedule", SCHEDULES)
        if not isinstance(self.scope, str) or not self.scope:
            self.fail(f"scope must be 'tensor', 'global' or the name of a group, not {self.scope!r}")
        if type(self.rewind) is not bool:
            self.fail(f"rewind must be true or false, not {self.rewind!r}")
        if not callable(self.importance):
            self._one_of("importance", IMPORTANCES)
        self._check_together(grains)

    @property
    def grains(self) -> Granularity:
        """The granularity, parsed."""
        return self._granularity(self.granularity)

    @property
    def rounds(self) -> int:
        """Changes of the masks after the one at ``begin``."""
        return 0 if self.end is None else -((self.begin - self.end) // self.every)

    def _check_together(self, grains: Granularity) -> None:
        """Raise if settings do not go together."""
        if self.schedule == "one_shot":
            if self.end is not None:
                self.fail("end needs a schedule: iterative, cubic or regrow")
        elif self.end is None:
            self.fail(f"schedule {self.schedule!r} needs an end")
        else:
            self._integer("end", self.begin + 1)
        if self.importance in OBSERVING and self.begin < 1:
            self.fail(f"importance {self.importance!r} watches the training: begin must be at least 1")
        if self.importance == "geometric_median" and grains.kind not in ("filter", "channel"):
            self.fail(f"importance 'geometric_median' is for filters and channels, not granularity {grains}")
        if self.quality is not None and self.importance not in ("l1", "l2", "linf"):
            self.fail("quality needs a magnitude: importance l1, l2 or linf")
        if self.scope != "tensor" and (self.quality is not None or grains.kind == "n:m"):
            what = "quality" if self.quality is not None else f"granularity {grains}"
            self.fail(f"{what} goes by each tensor: it cannot have scope {self.scope!r}")
        if self.scope != "tensor" and self.schedule == "regrow":
            self.fail("schedule 'regrow' keeps the sparsity of each tensor: leave the scope out")
        if self.schedule == "regrow" and grains.kind == "n:m":
            self.fail(f"schedule 'regrow' does not go with granularity {grains}")
        if self.initial_sparsity and (self.sparsity is None or self.initial_sparsity > self.sparsity):
            self.fail("initial_sparsity needs a sparsity that is at least as large")
        if self.observe is not None and self.importance not in ("activation_mean", "apoz"):
            self.fail("observe is for importance activation_mean and apoz")


@dataclass(frozen=True)
class ShareStage(Stage):
    """A stage that trains a codebook: labels are fixed, centroids learn by the sum of their gradients.

    Attributes
    ----------
    bits : int, optional
        The codebook has ``2**bits`` values, zero not counted. One of ``bits`` and ``centroids`` is given.
    centroids : int, optional
        Number of values.
    init, seed
        Start of the k-means, see `dcompress.kmeans.cluster`.
    reassign_every : int
        Steps from one assignment of labels to the next; 0 = on request only.
    latent : bool
        Whether the weights go on learning beneath the codebook, by straight-through gradients, so that
        labels can be assigned anew.
        Assign them often then, every few steps: what is beneath moves unseen, and jumps when
        labels follow.
    """

    bits: int | None = None
    centroids: int | None = None
    init: str = "linear"
    seed: int = 0
    reassign_every: int = 0
    latent: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.bits is None) == (self.centroids is None):
            self.fail("give one of bits and centroids")
        if self.bits is not None:
            self._integer("bits", 1, _MAX_BITS)
        else:
            self._integer("centroids", 1, (1 << _MAX_BITS) - 1)
        self._integer("reassign_every", 0)
        self._integer("seed", 0, (1 << 32) - 1)
        self._one_of("init", ("linear", "density", "random", "k-means++"))
        if type(self.latent) is not bool:
            self.fail(f"latent must be true or false, not {self.latent!r}")
        if self.reassign_every and not self.latent:
            self.fail("reassign_every needs latent = true: without it every weight stays on its centroid")

    @property
    def n_centroids(self) -> int:
        """Values of the codebook, zero not counted."""
        return self.centroids or min(1 << (self.bits or 0), (1 << _MAX_BITS) - 1)


@dataclass(frozen=True)
class QuantizeStage(Stage):
    """A stage of quantisation-aware training: weights are rounded, gradients go straight through.

    Attributes
    ----------
    method : {"uniform", "fixed_point"}
        Multiples of a step that follows the largest weight; or of ``2**-fraction_bits``.
    bits : int
        For "uniform": values -(2**(bits-1) - 1) .. 2**(bits-1) - 1 times the step.
    per_channel : bool
        For "uniform": a step for each slice of the first dimension, in place of one for the tensor.
    integer_bits, fraction_bits : int
        For "fixed_point": a sign bit beside them, so values -2**i .. 2**i - 2**-f.
    """

    method: str = "uniform"
    bits: int = 8
    per_channel: bool = False
    integer_bits: int = 0
    fraction_bits: int = 7

    def __post_init__(self) -> None:
        super().__post_init__()
        self._one_of("method", ("uniform", "fixed_point"))
        self._integer("bits", 2, _MAX_BITS)
        self._integer("integer_bits", -64, 64)
        self._integer("fraction_bits", -64, 64)
        if type(self.per_channel) is not bool:
            self.fail(f"per_channel must be true or false, not {self.per_channel!r}")
        if not 0 <= self.integer_bits + self.fraction_bits < _MAX_BITS:
            self.fail(f"integer_bits and fraction_bits must add up to 0 to {_MAX_BITS - 1}")
        if self.per_channel and self.method == "fixed_point":
            self.fail("per_channel is for method 'uniform'")


@dataclass(frozen=True)
class RateStage(Stage):
    """A stage that trains weights on a grid, where every bit has a price.

    Weights are used as multiples of a step; gradients go straight through to what is beneath. What a multiple
    costs follows from how often it occurs, as in an entropy coder, and `Compressor.regularizer`
    adds these bits to the loss: so the network finds out by itself which weights are worth theirs.

    Attributes
    ----------
    step : float
        Of the grid. The coarser, the smaller the file, and the more there is to learn. Two or three standard
        deviations of the weights are a good start, one for mere fine-tuning; no weight may be more than
        2,047 steps.
    price : float
        What one bit a weight adds to the loss, in the mean over all weights of the recipe that have a price.
    """

    step: float = 0.0
    price: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._number("step")
        self._number("price")
        if not self.step:
            self.fail("step must be given, a number above 0")


@dataclass(frozen=True)
class PenaltyStage(Stage):
    """A stage that adds to the loss: ``l1``, ``group_lasso``, or both, until ``end``.

    Attributes
    ----------
    l1, group_lasso : float
        Strengths.
    granularity : str
        The groups of the lasso.
    end : int, optional
        The first step without it.
    """

    l1: float = 0.0
    group_lasso: float = 0.0
    granularity: str = "filter"
    end: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._number("l1")
        self._number("group_lasso")
        if self.end is not None:
            self._integer("end", self.begin + 1)
        if self.grains.kind == "n:m":
            self.fail(f"granularity {self.granularity} makes no groups for a lasso")

    @property
    def grains(self) -> Granularity:
        """The granularity, parsed."""
        return self._granularity(self.granularity)
