"""Coders that keep the words as they are: raw bytes, and byte planes for floats and integers."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from dcompress import kernels
from dcompress.coding.base import Coder, TensorLayout
from dcompress.coding.huffman import HuffmanCode
from dcompress.coding.lanes import check_status, lane_counts, pack_lanes, read_lanes
from dcompress.coding.range_coder import SideReader, SideWriter
from dcompress.coding.tables import read_code, write_code
from dcompress.constants import (
    CODER_PLANES,
    CODER_RAW,
    PLANE_CONSTANT,
    PLANE_HUFFMAN,
    PLANE_RAW,
    DType,
    WordKind,
)
from dcompress.cursor import Cursor
from dcompress.errors import CorruptError
from dcompress.stages import Words

__all__ = ["Planes", "Raw"]

_BLOCK = 1 << 20
_PLANE_COLUMNS = 16


@dataclass(frozen=True, eq=False)
class Raw(Coder):
    """The words as they stand, little-endian."""

    number: ClassVar[int] = CODER_RAW

    def write_tables(self, writer: SideWriter) -> None:
        """Write nothing: there are no tables."""

    @classmethod
    def read_tables(cls, reader: SideReader, layout: TensorLayout) -> Raw:
        """Read nothing."""
        del reader, layout
        return cls()

    def encode_chunk(self, symbols: NDArray[Any], first_word: int = 0) -> bytes:
        """Return the bytes of the words."""
        return symbols.tobytes()

    def decode_chunk(
        self, chunk: memoryview, first_word: int, out: Words, work: int
    ) -> tuple[int, int] | None:
        """Copy the words.

        Raises
        ------
        CorruptError
            The chunk is not as long as its words (RAW-01).
        """
        del first_word, work
        if len(chunk) != out.nbytes:
            raise CorruptError(f"{len(chunk)} bytes for {out.nbytes}", rule="RAW-01")
        out[:] = np.frombuffer(chunk, out.dtype)
        return None


@dataclass(frozen=True, eq=False)
class Planes(Coder):
    """Byte planes: all first bytes, all second bytes, and so on, each stored in the way that suits it.

    Floats are rotated left by one bit first, so that the sign joins the mantissa and the exponent of
    bfloat16 and float32 fills a byte of its own. That byte Huffman-codes well; the mantissa is noise.

    Attributes
    ----------
    dtype : DType
        Element type; its words have as many planes as bytes.
    constants : tuple of (int or None)
        For each plane, least significant first: its one value, if it has but one.
    codes : tuple of (HuffmanCode or None)
        For each plane: its code, if it is Huffman-coded. A plane with neither is stored raw.
    """

    number: ClassVar[int] = CODER_PLANES
    dtype: DType
    constants: tuple[int | None, ...]
    codes: tuple[HuffmanCode | None, ...]

    @classmethod
    def fit(cls, dtype: DType, words: Words) -> tuple[Planes, float]:
        """Return the cheapest planes coder for these words, and its cost in bits, tables not counted."""
        counts = np.zeros((dtype.word_bytes, 256), np.int64)
        for first in range(0, words.size, _BLOCK):
            for place, plane in enumerate(_split(dtype, words[first : first + _BLOCK])):
                counts[place] += np.bincount(plane, minlength=256)
        constants: list[int | None] = []
        codes: list[HuffmanCode | None] = []
        cost = 0.0
        for row in counts:
            code = HuffmanCode.from_counts(row)
            lone = code.lone_symbol
            coded = int(row @ code.bits.astype(np.int64))
            # A code that saves less than its table and the time to decode it is not worth having.
            keep = lone is None and coded + 800 < 7.92 * words.size
            constants.append(lone)
            codes.append(code if keep else None)
            cost += 0 if lone is not None else coded if keep else 8 * words.size
        return cls(dtype, tuple(constants), tuple(codes)), cost

    def write_tables(self, writer: SideWriter) -> None:
        """Write how each plane is stored, with its constant or its code."""
        for constant, code in zip(self.constants, self.codes, strict=True):
            if constant is not None:
                writer.raw(PLANE_CONSTANT, 2)
                writer.raw(constant, 8)
            elif code is None:
                writer.raw(PLANE_RAW, 2)
            else:
                writer.raw(PLANE_HUFFMAN, 2)
                write_code(writer, code, _PLANE_COLUMNS)

    @classmethod
    def read_tables(cls, reader: SideReader, layout: TensorLayout) -> Planes:
        """Read what ``write_tables`` wrote.

        Raises
        ------
        CorruptError
            Unknown plane mode (PLN-01), a code for a plane of one value (PLN-02), or an illegal code.
        """
        constants: list[int | None] = []
        codes: list[HuffmanCode | None] = []
        for _ in range(layout.dtype.word_bytes):
            mode = reader.raw(2)
            if mode > PLANE_HUFFMAN:
                raise CorruptError(f"unknown plane mode {mode}", rule="PLN-01")
            constants.append(reader.raw(8) if mode == PLANE_CONSTANT else None)
            codes.append(read_code(reader, 256, _PLANE_COLUMNS) if mode == PLANE_HUFFMAN else None)
        if any(code is not None and code.lone_symbol is not None for code in codes):
            raise CorruptError("a plane of one value must be constant", rule="PLN-02")
        return cls(layout.dtype, tuple(constants), tuple(codes))

    def encode_chunk(self, symbols: NDArray[Any], first_word: int = 0) -> bytes:
        """Return the planes of the chunk, least significant first; constant ones take no bytes."""
        parts = []
        for plane, constant, code in zip(
            _split(self.dtype, symbols), self.constants, self.codes, strict=True
        ):
            if code is not None:
                parts.append(pack_lanes(code.assign_codes()[plane].astype(np.uint64), code.bits[plane]))
            elif constant is None:
                parts.append(plane.tobytes())
        return b"".join(parts)

    def decode_chunk(
        self, chunk: memoryview, first_word: int, out: Words, work: int
    ) -> tuple[int, int] | None:
        """Decode the planes and join them into words.

        Raises
        ------
        CorruptError
            A stream of the wrong length (STR-01 to STR-03), or bytes left over (PLN-03).
        """
        del first_word
        kernel = kernels.select(work)
        cursor = Cursor(chunk)
        if None not in self.constants:
            cursor.finish("PLN-03")  # before memory is taken for planes that take no bytes
        planes = []
        for constant, table in zip(self.constants, self.decoding_tables(kernel), strict=True):
            if constant is not None:
                planes.append(np.full(out.size, constant, np.uint8))
            elif table is None:
                planes.append(np.frombuffer(cursor.take(out.size), np.uint8))
            else:
                counts = lane_counts(out.size)
                stream, ends, _ = read_lanes(cursor, counts.size)
                plane = np.empty(out.size, np.uint8)
                check_status(kernel.decode_symbols(stream, ends, counts, table, plane))
                planes.append(plane)
        cursor.finish("PLN-03")
        kernel.join_planes(planes, self.dtype.kind is WordKind.FLOAT, out)
        return None

    def build_tables(self, kernel: ModuleType) -> list[Any]:
        """Build the decoding tables of the coded planes."""
        return [
            None if code is None else kernel.symbol_table(*code.windows(), code.max_length, 1)
            for code in self.codes
        ]


def _split(dtype: DType, words: Words) -> list[NDArray[np.uint8]]:
    """Return the byte planes of words, least significant first; those of floats after a turn to the left."""
    if dtype.kind is WordKind.FLOAT:
        kind = words.dtype.type
        words = (words << kind(1)) | (words >> kind(8 * dtype.word_bytes - 1))
    planes = np.ascontiguousarray(words).view(np.uint8).reshape(-1, dtype.word_bytes)
    return [np.ascontiguousarray(planes[:, place]) for place in range(dtype.word_bytes)]
