"""Frame -> tensors. Runs on NumPy alone; Numba serves large frames where it is installed."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Protocol

import numpy as np

from dcompress.checksum import checksum, fold, partial_sum
from dcompress.coding import CODERS, Coder, SharedCoder, TensorLayout
from dcompress.coding.range_coder import SideReader
from dcompress.constants import CODER_RAW, PREAMBLE_BYTES, RUN_CODERS, SHARED_CODERS
from dcompress.container.reader import read_directory, read_preamble
from dcompress.container.records import ChunkRecord, Directory, SectionRecord, TensorRecord
from dcompress.cursor import Cursor
from dcompress.errors import ChecksumError, CorruptError, DecodeError, LimitError, TruncatedError
from dcompress.kernels import select
from dcompress.limits import DecodeLimits
from dcompress.stages import SharedTensor, TensorData, Words, word_dtype

__all__ = ["FrameReader", "open_frame"]

Progress = Callable[[int], None]


class _Source(Protocol):
    """Where a frame's bytes come from."""

    def size(self) -> int: ...
    def read(self, offset: int, n_bytes: int) -> memoryview: ...
    def close(self) -> None: ...


class _BytesSource:
    """A frame in memory."""

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        self._data = memoryview(data).cast("B")

    def size(self) -> int:
        return len(self._data)

    def read(self, offset: int, n_bytes: int) -> memoryview:
        return self._data[offset : offset + n_bytes]

    def close(self) -> None:
        self._data.release()


