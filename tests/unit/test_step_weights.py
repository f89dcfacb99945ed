"""Steps of tensors by what the outputs of the model feel of them."""

from __future__ import annotations

import math

import pytest

from dcompress.constants import DTYPE_BY_NAME
from dcompress.recipe import Recipe, Rule
from dcompress.step_weights import weigh_steps

F32 = DTYPE_BY_NAME["float32"]
SPECS = {
    "large": (F32, (64, 64)),
    "small": (F32, (16, 16)),
    "bias": (F32, (64,)),
    "other": (F32, (32, 32)),
    "count": (DTYPE_BY_NAME["int64"], ()),
}


def steps(recipe, sensitivity):
    plan = weigh_steps(recipe.plan(SPECS), SPECS, sensitivity)
    assert list(plan) == list(SPECS)
    return {name: (one.share.step, one.share.price) for name, one in plan.items() if one.share is not None}


def test_steps_follow_the_fourth_root_of_weights_by_sensitivity():
    found = steps(Recipe(step=0.1), {"large": 1.0, "small": 16.0})
    # A weight of the small tensor is worth 256 times as much: its step is a quarter of that of the large one.
    assert found["small"][0] * 4 == pytest.approx(found["large"][0])
    assert found["large"][0] == pytest.approx(
        0.1 * 2 ** (1 / 8)
    )  # 2 octaves * 256 / 4352, on a grid of eighths
    mean = (4096 * math.log(found["large"][0]) + 256 * math.log(found["small"][0])) / 4352
    assert math.exp(mean) == pytest.approx(0.1, rel=0.05)
    assert found["small"][1] * 4 == found["large"][1] == pytest.approx(found["large"][0] / 0.1)
    assert found["bias"] == found["other"] == (0.1, 1.0)


def test_steps_of_ones_own_stay_as_do_tensors_that_are_not_rounded():
    rules = (Rule("small", {"method": "rate", "step": 0.5}), Rule("other", {"bits": 4}))
    recipe = Recipe(step=0.1, rules=rules)
    plan = recipe.plan(SPECS)
    found = weigh_steps(plan, SPECS, {name: 10.0**i for i, name in enumerate(SPECS)})
    assert found == plan  # one tensor alone is left: there is nothing to weigh
    assert weigh_steps(Recipe(bits=4).plan(SPECS), SPECS, {"large": 1.0, "small": 9.0}) == Recipe(
        bits=4
    ).plan(SPECS)


def test_no_step_is_beyond_all_bounds():
    found = steps(Recipe(step=0.1), {"large": 1.0, "small": 1e9, "other": 0.0})
    assert found["small"][0] == pytest.approx(0.1 / 8)
    assert found["other"] == (0.1, 1.0)  # nothing was found out, as of a part that the batches did not use
    assert steps(Recipe(step=0.1), {"large": 0.0, "small": 0.0})["large"] == (0.1, 1.0)
    assert steps(Recipe(step=0.1), {})["large"] == (0.1, 1.0)


def test_the_last_bits_of_a_measurement_change_nothing():
    one, other = ({"large": 1.0, "small": 30 * (1 + x)} for x in (0, 1e-6))
    assert steps(Recipe(step=0.1), one) == steps(Recipe(step=0.1), other)


def test_a_slope_that_was_asked_for_stays():
    found = steps(Recipe(step=0.1, slope=0.2), {"large": 1.0, "small": 16.0})
    assert found["small"][1] == found["large"][1] == 1.0
    assert found["small"][0] < 0.1
