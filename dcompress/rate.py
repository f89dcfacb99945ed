"""Rate-aware sharing: labels on grids of equal steps that trade error against the bits they will really take.

Plain rounding takes the nearest value whatever it costs. Here every weight, or every path of a trellis,
takes what is least in squared error plus ``slope`` squared steps a bit. Prices come from the labels, and
labels from the prices, so both are found in turns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dcompress import kernels
from dcompress.coding.symbols import BUCKET_OF
from dcompress.constants import DType
from dcompress.errors import RecipeError
from dcompress.floats import FloatArray, narrow
from dcompress.kernels.trellis import RING, STATES, transitions
from dcompress.modelling import fitted_prices
from dcompress.prices import Placed, Prices, neighbour_levels
from dcompress.profiles import FULL
from dcompress.stages import PrunedTensor, SharedTensor
from dcompress.threads import usable_threads

__all__ = ["MAX_STEPS", "SLOPES", "Layout", "is_matrix", "share_by_rate", "vector_step"]

MAX_STEPS = FULL.steps
SLOPES = {False: 0.12, True: 0.3}  # squared steps a bit, by whether there is a trellis

_PASSES = (1, 2, 2, 2, 3, 3, 3, 4, 4)  # by effort, 1 to 9
_SCOUTS = 4  # states of all passes but the last, which only gather prices

_WORK = 100  # of a weight in one pass, by that of a decoded symbol
_ONE_SIDED = 8.0  # how much more error than on average small values of one sign may bear
_DEAD_ZONE = 0.1  # by which the first pass rounds towards zero


class Layout(NamedTuple):
    """In which order a tensor is coded.

    Attributes
    ----------
    row_words : int
        Words of a row.
    rows : ndarray of shape (n_rows,), dtype int64
        Every row once, lane after lane.
    lane_starts : ndarray of shape (n_lanes,), dtype int64
        Places in ``rows`` where the trellis starts anew.
    """

    row_words: int
    rows: NDArray[np.int64]
    lane_starts: NDArray[np.int64]


def share_by_rate(
    tensors: Sequence[PrunedTensor],
    dtypes: Sequence[DType],
    steps: Sequence[float],
    *,
    layout: Callable[[tuple[int, ...]], Layout],
    slope: float | None = None,
    states: int = 8,
    effort: int = 6,
    threads: int | None = None,
) -> list[SharedTensor]:
    """Return tensors as labels on grids of equal steps.

    Parameters
    ----------
    tensors : sequence of PrunedTensor
        What stage 1 kept, all finite. Whatever it pruned stays zero.
    dtypes : sequence of DType
        Element types: float64, float32, float16 or bfloat16.
    steps : sequence of float
        Step of each grid. For an even error use the same one for all that is a matrix, see `is_matrix`;
        for the others see `vector_step`.
    layout : callable
        Returns the order in which a tensor of some shape is coded.
    slope : float, optional
        Squared steps that a bit is worth; 0 = the nearest value. By default from `SLOPES`.
    states : int
        Of the trellis: 0 = none, or 4, 8, 16, 32, 64, 128 or 256. Tensors that are no matrices never have
        one, and are rounded; but where all values have one sign, as variances have, none becomes zero.
    effort : int
        1, fast, to 9, smallest: how often prices are found.
    threads : int, optional
        Tensors labelled at a time; by default as many as the process may use. The labels are the same.

    Returns
    -------
    shared : list of SharedTensor
        Codebooks are the whole grid from the lowest value used to the highest, zero apart.

    Raises
    ------
    RecipeError
        A step is not a positive number, or too small: for a tensor's range, or to tell its values apart in
        its type; or the number of states is unknown.
    """
    if states not in STATES:
        raise RecipeError(f"a trellis has {', '.join(map(str, STATES))} states, not {states}")
    worth = SLOPES[states > 0] if slope is None else slope
    n_threads = usable_threads(threads)
    jobs = [
        _job(tensor, step, layout(tensor.mask.shape)) for tensor, step in zip(tensors, steps, strict=True)
    ]
    matrices = [k for k, job in enumerate(jobs) if is_matrix(job.shape)]
    grids = dict(
        zip(
            matrices,
            _settle([jobs[k] for k in matrices], worth, states, effort, n_threads),
            strict=True,
        )
    )
    shared = []
    for k, (job, dtype, step) in enumerate(zip(jobs, dtypes, steps, strict=True)):
        grid = grids[k] if k in grids else _rounded(job)
        shared.append(_shared(grid, job.shape, dtype, step, states if k in grids else 0))
    return shared


def is_matrix(shape: tuple[int, ...]) -> bool:
    """Return whether a tensor has two dimensions to speak of: others are few values, and delicate."""
    return sum(size > 1 for size in shape) > 1 and 0 not in shape


def vector_step(values: FloatArray, quality_db: float = 40.0) -> float:
    """Return a step for a tensor that is no matrix: biases, norms, running statistics.

    Parameters
    ----------
    values : ndarray of floats
        The tensor.
    quality_db : float
        Signal to error in decibels that its values need; 20 more than the matrices have is plenty.

    Returns
    -------
    step : float
        1, 1.25, 1.5 or 1.75 times a power of two. Where all values are of one sign, as variances and most
        scales are, it is fine enough that small ones keep their size within an eighth of that quality.
    """
    sizes = np.abs(values[values != 0]).astype(np.float64)
    if not sizes.size:
        return 1.0
    error = 10 ** (-quality_db / 20)
    step = float(np.sqrt(12 * np.square(sizes).mean())) * error
    if (values > 0).all() or (values < 0).all():
        step = min(step, float(np.quantile(sizes, 0.1)) * 12**0.5 * error * _ONE_SIDED)
    step = max(step, float(sizes.max()) / MAX_STEPS * 1.25)
    exponent = int(np.floor(np.log2(step)))
    return float(np.ldexp(np.floor(np.ldexp(step, 2 - exponent)), exponent - 2))


class _Job(NamedTuple):
    """A tensor on its way: its weights, flat, with zeros where it was pruned, in the unit of the step."""

    weights: NDArray[np.float32]
    step: float
    shape: tuple[int, ...]
    layout: Layout


def _job(tensor: PrunedTensor, step: float, layout: Layout) -> _Job:
    """Return what the kernels need; raise if the step does not suit the tensor."""
    if not (step > 0 and np.isfinite(step)):
        raise RecipeError(f"a step must be a number above 0, not {step}")
    values = tensor.values
    largest = float(np.abs(values).max(initial=0))
    if not largest <= MAX_STEPS * step:
        raise RecipeError(
            f"a step of {step:g} is too small: the largest weight, {largest:g}, is more than {MAX_STEPS} away"
        )
    unit = step
    if values.dtype == np.float64:  # may be out of the range of a float32
        values, unit = values / step, 1.0
    weights = np.zeros(tensor.mask.size, np.float32)
    weights[tensor.mask.reshape(-1)] = values
    return _Job(weights, unit, tensor.mask.shape, layout)


def _rounded(job: _Job) -> NDArray[np.int32]:
    """Return the nearest grid integers; of values of one sign that are not zero, none is zero."""
    grid = np.rint(job.weights.astype(np.float64) / job.step).astype(np.int32)
    if (job.weights >= 0).all() or (job.weights <= 0).all():
        lost = (grid == 0) & (job.weights != 0)
        grid[lost] = np.sign(job.weights[lost])
    return grid


def _settle(
    jobs: Sequence[_Job], slope: float, states: int, effort: int, threads: int
) -> list[NDArray[np.int32]]:
    """Return the grid integers of matrices."""
    if not jobs:
        return []
    n_passes = _PASSES[min(max(effort, 1), 9) - 1]
    kernel = kernels.select(_WORK * n_passes * sum(job.weights.size for job in jobs))
    placed = [_first_guess(job, 2 if states else 1) for job in jobs]
    grids: list[NDArray[np.int32]] = []
    with ThreadPoolExecutor(threads) as pool:
        for turn in range(n_passes):
            last = turn + 1 == n_passes
            follow = transitions(states if last else min(states, _SCOUTS))
            prices = fitted_prices(placed)
            tables = {id(one.bits): _in_steps(one.bits, slope) for one in prices}
            found = [
                pool.submit(_find, kernel, job, before, one, tables[id(one.bits)], follow)
                for job, before, one in zip(jobs, placed, prices, strict=True)
            ]
            grids = [one.result() for one in found]
            if not last:
                placed = [_place(kernel, *one, follow) for one in zip(jobs, grids, strict=True)]
    return grids


def _in_steps(bits: NDArray[np.int32], slope: float) -> NDArray[np.float32]:
    """Return prices in squared steps instead of 1/256 bit."""
    return (bits * (slope / 256)).astype(np.float32)


def _first_guess(job: _Job, n_quantisers: int) -> Placed:
    """Return a tensor as it might be labelled, each quantiser in its turn: enough to start prices from."""
    sizes = np.abs(job.weights).astype(np.float64) / job.step
    quantisers = (np.arange(sizes.size) & (n_quantisers - 1)).astype(np.uint8)
    nearest = np.floor((sizes + quantisers) / n_quantisers + (0.5 - _DEAD_ZONE))
    places = np.where(sizes < 0.5 + _DEAD_ZONE, 0, np.copysign(nearest, job.weights)).astype(np.int32)
    return Placed(job.shape, job.layout.row_words, places, quantisers, n_quantisers)


def _find(
    kernel: Any,
    job: _Job,
    before: Placed,
    prices: Prices,
    table: NDArray[np.float32],
    follow: NDArray[np.int64],
) -> NDArray[np.int32]:
    """Return the grid integers of a tensor that are cheapest at given prices."""
    row_words, rows, lane_starts = job.layout
    far = np.zeros(0, np.uint8)
    if prices.distance > RING:
        far = (
            neighbour_levels(before, prices.levels, prices.distance).reshape(-1, row_words)[rows].reshape(-1)
        )
    found = np.zeros(job.weights.size, np.int32)
    kernel.find_path(
        job.weights.reshape(-1, row_words)[rows].reshape(-1),
        job.step,
        row_words,
        follow,
        lane_starts * row_words,
        prices.row_class[rows],
        prices.column_class,
        table,
        BUCKET_OF,
        prices.levels,
        prices.distance,
        far,
        found,
    )
    grid = np.empty_like(found)
    grid.reshape(-1, row_words)[rows] = found.reshape(-1, row_words)
    return grid


def _place(kernel: Any, job: _Job, grid: NDArray[np.int32], follow: NDArray[np.int64]) -> Placed:
    """Return places and quantisers of grid integers that a path leads through."""
    row_words, rows, lane_starts = job.layout
    path = grid.reshape(-1, row_words)[rows].reshape(-1)
    places, quantisers = np.zeros_like(grid), np.zeros(grid.size, np.uint8)
    n_placed = kernel.walk(path, follow, lane_starts * row_words, places, quantisers)
    assert n_placed == grid.size
    back = np.argsort(rows)
    places = places.reshape(-1, row_words)[back].reshape(-1)
    quantisers = quantisers.reshape(-1, row_words)[back].reshape(-1)
    return Placed(job.shape, row_words, places, quantisers, min(follow.shape[0], 2))


def _shared(
    grid: NDArray[np.int32], shape: tuple[int, ...], dtype: DType, step: float, states: int
) -> SharedTensor:
    """Return grid integers as labels: 0 for zero, then all values from the lowest to the highest."""
    low, high = int(grid.min(initial=0)), int(grid.max(initial=0))
    values = np.arange(low, high + 1)
    codebook = narrow(values[values != 0] * step, dtype)
    if np.unique(codebook).size < codebook.size or not codebook.all():
        raise RecipeError(f"a step of {step:g} is too small: {dtype.name} cannot tell its multiples apart")
    labels = np.where(grid < 0, grid - low + 1, np.where(grid > 0, grid - low, 0)).astype(np.uint16)
    return SharedTensor(dtype, shape, codebook[None], labels, True, states)
