"""Coders of sparse shared tensors: zero runs and the labels after them (spec 9.5, 9.6).

A run is how many zeros come before a kept word (the paper's relative index). It is cut in two: the high
part is coded with Huffman, the low ``raw_bits`` stand in the stream as they are. A run that is too long is
bridged by fillers: entries that write a zero.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dcompress import kernels
from dcompress.coding.base import Codebook, SharedCoder, TensorLayout
from dcompress.coding.huffman import HuffmanCode
from dcompress.coding.lanes import check_status, lane_counts, pack_lanes, read_lanes
from dcompress.coding.range_coder import SideReader, SideWriter
from dcompress.coding.tables import read_code, write_code
from dcompress.constants import CODER_SPLIT_RUN, CODER_ZERO_RUN, MAX_ALPHABET
from dcompress.cursor import Cursor, write_varint
from dcompress.errors import CorruptError
from dcompress.stages import Words

__all__ = ["RunStatistics", "SplitRun", "ZeroRun"]

_KIND_BUCKETS = 4
_KIND_RAW = 5
_MAX_RAW_BITS = 12


class _Entries(NamedTuple):
    """What a chunk's kept words become: one entry each, fillers put in."""

    buckets: NDArray[np.int32]
    raws: NDArray[np.int32] | None  # None if runs have no raw bits
    labels: NDArray[np.uint16]


def _entries(labels: NDArray[np.uint16], n_buckets: int, raw_bits: int) -> _Entries:
    """Return the entries of a chunk: runs cut into bucket and raw bits, bridged by fillers (label 0)."""
    runs, kept = kernels.select(labels.size).zero_runs(labels)
    reach = n_buckets << raw_bits
    far = np.flatnonzero(runs >= reach)
    if far.size:
        # A filler is the longest run, then a zero: it covers ``reach`` words.
        fillers = runs[far] // reach
        runs = runs.copy()
        runs[far] -= fillers * np.int32(reach)
        before = np.repeat(far, fillers)
        runs = np.insert(runs, before, reach - 1)
        kept = np.insert(kept, before, 0)
    if raw_bits == 0:
        return _Entries(runs, None, kept)
    return _Entries(runs >> raw_bits, runs & np.int32((1 << raw_bits) - 1), kept)


