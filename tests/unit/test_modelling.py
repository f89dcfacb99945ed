from __future__ import annotations

import numpy as np
import pytest

from dcompress import modelling
from dcompress.coding.context import Geometry
from dcompress.grid import GridTensor
from dcompress.modelling import first_classes
from dcompress.views import Candidate


@pytest.mark.parametrize("shape", [(20, 1, 25), (20, 6, 1), (20, 1, 1), (20, 6, 9)])
def test_a_single_column_or_position_keeps_class_0(shape):
    rng = np.random.default_rng(0)
    geometry = Geometry(*shape)
    grid = rng.integers(-3, 4, (geometry.n_rows, geometry.row_words)).astype(np.int16)
    tensor = GridTensor(geometry, grid, 3, 0)
    _, view = Candidate(tensor).view(2)
    classes = first_classes(tensor)
    costs = modelling._context_costs(modelling._count([view], [classes], modelling._N_CANONICAL))
    falling = costs - 200 * np.arange(costs.shape[2], dtype=np.int32)  # the higher a class, the cheaper
    moved = modelling._improve(view, classes, falling, 1)
    for before, after, count in (
        (classes.columns, moved.columns, geometry.n_columns),
        (classes.positions, moved.positions, geometry.n_positions),
    ):
        assert np.any(after != np.broadcast_to(before, after.shape)) == (count > 1)
        assert after.size in (1, count)
        assert count > 1 or not after[0]