class _FileSource:
    """A frame on disk. Read, not mapped: a file that shrinks meanwhile must not end the process."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._file = Path(path).open("rb", buffering=0)  # noqa: SIM115 (closed by close)

    def size(self) -> int:
        return os.fstat(self._file.fileno()).st_size

    def read(self, offset: int, n_bytes: int) -> memoryview:
        n_bytes = max(0, min(n_bytes, self.size() - offset))
        buffer = np.empty(n_bytes, np.uint8).data
        done = 0
        while done < n_bytes:
            part = os.preadv(self._file.fileno(), [buffer[done:]], offset + done)
            if part == 0:
                break
            done += part
        return buffer[:done]

    def close(self) -> None:
        self._file.close()


class FrameReader:
    """An open frame: its directory, and its tensors on demand.

    Parameters
    ----------
    source : _Source
        Where the bytes are; use ``open_frame``.
    limits : DecodeLimits
        Checked before anything is allocated.
    threads : int
        Threads that decode chunks and tensors. The result does not depend on it.
    """

    def __init__(self, source: _Source, limits: DecodeLimits, threads: int) -> None:
        self._source = source
        self._limits = limits
        self._threads = threads
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
        size = self._source.size()
        n_bytes = read_preamble(self._source.read(0, PREAMBLE_BYTES), self._limits)
        directory = read_directory(self._source.read(0, PREAMBLE_BYTES + n_bytes), self._limits)
        if size < directory.frame_bytes:
            raise TruncatedError(
                f"the file is cut off: {size} of {directory.frame_bytes} bytes",
                rule="FRM-01",
                offset=size,
                hint="copy or download it again",
            )
        if size > directory.frame_bytes:
            raise CorruptError(
                f"{size - directory.frame_bytes} bytes follow the end of the frame",
                rule="FRM-06",
                offset=directory.frame_bytes,
            )
        return directory

    def check_output(self, records: list[TensorRecord]) -> None:
        """Check the decoded bytes of some tensors against the limit.

        Raises
        ------
        LimitError
            They exceed ``max_output_bytes`` (LIM-05).
        """
        total = sum(record.decoded_bytes for record in records if record.alias_of is None)
        allowed = self._limits.output_bytes(self.directory.frame_bytes)
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
        with self._executor() as executor:
            return self._decode(record, executor, self._work([record]), out)

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
        with self._executor() as executor:
            for record in records:
                done[record.name] = self._decode(record, executor, work)
                if progress is not None:
                    progress(record.decoded_bytes)
        return {name: done[record.alias_of or name] for name, record in self.directory.tensors.items()}

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
                words: Words = np.empty(end - begin, out.dtype)
                with _located(record, record.chunks[number]):
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
            with _located(record, record.chunks[number]):
                chunk = self._stored(record, number) if number else first_chunk
                labels[begin:end] = coder.decode_labels(chunk, end - begin, kernel)
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

    def verify_sections(self) -> None:
        """Check every ancillary section, known or not, against its checksum."""
        for section in self.directory.sections:
            self._section_bytes(section)

    def _section_bytes(self, section: SectionRecord) -> bytes:
        if section.n_bytes > self._limits.max_section_bytes:
            raise LimitError(
                f"section of {section.n_bytes} bytes exceeds max_section_bytes="
                f"{self._limits.max_section_bytes}",
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
        with ThreadPoolExecutor(self._threads) as executor:
            yield executor

    @staticmethod
    def _work(records: list[TensorRecord]) -> int:
        """Return about how many symbols these tensors take to decode."""
        return sum(
            record.n_kept if record.coder in RUN_CODERS else record.n_words
            for record in records
            if record.coder != CODER_RAW
        )

    def _open(self, record: TensorRecord) -> tuple[Coder, memoryview]:
        """Read the first chunk of a tensor; return its coder, with the tables, and what follows them."""
        kind = CODERS[record.coder]
        layout = TensorLayout(record.dtype, record.n_words, record.n_labels)
        with _located(record, record.chunks[0]):
            cursor = Cursor(self._stored(record, 0))
            tables = b""
            if record.coder != CODER_RAW:
                tables = bytes(cursor.take(cursor.varint(cursor.remaining)))
            reader = SideReader(tables)
            coder = kind.read_tables(reader, layout)
            reader.finish()
        return coder, cursor.take(cursor.remaining)

    def _stored(self, record: TensorRecord, number: int) -> memoryview:
        """Read one chunk and check it against its checksum."""
        stored = record.chunks[number]
        chunk = self._source.read(stored.offset, stored.n_bytes)
        if len(chunk) != stored.n_bytes:
            raise TruncatedError("the file shrank while it was read", rule="FRM-01")
        if checksum(chunk, self._work([record])) != stored.checksum:
            raise ChecksumError("chunk does not match its checksum", rule="CHK-01")
        return chunk

    def _decode(
        self, record: TensorRecord, executor: Executor | None, work: int, target: Words | None = None
    ) -> TensorData:
        """Decode a tensor, into ``target`` if given, and check it against its digest."""
        if target is None:
            target = np.empty(record.n_words, word_dtype(record.dtype.word_bytes))
        out = target
        if not record.chunks:
            return TensorData(record.dtype, record.shape, out)
        coder, first_chunk = self._open(record)

        def decode_one(number: int) -> tuple[int, int]:
            begin, end = record.chunk_words(number)
            words = out[begin:end]
            with _located(record, record.chunks[number]):
                chunk = self._stored(record, number) if number else first_chunk
                tally = coder.decode_chunk(chunk, begin, words, work)
            if tally is not None or record.coder == CODER_RAW:
                return tally or (0, 0)
            n_kept = int(np.count_nonzero(words)) if record.coder in RUN_CODERS else 0
            return partial_sum(words, begin * record.dtype.word_bytes, work), n_kept

        numbers = range(len(record.chunks))
        if executor is None or len(numbers) == 1:
            tallies = [decode_one(number) for number in numbers]
        else:
            tallies = list(executor.map(decode_one, numbers))
        if record.coder != CODER_RAW and fold(sum(total for total, _ in tallies)) != record.digest:
            raise ChecksumError("decoded values do not match their digest", rule="DIG-01", tensor=record.name)
        n_kept = sum(kept for _, kept in tallies)
        if record.coder in RUN_CODERS and n_kept != record.n_kept:
            raise CorruptError(
                f"{n_kept} words are kept, not {record.n_kept}", rule="DIG-02", tensor=record.name
            )
        return TensorData(record.dtype, record.shape, out)


@contextmanager
def _located(record: TensorRecord, chunk: ChunkRecord) -> Iterator[None]:
    """Add tensor and offset to errors that do not know them."""
    try:
        yield
    except DecodeError as error:
        error.tensor = record.name
        error.offset = chunk.offset + (error.offset or 0)
        raise


def open_frame(
    source: str | os.PathLike[str] | bytes | bytearray | memoryview | io.BufferedIOBase,
    *,
    limits: DecodeLimits | None = None,
    threads: int = 1,
) -> FrameReader:
    """Open a frame from a path, from bytes, or from a stream that is read to its end.

    Raises
    ------
    OSError
        The file cannot be read.
    DecodeError
        It is not a frame, or its header is damaged or exceeds a limit.
    """
    opened: _Source
    if isinstance(source, (bytes, bytearray, memoryview)):
        opened = _BytesSource(source)
    elif isinstance(source, (str, os.PathLike)):
        opened = _FileSource(source)
    else:
        opened = _BytesSource(source.read())
    try:
        return FrameReader(opened, limits or DecodeLimits(), threads)
    except BaseException:
        opened.close()
        raise
