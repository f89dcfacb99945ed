"""Codebooks: the values of labels, written field by field (spec 11.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from vector_bytes import DType, SideWriter, fold

__all__ = ["Book", "even_values", "labels_of"]

EVEN_DTYPES = ("float16", "bfloat16", "float32")


@dataclass(frozen=True)
class Book:
    """The values of each group, in any order, without the word 0 that ``has_zero`` gives label 0."""

    rows: Sequence[Sequence[int]]
    has_zero: bool = True
    even: tuple[int, int] | None = None  # step and N_Negative
    n_dropped: int | None = None  # None: as many as there are zero bits
    n_groups: int | None = None  # another number than there are rows
    n_negative: int | None = None
    gaps: Sequence[tuple[int, int]] | None = None  # (folded change of bit length, raw bits with their number)

    @property
    def n_labels(self) -> int:
        """N_Labels."""
        return len(self.rows[0]) + self.has_zero

    def ordered(self, dtype: DType) -> list[list[int]]:
        """Return the words of each group by label."""
        return [[0] * self.has_zero + sorted(row, key=dtype.key) for row in self.rows]

    def write(self, side: SideWriter, dtype: DType) -> None:
        """Write the codebooks of all groups (spec 11.3)."""
        side.number(2, (len(self.rows) if self.n_groups is None else self.n_groups) - 1)
        side.raw(int(self.has_zero), 1)
        if dtype.name in EVEN_DTYPES and len(self.rows) == 1 and self.has_zero and self.rows[0]:
            side.raw(int(self.even is not None), 1)
            if self.even is not None:
                side.raw(self.even[0], 32)
                side.number(0, self.even[1])
                return
        for row in self.rows:
            self._write_row(side, dtype, sorted(row, key=dtype.key))

    def _write_row(self, side: SideWriter, dtype: DType, row: list[int]) -> None:
        negative = [word for word in row if dtype.kind != "unsigned" and word & dtype.top_bit]
        flip = dtype.top_bit if dtype.kind == "float" else dtype.mask
        parts = [[word ^ flip for word in negative[::-1]], row[len(negative) :]]
        used = [magnitude for part in parts for magnitude in part if magnitude]
        dropped = min(((m & -m).bit_length() - 1 for m in used), default=0)
        dropped = dropped if self.n_dropped is None else self.n_dropped
        side.number(0, len(negative) if self.n_negative is None else self.n_negative)
        side.number(0, dropped)
        if self.gaps is not None:
            for change, n_bits in self.gaps:
                side.number(1, change)
                side.raw((1 << n_bits) - 1, n_bits)
            return
        last_bits = 0
        for part in parts:
            before = -1
            for magnitude in part:
                gap = (magnitude >> dropped) - before - 1
                n_bits = gap.bit_length()
                side.number(1, fold(n_bits - last_bits))
                if n_bits > 1:
                    side.raw(gap & (1 << n_bits - 1) - 1, n_bits - 1)
                before, last_bits = magnitude >> dropped, n_bits


def even_values(dtype: str, step: int, n_negative: int, n_values: int) -> list[int]:
    """Return the multiples of a step as words, rounded twice, by NumPy's floats."""
    factors = [*range(-n_negative, 0), *range(1, n_values - n_negative + 1)]
    with np.errstate(over="ignore", under="ignore"):
        value = np.float64(np.uint32(step).view(np.float32))
        values = (value * np.array(factors, np.float64)).astype(np.float32)
        if dtype == "float16":
            return [int(word) for word in values.astype(np.float16).view(np.uint16)]
    bits = [int(word) for word in values.view(np.uint32)]
    if dtype == "float32":
        return bits
    return [(word + 0x7FFF + (word >> 16 & 1)) >> 16 for word in bits]


def labels_of(book: Book, dtype: DType, words: Sequence[int]) -> list[int]:
    """Return the label of each word."""
    stretch = max(1, len(words) // len(book.rows))
    maps = [{word: label for label, word in enumerate(row)} for row in book.ordered(dtype)]
    return [maps[at // stretch][word] for at, word in enumerate(words)]
