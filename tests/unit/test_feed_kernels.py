"""The kernels of error feedback: twins against each other, and against what a path costs by definition."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from dcompress.coding.symbols import BUCKET_OF, N_BUCKETS, N_SYMBOLS
from dcompress.kernels import feedback
from dcompress.kernels.trellis import LEVELS, NO_LEVEL, NO_RING, RING, transitions, walk

jit = pytest.importorskip("dcompress.kernels.jit_feedback")

N_CLASSES = 3
KERNELS = pytest.mark.parametrize("kernel", [feedback, jit], ids=["python", "numba"])


class Case:
    """Random rows and prices, and what the kernels make of them."""

    def __init__(self, n_rows, row_words, states, *, period=0, n_groups=1, distance=0, seed=0, price=1.0):
        rng = np.random.default_rng(seed)
        self.shape = n_rows, row_words
        self.states = states
        self.distance = distance
        period = period or row_words
        self.targets = 2 * rng.laplace(size=self.shape)
        self.values = self.targets + 0.2 * rng.normal(size=self.shape)
        self.kept = rng.random(self.shape) < 0.85
        self.group_of = np.sort(rng.integers(0, n_groups, n_rows))
        self.spread = np.triu(0.4 * rng.normal(size=(n_groups, period, period)), 1)
        self.worth = rng.uniform(0.3, 2.0, (n_groups, period))
        self.follow = transitions(states)
        self.n_quantisers = 2 if states else 1
        self.row_class = rng.integers(-1, N_CLASSES, n_rows).astype(np.int32)
        self.column_class = rng.integers(-1, 2, row_words).astype(np.int32)
        shape = (N_CLASSES, self.n_quantisers, LEVELS, LEVELS, N_SYMBOLS)
        self.price = (price * rng.random(shape)).astype(np.float32)
        self.levels = rng.integers(0, 4, (self.n_quantisers, N_BUCKETS)).astype(np.uint8)
        self.levels[:, 0] = 0
        self.far = rng.integers(0, LEVELS, self.shape).astype(np.uint8)
        self.buckets = BUCKET_OF[:12]
        self.rows = rng.permutation(n_rows)
        self.lane_ends = np.array([n_rows])

    def find(self, kernel, windows=None):
        """Return grid, states and rings after calls for some windows of the columns."""
        grid = np.full(self.shape, 99, np.int32)
        states = np.zeros(self.lane_ends.size, np.int64)
        rings = np.full(self.lane_ends.size, NO_RING, np.int64)
        for begin, end in windows or [(0, self.shape[1])]:
            own = self.spread, self.worth
            if windows:
                own = self.spread[:, begin:end, begin:end].copy(), self.worth[:, begin:end].copy()
            kernel.feed_path(
                self.values,
                self.targets,
                self.kept,
                self.rows,
                self.lane_ends,
                begin,
                end,
                self.group_of,
                *own,
                self.follow,
                self.row_class,
                self.column_class,
                self.price,
                self.buckets,
                self.levels,
                self.distance,
                self.far,
                states,
                rings,
                grid,
            )
        return grid, states, rings

    def cost(self, path):
        """Return what one lane costs, by row and column of the order, None if there is no such path."""
        total, state = 0.0, 0
        period = self.worth.shape[1]
        for row, integers in zip(self.rows, path, strict=True):
            signed = []
            for column, integer in enumerate(integers):
                quantiser = state & (self.n_quantisers - 1)
                if integer and (
                    (self.n_quantisers == 2 and integer % 2 != quantiser) or not self.kept[row, column]
                ):
                    return None
                place = (abs(integer) + quantiser) // self.n_quantisers
                own = column % period
                before = slice(column - own, column)
                errors = self.targets[row, before] - np.array(integers[before], float)
                group = self.group_of[row]
                value = self.values[row, column] + errors @ self.spread[group, :own, own]
                left = signed[-1] if signed else NO_LEVEL
                second = NO_LEVEL
                if self.distance > RING:
                    second = self.far[row, column]
                elif self.distance and column >= self.distance:
                    second = signed[-self.distance]
                scale = min(max(self.row_class[row] + self.column_class[column], 0), N_CLASSES - 1)
                symbol = 2 * int(BUCKET_OF[place]) - (integer > 0) if integer else 0
                total += self.worth[group, own] * (value - integer) ** 2
                total += float(self.price[scale, quantiser, left, second, symbol])
                signed.append(
                    NO_LEVEL + int(self.levels[quantiser, BUCKET_OF[place]]) * int(np.sign(integer))
                )
                state = self.follow[state, place & 1]
        return total


@pytest.mark.parametrize("states", [0, 4, 8, 64])
@pytest.mark.parametrize("distance", [0, 1, 3, RING, RING + 1])
@pytest.mark.parametrize("period", [0, 4, 1])
def test_kernels_find_the_same_paths(states, distance, period):
    case = Case(
        9, 24, states, period=period, n_groups=3, distance=distance, seed=states + 7 * distance + period
    )
    case.lane_ends = np.array([3, 3, 4, 9])
    results = [case.find(kernel) for kernel in (feedback, jit)]
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)
    grid = results[0][0]
    assert not grid[~case.kept].any()
    assert np.unique(grid).size > 5
    for start, end in ((0, 3), (3, 4), (4, 9)):
        path = grid[case.rows[start:end]].reshape(-1)
        places, quantisers = np.zeros(path.size, np.int32), np.zeros(path.size, np.uint8)
        assert walk(path, case.follow, np.zeros(1, np.int64), places, quantisers) == path.size


@pytest.mark.parametrize("states", [0, 4, 32])
@pytest.mark.parametrize("distance", [0, 2, 7])
def test_kernels_carry_states_and_neighbours_from_window_to_window(states, distance):
    case = Case(1, 30, states, distance=distance, seed=states + distance)
    windows = [(0, 7), (7, 8), (8, 21), (21, 30)]
    results = [case.find(kernel, windows) for kernel in (feedback, jit)]
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)
    path, states_found, rings = results[0]
    places, quantisers = np.zeros(30, np.int32), np.zeros(30, np.uint8)
    assert walk(path[0], case.follow, np.zeros(1, np.int64), places, quantisers) == 30
    state = 0
    for place in places:
        state = case.follow[state, place & 1]
    assert states_found[0] == state
    sizes = case.levels[quantisers, BUCKET_OF[np.abs(places)]].astype(int) * np.sign(places)
    last = [NO_LEVEL + size for size in sizes[-RING:]]
    assert [int(rings[0]) >> 3 * back & 7 for back in range(RING)] == last[::-1]


@KERNELS
@pytest.mark.parametrize("states", [0, 4, 8])
@pytest.mark.parametrize("distance", [0, 2, RING + 1])
@pytest.mark.parametrize("seed", range(3))
def test_no_path_is_cheaper_where_nothing_is_fed(kernel, states, distance, seed):
    case = Case(2, 2, states, distance=distance, seed=seed, price=0.9)
    case.spread[:] = 0
    case.levels[:] = 0  # survivors with different neighbours would make it a search, not a recursion
    grid, _, _ = case.find(kernel)
    options = [
        [0, *(int(np.sign(one)) * k for k in range(int(abs(one)) - 1, int(abs(one)) + 3) if k > 0)]
        for one in case.values[case.rows].flat
    ]
    costs = (case.cost(np.reshape(path, (2, 2))) for path in itertools.product(*options))
    best = min(cost for cost in costs if cost is not None)
    assert case.cost(grid[case.rows]) == pytest.approx(best)


@KERNELS
@pytest.mark.parametrize("states", [0, 8])
@pytest.mark.parametrize("period", [0, 2])
def test_a_path_is_near_the_cheapest_where_errors_are_fed(kernel, states, period):
    found, best = 0.0, 0.0
    for seed in range(8):
        case = Case(1, 4, states, period=period, seed=seed, price=0.5)
        grid, _, _ = case.find(kernel)
        options = [sorted({0, *(round(one) + k for k in range(-1, 2))}) for one in case.values[0]]
        costs = (case.cost([path]) for path in itertools.product(*options))
        best += min(cost for cost in costs if cost is not None)
        own = case.cost(grid)
        assert own is not None
        found += own
    assert 0.9 * best <= found <= 1.25 * best  # values that errors move far may have nearer integers


@KERNELS
def test_without_prices_and_states_each_value_takes_the_nearest_integer(kernel):
    case = Case(4, 20, 0, period=10, n_groups=2, seed=3, price=0.0)
    grid, _, _ = case.find(kernel)
    expected = np.zeros(case.shape, np.int32)
    for row in range(4):
        for column in range(20):
            own = column % 10
            value = case.values[row, column]
            for past in range(own):
                error = case.targets[row, column - own + past] - expected[row, column - own + past]
                value += error * case.spread[case.group_of[row], past, own]
            if case.kept[row, column]:
                expected[row, column] = np.clip(np.rint(value), -11, 11)
    np.testing.assert_array_equal(grid, expected)


@KERNELS
def test_no_integer_is_beyond_the_buckets(kernel):
    for states, largest in ((0, 3), (4, 6)):
        case = Case(3, 8, states, seed=1)
        case.buckets = BUCKET_OF[:4]
        case.values *= 100
        grid, _, _ = case.find(kernel)
        assert np.abs(grid).max() in (largest - 1, largest) if states else np.abs(grid).max() == largest


@pytest.mark.parametrize("seed", range(4))
def test_kernels_find_the_same_labels(seed):
    rng = np.random.default_rng(seed)
    n_rows, row_words, n_books, n_groups = 12, 40, 3, 2
    targets = rng.normal(size=(n_rows, row_words))
    values = targets + 0.1 * rng.normal(size=targets.shape)
    kept = rng.random(targets.shape) < 0.8
    groups = np.sort(rng.integers(0, n_groups, n_rows))
    spread = np.triu(0.3 * rng.normal(size=(n_groups, 15, 15)), 1)
    codebooks = np.sort(rng.normal(size=(n_books, 6)), axis=1)
    codebooks[1, 4:] = np.inf
    codebooks[2, 1:] = np.inf
    book_of = rng.integers(0, n_books, n_rows)
    found = []
    for kernel in (feedback, jit):
        places = np.full(targets.shape, 77, np.int32)
        kernel.feed_labels(values, targets, kept, 10, 25, groups, spread, codebooks, book_of, places)
        found.append(places)
    np.testing.assert_array_equal(*found)
    assert (found[0][:, :10] == 77).all()
    assert (found[0][:, 25:] == 77).all()
    inside = slice(10, 25)
    np.testing.assert_array_equal(found[0][:, inside] < 0, ~kept[:, inside])
    for row in range(n_rows):
        errors = []
        for own, column in enumerate(range(10, 25)):
            value = values[row, column] + np.dot(errors, spread[groups[row], :own, own])
            book = codebooks[book_of[row]]
            chosen = 0.0
            if kept[row, column]:
                chosen = book[found[0][row, column]]
                assert abs(chosen - value) <= np.abs(book - value).min() + 1e-12
            errors.append(targets[row, column] - chosen)


@KERNELS
def test_of_two_equally_near_centroids_the_lower_is_taken(kernel):
    places = np.zeros((1, 3), np.int32)
    values = np.array([[0.5, 1.5, -9.0]])
    nothing, first = np.zeros((1, 3, 3)), np.zeros(1, np.int64)
    kept = np.ones((1, 3), bool)
    kernel.feed_labels(values, values, kept, 0, 3, first, nothing, np.array([[0.0, 1.0, 2.0]]), first, places)
    assert places.tolist() == [[0, 1, 0]]
