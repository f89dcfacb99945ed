"""Tensors that are being decoded: their memory, their end, and where their errors are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from dcompress.checksum import fold
from dcompress.constants import CODER_RAW, RUN_CODERS
from dcompress.container.records import ChunkRecord, TensorRecord
from dcompress.errors import ChecksumError, CorruptError, DecodeError, LimitError, TruncatedError
from dcompress.stages import TensorData, Words, word_dtype

__all__ = ["Job", "allocate", "check_extent", "length_damage", "located"]


def length_damage(n_bytes: int, frame_bytes: int) -> DecodeError | None:
    """Return what is wrong with a frame of ``n_bytes`` that should have ``frame_bytes``; None if nothing."""
    if n_bytes < frame_bytes:
        return TruncatedError(
            f"the file is cut off: {n_bytes} of {frame_bytes} bytes",
            rule="FRM-01",
            offset=n_bytes,
            hint="copy or download it again",
        )
    if n_bytes > frame_bytes:
        return CorruptError(
            f"{n_bytes - frame_bytes} bytes follow the end of the frame", rule="FRM-06", offset=frame_bytes
        )
    return None


def check_extent(record: TensorRecord, n_bytes: int) -> None:
    """Check that all chunks of a tensor stand within the first bytes of a frame that is cut off.

    To be done before anything is taken that the bytes of all its chunks vouch for (CTX-08).

    Raises
    ------
    TruncatedError
        The frame ends before the tensor does (FRM-01).
    """
    if any(chunk.offset + chunk.n_bytes > n_bytes for chunk in record.chunks):
        message = "the file ends before its last chunk does"
        raise TruncatedError(message, rule="FRM-01", offset=n_bytes, tensor=record.name)


def allocate(record: TensorRecord, zeros: bool) -> Words:
    """Return memory for the words of a tensor.

    Raises
    ------
    LimitError
        There is not enough (LIM-05).
    """
    new = np.zeros if zeros else np.empty
    try:
        return new(record.n_words, word_dtype(record.dtype.word_bytes))
    except MemoryError:
        raise LimitError(
            f"there is no memory for {record.decoded_bytes} bytes", rule="LIM-05", tensor=record.name
        ) from None


@dataclass(frozen=True, eq=False)
class Job:
    """A tensor that is being decoded: its tasks give checksum sum and kept words when they are done."""

    record: TensorRecord
    out: Words
    tallies: Iterable[tuple[int, int]]

    def finish(self) -> TensorData:
        """Wait for the chunks, and check the tensor against its digest and its count.

        Raises
        ------
        ChecksumError
            The digest differs (DIG-01).
        CorruptError
            The count differs (DIG-02), or a chunk is illegal.
        """
        record = self.record
        total = n_kept = 0
        for part, kept in self.tallies:
            total += part
            n_kept += kept
        if record.coder != CODER_RAW and fold(total) != record.digest:
            raise ChecksumError("decoded values do not match their digest", rule="DIG-01", tensor=record.name)
        if record.coder in RUN_CODERS and n_kept != record.n_kept:
            raise CorruptError(
                f"{n_kept} words are kept, not {record.n_kept}", rule="DIG-02", tensor=record.name
            )
        return TensorData(record.dtype, record.shape, self.out)


@contextmanager
def located(record: TensorRecord, chunk: ChunkRecord, skipped: int = 0) -> Iterator[None]:
    """Add tensor and offset to errors that do not know them."""
    try:
        yield
    except DecodeError as error:
        error.tensor = record.name
        if not error.located:
            error.offset = chunk.offset + skipped + (error.offset or 0)
            error.located = True
        raise
