"""Coders of dense shared tensors: every word has a label (spec 9.3, 9.4)."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from dcompress import kernels
from dcompress.coding.base import Codebook, SharedCoder, TensorLayout
from dcompress.coding.huffman import HuffmanCode
from dcompress.coding.lanes import check_status, lane_counts, pack_lanes, read_lanes
from dcompress.coding.range_coder import SideReader, SideWriter
from dcompress.coding.tables import read_code, write_code
from dcompress.constants import CODER_FIXED, CODER_LABELS, MAX_ALPHABET
from dcompress.cursor import Cursor
from dcompress.errors import CorruptError
from dcompress.stages import Words

__all__ = ["FixedWidth", "Labels"]

_KIND_BLOCK = 3
_BLOCK = 1 << 20


def _label_type(n_labels: int) -> type[np.unsignedinteger[Any]]:
    """Return the smallest type that holds the labels."""
    return np.uint8 if n_labels <= 256 else np.uint16


@dataclass(frozen=True, eq=False)
class FixedWidth(SharedCoder):
    """Labels of equally many bits each, most significant first, without entropy coding."""

    number: ClassVar[int] = CODER_FIXED

    @property
    def n_bits(self) -> int:
        """Bits of a label."""
        return max(1, (self.codebook.n_labels - 1).bit_length())

    def write_codes(self, writer: SideWriter) -> None:
        """Write nothing: the labels are not entropy-coded."""

    @classmethod
    def read_tables(cls, reader: SideReader, layout: TensorLayout) -> FixedWidth:
        """Read the codebook."""
        return cls(Codebook.read(reader, layout))

    def encode_chunk(self, symbols: NDArray[Any], first_word: int = 0) -> bytes:
        """Return the packed labels."""
        widths = np.full(symbols.size, self.n_bits, np.uint8)
        return bytes(kernels.select(symbols.size).pack_bits(symbols.astype(np.uint64), widths))

    def decode_labels(
        self, chunk: memoryview, n_words: int, kernel: Any, first_word: int = 0
    ) -> NDArray[Any]:
        """Return the labels of a chunk.

        Raises
        ------
        CorruptError
            Wrong length (FIX-01), padding not zero (FIX-02), a label beyond the codebook (FIX-03).
        """
        n_bits = n_words * self.n_bits
        if len(chunk) != -(-n_bits // 8):
            raise CorruptError(f"{len(chunk)} bytes for {n_bits} bits", rule="FIX-01")
        if n_bits % 8 and chunk[-1] & (0xFF >> n_bits % 8):
            raise CorruptError("padding bits are not zero", rule="FIX-02")
        labels = np.empty(n_words, np.uint16)
        kernel.unpack_fixed(np.frombuffer(chunk, np.uint8), self.n_bits, labels)
        if labels.size and int(labels.max()) >= self.codebook.n_labels:
            raise CorruptError(f"label {labels.max()} of {self.codebook.n_labels}", rule="FIX-03")
        return labels


@dataclass(frozen=True, eq=False)
class Labels(SharedCoder):
    """Huffman-coded labels; with few labels, a symbol is a block of several.

    Attributes
    ----------
    codebook : Codebook
        The shared values.
    block : int
        Labels in a symbol. Symbol = the labels as the digits of a number to the base ``n_labels``, first
        label first. A block that passes the end of a chunk is filled up with label 0.
    code : HuffmanCode
        Over ``n_labels ** block`` symbols.
    """

    number: ClassVar[int] = CODER_LABELS
    block: int
    code: HuffmanCode

    @classmethod
    def fit(
        cls, codebook: Codebook, labels: NDArray[np.uint16], chunk_words: int, to_beat: float = np.inf
    ) -> list[tuple[Labels, int]]:
        """Return a coder for each block size that makes sense, with its cost in bits, tables not counted.

        Sizes that cannot cost less than ``to_beat`` are left out.
        """
        base = codebook.n_labels
        fits = []
        block = 1
        while True:
            counts = np.zeros(base**block, np.int64)
            step = min(_BLOCK, chunk_words)
            for first in range(0, labels.size, step):
                symbols = _join_blocks(labels[first : first + step], base, block)
                counts += np.bincount(symbols, minlength=counts.size)
            used = counts[counts > 0]
            if -(used * np.log2(used / used.sum())).sum() < to_beat:
                code = HuffmanCode.from_counts(counts)
                fits.append((cls(codebook, block, code), int(counts @ code.bits.astype(np.int64))))
            block += 1
            # A larger alphabet pays only if its table is small beside the labels.
            if base == 1 or base**block > min(MAX_ALPHABET, max(64, labels.size // 16)) or block > 8:
                return fits

    def write_codes(self, writer: SideWriter) -> None:
        """Write block size and code."""
        writer.number(_KIND_BLOCK, self.block - 1)
        write_code(writer, self.code, self.codebook.n_labels)

    @classmethod
    def read_tables(cls, reader: SideReader, layout: TensorLayout) -> Labels:
        """Read codebook, block size and code.

        Raises
        ------
        CorruptError
            The alphabet is too large (HUF-01), or the tables are illegal.
        """
        codebook = Codebook.read(reader, layout)
        block = reader.number(_KIND_BLOCK, MAX_ALPHABET.bit_length()) + 1
        return cls(codebook, block, read_code(reader, layout.n_labels**block, layout.n_labels))

    def encode_chunk(self, symbols: NDArray[Any], first_word: int = 0) -> bytes:
        """Return the coded labels."""
        if self.code.lone_symbol is not None:
            return b""
        joined = _join_blocks(symbols, self.codebook.n_labels, self.block)
        return pack_lanes(self.code.assign_codes()[joined].astype(np.uint64), self.code.bits[joined])

    def build_tables(self, kernel: ModuleType) -> Any:
        """Build the symbol table; for blocks, their labels, and their words if all share a codebook."""
        alphabet = self.code.code_lengths.size
        digits = words = table = None
        if self.block > 1:
            base = self.codebook.n_labels
            powers = base ** np.arange(self.block - 1, -1, -1)
            digits = ((np.arange(alphabet)[:, None] // powers) % base).astype(_label_type(base))
            words = self.codebook.lookup[0][digits] if self.codebook.n_groups == 1 else None
        if self.code.lone_symbol is None:
            width = _label_type(alphabet)(0).itemsize
            table = kernel.symbol_table(*self.code.windows(), self.code.max_length, width)
        return table, digits, words

    def _decode_symbols(self, chunk: memoryview, n_words: int, kernel: ModuleType) -> NDArray[Any]:
        """Return the symbols of a chunk.

        Raises
        ------
        CorruptError
            A stream of the wrong length (STR-01 to STR-03), bytes left over (LBL-01).
        """
        table, _, _ = self.decoding_tables(kernel)
        n_symbols = -(-n_words // self.block)
        kind = _label_type(self.code.code_lengths.size)
        cursor = Cursor(chunk)
        if table is None:
            cursor.finish("LBL-01")  # before memory is taken for symbols that take no bytes
            return np.full(n_symbols, self.code.lone_symbol, kind)
        symbols = np.empty(n_symbols, kind)
        counts = lane_counts(n_symbols)
        stream, ends, _ = read_lanes(cursor, counts.size)
        check_status(kernel.decode_symbols(stream, ends, counts, table, symbols))
        cursor.finish("LBL-01")
        return symbols

    def decode_labels(
        self, chunk: memoryview, n_words: int, kernel: ModuleType, first_word: int = 0
    ) -> NDArray[Any]:
        """Return the labels of a chunk; raise CorruptError as ``decode_chunk`` does."""
        symbols = self._decode_symbols(chunk, n_words, kernel)
        if self.block == 1:
            return symbols
        _, digits, _ = self.decoding_tables(kernel)
        labels = np.empty(n_words, digits.dtype)
        kernel.gather_blocks(digits, symbols, labels)
        return labels

    def decode_chunk(
        self, chunk: memoryview, first_word: int, out: Words, work: int
    ) -> tuple[int, int] | None:
        """Decode the symbols and gather the words of their labels.

        Raises
        ------
        CorruptError
            A stream of the wrong length (STR-01 to STR-03), bytes left over (LBL-01).
        """
        kernel = kernels.select(work)
        _, _, words = self.decoding_tables(kernel)
        if words is None:
            return super().decode_chunk(chunk, first_word, out, work)
        kernel.gather_blocks(words, self._decode_symbols(chunk, out.size, kernel), out)
        return None


def _join_blocks(labels: NDArray[np.uint16], base: int, block: int) -> NDArray[Any]:
    """Return the block symbols of a chunk's labels."""
    if block == 1:
        return labels
    padded = np.zeros(-(-labels.size // block) * block, np.uint16)
    padded[: labels.size] = labels
    columns = padded.reshape(-1, block)
    symbols = columns[:, 0].copy()
    for place in range(1, block):
        symbols *= np.uint16(base)
        symbols += columns[:, place]
    return symbols
