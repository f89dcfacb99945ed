"""What the parts of a frame are written with: numbers, checksums, bit streams, side information.

Written from spec/dcz-1.md alone. Nothing of the package is imported by the modules that make vectors, so
that vectors and package can only agree by both being right. Nothing is checked here: vectors are wrong on
purpose, too.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

__all__ = [
    "DTYPES",
    "USED_ZERO",
    "BitWriter",
    "DType",
    "SideWriter",
    "checksum",
    "fold",
    "noise",
    "pack_words",
    "read_varint",
    "u32",
    "varint",
    "write_lengths",
]


class DType(NamedTuple):
    """An element type (spec 14.1)."""

    name: str
    number: int
    kind: str
    word_bytes: int
    words: int

    @property
    def top_bit(self) -> int:
        """The sign bit of a word."""
        return 1 << (8 * self.word_bytes - 1)

    @property
    def mask(self) -> int:
        """All bits of a word."""
        return (1 << 8 * self.word_bytes) - 1

    def key(self, word: int) -> float:
        """Return what puts words in ascending order of value; minus zero comes before zero."""
        if self.kind == "unsigned" or not word & self.top_bit:
            return word
        magnitude = word ^ self.top_bit if self.kind == "float" else word ^ self.mask
        return -magnitude - 1


_ROWS = (
    "bool unsigned 1 1|uint8 unsigned 1 1|int8 signed 1 1|uint16 unsigned 2 1|int16 signed 2 1|"
    "uint32 unsigned 4 1|int32 signed 4 1|uint64 unsigned 8 1|int64 signed 8 1|float16 float 2 1|"
    "bfloat16 float 2 1|float32 float 4 1|float64 float 8 1|float8_e4m3fn float 1 1|"
    "float8_e5m2 float 1 1|float8_e4m3fnuz float 1 1|float8_e5m2fnuz float 1 1|"
    "float8_e8m0fnu unsigned 1 1|float4_e2m1fn_x2 unsigned 1 1|complex32 float 2 2|complex64 float 4 2|"
    "complex128 float 8 2"
)
DTYPES = {
    row.split()[0]: DType(row.split()[0], number, row.split()[1], int(row.split()[2]), int(row.split()[3]))
    for number, row in enumerate(_ROWS.split("|"), 1)
}


def varint(value: int, n_bytes: int = 0) -> bytes:
    """Return a varint (spec 4.3); ``n_bytes`` makes it longer than it may be."""
    groups = [value & 127]
    while value := value >> 7:
        groups.append(value & 127)
    groups += [0] * (n_bytes - len(groups))
    return bytes([*(group | 128 for group in groups[:-1]), groups[-1]])


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the varint at a place, and where it ends."""
    value = shift = 0
    while True:
        value |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 128:
            return value, at


def u32(value: int) -> bytes:
    """Return four bytes, the least significant first."""
    return struct.pack("<I", value)


def pack_words(words: Sequence[int], word_bytes: int) -> bytes:
    """Return words as little-endian bytes."""
    return b"".join(word.to_bytes(word_bytes, "little") for word in words)


def checksum(data: bytes) -> int:
    """Return the checksum of section 12."""
    total = 0
    padded = data + bytes(-len(data) % 4)
    for place, (word,) in enumerate(struct.iter_unpack("<I", padded)):
        multiplier = (place + 1) * 0x9E3779B1 & 0xFFFFFFFF
        total += word * (multiplier ^ multiplier >> 15)
    total &= (1 << 64) - 1
    return (total & 0xFFFFFFFF) + (total >> 32) & 0xFFFFFFFF


def fold(number: int) -> int:
    """Return a signed number as an unsigned one: 0, -1, 1, -2, 2 ... become 0, 1, 2, 3, 4 ..."""
    return 2 * number if number >= 0 else -2 * number - 1


