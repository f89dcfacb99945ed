"""The adaptive binary coder of side information: code lengths and codebooks (spec section 11).

Slow and close to the entropy, for a few hundred numbers a tensor. Weights never pass through it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dcompress import kernels
from dcompress.errors import CorruptError
from dcompress.kernels.side import (
    CLASS_CONTEXTS,
    LENGTH_CONTEXTS,
    MAP_CONTEXTS,
    NO_QUARTERS,
    TABLE_CONTEXTS,
    fold_sign,
    unfold_sign,
)
from dcompress.kernels.status import ILLEGAL, OK, OUT_OF_RANGE, OVERRUN

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

_TABLE_FAULTS = {
    OUT_OF_RANGE: ("table number out of range", "TAB-01"),
    ILLEGAL: ("bucket or length that does not exist", "SET-01"),
    OVERRUN: ("table that does not exist", "SET-02"),
}


class SideWriter:
    """Write numbers as an adaptively coded byte string."""

    def __init__(self) -> None:
        self._kernel = kernels.select(0)
        self._state = self._kernel.start_writer()

    def bit(self, context: int, bit: int) -> None:
        """Write one bit under the statistics of a context (0 .. N_CONTEXTS - 1)."""
        self._state = self._kernel.write_bit(self._state, context, bit)

    def raw(self, value: int, n_bits: int) -> None:
        """Write the low ``n_bits`` of a value, all bits equally likely, most significant first."""
        self._state = self._kernel.write_raw(self._state, np.uint64(value), n_bits)

    def number(self, kind: int, value: int) -> None:
        """Write a number of 0..2**64-1: its bit length in unary under contexts, then its lower bits.

        ``kind`` is 0..30; a kind takes contexts ``64 * kind`` and up.
        """
        self._state = self._kernel.write_number(self._state, kind, np.uint64(value))

    def unary(self, first: int, value: int, n_contexts: int) -> None:
        """Write a number as ones and a zero, under contexts ``first`` and up, the last for all the rest."""
        self._state = self._kernel.write_unary(self._state, first, value, n_contexts)

    def code_lengths(self, lengths: NDArray[np.uint8], n_columns: int) -> None:
        """Write code lengths, rows of ``n_columns`` that belong together (spec 11.4)."""
        self._state = self._kernel.write_lengths(self._state, n_columns, lengths)

    def magnitudes(self, values: NDArray[np.uint64], n_first: int) -> None:
        """Write numbers that ascend in two parts, the first of ``n_first`` numbers (spec 11.3)."""
        self._state = self._kernel.write_gaps(self._state, n_first, values)

    def finish(self) -> bytes:
        """Return the shortest byte string that decodes to what was written."""
        data: bytes = self._kernel.written(self._state)
        return data


class SideReader:
    """Read back what SideWriter wrote.

    Parameters
    ----------
    data : bytes
        The whole byte string; bytes beyond its end read as zero.
    """

    def __init__(self, data: bytes) -> None:
        self._data = np.frombuffer(data, np.uint8)
        # Numba has either been started for this frame, or is not worth the wait.
        self._kernel = kernels.select(0)
        self._state = self._kernel.start_side(self._data)

    def raw(self, n_bits: int) -> int:
        """Read up to 64 equally likely bits."""
        return int(self._kernel.read_raw(self._data, self._state, n_bits))

    def number(self, kind: int, limit: int) -> int:
        """Read a number of at most ``limit`` (below 2**64).

        Raises
        ------
        CorruptError
            The number exceeds its limit (TAB-01).
        """
        value = int(self._kernel.read_number(self._data, self._state, kind))
        if value > limit:
            raise CorruptError(f"table number {value} exceeds {limit}", rule="TAB-01")
        return value

    def classes(self, first: int, count: int) -> NDArray[np.int64]:
        """Read signed numbers, each in unary under one of four sets of 16 contexts from ``first`` on.

        Raises
        ------
        CorruptError
            A number is not -31..31, or -128, which is written as 0 (TAB-01).
        """
        classes = np.zeros(count, np.int64)
        if self._kernel.read_classes(self._data, self._state, first, classes) != OK:
            raise CorruptError("class out of range", rule="TAB-01")
        return classes

    def code_lengths(self, n_symbols: int, n_columns: int) -> NDArray[np.uint8]:
        """Read code lengths, rows of ``n_columns`` that belong together (spec 11.4).

        Raises
        ------
        CorruptError
            A length is not 0..15 (HUF-03).
        """
        lengths = np.zeros(n_symbols, np.uint8)
        if self._kernel.read_lengths(self._data, self._state, n_columns, lengths) != OK:
            raise CorruptError("code length out of range", rule="HUF-03")
        return lengths

    def magnitudes(self, count: int, n_first: int, largest: int) -> NDArray[np.uint64]:
        """Read numbers in two ascending parts, the first of ``n_first`` numbers (spec 11.3).

        Raises
        ------
        CorruptError
            A number exceeds ``largest`` (TAB-03), or the bit length of a gap changes too much (TAB-01).
        """
        values = np.zeros(count, np.uint64)
        status = self._kernel.read_gaps(self._data, self._state, n_first, np.uint64(largest), values)
        if status == OUT_OF_RANGE:
            raise CorruptError("table number out of range", rule="TAB-01")
        if status != OK:
            raise CorruptError("codebook value does not fit its dtype", rule="TAB-03")
        return values

    def tables(
        self, n_tables: int, n_symbols: int, n_quantisers: int, n_rows: int, n_classes: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Read lengths in quarter bits by table and symbol, and tables by quantiser, row and class.

        Raises
        ------
        CorruptError
            A number is out of range (TAB-01), a bucket or a length (SET-01) or a table (SET-02) does not
            exist.
        """
        quarters = np.full((n_tables, n_symbols), NO_QUARTERS, np.uint8)
        choice = np.zeros((n_quantisers, n_rows, n_classes), np.uint8)
        status = self._kernel.read_tables(self._data, self._state, quarters, choice)
        if status != OK:
            message, rule = _TABLE_FAULTS[status]
            raise CorruptError(message, rule=rule)
        return quarters, choice

    def finish(self) -> None:
        """Check that the byte string held no more than was read.

        Raises
        ------
        CorruptError
            Bytes are left over, or the last one is zero and need not be there (TAB-02).
        """
        n_bytes = self._data.size
        if n_bytes > self._kernel.bytes_used(self._state) or (n_bytes and self._data[-1] == 0):
            raise CorruptError("table bytes left over", rule="TAB-02")
