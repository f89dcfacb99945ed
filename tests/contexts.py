"""Random table sets, classes and grids for the context coder: legal, whatever an encoder would make of it."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import strategies as st

from dcompress.coding import Codebook, Context, TableSet
from dcompress.coding.context import DEAD, Classes, Geometry, Neighbourhood, lanes_of
from dcompress.coding.symbols import N_SYMBOLS
from dcompress.coding.table_set import ABSENT, CANONICAL
from dcompress.constants import DTYPE_BY_NAME
from dcompress.kernels.trellis import STATES, transitions
from dcompress.stages import SharedTensor
from tests.strategies import random_codebook

DTYPES = tuple(
    DTYPE_BY_NAME[name]
    for name in ("float32", "float16", "bfloat16", "int8", "uint8", "float64", "complex64", "complex32")
)


def random_table_set(rng, largest: int, n_tables: int, n_classes: int, n_quantisers: int, precision: int):
    """Return a table set whose tables have all buckets up to ``largest``, and some more."""
    lengths = np.full((n_tables, N_SYMBOLS), ABSENT, np.uint8)
    for row in lengths:
        extent = min(43, largest + int(rng.integers(3)))
        n_used = 2 * extent + 1
        steep = rng.choice([0.0, 0.3, 2.0])
        row[:n_used] = np.clip(4 + steep * np.arange(n_used) + rng.integers(0, 12, n_used), 0, 63)
        if n_used == 1:
            row[0] = 0
    choice = rng.integers(0, n_tables, (n_quantisers, len(CANONICAL), n_classes)).astype(np.uint8)
    return TableSet(precision, lengths, choice)


def random_side(rng, size: int, low: int, high: int, given: bool):
    """Return classes of rows, columns or positions, some of them dead."""
    if size == 1 or not given:
        return np.zeros(1, np.int64)
    return np.where(rng.random(size) < 0.1, DEAD, rng.integers(low, high + 1, size))


def random_classes(rng, geometry: Geometry) -> Classes:
    """Return classes of a tensor, as far apart as they may be."""
    base = int(rng.integers(0, 64))
    rows = np.clip(base + rng.integers(-31, 32, geometry.n_rows), 0, 63)
    rows[rng.random(geometry.n_rows) < 0.1] = DEAD
    given = rng.random(2) < 0.7
    return Classes(
        rows,
        random_side(rng, geometry.n_columns, -31, 31, given[0]),
        random_side(rng, geometry.n_positions, -31, 31, given[1]),
    )


def random_grid(rng, geometry: Geometry, step: int, states: int, low: int, high: int, dense: float = 1.0):
    """Return numbers of low..high by row and place, in chunks of ``step`` rows that walk a trellis.

    Of them ``dense`` may be other than 0.
    """
    shape = (geometry.n_rows, geometry.row_words)
    sizes = np.minimum(rng.geometric(rng.choice([0.02, 0.3, 0.7]), shape) - 1, max(high, -low))
    grid = np.clip(np.where(rng.random(shape) < 0.5, sizes, -sizes), low, high)
    if dense < 1:
        grid[rng.random(shape) >= dense] = 0
    if not states:
        return grid
    follow = transitions(states).tolist()
    for first in range(0, shape[0], step):
        n_rows = min(step, shape[0] - first)
        n_lanes = lanes_of(n_rows, n_rows * shape[1])
        for lane in range(n_lanes):
            state = 0
            for row in range(first + lane, first + n_rows, n_lanes):
                for x, value in enumerate(grid[row].tolist()):
                    quantiser = state & 1
                    k = (abs(value) + quantiser) // 2
                    while k and not low <= (2 * k - quantiser) * (1 if value > 0 else -1) <= high:
                        k -= 1
                    size = max(0, 2 * k - quantiser)
                    grid[row, x] = size if value > 0 else -size
                    state = follow[state][k & 1]
    return grid


def random_context(rng, dtype, shape, n_labels=40, has_zero=True, states=0, shift=0, most_tables=127):
    """Return a shared tensor and a context coder for it; legal in chunks of ``2 ** shift`` rows."""
    if dtype.word_bytes == 1:
        n_labels = min(n_labels, 200)
    codebook = random_codebook(rng, dtype, 1, n_labels - has_zero, has_zero)
    n_words = math.prod(shape) * dtype.words_per_element
    book = Codebook(dtype, codebook, has_zero, n_words)
    geometry = Geometry.of(shape, n_words)
    origin = book.n_negative if has_zero else int(rng.integers(n_labels))
    step = 1 << shift if shift else geometry.n_rows
    grid = random_grid(rng, geometry, step, states, -origin, n_labels - 1 - origin)
    places = (grid + origin).reshape(-1)
    labels = places
    if has_zero:
        labels = np.where(places == origin, 0, np.where(places < origin, places + 1, places))
    tables = random_table_set(
        rng,
        43 if n_labels > 8 and rng.random() < 0.5 else _largest_bucket(max(origin, n_labels - 1 - origin)),
        min(most_tables, int(rng.choice([1, 2, 5, 127], p=(0.2, 0.3, 0.4, 0.1)))),
        int(rng.choice([1, 3, 40, 64])) if most_tables > 5 else 3,
        2 if states else int(rng.integers(1, 3)),
        int(rng.integers(10, 13)),
    )
    first, second, third = np.sort(rng.integers(0, 12, 3)).tolist()
    coder = Context(
        book,
        tables,
        0,
        geometry,
        random_classes(rng, geometry),
        Neighbourhood(int(rng.integers(0, min(geometry.row_words, 30))), (first, second, third)),
        origin,
        states,
    )
    tensor = SharedTensor(dtype, tuple(shape), codebook, labels.astype(np.uint16), has_zero, states)
    return tensor, coder


def _largest_bucket(magnitude: int) -> int:
    """Return the bucket of a magnitude, independently of the package."""
    if magnitude < 8:
        return magnitude
    n_bits = magnitude.bit_length()
    return 8 + 4 * (n_bits - 4) + (magnitude >> (n_bits - 3)) % 4


shapes = st.one_of(
    st.lists(st.integers(1, 12), max_size=4).map(tuple),
    st.sampled_from(
        [
            (4096,), (1, 5000), (2, 2100), (3, 8, 200), (70, 60), (4100, 1), (128, 3, 6, 8),
            (1, 70000), (5, 14000), (9, 33, 7, 32), (300, 220),
        ]
    ),
)  # fmt: skip


@st.composite
def contexts(draw, dtype=None, shape=shapes, shifts=(0, 2, 4)):
    """Return a shared tensor, a context coder for it, and a chunk shift."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from(DTYPES)) if dtype is None else dtype
    size = draw(shape)
    shift = draw(st.sampled_from(shifts))
    if len(size) < 2 or size[0] <= 1 << shift:
        shift = 0
    n_labels = draw(st.sampled_from([1, 2, 3, 9, 16, 17, 33, 100, 600, 4095]))
    has_zero = draw(st.booleans())
    states = draw(st.sampled_from(STATES))
    tensor, coder = random_context(rng, kind, size, n_labels, has_zero, states, shift)
    return tensor, coder, shift
