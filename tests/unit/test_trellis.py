from __future__ import annotations

import itertools

import numpy as np
import pytest

from dcompress.coding.symbols import (
    BUCKET_BASES,
    BUCKET_OF,
    BUCKET_RAW_BITS,
    MAX_MAGNITUDE,
    N_BUCKETS,
    N_SYMBOLS,
    SYMBOL_RAW_BITS,
    grid_of,
    symbol_of,
)
from dcompress.kernels import trellis
from dcompress.kernels.trellis import LEVELS, NO_LEVEL, RING, STATES, preceding, transitions

jit = pytest.importorskip("dcompress.kernels.jit_trellis")

N_CLASSES = 3
KERNELS = pytest.mark.parametrize("find_path", [trellis.find_path, jit.find_path], ids=["python", "numba"])


class Case:
    """Random weights and prices, and what the kernels make of them."""

    def __init__(self, n_rows, row_words, states, distance=0, lanes=(0,), seed=0, worth=1.0, step=0.5):
        rng = np.random.default_rng(seed)
        self.n = n_rows * row_words
        self.row_words, self.distance, self.step = row_words, distance, step
        self.weights = rng.laplace(size=self.n).astype(np.float32)
        self.weights[rng.random(self.n) < 0.1] = 0
        self.follow = transitions(states)
        self.n_quantisers = 2 if states else 1
        self.lane_starts = np.array(lanes) * row_words
        self.row_class = rng.integers(-1, N_CLASSES, n_rows).astype(np.int32)
        self.column_class = rng.integers(-1, 2, row_words).astype(np.int32)
        shape = (N_CLASSES, self.n_quantisers, LEVELS, LEVELS, N_SYMBOLS)
        self.price = (worth * rng.random(shape)).astype(np.float32)
        self.levels = rng.integers(0, 4, (self.n_quantisers, N_BUCKETS)).astype(np.uint8)
        self.levels[:, 0] = 0
        self.far = rng.integers(0, LEVELS, self.n).astype(np.uint8)

    def find(self, find_path):
        grid = np.full(self.n, 99, np.int32)
        find_path(
            self.weights,
            self.step,
            self.row_words,
            self.follow,
            self.lane_starts,
            self.row_class,
            self.column_class,
            self.price,
            BUCKET_OF,
            self.levels,
            self.distance,
            self.far,
            grid,
        )
        return grid

    def walk(self, grid, walk=trellis.walk):
        places, quantisers = np.zeros(self.n, np.int32), np.zeros(self.n, np.uint8)
        n_placed = walk(grid, self.follow, self.lane_starts, places, quantisers)
        return n_placed, places, quantisers

    def cost(self, grid):
        """Return what a path costs, None if there is no such path: straight from the definition."""
        total = 0.0
        signed = []
        for i, value in enumerate(grid):
            if i in self.lane_starts:
                state = 0
            quantiser = state & 1 if self.n_quantisers == 2 else 0
            row, column = divmod(i, self.row_words)
            if self.n_quantisers == 2 and value and value % 2 != quantiser:
                return None
            place = (abs(value) + quantiser) // 2 if self.n_quantisers == 2 else abs(value)
            if self.weights[i] == 0 and value:
                return None
            level = int(self.levels[quantiser, BUCKET_OF[place]]) * (1 if value > 0 else -1)
            signed.append(NO_LEVEL + level)
            left = signed[i - 1] if column else NO_LEVEL
            second = NO_LEVEL
            if self.distance > RING:
                second = self.far[i]
            elif self.distance and column >= self.distance:
                second = signed[i - self.distance]
            scale = min(max(self.row_class[row] + self.column_class[column], 0), N_CLASSES - 1)
            symbol = 2 * BUCKET_OF[place] - (value > 0) if value else 0
            away = float(self.weights[i]) / self.step - value
            total += away * away + float(self.price[scale, quantiser, left, second, symbol])
            state = self.follow[state, place & 1]
        return total


@pytest.mark.parametrize("states", STATES)
def test_every_state_comes_from_two_and_leads_to_two(states):
    follow = transitions(states)
    n_states = max(states, 1)
    assert follow.shape == (n_states, 2)
    assert sorted(follow.reshape(-1).tolist()) == sorted([*range(n_states)] * 2)
    for parity in range(2):
        assert sorted(follow[:, parity].tolist()) == [*range(n_states)]
    before = preceding(follow)
    np.testing.assert_array_equal(follow.reshape(-1)[before], np.arange(n_states)[:, None].repeat(2, 1))


def test_zeros_stay_in_the_state_a_path_starts_from():
    for states in STATES:
        assert transitions(states)[0, 0] == 0


def test_the_trellis_of_eight_states():
    expected = [[0, 2], [5, 7], [1, 3], [4, 6], [2, 0], [7, 5], [3, 1], [6, 4]]
    assert transitions(8).tolist() == expected


@pytest.mark.parametrize("states", STATES)
@pytest.mark.parametrize("distance", [0, 1, 3, RING, RING + 1])
def test_kernels_find_the_same_path(states, distance):
    case = Case(18, 24, states, distance, lanes=(0, 7, 8, 15), seed=states + distance)
    grid = case.find(trellis.find_path)
    np.testing.assert_array_equal(grid, case.find(jit.find_path))
    assert not grid[case.weights == 0].any()
    found = [case.walk(grid, walk) for walk in (trellis.walk, jit.walk)]
    assert found[0][0] == found[1][0] == case.n
    np.testing.assert_array_equal(found[0][1], found[1][1])
    np.testing.assert_array_equal(found[0][2], found[1][2])
    if states:
        places, quantisers = found[0][1:]
        np.testing.assert_array_equal(grid, 2 * places - quantisers * np.sign(places))


