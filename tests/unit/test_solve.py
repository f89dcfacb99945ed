from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcompress.solve import MOST_CALLS, solve

BOUNDS = (-40.0, 40.0)


class Counted:
    """A function that remembers where it was asked."""

    def __init__(self, function):
        self.function = function
        self.places = []

    def __call__(self, place):
        self.places.append(place)
        return self.function(place)


def quality(place):
    """Decibels of a quantiser: a straight line that ends at zero."""
    return 10 * math.log10(1 + 4.0 ** (6 - place))


def size(place):
    """Octaves above a limit: a few bytes that stay, and bits that go."""
    return math.log2(300 + 50_000 * math.log2(1 + 4.0 ** (3 - place))) - 12


@pytest.mark.parametrize("aim", [2, 3, 8, 20, 33.3, 60])
@pytest.mark.parametrize("start", [-6.0, -3.0, 0.0, 5.0, 8.0])
def test_a_quality_is_met_in_few_calls(aim, start):
    measure = Counted(quality)
    place = solve(measure, start, -6.0, BOUNDS, (aim, aim * 1.01))
    assert place == measure.places[-1]
    assert aim <= quality(place) <= aim * 1.01
    assert len(measure.places) <= 10


@pytest.mark.parametrize("shift", [-3.0, 0.0, 2.0, 5.0])
def test_a_size_is_met_in_few_calls(shift):
    measure = Counted(lambda place: size(place) - shift)
    place = solve(measure, 0.0, -0.7, BOUNDS, (math.log2(0.99), 0.0))
    assert place is not None
    assert len(measure.places) <= 10


def test_a_good_guess_takes_two_calls():
    measure = Counted(quality)
    assert solve(measure, 6 - 25 / 6.02 + 0.1, -6.02, BOUNDS, (25, 25.1)) is not None
    assert len(measure.places) <= 2


@pytest.mark.parametrize(("aim", "bound"), [(1000.0, BOUNDS[0]), (-1.0, BOUNDS[1])])
def test_what_cannot_be_reached_ends_at_the_bound(aim, bound):
    measure = Counted(quality)
    assert solve(measure, 0.0, -6.0, BOUNDS, (aim, aim + 0.1)) is None
    assert measure.places[-1] == bound
    assert len(measure.places) <= MOST_CALLS


def test_a_jump_over_the_window_ends():
    measure = Counted(lambda place: 1.0 if place < math.pi else -1.0)
    assert solve(measure, 0.0, -1.0, BOUNDS, (-0.1, 0.1)) is None
    assert len(measure.places) <= MOST_CALLS
    assert {measure.function(place) for place in measure.places} == {1.0, -1.0}


def test_known_places_are_used():
    known = [(place, quality(place)) for place in (-1.0, 2.0, 5.0)]
    measure = Counted(quality)
    assert solve(measure, 30.0, -6.0, BOUNDS, (quality(1.5) - 0.1, quality(1.5) + 0.1), known) is not None
    assert len(measure.places) <= 2
    assert all(-1 <= place <= 5 for place in measure.places)
    assert solve(measure, 30.0, -6.0, BOUNDS, (quality(2.0) - 0.1, quality(2.0) + 0.1), known) == 2.0
    assert len(measure.places) <= 2


@given(
    st.floats(-8, 8),
    st.floats(0.2, 12),
    st.floats(-20, 20),
    st.floats(-12, -0.1),
    st.lists(st.floats(-1, 1), min_size=MOST_CALLS, max_size=MOST_CALLS),
)
def test_rough_functions_are_met_or_left_after_a_few_calls(middle, slope, start, guess, noise):
    measure = Counted(lambda place: -slope * (place - middle) + 0.02 * noise[len(measure.places) - 1])
    place = solve(measure, start, guess, BOUNDS, (0.0, 0.3))
    assert len(measure.places) <= MOST_CALLS
    assert all(BOUNDS[0] <= one <= BOUNDS[1] for one in measure.places)
    assert place is not None
