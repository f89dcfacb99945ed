"""Where a falling function has a wanted value, in few calls. Standard library only."""

from __future__ import annotations

from collections.abc import Callable, Iterable

__all__ = ["MOST_CALLS", "solve"]

MOST_CALLS = 12
_NARROW = 3e-3  # between two places with a jump in between
_REACH = 4.0  # of the first moves, at most


def solve(
    measure: Callable[[float], float],
    start: float,
    slope: float,
    bounds: tuple[float, float],
    window: tuple[float, float],
    known: Iterable[tuple[float, float]] = (),
) -> float | None:
    """Return a place where a falling function lies in a window, or None.

    Parameters
    ----------
    measure : callable
        The function; it may be a little rough. Called at most 12 times.
    start : float
        Where to begin.
    slope : float
        About how steep it is, below 0.
    bounds : pair of float
        Where to look. If the window is not between the values at the bounds, the last call was at the nearer.
    window : pair of float
        Least and largest value to be content with.
    known : iterable of pairs of float
        Places and values that are known already.

    Notes
    -----
    Newton's method with the secant of the last two places, taken to be no flatter than a quarter of the one
    before, until the window lies between two places; then regula falsi as Anderson and Björck mend it, and a
    bisection wherever that does not halve the interval in two calls.
    """
    aim = (window[0] + window[1]) / 2
    points = sorted(known)
    for place, value in points:
        if window[0] <= value <= window[1]:
            return place
    if len(points) > 1:
        (one, high), (other, low) = sorted(sorted(points, key=lambda point: abs(point[1] - aim))[:2])
        slope = min((low - high) / (other - one), slope / 4)
    fine = max((point for point in points if point[1] > window[1]), default=None)
    coarse = min((point for point in points if point[1] < window[0]), default=None)
    shares = {"fine": 1.0, "coarse": 1.0}
    widths: list[float] = []
    trail: list[tuple[float, float]] = []
    last_side, reach = "", _REACH
    for _ in range(MOST_CALLS):
        if fine is not None and coarse is not None:
            widths.append(coarse[0] - fine[0])
            if abs(widths[-1]) < _NARROW:
                return None
            over, under = shares["fine"] * (fine[1] - aim), shares["coarse"] * (aim - coarse[1])
            slow = len(widths) > 2 and widths[-1] > widths[-3] / 2
            place = fine[0] + widths[-1] * (0.5 if slow else min(max(over / (over + under), 0.01), 0.99))
        elif fine is not None or coarse is not None:
            near = fine or coarse
            assert near is not None
            if near[0] == bounds[1 if fine else 0]:
                return None
            move = 1.02 * (aim - near[1]) / slope
            place = near[0] + min(max(move, -reach), reach)
            reach *= 2 if abs(move) >= reach else 1
        else:
            place = start
        place = min(max(place, bounds[0]), bounds[1])
        value = measure(place)
        if window[0] <= value <= window[1]:
            return place
        if trail and place != trail[-1][0]:
            slope = min((value - trail[-1][1]) / (place - trail[-1][0]), slope / 4)
        trail.append((place, value))
        side = "fine" if value > window[1] else "coarse"
        shares[side] = 1.0
        if side == last_side:
            before = fine if side == "fine" else coarse
            share = 1 - (value - aim) / (before[1] - aim) if before is not None else 0
            shares["coarse" if side == "fine" else "fine"] *= share if share > 0 else 0.5
        fine, coarse = (trail[-1], coarse) if side == "fine" else (fine, trail[-1])
        last_side = side
    return None
