"""The adaptive binary coder of side information: code lengths and codebooks (spec section 11).

Slow and close to the entropy, for a few hundred numbers a tensor. Weights never pass through it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dcompress import kernels
from dcompress.errors import CorruptError
from dcompress.kernels.side import SIDE_CEILING, SIDE_FLOOR, SIDE_SHIFTS
from dcompress.kernels.status import OK

__all__ = [
    "CLASS_CONTEXTS",
    "LENGTH_CONTEXTS",
    "MAP_CONTEXTS",
    "TABLE_CONTEXTS",
    "SideReader",
    "SideWriter",
    "fold_sign",
    "unfold_sign",
]

_TOP = 1 << 24
_MASK = 0xFFFFFFFF
_PROBABILITY_BITS = 12
_WHOLE = 1 << _PROBABILITY_BITS
_HALF = _WHOLE // 2
_SETTLED = len(SIDE_SHIFTS) - 1
_MAX_BITS = 64
LENGTH_CONTEXTS = 1984  # the first context of code lengths; those of numbers are below
CLASS_CONTEXTS = 2016  # three kinds of classes, 64 contexts each
TABLE_CONTEXTS = 2208  # lengths of table sets: three sets of 16
MAP_CONTEXTS = 2256  # tables of contexts: two sets of 16
N_CONTEXTS = 2288
_NUMBER_CONTEXTS = _MAX_BITS  # contexts that each kind of number takes
_RAW_STEP = 8  # equally likely bits are coded up to eight at a time


def fold_sign(value: int) -> int:
    """Return a signed number as an unsigned one: 0, -1, 1, -2, ... become 0, 1, 2, 3, ..."""
    return 2 * value if value >= 0 else -2 * value - 1


def unfold_sign(folded: int) -> int:
    """Return the signed number that ``fold_sign`` folded."""
    return -(folded + 1) // 2 if folded % 2 else folded // 2


class SideWriter:
    """Write numbers as an adaptively coded byte string."""

    def __init__(self) -> None:
        self._chances = [_HALF] * N_CONTEXTS
        self._seen = [0] * N_CONTEXTS
        self._low = 0
        self._range = _MASK
        self._n_shifted = 0

    def bit(self, context: int, bit: int) -> None:
        """Write one bit under the statistics of a context (0 .. N_CONTEXTS - 1)."""
        chance = self._chances[context]
        seen = self._seen[context]
        bound = (self._range >> _PROBABILITY_BITS) * chance
        if bit:
            self._low += bound
            self._range -= bound
            chance -= chance >> SIDE_SHIFTS[seen]
            self._chances[context] = chance if chance > SIDE_FLOOR else SIDE_FLOOR
        else:
            self._range = bound
            chance += (_WHOLE - chance) >> SIDE_SHIFTS[seen]
            self._chances[context] = chance if chance < SIDE_CEILING else SIDE_CEILING
        if seen < _SETTLED:
            self._seen[context] = seen + 1
        if self._range < _TOP:
            self._normalise()

    def raw(self, value: int, n_bits: int) -> None:
        """Write the low ``n_bits`` of a value, all bits equally likely, most significant first."""
        while n_bits > 0:
            take = min(_RAW_STEP, n_bits)
            n_bits -= take
            self._range >>= take
            self._low += self._range * (value >> n_bits & ((1 << take) - 1))
            if self._range < _TOP:
                self._normalise()

    def number(self, context: int, value: int) -> None:
        """Write a number of 0..2**64-1: its bit length in unary under contexts, then its lower bits.

        ``context`` is the kind of number, 0..31; it takes contexts ``64 * context`` and up.
        """
        first = _NUMBER_CONTEXTS * context
        n_bits = value.bit_length()
        for place in range(n_bits):
            self.bit(first + place, 1)
        if n_bits < _MAX_BITS:
            self.bit(first + n_bits, 0)
        self.raw(value, max(0, n_bits - 1))

    def unary(self, first: int, value: int, n_contexts: int) -> None:
        """Write a number as ones and a zero, under contexts ``first`` and up, the last for all the rest."""
        for place in range(value):
            self.bit(first + min(place, n_contexts - 1), 1)
        self.bit(first + min(value, n_contexts - 1), 0)

    def finish(self) -> bytes:
        """Return the shortest byte string that decodes to what was written."""
        # ``low`` is a number of n_shifted + 4 bytes; any value in [low, low + range) will do. Take the
        # one with most zero bits at its end, and leave those out.
        high = self._low + self._range - 1
        n_free = (self._low ^ high).bit_length()
        value = self._low
        if value & ((1 << n_free) - 1):
            value = high >> (n_free - 1) << (n_free - 1)
        return value.to_bytes(self._n_shifted + 4, "big").rstrip(b"\0")

    def _normalise(self) -> None:
        while self._range < _TOP:
            self._low <<= 8
            self._range <<= 8
            self._n_shifted += 1


class SideReader:
    """Read back what SideWriter wrote.

    Parameters
    ----------
    data : bytes
        The whole byte string; bytes beyond its end read as zero.
    """

    def __init__(self, data: bytes) -> None:
        self._chances = [_HALF] * N_CONTEXTS
        self._seen = [0] * N_CONTEXTS
        self._data = data
        self._range = _MASK
        self._code = int.from_bytes(data[:4].ljust(4, b"\0"), "big")
        self._next = 4

    def bit(self, context: int) -> int:
        """Read one bit under the statistics of a context (0 .. N_CONTEXTS - 1)."""
        chance = self._chances[context]
        seen = self._seen[context]
        bound = (self._range >> _PROBABILITY_BITS) * chance
        if self._code < bound:
            self._range = bound
            chance += (_WHOLE - chance) >> SIDE_SHIFTS[seen]
            self._chances[context] = chance if chance < SIDE_CEILING else SIDE_CEILING
            bit = 0
        else:
            self._code -= bound
            self._range -= bound
            chance -= chance >> SIDE_SHIFTS[seen]
            self._chances[context] = chance if chance > SIDE_FLOOR else SIDE_FLOOR
            bit = 1
        if seen < _SETTLED:
            self._seen[context] = seen + 1
        if self._range < _TOP:
            self._normalise()
        return bit

    def raw(self, n_bits: int) -> int:
        """Read ``n_bits`` equally likely bits."""
        value = 0
        while n_bits > 0:
            take = min(_RAW_STEP, n_bits)
            n_bits -= take
            self._range >>= take
            part = min(self._code // self._range, (1 << take) - 1)
            self._code -= self._range * part
            if self._range < _TOP:
                self._normalise()
            value = value << take | part
        return value

    def number(self, context: int, limit: int) -> int:
        """Read a number of at most ``limit`` (below 2**64).

        Raises
        ------
        CorruptError
            The number exceeds its limit (TAB-01).
        """
        first = _NUMBER_CONTEXTS * context
        n_bits = 0
        while n_bits < _MAX_BITS and self.bit(first + n_bits):
            n_bits += 1
        value = 1 << (n_bits - 1) | self.raw(n_bits - 1) if n_bits else 0
        if value > limit:
            raise CorruptError(f"table number {value} exceeds {limit}", rule="TAB-01")
        return value

    def unary(self, first: int, n_contexts: int, limit: int) -> int:
        """Read a number that stands as ones and a zero.

        Raises
        ------
        CorruptError
            The number exceeds its limit (TAB-01).
        """
        value = 0
        while self.bit(first + min(value, n_contexts - 1)):
            value += 1
            if value > limit:
                raise CorruptError(f"table number exceeds {limit}", rule="TAB-01")
        return value

    def classes(self, first: int, count: int) -> NDArray[np.int64]:
        """Read signed numbers, each in unary under one of four sets of 16 contexts from ``first`` on.

        Raises
        ------
        CorruptError
            A number is not -31..31, or -128, which is written as 0 (TAB-01).
        """
        folded = np.zeros(count, np.int64)
        if self._run_kernel("read_classes", first, first + 64, folded) != OK:
            raise CorruptError("class out of range", rule="TAB-01")
        places = folded - 1
        return np.where(folded == 0, -128, np.where(places % 2 == 1, -(places + 1) // 2, places // 2))

    def code_lengths(self, n_symbols: int, n_columns: int) -> NDArray[np.uint8]:
        """Read code lengths, rows of ``n_columns`` that belong together (spec 11.4).

        Raises
        ------
        CorruptError
            A length is not 0..15 (HUF-03).
        """
        lengths = np.zeros(n_symbols, np.uint8)
        if self._run_kernel("read_lengths", LENGTH_CONTEXTS, CLASS_CONTEXTS, n_columns, lengths) != OK:
            raise CorruptError("code length out of range", rule="HUF-03")
        return lengths

    def _run_kernel(self, name: str, first: int, stop: int, *arguments: Any) -> int:
        """Run a kernel that reads on under some of the contexts; return its status."""
        registers = np.array([self._range, self._code, self._next])
        chances, seen = np.array(self._chances[first:stop]), np.array(self._seen[first:stop])
        # Numba has either been started for this frame, or is not worth the wait.
        kernel = getattr(kernels.select(0), name)
        status = int(kernel(np.frombuffer(self._data, np.uint8), registers, chances, seen, *arguments))
        self._range, self._code, self._next = registers.tolist()
        self._chances[first:stop] = chances.tolist()
        self._seen[first:stop] = seen.tolist()
        return status

    def finish(self) -> None:
        """Check that the byte string held no more than was read.

        Raises
        ------
        CorruptError
            Bytes are left over, or the last one is zero and need not be there (TAB-02).
        """
        if len(self._data) > self._next or self._data[-1:] == b"\0":
            raise CorruptError("table bytes left over", rule="TAB-02")

    def _normalise(self) -> None:
        while self._range < _TOP:
            byte = self._data[self._next] if self._next < len(self._data) else 0
            self._next += 1
            self._code = (self._code << 8 | byte) & _MASK
            self._range <<= 8
