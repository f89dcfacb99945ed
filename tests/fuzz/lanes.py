"""Lanes that a hostile writer changes: sizes that fit the bytes, and bytes that do not fit the symbols.

A lane that is longer than its symbols, or that got bytes of another, lets a decoder go on where it should
have stopped: loops that store several words at once have written beyond their output that way. Plain changes
of bytes do not make such frames, since sizes of lanes, chunk and directory have to agree.
"""

from __future__ import annotations

import struct
from itertools import pairwise

from dcompress.constants import CODER_CONTEXT, CODER_LABELS, CODER_PLANES, RUN_CODERS
from dcompress.cursor import Cursor
from dcompress.errors import DecodeError
from tests.checks import varint

_LONG = 1024  # symbols from which on there are four lanes
_WAYS = ("all", "all", "some", "some", "shorter", "moved", "swapped", "exchanged", "starts")


def change_lanes(dice, coder: int, n_words: int, body: bytes) -> bytes | None:
    """Return a body whose lanes are longer, shorter, or one at the cost of another; None without lanes.

    Parameters
    ----------
    dice : Dice
        What makes the choices.
    coder, n_words : int
        Coder and words of the chunk.
    body : bytes
        Its body, without the tables.
    """
    if coder == CODER_CONTEXT:
        return _change_shared_words(dice, n_words, body)
    found = _find_lanes(dice, coder, n_words, body)
    if found is None:
        return None
    head, advances, lanes, rest = found
    way = dice.pick(_WAYS if advances else _WAYS[:-1])
    lane, size = dice.below(len(lanes)), _some(dice)
    other = (lane + 1) % len(lanes)
    taken = min(size, len(lanes[other])) if dice.below(8) else len(lanes[other])
    if way in ("all", "some"):
        mask = 15 if way == "all" else 1 + dice.below(15)
        for number, data in enumerate(lanes):
            if mask >> number & 1:
                lanes[number] = data + _more(dice, size, data)
            size = size if dice.below(4) else _some(dice)
    elif way == "shorter":
        lanes[lane] = lanes[lane][: max(0, len(lanes[lane]) - size)]
    elif way == "moved":  # over the bound between two lanes
        data = b"".join(lanes)
        sizes = [len(one) for one in lanes]
        sizes[lane] += taken
        sizes[other] -= taken
        bounds = [sum(sizes[:number]) for number in range(len(sizes) + 1)]
        lanes = [data[first:last] for first, last in pairwise(bounds)]
    elif way == "swapped":
        lanes[lane], lanes[other] = lanes[other], lanes[lane]
    elif way == "exchanged":
        lanes[lane] += _more(dice, taken, lanes[lane])
        lanes[other] = lanes[other][: len(lanes[other]) - taken]
    else:
        place = lane % len(advances)
        step = dice.pick((size, -size, advances[place], -advances[place]))
        advances[place] = max(0, advances[place] + step)
        if dice.below(2):
            place = (place + 1) % len(advances)
            advances[place] = max(0, advances[place] - step)
    sizes = b"".join(varint(len(one)) for one in lanes)
    return head + sizes + b"".join(map(varint, advances)) + b"".join(lanes) + rest


def _some(dice) -> int:
    return 1 + dice.below(dice.pick((4, 20, 72)))


def _more(dice, size: int, data: bytes) -> bytes:
    """Return more bytes of some kind: zeros, ones, any, or those that are there."""
    again = (data * (size // max(1, len(data)) + 1))[:size] if data else bytes(size)
    return dice.pick((bytes(size), b"\xff" * size, dice.blob(size), again))


def _find_lanes(dice, coder: int, n_words: int, body: bytes):
    """Return what is before the sizes of some lanes, the advances, the lanes, and what follows."""
    n_lanes = 1 if n_words < _LONG else 4
    at = 0
    if coder == CODER_LABELS:  # a symbol may be a block of them
        return (n_lanes == 4 and _read(body, 0, 4)) or _read(body, 0, 1)
    if coder in RUN_CODERS:
        try:
            cursor = Cursor(body)
            n_lanes = 1 if cursor.varint(1 << 64) < _LONG else 4
        except DecodeError:
            return None
        return _read(body, len(body) - cursor.remaining, n_lanes, n_lanes - 1)
    if coder != CODER_PLANES:
        return None
    for _ in range(dice.below(8)):  # planes that are raw
        at += n_words if n_words < len(body) - at else 0
    found = None
    while (one := _read(body, at, n_lanes)) is not None and (found is None or dice.below(2)):
        found, at = one, len(body) - len(one[3])
    return found


def _read(body: bytes, at: int, n_lanes: int, n_advances: int = 0):
    try:
        cursor = Cursor(body[at:])
        sizes = [cursor.varint(1 << 64) for _ in range(n_lanes)]
        advances = [cursor.varint(1 << 64) for _ in range(n_advances)]
        lanes = [bytes(cursor.take(size)) for size in sizes]
    except DecodeError:
        return None
    return body[:at], advances, lanes, bytes(cursor.take(cursor.remaining))


def _change_shared_words(dice, n_words: int, body: bytes) -> bytes | None:
    """Change the words that lanes share, or their states."""
    n_lanes = next((n for least, n in ((16384, 8), (4096, 4), (2048, 2)) if n_words >= least), 1)
    n_lanes = n_lanes if dice.below(4) else 1 + dice.below(8)
    start, size = 4 * n_lanes, 2 * _some(dice)
    if len(body) < start:
        return None
    way = dice.below(6)
    if way < 2:
        at = dice.pick((len(body), start, start + dice.below(len(body) - start + 1)))
        return body[:at] + _more(dice, size, body) + body[at:]
    if way == 2:
        return body[: max(start, len(body) - size)]
    states = [body[4 * number : 4 * number + 4] for number in range(n_lanes)]
    edge, lane = struct.pack("<I", 65536 + dice.below(3)), dice.below(n_lanes)
    states[lane] = (edge, dice.blob(4), states[dice.below(n_lanes)])[way - 3]
    return b"".join(states) + body[start:]
