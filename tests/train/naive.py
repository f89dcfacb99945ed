"""Slow, obvious computations that masks are compared with: loops over single weights."""

from __future__ import annotations

import itertools
import math
import zlib

import torch


def units_of(shape, granularity):
    """Return the weights of every unit, as index tuples; units in order, their weights in order."""
    units = {}
    for place in itertools.product(*map(range, shape)):
        column = 0
        for n, size in zip(place[1:], shape[1:], strict=True):
            column = column * size + n
        if granularity == "element":
            key = place
        elif granularity == "kernel":
            key = place[:2]
        elif granularity == "filter":
            key = place[:1]
        elif granularity == "channel":
            key = place[1:2]
        elif "x" in granularity:
            height, width = map(int, granularity.split("x"))
            key = (place[0] // height, column // width)
        else:
            m = int(granularity.split(":")[1])
            key = (place[0], *place[2:], place[1] // m)
        units.setdefault(key, []).append(place)
    return [units[key] for key in sorted(units)]


def mean(values):
    values = list(values)
    return sum(values) / len(values)


class Seen:
    """What was seen of one weight: itself, gradients and channels of every pass."""

    def __init__(self, weight, grads, outputs, inputs, seed):
        self.weight = weight.tolist()
        self.shape = tuple(weight.shape)
        self.grads = [grad.tolist() for grad in grads]
        self.outputs, self.inputs = outputs, inputs
        self.seed = seed

    def at(self, nested, place):
        for n in place:
            nested = nested[n]
        return nested

    def w(self, place):
        return self.at(self.weight, place)

    def g(self, place):
        return mean(self.at(grad, place) for grad in self.grads)

    def g2(self, place):
        return mean(self.at(grad, place) ** 2 for grad in self.grads)

    def channel(self, place, granularity, measure):
        """Return a mean over passes of what one channel did; activations are (batch, channel, y, x)."""
        passes, n = (self.inputs, place[1]) if granularity == "channel" else (self.outputs, place[0])
        return mean(mean(map(measure, one[:, n].flatten().tolist())) for one in passes)


def scores_of(seen, importance, granularity):
    """Return the importance of every unit; for N:M of every weight in its group."""
    units = units_of(seen.shape, granularity)
    is_groups = ":" in granularity
    if importance == "random":
        every = list(itertools.product(*map(range, seen.shape)))
        count = len(every) if is_groups else len(units)
        drawn = torch.rand(count, generator=torch.Generator().manual_seed(seen.seed)).tolist()
        if not is_groups:
            return drawn
        by_place = dict(zip(every, drawn, strict=True))
        return [[by_place[place] for place in unit] for unit in units]
    if importance == "geometric_median":
        points = [[seen.w(place) for place in unit] for unit in units]
        return [sum(math.dist(one, other) for other in points) for one in points]
    known = {}

    def channel(place, measure):
        key = place[1] if granularity == "channel" else place[0]
        if key not in known:
            known[key] = seen.channel(place, granularity, measure)
        return known[key]

    formulas = {
        "l1": lambda unit: mean(abs(seen.w(place)) for place in unit),
        "l2": lambda unit: math.sqrt(mean(seen.w(place) ** 2 for place in unit)),
        "linf": lambda unit: max(abs(seen.w(place)) for place in unit),
        "gradient": lambda unit: mean(abs(seen.g(place)) for place in unit),
        "taylor": lambda unit: abs(mean(seen.w(place) * seen.g(place) for place in unit)),
        "fisher": lambda unit: mean(0.5 * seen.w(place) ** 2 * seen.g2(place) for place in unit),
        "activation_mean": lambda unit: mean(channel(place, abs) for place in unit),
        "apoz": lambda unit: mean(channel(place, lambda value: float(value > 0)) for place in unit),
    }

    def own_function(unit):
        return mean(seen.w(place) + 2 * seen.g(place) for place in unit)

    score = own_function if callable(importance) else formulas[importance]

    if is_groups:
        return [[score([place]) for place in unit] for unit in units]
    return [score(unit) for unit in units]


def prune(mask, seen, importance, granularity, amount):
    """Return the mask after pruning: ``amount`` is a sparsity, or the N of N:M."""
    units = units_of(seen.shape, granularity)
    scores = scores_of(seen, importance, granularity)
    new = mask.clone()
    if ":" in granularity:
        for unit, row in zip(units, scores, strict=True):
            order = sorted(range(len(unit)), key=lambda n: (bool(mask[unit[n]]), row[n], n))
            for n in order[: len(unit) - amount]:
                new[unit[n]] = False
        return new
    alive = [any(mask[place] for place in unit) for unit in units]
    order = sorted(range(len(units)), key=lambda n: (alive[n], scores[n] if alive[n] else 0, n))
    for n in order[: round(amount * len(units))]:
        for place in units[n]:
            new[place] = False
    return new


def regrow(mask, seen, importance, granularity, fraction):
    """Return the mask after a round of RigL."""
    units = units_of(seen.shape, granularity)
    scores = scores_of(seen, importance, granularity)
    alive = {n for n, unit in enumerate(units) if any(mask[place] for place in unit)}
    n_moved = round(fraction * len(alive))
    staying = alive - set(sorted(alive, key=lambda n: (scores[n], n))[:n_moved])
    pull = [mean(abs(seen.g(place)) for place in unit) for unit in units]
    out = [n for n in range(len(units)) if n not in staying]
    grown = sorted(out, key=lambda n: (-pull[n], n))[:n_moved]
    new = torch.zeros_like(mask)
    for n in staying | set(grown):
        for place in units[n]:
            new[place] = True
    return new


def seed_of(seed, name, step):
    return zlib.crc32(f"{seed} {name} {step}".encode())
