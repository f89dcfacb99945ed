"""Which tensors go through rate-aware sharing together, and with which steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial

import numpy as np

from dcompress.coding.context import Geometry
from dcompress.constants import DType
from dcompress.feedback import Calibrated
from dcompress.floats import FloatArray, narrow, widen
from dcompress.grid import coding_rows
from dcompress.prices import Layout
from dcompress.profiles import FULL, Profile
from dcompress.rate import RatePlan, vector_step
from dcompress.rules import RateRule, TensorRecipe
from dcompress.settings import EFFORT_STATES
from dcompress.stages import PrunedTensor, SharedTensor, TensorData, TensorSpec, word_dtype

__all__ = ["GroupPlan", "RateJob", "rate_groups"]

RateJob = tuple[PrunedTensor, DType, RateRule]

_SCALE_BITS = 6  # significant bits of values that are scales
_GROUP_WEIGHTS = 1 << 24  # of the tensors that go together, unless one is larger
_COARSER, _MOST_COARSER = 1.125, 2.0  # by so much at a time, and in all, where a step is too fine


def rate_groups(
    plan: Mapping[str, TensorRecipe], specs: Mapping[str, TensorSpec]
) -> dict[str, tuple[str, ...]]:
    """Return, for each tensor that is shared by rate, the names of those that are shared together with it."""
    groups: list[list[str]] = []
    n_weights, settings = 0, None
    for name, recipe in plan.items():
        if not isinstance(recipe.share, RateRule):
            continue
        n_own, own = math.prod(specs[name][1]), (recipe.share.slope, recipe.share.states)
        if not groups or own != settings or n_weights + n_own > _GROUP_WEIGHTS:
            groups.append([])
            n_weights, settings = 0, own
        groups[-1].append(name)
        n_weights += n_own
    return {name: tuple(group) for group in groups for name in group}


class GroupPlan:
    """Tensors that are shared by rate together, all but the last pass done.

    Parameters
    ----------
    jobs : mapping of str to RateJob
        What stage 1 kept, element type and rule of each; slope and states are the same in all rules.
    effort : int
        From 1, fast, to 9, smallest.
    threads : int, optional
        All there are by default.
    profile : Profile
        Decides where chunks are cut, along which a trellis walks, and how many values a tensor may have.
    """

    def __init__(
        self,
        jobs: Mapping[str, RateJob],
        effort: int,
        threads: int | None = None,
        profile: Profile = FULL,
    ) -> None:
        self._done: dict[str, SharedTensor | TensorData | None] = dict.fromkeys(jobs)
        scales = {name: job for name, job in jobs.items() if job[2].fine and _is_scale(job[0].values)}
        self._done |= {name: _round_scales(pruned, dtype) for name, (pruned, dtype, _) in scales.items()}
        steps = {name: _own_step(*job, profile.steps) for name, job in jobs.items() if name not in scales}
        self._names = [name for name, step in steps.items() if step]
        if self._names:
            _, _, rule = jobs[self._names[0]]
            self._plan = RatePlan(
                [jobs[name][0] for name in self._names],
                [jobs[name][1] for name in self._names],
                [steps[name] for name in self._names],
                slope=rule.slope,
                states=EFFORT_STATES[effort] if rule.states is None else rule.states,
                effort=effort,
                layout=partial(_layout, profile=profile),
                threads=threads,
            )

    def share(self, name: str, calibrated: Calibrated | None = None) -> SharedTensor | TensorData | None:
        """Return one tensor, with error feedback if its inputs are known.

        Returns
        -------
        shared : SharedTensor, TensorData or None
            A tensor of rounded values where only their relative size counts, see `_is_scale`; None where the
            step that is asked for is too fine for format or dtype.

        Raises
        ------
        EncodeError
            The calibration does not fit the tensor.
        """
        if name not in self._names:
            return self._done[name]
        return self._plan.share(self._names.index(name), calibrated)

    def share_all(self, calibrated: Mapping[str, Calibrated]) -> dict[str, SharedTensor | TensorData | None]:
        """Return all tensors, as `share` does."""
        if not self._names:
            return self._done
        known = {number: calibrated[name] for number, name in enumerate(self._names) if name in calibrated}
        return self._done | dict(zip(self._names, self._plan.share_all(known), strict=True))


def _is_scale(values: FloatArray) -> bool:
    """Return whether all values are of one sign, as variances and most scales are.

    A network multiplies by them, or divides by their roots: an even step would blow up the smallest ones.
    """
    return bool(values.size and ((values > 0).all() or (values < 0).all()))


def _round_scales(pruned: PrunedTensor, dtype: DType) -> TensorData:
    """Return a tensor with its values rounded to `_SCALE_BITS` significant bits."""
    mantissas, exponents = np.frexp(pruned.values.astype(np.float64))
    rounded = np.ldexp(np.rint(np.ldexp(mantissas, _SCALE_BITS)), exponents - _SCALE_BITS)
    words = np.zeros(pruned.mask.size, word_dtype(dtype.word_bytes))
    words[pruned.mask.reshape(-1)] = narrow(rounded, dtype)
    return TensorData(dtype, pruned.mask.shape, words)


def _layout(shape: tuple[int, ...], profile: Profile) -> Layout:
    """Return the order in which the context coder codes a tensor."""
    geometry = Geometry.of(shape, math.prod(shape))
    return Layout(geometry.row_words, *coding_rows(geometry, profile))


def _own_step(pruned: PrunedTensor, dtype: DType, rule: RateRule, most: int) -> float:
    """Return the step of a tensor; 0 if the one that its rule asks for is much too fine for format or dtype.

    That is the step of the rule, or a finer one for tensors that are neither matrix nor kernel. Where there
    would be too many values, or a dtype cannot tell them apart, a step that is a little coarser will do.
    """
    values = pruned.values
    if not values.size:
        return rule.step
    largest = float(max(values.max(), -values.min()))
    wanted = _rounded(min(rule.step, vector_step(values)) if rule.fine else rule.step, dtype)
    step = max(wanted, _rounded(largest / most, dtype))
    while step <= _MOST_COARSER * wanted and _is_too_fine(step, largest, dtype, most):
        coarser = _rounded(step * _COARSER, dtype)
        if coarser <= step:  # the largest number that the dtype has
            return 0.0
        step = coarser
    return step if step <= _MOST_COARSER * wanted else 0.0


def _rounded(step: float, dtype: DType) -> float:
    """Return the nearest step that a dtype can hold, so that a file need not hold its multiples."""
    return float(widen(narrow(np.array([step]), dtype), dtype)[0]) or float(
        widen(np.array([1], word_dtype(dtype.word_bytes)), dtype)[0]
    )


def _is_too_fine(step: float, largest: float, dtype: DType, most: int) -> bool:
    """Return whether a dtype cannot tell the multiples of a step apart, or there are too many of them."""
    if largest > most * step:
        return True
    if 2 * largest < step:
        return False  # all weights become zero
    words = narrow(np.arange(1, math.ceil(largest / step) + 3) * step, dtype)
    return not words[0] or bool((words[1:] == words[:-1]).any())
