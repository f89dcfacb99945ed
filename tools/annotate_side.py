"""For ``annotate.py``: a reader of side information that notes every number that it reads."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dcompress.coding import Coder, SharedCoder
from dcompress.coding.context import DEAD
from dcompress.coding.range_coder import CLASS_CONTEXTS, SideReader, unfold_sign
from dcompress.kernels.side import KIND_GAP, neighbours

_NUMBER_KINDS = {
    1: "folded change of the gap's bit length",
    2: "N_Groups - 1",
    3: "Block - 1",
    4: "N_Buckets - 1",
    5: "Raw_Bits",
    16: "number of the table set",
    17: "Trellis",
    18: "Distance",
    19: "step to the next threshold",
}


class TracedSide(SideReader):
    """A reader of side information that notes every number, raw value and code length."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.events: list[tuple[str, str, str]] = []
        self._trail: list[str] = []
        self._kind = -1
        self._n_counts = 0

    def number(self, kind: int, limit: int) -> int:
        """Read and note a number."""
        value = super().number(kind, limit)
        name = _NUMBER_KINDS.get(kind, "")
        if kind == 0:
            name = ("N_Negative", "N_Dropped")[self._n_counts % 2]
            self._n_counts += 1
        if kind == 20:
            name = "base of the classes of rows" if self._kind == 19 else "Origin"
        self._kind = kind
        self.events.append((name, "", str(value)))
        return value

    def raw(self, n_bits: int) -> int:
        """Read and note raw bits."""
        value = super().raw(n_bits)
        if n_bits:
            self.events.append((self._raw_name(n_bits), "", str(value)))
        return value

    def _raw_name(self, n_bits: int) -> str:
        if self._kind == 2:
            again = self.events[-1][0] != "N_Groups - 1"
            return "step, a float32" if n_bits == 32 else "is it even?" if again else "Has_Zero"
        if self._kind == 19:
            return "are classes given?"
        if self._kind == 1:
            return f"gap below its top bit, {n_bits} raw bits"
        return "Plane_Mode" if n_bits == 2 else "value of the constant plane"

    def classes(self, first: int, count: int) -> NDArray[np.int64]:
        """Read classes one by one (spec 11.5), and note each."""
        classes: list[int] = []
        folded = 0
        for place in range(count):
            contexts, folded = first + 16 * min(folded, 3), 0
            while self.bit(contexts + min(folded, 15)):
                folded += 1
            classes.append(unfold_sign(folded - 1) if folded else DEAD)
            kind = ("row", "column", "position")[(first - CLASS_CONTEXTS) // 64]
            self.events.append((f"class of {kind} {place}", "", "dead" if not folded else str(classes[-1])))
        return np.array(classes, np.int64)

    def bit(self, context: int) -> int:
        """Read and note a bit."""
        bit = int(self._kernel.read_bit(self._data, self._state, context))
        self._trail.append(f"{bit}@{context}")
        return bit

    def magnitudes(self, count: int, n_first: int, largest: int) -> NDArray[np.uint64]:
        """Read the gaps of a codebook one by one (spec 11.3), and note each."""
        values: list[int] = []
        n_bits = 0
        for place in range(count):
            n_bits += unfold_sign(self.number(KIND_GAP, 128))
            gap = 1 << (n_bits - 1) | self.raw(n_bits - 1) if n_bits else 0
            values.append(gap if place in (0, n_first) else values[-1] + 1 + gap)
        return np.array(values, np.uint64)

    def code_lengths(self, n_symbols: int, n_columns: int) -> NDArray[np.uint8]:
        """Read code lengths bit by bit (spec 11.4), and note each."""
        lengths: list[int] = []
        for symbol in range(n_symbols):
            used, guess = neighbours(lengths, symbol, n_columns)
            self._trail, length = [], 0
            if self.bit(1984 + used):
                length = guess
                if self.bit(1988 + used):
                    known = int(guess > 0)
                    sign, size = -1 if known and self.bit(1992 + used) else 1, 1
                    while self.bit(1996 + 7 * known + min(size, 6)):
                        size += 1
                    length += sign * size
            lengths.append(length)
            self.events.append((f"code length of symbol {symbol}", " ".join(self._trail), str(length)))
        return np.array(lengths, np.uint8)


def side_table(name: str, side: TracedSide, coder: Coder) -> str:
    """Return the table of the numbers in the tables of a tensor."""
    text = f"Numbers in the tables of `{name}`, in order. `1@1984` is a bit 1 in context 1984.\n\n"
    text += make_table(["Number", "Bits of a code length", "Value"], list(map(list, side.events)))
    if isinstance(coder, SharedCoder):
        digits = 2 * coder.codebook.dtype.word_bytes
        for row in coder.codebook.rows.tolist():
            text += "\nCodebook: " + ", ".join(f"0x{word:0{digits}X}" for word in row) + ".\n"
    return text


def make_table(header: list[str], cells: list[list[str]]) -> str:
    """Return a table in Markdown."""
    lines = [header, ["---"] * len(header), *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
