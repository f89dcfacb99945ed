"""Rate-aware sharing: labels on grids of equal steps that trade error against the bits they will really take.

Plain rounding takes the nearest value whatever it costs. Here every weight, or every path of a trellis,
takes what is least in squared error plus ``slope`` squared steps a bit. Prices come from the labels, and
labels from the prices, so both are found in turns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dcompress import kernels
from dcompress.coding.symbols import BUCKET_OF
from dcompress.constants import DType
from dcompress.errors import RecipeError
from dcompress.feedback import Calibrated, Feedback
from dcompress.feeding import fed_grid
from dcompress.floats import FloatArray, narrow
from dcompress.kernels.trellis import RING, STATES, transitions
from dcompress.modelling import fitted_prices
from dcompress.prices import Layout, Placed, Prices, neighbour_levels
from dcompress.profiles import FULL
from dcompress.stages import PrunedTensor, SharedTensor
from dcompress.threads import usable_threads

__all__ = ["MAX_STEPS", "SLOPES", "RatePlan", "is_matrix", "vector_step"]

MAX_STEPS = FULL.steps
SLOPES = {False: 0.12, True: 0.3}  # squared steps a bit, by whether there is a trellis
# With error feedback: values that are rounded towards zero shrink what a layer gives out, and that adds up
# from layer to layer, unless later ones are calibrated to make up for it.
_FED_SLOPE = 0.1

_PASSES = (1, 2, 2, 2, 3, 3, 3, 4, 4)  # by effort, 1 to 9
_SCOUTS = 4  # states of all passes but the last, which only gather prices

_LANES = 16  # that one thread takes at a time
_WORK = 100  # of a weight in one pass, by that of a decoded symbol
_ONE_SIDED = 8.0  # how much more error than on average small values of one sign may bear
_DEAD_ZONE = 0.1  # by which the first pass rounds towards zero


class RatePlan:
    """Tensors that go through stage 2 together, with the prices of their labels.

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
        Squared steps that a bit is worth; 0 = the nearest value. By default from `SLOPES`, less with error
        feedback.
    states : int
        Of the trellis: 0 = none, or 4, 8, 16, 32, 64, 128 or 256. Tensors that are no matrices never have
        one, and are rounded; but where all values have one sign, as variances have, none becomes zero.
    effort : int
        1, fast, to 9, smallest: how often prices are found.
    threads : int, optional
        Tensors labelled at a time; by default as many as the process may use. The labels are the same.

    Raises
    ------
    RecipeError
        A step is not a positive number, or too small: for a tensor's range, or to tell its values apart in
        its type; or the number of states is unknown.
    """

    def __init__(
        self,
        tensors: Sequence[PrunedTensor],
        dtypes: Sequence[DType],
        steps: Sequence[float],
        *,
        layout: Callable[[tuple[int, ...]], Layout],
        slope: float | None = None,
        states: int = 8,
        effort: int = 6,
        threads: int | None = None,
    ) -> None:
        if states not in STATES:
            raise RecipeError(f"a trellis has {', '.join(map(str, STATES))} states, not {states}")
        self._dtypes, self._steps, self._states = dtypes, steps, states
        self._threads = usable_threads(threads)
        self._jobs = [
            _job(tensor, step, layout(tensor.mask.shape)) for tensor, step in zip(tensors, steps, strict=True)
        ]
        matrices = [number for number, job in enumerate(self._jobs) if is_matrix(job.shape)]
        worth = SLOPES[states > 0] if slope is None else slope
        jobs = [self._jobs[number] for number in matrices]
        self._settling = _Settling(jobs, worth, states, effort, self._threads)
        self._slope = worth
        self._fed_slope = min(_FED_SLOPE, worth) if slope is None else slope
        self._place_of = {number: place for place, number in enumerate(matrices)}

    def share_all(self, calibrated: Mapping[int, Calibrated]) -> list[SharedTensor]:
        """Return all tensors; by number what is known of the inputs of some."""
        with ThreadPoolExecutor(self._threads) as pool:
            every = range(len(self._jobs))
            found = [pool.submit(self.share, number, calibrated.get(number)) for number in every]
            return [one.result() for one in found]

    def share(self, number: int, calibrated: Calibrated | None = None) -> SharedTensor:
        """Return one tensor as labels, with error feedback if its inputs are known and it is a matrix.

        Raises
        ------
        EncodeError
            The calibration does not fit the tensor.
        """
        job, step, states = self._jobs[number], self._steps[number], 0
        if number in self._place_of:
            states = self._states
            place = self._place_of[number]
            fed = None
            if calibrated is not None:
                name, weights, kept, moments, price = calibrated
                fed = Feedback.of(name, weights, kept, step, moments)
            if fed is None:
                grid = self._settling.find(place)
            else:
                slope = self._slope if fed.moments.cross else self._fed_slope
                grid = self._settling.feed(place, fed, step, price * slope)
        else:
            grid = _rounded(job)
        return _shared(grid, job.shape, self._dtypes[number], step, states)


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


class _Settling:
    """Matrices with prices from all passes but the last, which takes them one by one."""

    def __init__(self, jobs: Sequence[_Job], slope: float, states: int, effort: int, threads: int) -> None:
        n_passes = _PASSES[min(max(effort, 1), 9) - 1]
        self._jobs, self._threads = jobs, threads
        self._kernel = kernels.select(_WORK * n_passes * sum(job.weights.size for job in jobs))
        self._placed = [_first_guess(job, 2 if states else 1) for job in jobs]
        follow = transitions(min(states, _SCOUTS))
        with ThreadPoolExecutor(threads) as pool:
            for _ in range(n_passes - 1):
                self._price(slope)
                turn = partial(self._turn, follow)
                self._placed = list(pool.map(turn, range(len(jobs))))
        self._price(slope)
        self._follow = transitions(states)

    def _price(self, slope: float) -> None:
        self._prices = fitted_prices(self._placed)
        tables = {id(one.bits): one.bits for one in self._prices}
        in_steps = {key: _in_steps(bits, slope) for key, bits in tables.items()}
        self._tables = [in_steps[id(one.bits)] for one in self._prices]

    def _turn(self, follow: NDArray[np.int64], place: int) -> Placed:
        """Return a tensor as it is labelled at the prices of this pass."""
        grid = self._find(place, follow)
        return _place(self._kernel, self._jobs[place], grid, follow)

    def _find(self, place: int, follow: NDArray[np.int64]) -> NDArray[np.int32]:
        of_it = self._jobs[place], self._placed[place], self._prices[place], self._tables[place]
        return _find(self._kernel, *of_it, follow, self._threads)

    def find(self, place: int) -> NDArray[np.int32]:
        """Return the grid integers of a matrix that are cheapest in error and bits."""
        return self._find(place, self._follow)

    def feed(self, place: int, fed: Feedback, step: float, slope: float) -> NDArray[np.int32]:
        """Return those that are cheapest in output error and bits."""
        job, prices = self._jobs[place], self._prices[place]
        far = np.zeros((0, 0), np.uint8)
        if prices.distance > RING:
            far = neighbour_levels(self._placed[place], prices.levels, prices.distance)
            far = far.reshape(-1, job.layout.row_words)
        most = int(np.ceil(np.abs(job.weights).max(initial=0) / np.float64(job.step)))
        of_it = job.layout, self._follow, prices, _in_steps(prices.bits, slope), far
        return fed_grid(fed, step, most, *of_it, self._threads)


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
    threads: int,
) -> NDArray[np.int32]:
    """Return the grid integers of a tensor that are cheapest at given prices; threads share its lanes."""
    row_words, rows, lane_starts = job.layout
    far = np.zeros(0, np.uint8)
    if prices.distance > RING:
        far = (
            neighbour_levels(before, prices.levels, prices.distance).reshape(-1, row_words)[rows].reshape(-1)
        )
    path = job.weights.reshape(-1, row_words)[rows].reshape(-1)
    row_class, found = prices.row_class[rows], np.zeros(path.size, np.int32)
    ends = np.append(lane_starts[1:], rows.size)

    def settle(first: int) -> None:
        starts = lane_starts[first : first + _LANES]
        begin, end = int(starts[0]), int(ends[first : first + _LANES][-1])
        words = slice(begin * row_words, end * row_words)
        kernel.find_path(
            path[words],
            job.step,
            row_words,
            follow,
            (starts - begin) * row_words,
            row_class[begin:end],
            prices.column_class,
            table,
            BUCKET_OF,
            prices.levels,
            prices.distance,
            far[words],
            found[words],
        )

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(settle, range(0, lane_starts.size, _LANES)))
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