@KERNELS
@pytest.mark.parametrize("states", STATES[:4])
@pytest.mark.parametrize("distance", [0, RING + 1])
@pytest.mark.parametrize("seed", range(4))
def test_no_path_is_cheaper(find_path, states, distance, seed):
    case = Case(2, 3, states, distance, seed=seed, worth=0.9)
    case.levels[:] = 0  # survivors with different neighbours would make it a search, not a recursion
    grid = case.find(find_path)
    options = [sorted({0, *(int(np.floor(w / case.step)) + k for k in range(-1, 3))}) for w in case.weights]
    costs = (case.cost(path) for path in itertools.product(*options))
    assert case.cost(grid.tolist()) == pytest.approx(min(cost for cost in costs if cost is not None))


@KERNELS
def test_prices_follow_the_neighbours_of_a_path(find_path):
    case = Case(3, 5, 4, 2, seed=5)
    case.price[:, :, :, :, 0] = 50.0  # never zero, if it can be helped
    case.price[:, :, NO_LEVEL + 1 :, :, 2::2] = 50.0  # after a positive weight no negative one
    case.levels[:, 1:] = 1
    case.weights[:] = [0.1, -0.2, -0.1, 0.2, 0.1] * 3
    signs = np.sign(case.find(find_path)).reshape(3, 5)
    assert not ((signs[:, :-1] > 0) & (signs[:, 1:] < 0)).any()
    assert not (signs == 0).any() or (signs[:, 1:][signs[:, :-1] > 0] >= 0).all()


@pytest.mark.parametrize("states", [0, 8])
def test_lanes_are_found_on_their_own(states):
    whole = Case(12, 10, states, 3, lanes=(0, 4, 5), seed=1)
    grid = whole.find(jit.find_path)
    for first, last in ((0, 4), (4, 5), (5, 12)):
        part = Case(12, 10, states, 3, seed=1)
        words = slice(first * 10, last * 10)
        part.weights, part.row_class = whole.weights[words], whole.row_class[first:last]
        part.n = part.weights.size
        np.testing.assert_array_equal(part.find(jit.find_path), grid[words])


def test_kernels_agree_beyond_a_block():
    case = Case(200, 170, 4, 3, lanes=(0, 5), seed=6)
    assert case.n > trellis.TRELLIS_BLOCK + 5 * 170
    grid = case.find(trellis.find_path)
    np.testing.assert_array_equal(grid, case.find(jit.find_path))
    assert case.walk(grid)[0] == case.n


def test_long_lanes_are_settled_block_by_block(monkeypatch):
    monkeypatch.setattr(trellis, "TRELLIS_BLOCK", 16)
    case = Case(30, 10, 8, 3, seed=2)
    grid = case.find(trellis.find_path)
    assert case.walk(grid)[0] == case.n
    assert case.cost(grid.tolist()) <= 1.1 * case.cost(case.find(jit.find_path).tolist())


@KERNELS
def test_without_states_and_prices_every_weight_takes_the_nearest_value(find_path):
    case = Case(50, 20, 0, worth=0.0, seed=3)
    np.testing.assert_array_equal(case.find(find_path), np.rint(case.weights / np.float32(case.step)))


def test_more_states_leave_less_error():
    errors = []
    for states in STATES[1:]:
        case = Case(200, 100, states, worth=0.0, seed=4)
        case.weights[case.weights == 0] = 0.01
        errors.append(np.square(case.weights - case.step * case.find(jit.find_path)).mean())
    gains = 10 * np.log10(case.step**2 / 3 / np.array(errors))  # over a scalar quantiser of twice the step
    assert (np.diff(gains) > 0.01).all()
    assert gains[0] > 0.9
    assert gains[-1] > 1.25


@pytest.mark.parametrize("walk", [trellis.walk, jit.walk], ids=["python", "numba"])
def test_a_walk_stops_at_an_integer_of_the_other_quantiser(walk):
    grid = np.array([2, 1, -1, 4, 4], np.int32)
    places, quantisers = np.zeros(5, np.int32), np.zeros(5, np.uint8)
    assert walk(grid, transitions(4), np.array([0]), places, quantisers) == 4
    assert places[:4].tolist() == [1, 1, -1, 2]
    assert quantisers[:4].tolist() == [0, 1, 1, 0]


def test_symbols_and_raw_bits_give_the_integers_back():
    grid = np.arange(-MAX_MAGNITUDE, MAX_MAGNITUDE + 1)
    symbols, raw = symbol_of(grid)
    np.testing.assert_array_equal(grid_of(symbols, raw), grid)
    assert symbols.max() == N_SYMBOLS - 1
    assert (raw < 1 << SYMBOL_RAW_BITS[symbols].astype(int)).all()
    assert np.unique(symbols).size == N_SYMBOLS


def test_buckets_are_as_wide_as_their_raw_bits_say():
    ends = np.append(BUCKET_BASES[1:], MAX_MAGNITUDE + 1)
    np.testing.assert_array_equal(ends - BUCKET_BASES, 1 << BUCKET_RAW_BITS.astype(int))
    assert BUCKET_BASES[7:13].tolist() == [7, 8, 10, 12, 14, 16]