def noise(seed: int, n: int, limit: int) -> list[int]:
    """Return n numbers of 0 to limit - 1 that look random, and are the same everywhere and for ever."""
    numbers, state = [], seed * 2862933555777941757 + 3037000493 & (1 << 64) - 1
    for _ in range(n):
        value = 0
        for _ in range(1 + limit.bit_length() // 32):
            state = state * 6364136223846793005 + 1442695040888963407 & (1 << 64) - 1
            value = value << 32 | state >> 32
        numbers.append(value % limit)
    return numbers


class BitWriter:
    """A bit stream, from the most significant bit of each byte down (spec 4.2)."""

    def __init__(self) -> None:
        self._bits: list[str] = []

    def write(self, value: int, n_bits: int) -> None:
        """Append a number of ``n_bits`` bits."""
        if n_bits:
            self._bits.append(f"{value:0{n_bits}b}")

    def to_bytes(self, padding: str = "0") -> bytes:
        """Return the bytes, the last one filled up."""
        bits = "".join(self._bits)
        bits += padding * (-len(bits) % 8)
        return int(bits or "0", 2).to_bytes(len(bits) // 8, "big")


_SHIFTS = (1, 2, 2, 3, 3, 3, 4, 4, 4, 4, 4, 4, 5)


class SideWriter:
    """The encoder that belongs to the side decoder of section 11.1.

    It keeps the lowest number that its decoder may hold, and ends with the one of most zeros at its end.
    """

    def __init__(self) -> None:
        self._chance: dict[int, int] = {}
        self._seen: dict[int, int] = {}
        self._low = 0
        self._range = 2**32 - 1
        self._out = bytearray()

    def _carry(self) -> None:
        if self._low >> 32:
            self._low -= 1 << 32
            place = len(self._out) - 1
            while self._out[place] == 255:
                self._out[place] = 0
                place -= 1
            self._out[place] += 1

    def _normalise(self) -> None:
        self._carry()
        if self._range < 2**24:
            self._range <<= 8
            self._out.append(self._low >> 24)
            self._low = self._low << 8 & 0xFFFFFFFF

    def bit(self, context: int, bit: int) -> None:
        """Write a bit in a context."""
        chance, seen = self._chance.get(context, 2048), self._seen.get(context, 0)
        bound = (self._range >> 12) * chance
        shift = _SHIFTS[min(seen, 12)]
        if bit:
            self._low += bound
            self._range -= bound
            chance = max(32, chance - (chance >> shift))
        else:
            self._range = bound
            chance = min(4064, chance + ((4096 - chance) >> shift))
        self._chance[context], self._seen[context] = chance, seen + 1
        self._normalise()

    def raw(self, value: int, n_bits: int) -> None:
        """Write bits without a context, eight at a time, the most significant first."""
        while n_bits > 0:
            step = min(8, n_bits)
            n_bits -= step
            self._range >>= step
            self._low += self._range * (value >> n_bits & (1 << step) - 1)
            self._normalise()

    def number(self, kind: int, value: int) -> None:
        """Write a number of 0 to 2**64 - 1 (spec 11.2)."""
        n_bits = value.bit_length()
        for place in range(n_bits):
            self.bit(64 * kind + place, 1)
        if n_bits < 64:
            self.bit(64 * kind + n_bits, 0)
        if n_bits > 1:
            self.raw(value & (1 << n_bits - 1) - 1, n_bits - 1)

    def unary(self, first: int, n_contexts: int, value: int) -> None:
        """Write a small number in unary (spec 11.2)."""
        for place in range(value):
            self.bit(first + min(place, n_contexts - 1), 1)
        self.bit(first + min(value, n_contexts - 1), 0)

    def finish(self, last: int = 0) -> bytes:
        """Return the bytes, zeros at the end left out; ``last`` is added to the last byte that is read."""
        for n_zeros in range(32, -1, -1):
            unit = 1 << n_zeros
            value = (self._low + unit - 1) // unit * unit
            if value < self._low + self._range:
                break
        self._low = value + last
        self._carry()
        return (bytes(self._out) + self._low.to_bytes(4, "big")).rstrip(b"\0")


USED_ZERO = 1000  # a code length of 0 of a symbol that is said to be used


def write_lengths(side: SideWriter, lengths: Sequence[int], n_columns: int) -> None:
    """Write code lengths (spec 11.4), any of them: 0 is not used; less than 0 is used, and illegal."""
    known = [0 if length == USED_ZERO else max(0, length) for length in lengths]
    for place, length in enumerate(lengths):
        left = known[place - 1] if place % n_columns else 0
        up = known[place - n_columns] if place >= n_columns else 0
        corner = known[place - n_columns - 1] if left and up else 0
        used = (left > 0) + 2 * (up > 0)
        guess = left + up
        if used == 3:
            guess = sorted((left, up, left + up - corner))[1] if corner else (left + up + 1) // 2
        side.bit(1984 + used, int(length != 0))
        if length == 0:
            continue
        size = (0 if length == USED_ZERO else length) - guess
        side.bit(1988 + used, int(size != 0))
        if size == 0:
            continue
        if guess:
            side.bit(1992 + used, int(size < 0))
        for step in range(1, abs(size)):
            side.bit(1996 + 7 * (guess > 0) + min(step, 6), 1)
        side.bit(1996 + 7 * (guess > 0) + min(abs(size), 6), 0)
