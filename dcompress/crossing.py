"""The coarsest place that keeps a margin, measured by something rough and dear. Standard library only."""

from __future__ import annotations

from collections.abc import Callable, Sequence

__all__ = ["falling_fit", "find_crossing"]

_MOVE = 1.0  # the first move; towards finer places it doubles as long as they miss by far
_REPEATS = 3  # of a measurement that is noisy, beside the crossing
_NOISY_WIDTH = 0.25


def falling_fit(values: Sequence[float], counts: Sequence[int]) -> list[float]:
    """Return the falling sequence nearest to some values, in squares: pool adjacent violators.

    Parameters
    ----------
    values : sequence of float
        Finite.
    counts : sequence of int
        How much each weighs.

    Examples
    --------
    >>> falling_fit([3.0, 1.0, 2.0, 0.0], [1, 1, 1, 1])
    [3.0, 1.5, 1.5, 0.0]
    """
    pools: list[tuple[float, int, int]] = []  # mean, weight, number of places
    for value, count in zip(values, counts, strict=True):
        mean, weight, places = value, count, 1
        while pools and pools[-1][0] < mean:
            other, more, wide = pools.pop()
            mean = (mean * weight + other * more) / (weight + more)
            weight, places = weight + more, places + wide
        pools.append((mean, weight, places))
    return [mean for mean, _, places in pools for _ in range(places)]


def find_crossing(
    measure: Callable[[float], float],
    start: float,
    bounds: tuple[float, float],
    *,
    scale: float,
    max_calls: int,
    noisy: bool,
    width: float = 0.07,
) -> float | None:
    """Return the coarsest place found where a falling, rough function is not negative; None if there is none.

    Parameters
    ----------
    measure : callable
        The function: of a place, larger = coarser, to a margin.
    start : float
        Where to begin, within the bounds.
    bounds : pair of float
        Finest and coarsest place.
    scale : float
        Margins beyond this, on either side, weigh no more than this. Above 0.
    max_calls : int
        At least 1.
    noisy : bool
        Whether ``measure`` says something else each time. What counts is the mean then; the answer is
        measured at least twice, if calls are left.
    width : float
        How near the coarsest place that keeps and the finest that does not are to come.

    Notes
    -----
    What is known is fitted by a falling sequence, so that one stray value does not lead astray; the next
    place halves the gap where the fit crosses zero. Where a single narrow miss is all that holds the search
    back, a place beyond it is tried too. With noise, the gap is left wider, and what calls remain go to the
    two sides of it.
    """
    known: dict[float, list[float]] = {}
    width = max(width, _NOISY_WIDTH) if noisy else width
    place: float | None = start
    for n_calls in range(max_calls):
        if noisy and n_calls >= max_calls - 1:  # the last call is for the answer
            place = _doubtful(known, scale, _coarsest(known))
        if place is None:
            break
        known.setdefault(place, []).append(min(max(measure(place), -scale), scale))
        place = _next_place(known, bounds, scale, width)
        if place is None and noisy:
            place = _doubtful(known, scale)
    return _coarsest(known)


def _doubtful(known: dict[float, list[float]], scale: float, answer: float | None = None) -> float | None:
    """Return which place, of those beside the crossing, is to be measured again; None if none is in doubt."""
    if answer is not None:
        return answer if len(known[answer]) < _REPEATS else None
    places, fitted = _fit(known)
    keeping = [place for place, fit in zip(places, fitted, strict=True) if fit >= 0]
    losing = [place for place, fit in zip(places, fitted, strict=True) if fit < 0]
    beside = [*keeping[-1:], *losing[:1]]
    narrow = [place for place in beside if abs(_mean(known[place])) < scale or place in keeping]
    doubtful = [place for place in narrow if len(known[place]) < _REPEATS]
    return min(doubtful, key=lambda place: len(known[place]), default=None)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _fit(known: dict[float, list[float]]) -> tuple[list[float], list[float]]:
    """Return the places in order, and the falling fit of their means."""
    places = sorted(known)
    means = [_mean(known[place]) for place in places]
    return places, falling_fit(means, [len(known[place]) for place in places])


def _coarsest(known: dict[float, list[float]]) -> float | None:
    """Return the coarsest place that keeps, by the fit and by what was measured there itself."""
    places, fitted = _fit(known)
    keeping = [
        place for place, fit in zip(places, fitted, strict=True) if fit >= 0 and _mean(known[place]) >= 0
    ]
    return max(keeping, default=None)


def _next_place(
    known: dict[float, list[float]], bounds: tuple[float, float], scale: float, width: float
) -> float | None:
    """Return where to measure next, None if all is known."""
    places, fitted = _fit(known)
    fine = max((place for place, fit in zip(places, fitted, strict=True) if fit >= 0), default=None)
    coarse = min((place for place, fit in zip(places, fitted, strict=True) if fit < 0), default=None)
    if coarse is None:
        assert fine is not None
        return None if fine >= bounds[1] else min(fine + _MOVE, bounds[1])
    if fine is None:
        clear = len(places) > 1 and _mean(known[coarse]) <= -scale  # a narrow miss: it is not far
        move = max(_MOVE, 2 * (places[1] - places[0])) if clear else _MOVE
        return None if coarse <= bounds[0] else max(coarse - move, bounds[0])
    if coarse - fine > width:
        return (fine + coarse) / 2
    # One narrow miss, and nothing but hits nearby: it may be stray.
    misses = [place for place in places if coarse <= place <= coarse + _MOVE]
    narrow = -scale < _mean(known[coarse])
    if len(misses) == 1 and narrow and coarse + width <= bounds[1]:
        return coarse + width
    return None
