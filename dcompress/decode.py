"""Frame -> tensors. Runs on NumPy alone; Numba serves large frames where it is installed."""

from __future__ import annotations

import io
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from types import TracebackType

import numpy as np

from dcompress.checksum import checksum, partial_sum
from dcompress.coding import CODERS, Coder, SharedCoder, TableSet, TensorLayout
from dcompress.coding.range_coder import SideReader
from dcompress.constants import CODER_RAW, PREAMBLE_BYTES, RUN_CODERS, SHARED_CODERS
from dcompress.container.reader import read_directory, read_preamble
from dcompress.container.records import ChunkRecord, Directory, SectionRecord, TensorRecord
from dcompress.cursor import Cursor
from dcompress.errors import ChecksumError, DecodeError, LimitError, TruncatedError
from dcompress.jobs import Job, allocate, check_extent, length_damage, located
from dcompress.kernels import expect, select
from dcompress.limits import DecodeLimits
from dcompress.source import BytesSource, FileSource, Source
from dcompress.stages import SharedTensor, TensorData, Words, word_dtype

__all__ = ["FrameReader", "open_frame"]

Progress = Callable[[int], None]
_JOBS_AHEAD = 64


class FrameReader:
    """An open frame: its directory, and its tensors on demand.

    Parameters
    ----------
    source : Source
        Where the bytes are; use ``open_frame``.
    limits : DecodeLimits
        Checked before anything is allocated.
    threads : int
        Threads that decode chunks and tensors. The result does not depend on it.
    partial : bool
        Whether to open a frame that is shorter or longer than its directory says.

    Attributes
    ----------
    damage : DecodeError or None
        What is wrong with the length of a frame that was opened in part.
    """

    def __init__(self, source: Source, limits: DecodeLimits, threads: int, partial: bool = False) -> None:
        self._source = source
        self.limits = limits
        self._threads = threads
        self._partial = partial
        self._size = source.size()
        self.damage: DecodeError | None = None
        self._table_sets: dict[int, TableSet] = {}
        self._ready_set: tuple[int, TableSet] | None = None
        self.directory = self._read_directory()

    def __enter__(self) -> FrameReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._source.close()

    def _read_directory(self) -> Directory:
        n_bytes = read_preamble(self._source.read(0, PREAMBLE_BYTES), self.limits)
        directory = read_directory(self._source.read(0, PREAMBLE_BYTES + n_bytes), self.limits)
        self.damage = length_damage(self._size, directory.frame_bytes)
        if self.damage is not None and not self._partial:
            raise self.damage
        return directory

    def check_output(self, records: list[TensorRecord]) -> None:
        """Check the decoded bytes of some tensors against the limit.

        Raises
        ------
        LimitError
            They exceed ``max_output_bytes`` (LIM-05).
        """
        total = sum(record.decoded_bytes for record in records if record.alias_of is None)
        allowed = self.limits.output_bytes(min(self._size, self.directory.frame_bytes))
        if total > allowed:
            raise LimitError(
                f"decoding takes {total} bytes, more than max_output_bytes={allowed}",
                rule="LIM-05",
                hint=f"raise the limit (dcz decode -M {total}) if you trust the file",
            )

    def _record(self, name: str) -> TensorRecord:
        record = self.directory.tensors[name]
        return record if record.alias_of is None else self.directory.tensors[record.alias_of]

    def read_tensor(self, name: str, out: Words | None = None) -> TensorData:
        """Return one tensor; nothing else of the file is read.

        Parameters
        ----------
        name : str
            Name of the tensor.
        out : ndarray of shape (n_words,), unsigned words, optional
            Where to decode to; new memory by default. After an error its content is undefined.

        Raises
        ------
        KeyError
            No tensor has this name.
        DecodeError
            The tensor is damaged, or exceeds a limit.
        """
        record = self._record(name)
        self.check_output([record])
        work = self._work([record])
        expect(work)
        with self._executor() as executor:
            return self._start(record, executor, work, out).finish()

    def read_all(self, progress: Progress | None = None) -> Mapping[str, TensorData]:
        """Return every tensor, in order; aliases are the same object as the tensor they share.

        Parameters
        ----------
        progress : callable, optional
            Called with the decoded bytes of each tensor that is done.
        """
        records = [record for record in self.directory.tensors.values() if record.alias_of is None]
        self.check_output(records)
        done: dict[str, TensorData] = {}
        work = self._work(records)
        expect(work)
        with self._executor() as executor:
            for job in self._jobs(records, executor, work):
                done[job.record.name] = job.finish()
                if progress is not None:
                    progress(job.record.decoded_bytes)
        return {name: done[self._record(name).name] for name in self.directory.tensors}

    def read_rows(self, name: str, start: int, stop: int) -> TensorData:
        """Return rows ``start`` to ``stop`` of the first dimension, decoding only the chunks they need.

        The digest covers whole tensors, so here only the checksums of the chunks vouch for the data.
        """
        record = self._record(name)
        if not record.shape:
            raise IndexError("a 0-d tensor has no rows")
        if not 0 <= start <= stop <= record.shape[0]:
            raise IndexError(f"rows {start} to {stop} of {record.shape[0]}")
        self.check_output([record])
        row_words = record.n_words // record.shape[0] if record.shape[0] else 0
        first, last = start * row_words, stop * row_words
        shape = (stop - start, *record.shape[1:])
        out: Words = np.empty(last - first, word_dtype(record.dtype.word_bytes))
        if out.size:
            coder, first_chunk = self._open(record)
            work = self._work([record])
            for number in range(len(record.chunks)):
                begin, end = record.chunk_words(number)
                if end <= first or begin >= last:
                    continue
                words: Words = np.zeros(end - begin, out.dtype)
                with located(record, record.chunks[number]):
                    chunk = self._stored(record, number) if number else first_chunk
                    coder.decode_chunk(chunk, begin, words, work)
                out[max(begin - first, 0) : end - first] = words[max(first - begin, 0) : last - begin]
        return TensorData(record.dtype, shape, out)

    def read_shared(self, name: str) -> SharedTensor | None:
        """Return the compressed form of a tensor (labels and codebook); None if it has none.

        Nothing is gathered, so kernels that compute on codebooks can use it as it is.
        """
        record = self._record(name)
        if record.coder not in SHARED_CODERS or not record.chunks:
            return None
        self.check_output([record])
        coder, first_chunk = self._open(record)
        assert isinstance(coder, SharedCoder)
        kernel = select(self._work([record]))
        labels = np.empty(record.n_words, np.uint16)
        for number in range(len(record.chunks)):
            begin, end = record.chunk_words(number)
            with located(record, record.chunks[number]):
                chunk = self._stored(record, number) if number else first_chunk
                labels[begin:end] = coder.decode_labels(chunk, end - begin, kernel, begin)
        codebook = coder.codebook
        return SharedTensor(record.dtype, record.shape, codebook.rows, labels, codebook.has_zero)

    def read_section(self, kind: int) -> bytes | None:
        """Return the bytes of the first ancillary section of a kind, None if there is none.

        Raises
        ------
        LimitError
            The section is larger than allowed (LIM-06).
        ChecksumError
            It does not match its checksum (SEC-01).
        """
        for section in self.directory.sections:
            if section.kind == kind:
                return self._section_bytes(section)
        return None

    def verify_ancillary(self) -> None:
        """Check every ancillary section, known or not."""
        for section in self.directory.sections:
            self._section_bytes(section)

    def verify_sections(self) -> None:
        """Check every table set, used or not, and every ancillary section, known or not."""
        for number in range(len(self.directory.table_sets)):
            self._table_set(number)
        self.verify_ancillary()

    def _section_bytes(self, section: SectionRecord) -> bytes:
        if section.n_bytes > self.limits.max_section_bytes:
            raise LimitError(
                f"section of {section.n_bytes} bytes exceeds max_section_bytes="
                f"{self.limits.max_section_bytes}",
                rule="LIM-06",
                offset=section.offset,
            )
        data = self._source.read(section.offset, section.n_bytes)
        if len(data) != section.n_bytes or checksum(data) != section.checksum:
            raise ChecksumError("section does not match its checksum", rule="SEC-01", offset=section.offset)
        return bytes(data)

    @contextmanager
    def _executor(self) -> Iterator[Executor | None]:
        if self._threads <= 1:
            yield None
            return
        with ThreadPoolExecutor(self._threads - 1) as executor:  # this thread decodes too
            yield executor

    @staticmethod
    def _work(records: list[TensorRecord]) -> int:
        """Return about how many symbols these tensors take to decode."""
        work = 0
        for record in records:
            if record.coder != CODER_RAW:
                # Writing and checking sixteen words takes about as long as decoding a symbol.
                work += record.n_words // 16
                work += record.n_kept if record.coder in RUN_CODERS else record.n_words
        return work

    def _open(self, record: TensorRecord) -> tuple[Coder, memoryview]:
        """Read the first chunk of a tensor; return its coder, with the tables, and what follows them."""
        if self.damage is not None:
            check_extent(record, self._size)
        kind = CODERS[record.coder]
        layout = TensorLayout(
            record.dtype,
            record.n_words,
            record.n_labels,
            record.shape,
            record.stored_bytes,
            len(self.directory.table_sets),
            self._table_set,
        )
        with located(record, record.chunks[0]):
            cursor = Cursor(self._stored(record, 0))
            tables = b""
            if record.coder != CODER_RAW:
                tables = bytes(cursor.take(cursor.varint(cursor.remaining)))
            reader = SideReader(tables)
            coder = kind.read_tables(reader, layout)
            reader.finish()
        return coder, cursor.take(cursor.remaining)

    def _table_set(self, number: int) -> TableSet:
        """Return a table set: each is read once, but only the last one keeps what decoders make of it."""
        ready = self._ready_set
        if ready is not None and ready[0] == number:
            return ready[1]
        if number not in self._table_sets:
            record = self.directory.table_sets[number]
            try:
                stored = self._checked(record, what=f"table set {number}")
                self._table_sets[number] = TableSet.from_bytes(bytes(stored))
            except DecodeError as error:
                error.offset, error.located = record.offset, True
                raise
        table_set = replace(self._table_sets[number])
        self._ready_set = number, table_set
        return table_set

    def _stored(self, record: TensorRecord, number: int, work: int = 0) -> memoryview:
        """Read one chunk and check it against its checksum."""
        return self._checked(record.chunks[number], work)

    def _checked(self, stored: ChunkRecord, work: int = 0, what: str = "chunk") -> memoryview:
        chunk = self._source.read(stored.offset, stored.n_bytes)
        if len(chunk) != stored.n_bytes:
            raise TruncatedError("the file shrank while it was read", rule="FRM-01")
        if checksum(chunk, work) != stored.checksum:
            raise ChecksumError(f"{what} does not match its checksum", rule="CHK-01")
        return chunk

    def _jobs(self, records: list[TensorRecord], executor: Executor | None, work: int) -> Iterator[Job]:
        """Start tensors, with threads some ahead of the one that is wanted; not all: tables take memory."""
        started: deque[Job] = deque()
        for record in records:
            started.append(self._start(record, executor, work))
            if executor is None or len(started) == _JOBS_AHEAD:
                yield started.popleft()
        yield from started

    def _start(
        self, record: TensorRecord, executor: Executor | None, work: int, target: Words | None = None
    ) -> Job:
        """Begin to decode a tensor, into ``target`` if given."""
        select(work)  # before the tables are read, so that they are read by the same kernels
        wants_zeros = CODERS[record.coder].wants_zeros
        out = allocate(record, wants_zeros) if target is None else target
        if not record.chunks:
            return Job(record, out, ())
        coder, first_chunk = self._open(record)
        n_table_bytes = record.chunks[0].n_bytes - len(first_chunk)

        def decode_one(number: int) -> tuple[int, int]:
            begin, end = record.chunk_words(number)
            words = out[begin:end]
            if wants_zeros and target is not None:
                words.fill(0)
            with located(record, record.chunks[number], 0 if number else n_table_bytes):
                chunk = self._stored(record, number, work) if number else first_chunk
                tally = coder.decode_chunk(chunk, begin, words, work)
            if tally is not None or record.coder == CODER_RAW:
                return tally or (0, 0)
            n_kept = int(np.count_nonzero(words)) if record.coder in RUN_CODERS else 0
            return partial_sum(words, begin * record.dtype.word_bytes, work), n_kept

        def decode_span(span: range) -> tuple[int, int]:
            totals, kept = zip(*map(decode_one, span), strict=True)
            return sum(totals), sum(kept)

        # One span of chunks a thread, the first one this thread's own: waking one for a chunk costs more.
        n_chunks = len(record.chunks)
        n_spans = 1 if executor is None else min(n_chunks, self._threads)
        spans = [range(k * n_chunks // n_spans, (k + 1) * n_chunks // n_spans) for k in range(n_spans)]
        others = [] if executor is None else [executor.submit(decode_span, span) for span in spans[1:]]
        return Job(record, out, chain(map(decode_span, spans[:1]), (other.result() for other in others)))


def open_frame(
    source: str | os.PathLike[str] | bytes | bytearray | memoryview | io.BufferedIOBase,
    *,
    limits: DecodeLimits | None = None,
    threads: int = 1,
    partial: bool = False,
) -> FrameReader:
    """Open a frame from a path, from bytes, or from a stream that is read to its end.

    With ``partial``, a frame that is cut off behind its directory, or followed by other bytes, is opened as
    well; the reader's ``damage`` tells.

    Raises
    ------
    OSError
        The file cannot be read.
    DecodeError
        It is not a frame, or its header is damaged or exceeds a limit.
    """
    opened: Source
    if isinstance(source, (bytes, bytearray, memoryview)):
        opened = BytesSource(source)
    elif isinstance(source, (str, os.PathLike)):
        opened = FileSource(source)
    else:
        opened = BytesSource(source.read())
    try:
        return FrameReader(opened, limits or DecodeLimits(), threads, partial)
    except BaseException:
        opened.close()
        raise