class RunStatistics:
    """Counts of (zero run, label) over a whole tensor, from which any cut of the runs can be costed.

    Parameters
    ----------
    labels : ndarray of shape (n_words,), dtype uint16
        Labels, 0 = pruned.
    n_labels : int
        Labels in use, 0 counted.
    chunk_words : int
        Runs do not cross chunks.
    """

    _SHORT = 256

    def __init__(self, labels: NDArray[np.uint16], n_labels: int, chunk_words: int) -> None:
        self.n_labels = n_labels
        width = n_labels - 1
        short = np.zeros(self._SHORT * width, np.int64)
        long_runs, long_labels = [], []
        kernel = kernels.select(labels.size)
        for first in range(0, labels.size, chunk_words):
            runs, kept = kernel.zero_runs(labels[first : first + chunk_words])
            is_short = runs < self._SHORT
            if not is_short.all():
                long_runs.append(runs[~is_short])
                long_labels.append(kept[~is_short] - np.uint16(1))
                runs, kept = runs[is_short], kept[is_short]
            short += np.bincount(runs * np.int32(width) + kept - 1, minlength=short.size)
        self.short = short.reshape(self._SHORT, width)
        self.long_runs = np.concatenate(long_runs) if long_runs else np.zeros(0, np.int32)
        self.long_labels = np.concatenate(long_labels) if long_labels else np.zeros(0, np.uint16)
        self._by_run = self.short.sum(axis=1)
        self.n_kept = int(self._by_run.sum()) + self.long_runs.size

    def counts(self, n_buckets: int, raw_bits: int) -> tuple[NDArray[np.int64], int]:
        """Return how often each (bucket, label - 1) occurs, and the number of fillers."""
        reach = n_buckets << raw_bits
        width = self.n_labels - 1
        table = np.zeros((n_buckets, width), np.int64)
        if reach > self._SHORT:
            part = self.short.reshape(-1, min(1 << raw_bits, self._SHORT), width).sum(axis=1)
            table[: part.shape[0]] = part
        else:
            n_laps = -(-self._SHORT // reach)
            laps = np.zeros((n_laps * reach, width), np.int64)
            laps[: self._SHORT] = self.short
            laps.reshape(n_laps, n_buckets, -1, width).sum(axis=(0, 2), out=table)
        n_fillers = int((np.arange(self._SHORT) // reach) @ self._by_run)
        if self.long_runs.size:
            fillers, rest = np.divmod(self.long_runs, reach)
            np.add.at(table, (rest >> raw_bits, self.long_labels), 1)
            n_fillers += int(fillers.sum())
        return table, n_fillers


@dataclass(frozen=True, eq=False)
class _RunCoder(SharedCoder):
    """What both run coders share: the cut of the runs, the form of a chunk."""

    wants_zeros: ClassVar[bool] = True
    n_buckets: int
    raw_bits: int

    @classmethod
    def _read_cut(cls, reader: SideReader, layout: TensorLayout) -> tuple[Codebook, int, int]:
        """Read codebook and cut.

        Raises
        ------
        CorruptError
            No zero label (RUN-02), or too many buckets or raw bits (TAB-01).
        """
        codebook = Codebook.read(reader, layout)
        if not codebook.has_zero or codebook.n_labels < 2:
            raise CorruptError("zero runs without a zero, or without another value", rule="RUN-02")
        n_buckets = reader.number(_KIND_BUCKETS, MAX_ALPHABET) + 1
        return codebook, n_buckets, reader.number(_KIND_RAW, _MAX_RAW_BITS)

    def _write_cut(self, writer: SideWriter) -> None:
        writer.number(_KIND_BUCKETS, self.n_buckets - 1)
        writer.number(_KIND_RAW, self.raw_bits)

    def _with_raws(self, codes: NDArray[np.uint64], entries: _Entries) -> NDArray[np.uint64]:
        """Return run codes with the raw bits of the runs after them."""
        if entries.raws is None:
            return codes
        return (codes << np.uint64(self.raw_bits)) | entries.raws.astype(np.uint64)

    def _pack(self, values: NDArray[np.uint64], widths: NDArray[np.uint8], entries: _Entries) -> bytes:
        """Return a chunk: the number of entries, lane sizes, lane starts, lanes."""
        advances = (entries.buckets << self.raw_bits) + np.int32(1)
        if entries.raws is not None:
            advances += entries.raws
        stops = np.cumsum(lane_counts(advances.size))[:-1]
        positions = np.concatenate([[0], np.cumsum(advances)])
        starts = np.diff(positions[stops], prepend=0)
        head = bytearray()
        write_varint(head, advances.size)
        return bytes(head) + pack_lanes(values, widths, starts.tolist())

    def _decode(
        self, chunk: memoryview, lookup: Words, first_word: int, out: Words, kernel: ModuleType
    ) -> tuple[int, int]:
        """Decode a chunk into words by a given lookup; return its checksum sum and kept words."""
        cursor = Cursor(chunk)
        n_symbols = cursor.varint(out.size)
        counts = lane_counts(n_symbols)
        stream, ends, extras = read_lanes(cursor, counts.size, counts.size - 1)
        cursor.finish("RUN-03")
        if sum(extras) > out.size:
            raise CorruptError("a lane starts beyond its chunk", rule="RUN-01")
        starts = np.cumsum(np.array([0, *extras], np.int64))
        tally = np.zeros(2, np.uint64)
        check_status(self._run_kernel(kernel, stream, ends, counts, starts, lookup, first_word, out, tally))
        return int(tally[0]), int(tally[1])

    @abstractmethod
    def _run_kernel(self, kernel: ModuleType, *arguments: Any) -> int:
        """Call the kernel that decodes this coder's entries; return its status."""

    def decode_labels(
        self, chunk: memoryview, n_words: int, kernel: ModuleType, first_word: int = 0
    ) -> NDArray[Any]:
        """Return the labels of a chunk, 0 = pruned; raise CorruptError as ``decode_chunk`` does."""
        labels = np.zeros(n_words, np.uint16)
        self._decode(chunk, np.arange(self.codebook.n_labels, dtype=np.uint16), 0, labels, kernel)
        return labels

    def decode_chunk(
        self, chunk: memoryview, first_word: int, out: Words, work: int
    ) -> tuple[int, int] | None:
        """Decode runs and labels, writing kept words into the zeros of ``out``.

        Raises
        ------
        CorruptError
            More entries than words (NUM-02), a stream of the wrong length (STR-01 to STR-03), a run past
            the end or a lane that starts in the wrong place (RUN-01), bytes left over (RUN-03).
        """
        if self.codebook.n_groups > 1:
            return super().decode_chunk(chunk, first_word, out, work)
        return self._decode(chunk, self.codebook.lookup[0], first_word, out, kernels.select(work))


@dataclass(frozen=True, eq=False)
class ZeroRun(_RunCoder):
    """One Huffman symbol for zero run and label together.

    Symbol ``bucket * n_centroids + label - 1``; the last symbol is the filler.
    """

    number: ClassVar[int] = CODER_ZERO_RUN
    code: HuffmanCode

    @classmethod
    def fit(
        cls,
        codebook: Codebook,
        statistics: RunStatistics,
        n_buckets: int,
        raw_bits: int,
        draft: bool = False,
    ) -> tuple[ZeroRun, int]:
        """Return the coder for one cut of the runs, and its cost in bits, tables not counted."""
        table, n_fillers = statistics.counts(n_buckets, raw_bits)
        counts = np.append(table.reshape(-1), n_fillers)
        code = HuffmanCode.from_counts(counts, draft)
        cost = int(counts @ code.bits.astype(np.int64)) + raw_bits * int(counts.sum())
        return cls(codebook, n_buckets, raw_bits, code), cost

    @property
    def usable(self) -> bool:
        """Whether every symbol takes at least one bit, as the format wants."""
        return self.raw_bits > 0 or self.code.lone_symbol is None

    def write_codes(self, writer: SideWriter) -> None:
        """Write cut and code."""
        self._write_cut(writer)
        write_code(writer, self.code, self.codebook.n_labels - 1)

    @classmethod
    def read_tables(cls, reader: SideReader, layout: TensorLayout) -> ZeroRun:
        """Read codebook, cut and code.

        Raises
        ------
        CorruptError
            Illegal tables, or symbols that take no bits (RUN-04).
        """
        codebook, n_buckets, raw_bits = cls._read_cut(reader, layout)
        n_columns = codebook.n_labels - 1
        coder = cls(codebook, n_buckets, raw_bits, read_code(reader, n_buckets * n_columns + 1, n_columns))
        if not coder.usable:
            raise CorruptError("zero-run symbols take no bits", rule="RUN-04")
        return coder

    def encode_chunk(self, symbols: NDArray[Any], first_word: int = 0) -> bytes:
        """Return the coded chunk."""
        entries = _entries(symbols, self.n_buckets, self.raw_bits)
        n_columns = self.codebook.n_labels - 1
        joint = entries.buckets * np.int32(n_columns) + entries.labels - 1
        joint[entries.labels == 0] = self.n_buckets * n_columns
        codes, bits = self._packing
        return self._pack(self._with_raws(codes[joint], entries), bits[joint], entries)

    @cached_property
    def _packing(self) -> tuple[NDArray[np.uint64], NDArray[np.uint8]]:
        """Codes by symbol, and the bits that they and the raw bits take."""
        bits = self.code.bits + np.uint8(self.raw_bits)
        return self.code.assign_codes().astype(np.uint64), bits

    def build_tables(self, kernel: ModuleType) -> Any:
        """Build the table of joint symbols."""
        n_columns = self.codebook.n_labels - 1
        place = np.arange(self.n_buckets * n_columns + 1)
        runs = (place // n_columns) << self.raw_bits
        labels = (place % n_columns + 1).astype(np.uint16)
        runs[-1] = (self.n_buckets - 1) << self.raw_bits
        labels[-1] = 0
        windows = self.code.windows()
        return kernel.run_table(*windows, self.code.max_length, runs, labels, self.raw_bits)

    def _run_kernel(self, kernel: ModuleType, *arguments: Any) -> int:
        stream, ends, counts, starts, *target = arguments
        return int(kernel.decode_runs(stream, ends, counts, starts, self.decoding_tables(kernel), *target))


@dataclass(frozen=True, eq=False)
class SplitRun(_RunCoder):
    """A Huffman code for the run, another for the label after it: small tables for many labels.

    Label 0 after a run is the filler.
    """

    number: ClassVar[int] = CODER_SPLIT_RUN
    run_code: HuffmanCode
    label_code: HuffmanCode

    @classmethod
    def fit(
        cls,
        codebook: Codebook,
        statistics: RunStatistics,
        n_buckets: int,
        raw_bits: int,
        draft: bool = False,
    ) -> tuple[SplitRun, int]:
        """Return the coder for one cut of the runs, and its cost in bits, tables not counted."""
        table, n_fillers = statistics.counts(n_buckets, raw_bits)
        run_counts = table.sum(axis=1)
        run_counts[-1] += n_fillers
        label_counts = np.concatenate([[n_fillers], table.sum(axis=0)])
        run_code = HuffmanCode.from_counts(run_counts, draft)
        label_code = HuffmanCode.from_counts(label_counts, draft)
        cost = int(run_counts @ run_code.bits.astype(np.int64))
        cost += int(label_counts @ label_code.bits.astype(np.int64))
        cost += raw_bits * int(run_counts.sum())
        return cls(codebook, n_buckets, raw_bits, run_code, label_code), cost

    @property
    def usable(self) -> bool:
        """Whether every pair takes at least one bit, as the format wants."""
        lone = self.run_code.lone_symbol is not None and self.label_code.lone_symbol is not None
        return self.raw_bits > 0 or not lone

    def write_codes(self, writer: SideWriter) -> None:
        """Write cut and both codes."""
        self._write_cut(writer)
        write_code(writer, self.run_code, self.n_buckets)
        write_code(writer, self.label_code, self.codebook.n_labels)

    @classmethod
    def read_tables(cls, reader: SideReader, layout: TensorLayout) -> SplitRun:
        """Read codebook, cut and both codes.

        Raises
        ------
        CorruptError
            Illegal tables, or pairs that take no bits (RUN-04).
        """
        codebook, n_buckets, raw_bits = cls._read_cut(reader, layout)
        run_code = read_code(reader, n_buckets, n_buckets)
        coder = cls(
            codebook, n_buckets, raw_bits, run_code, read_code(reader, layout.n_labels, layout.n_labels)
        )
        if not coder.usable:
            raise CorruptError("zero-run pairs take no bits", rule="RUN-04")
        return coder

    def encode_chunk(self, symbols: NDArray[Any], first_word: int = 0) -> bytes:
        """Return the coded chunk."""
        entries = _entries(symbols, self.n_buckets, self.raw_bits)
        label_bits = self.label_code.bits[entries.labels]
        values = self._with_raws(self.run_code.assign_codes().astype(np.uint64)[entries.buckets], entries)
        values = values << label_bits.astype(np.uint64)
        values |= self.label_code.assign_codes().astype(np.uint64)[entries.labels]
        widths = self.run_code.bits[entries.buckets] + np.uint8(self.raw_bits) + label_bits
        return self._pack(values, widths, entries)

    def build_tables(self, kernel: ModuleType) -> Any:
        """Build the tables of runs and of labels."""
        return tuple(
            kernel.symbol_table(*code.windows(), code.max_length, 2)
            for code in (self.run_code, self.label_code)
        )

    def _run_kernel(self, kernel: ModuleType, *arguments: Any) -> int:
        stream, ends, counts, starts, *target = arguments
        run_table, label_table = self.decoding_tables(kernel)
        return int(
            kernel.decode_split_runs(
                stream, ends, counts, starts, run_table, label_table, self.raw_bits, *target
            )
        )
