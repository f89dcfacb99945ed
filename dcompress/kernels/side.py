"""The side coder's inner loop in plain Python, and the numbers that all its readers and writers share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from dcompress.kernels.status import ILLEGAL, OK

__all__ = ["SIDE_CEILING", "SIDE_FLOOR", "SIDE_SHIFTS", "neighbours", "read_classes", "read_lengths"]

U8 = NDArray[np.uint8]
I64 = NDArray[np.int64]

# The side coder: how far a chance (of a 0, in 1/4096) moves after the n-th bit in its context, and its
# bounds, so that no bit is ever held for impossible.
SIDE_SHIFTS = (1, 2, 2, 3, 3, 3, 4, 4, 4, 4, 4, 4, 5)
SIDE_FLOOR = 32
SIDE_CEILING = 4096 - SIDE_FLOOR


def _bit_reader(
    data: U8, registers: I64, chances: I64, seen: I64
) -> tuple[Callable[[int], int], Callable[[], None]]:
    """Return a function that reads a bit under a context, and one that brings the arrays up to date.

    ``registers`` are range, code and next byte of the side coder; ``chances`` and ``seen`` its contexts.
    """
    stored = data.tobytes()
    size = len(stored)
    span, code, place = registers.tolist()
    odds, counts = chances.tolist(), seen.tolist()

    def bit(context: int) -> int:
        nonlocal span, code, place
        chance, count = odds[context], counts[context]
        bound = (span >> 12) * chance
        if code < bound:
            span = bound
            chance += (4096 - chance) >> SIDE_SHIFTS[count]
            odds[context] = chance if chance < SIDE_CEILING else SIDE_CEILING
            value = 0
        else:
            code -= bound
            span -= bound
            chance -= chance >> SIDE_SHIFTS[count]
            odds[context] = chance if chance > SIDE_FLOOR else SIDE_FLOOR
            value = 1
        if count < len(SIDE_SHIFTS) - 1:
            counts[context] = count + 1
        while span < 1 << 24:
            span <<= 8
            code = (code << 8 | (stored[place] if place < size else 0)) & 0xFFFFFFFF
            place += 1
        return value

    def keep() -> None:
        registers[:] = span, code, place
        chances[:] = odds
        seen[:] = counts

    return bit, keep


def read_classes(data: U8, registers: I64, chances: I64, seen: I64, numbers: I64) -> int:
    """Read numbers in unary, each under the set of contexts that the one before picks (spec 11).

    ``chances`` and ``seen`` are four sets of 16. Returns OK, or ILLEGAL if a number exceeds 63.
    """
    bit, keep = _bit_reader(data, registers, chances, seen)
    last = 0
    for at in range(numbers.size):
        value = 0
        while bit(16 * last + min(value, 15)):
            value += 1
            if value > 63:
                return ILLEGAL
        numbers[at] = value
        last = min(value, 3)
    keep()
    return OK


def read_lengths(data: U8, registers: I64, chances: I64, seen: I64, n_columns: int, lengths: U8) -> int:
    """Read code lengths from adaptively coded bytes (spec 11.4); return OK or ILLEGAL.

    ``registers``, ``chances`` and ``seen`` are as in `_bit_reader`, with the 32 contexts of code lengths.
    Rows of ``n_columns`` lengths belong together.
    """
    bit, keep = _bit_reader(data, registers, chances, seen)
    done: list[int] = []
    for at in range(lengths.size):
        used, guess = neighbours(done, at, n_columns)
        if not bit(used):
            done.append(0)
            continue
        length = guess
        if bit(4 + used):
            known = int(guess > 0)
            down = bool(known) and bit(8 + used)
            step = 1
            while step < 16 and bit(12 + 7 * known + min(step, 6)):
                step += 1
            length = guess - step if down else guess + step
        if not 0 < length < 16:
            return ILLEGAL
        done.append(length)
    lengths[:] = done
    keep()
    return OK


def neighbours(lengths: Sequence[int], place: int, n_columns: int) -> tuple[int, int]:
    """Return which neighbours of a code length are used (1 = left, 2 = up) and the guess they make, or 0."""
    left = lengths[place - 1] if place % n_columns else 0
    up = lengths[place - n_columns] if place >= n_columns else 0
    if not left:
        return (2, up) if up else (0, 0)
    if not up:
        return 1, left
    corner = lengths[place - n_columns - 1]
    if not corner:
        return 3, (left + up + 1) // 2
    # The gradient, held between the two neighbours (as LOCO-I guesses pixels).
    low, high = (left, up) if left < up else (up, left)
    guess = left + up - corner
    return 3, low if guess < low else high if guess > high else guess
