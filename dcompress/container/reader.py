"""Bytes -> records: the preamble and the directory of a frame (spec sections 6 to 8).

Nothing is allocated before the number that asks for it was checked, and the directory is not parsed before
its checksum was.
"""

from __future__ import annotations

import struct

from dcompress.checksum import checksum
from dcompress.constants import (
    CODER_CONTEXT,
    CODER_NAMES,
    CODER_RAW,
    DTYPE_BY_CODE,
    KNOWN_FEATURES,
    MAJOR_VERSION,
    MAX_LABELS,
    MAX_TABLE_SET_BYTES,
    MAX_TABLE_SETS,
    PREAMBLE_BYTES,
    RUN_CODERS,
    SHARED_CODERS,
    SIGNATURE,
    DType,
)
from dcompress.container.records import ChunkRecord, Directory, SectionRecord, TensorRecord
from dcompress.cursor import Cursor
from dcompress.errors import (
    ChecksumError,
    CorruptError,
    LimitError,
    NotDczError,
    TruncatedError,
    UnsupportedError,
)
from dcompress.limits import DecodeLimits

__all__ = ["read_directory", "read_preamble"]

_MAX_BYTES = (1 << 63) - 1
_CHUNK_RECORD_BYTES = 5  # the fewest bytes that a chunk takes in the directory
_MAX_CHUNK_SHIFT = 40


def read_preamble(data: bytes | memoryview, limits: DecodeLimits) -> int:
    """Return the bytes of the directory.

    Parameters
    ----------
    data : bytes-like
        The first PREAMBLE_BYTES of the frame, or what there is of them.
    limits : DecodeLimits
        Caps on the directory.

    Raises
    ------
    NotDczError
        The signature is missing (FRM-02).
    TruncatedError
        The preamble is cut off (FRM-01).
    UnsupportedError
        The major version (FRM-03) or a required feature (FRM-04) is unknown.
    LimitError
        The directory is larger than allowed (LIM-01).
    """
    head = bytes(data[:PREAMBLE_BYTES])
    if head[: len(SIGNATURE)] != SIGNATURE[: len(head)] or not head:
        raise NotDczError("this is not a .dcz file", rule="FRM-02", offset=0)
    if len(head) < PREAMBLE_BYTES:
        raise TruncatedError(
            f"the file ends within its preamble: {len(head)} of {PREAMBLE_BYTES} bytes",
            rule="FRM-01",
            offset=len(head),
            hint="copy or download it again",
        )
    _, major, minor, features, n_bytes, _ = struct.unpack("<8sBBHII", head)
    if major != MAJOR_VERSION:
        raise UnsupportedError(
            f"the file needs format version {major}.{minor}, this reader has {MAJOR_VERSION}",
            rule="FRM-03",
            offset=8,
            hint="upgrade dcompress",
        )
    unknown = features & ~KNOWN_FEATURES
    if unknown:
        raise UnsupportedError(
            f"the file needs unknown features (bits 0x{unknown:04x})",
            rule="FRM-04",
            offset=10,
            hint="upgrade dcompress",
        )
    if n_bytes > limits.max_directory_bytes:
        raise LimitError(
            f"directory of {n_bytes} bytes exceeds max_directory_bytes={limits.max_directory_bytes}",
            rule="LIM-01",
            offset=12,
        )
    return int(n_bytes)


def read_directory(head: bytes | memoryview, limits: DecodeLimits) -> Directory:
    """Return the directory of a frame.

    Parameters
    ----------
    head : bytes-like
        Preamble and directory, or what there is of them.
    limits : DecodeLimits
        Caps on tensors and names.

    Raises
    ------
    DecodeError
        As ``read_preamble``; cut off (FRM-01), checksum wrong (FRM-05), an illegal record (DIR-..), or a
        limit exceeded (LIM-..).
    """
    n_bytes = read_preamble(head, limits)
    head_bytes = PREAMBLE_BYTES + n_bytes
    if len(head) < head_bytes:
        raise TruncatedError(
            f"the file ends within its directory: {len(head)} of {head_bytes} bytes",
            rule="FRM-01",
            offset=len(head),
            hint="copy or download it again",
        )
    sealed = bytes(head[: PREAMBLE_BYTES - 4]) + bytes(head[PREAMBLE_BYTES:head_bytes])
    stored = int.from_bytes(head[PREAMBLE_BYTES - 4 : PREAMBLE_BYTES], "little")
    if checksum(sealed) != stored:
        raise ChecksumError("the header does not match its checksum", rule="FRM-05", offset=16)
    cursor = Cursor(memoryview(head)[PREAMBLE_BYTES:head_bytes], PREAMBLE_BYTES)
    table_sets, at = _read_table_sets(cursor, head_bytes)
    tensors, at = _read_tensors(cursor, at, limits)
    metadata = _read_metadata(cursor, limits)
    sections, at = _read_sections(cursor, at)
    cursor.finish("DIR-01")
    return Directory((head[8], head[9]), tensors, metadata, table_sets, sections, head_bytes, at)


def _read_table_sets(cursor: Cursor, at: int) -> tuple[tuple[ChunkRecord, ...], int]:
    """Read where the table sets are; return that and where the first chunk stands."""
    table_sets = []
    offset = cursor.offset
    count = cursor.varint()
    if count > MAX_TABLE_SETS:
        raise CorruptError(f"{count} table sets", rule="DIR-14", offset=offset)
    for _ in range(count):
        offset = cursor.offset
        size = cursor.varint()
        if size > MAX_TABLE_SET_BYTES:
            raise CorruptError(f"table set of {size} bytes", rule="DIR-14", offset=offset)
        table_sets.append(ChunkRecord(at, size, cursor.u32()))
        at += size
    return tuple(table_sets), at


def _read_tensors(cursor: Cursor, at: int, limits: DecodeLimits) -> tuple[dict[str, TensorRecord], int]:
    """Read all tensor records; ``at`` is where the first chunk stands."""
    count = cursor.varint()
    if count > limits.max_tensors:
        raise LimitError(
            f"{count} tensors exceed max_tensors={limits.max_tensors}", rule="LIM-02", offset=cursor.offset
        )
    tensors: dict[str, TensorRecord] = {}
    in_order: list[TensorRecord] = []
    encoded = b""
    n_name_bytes = 0
    for _ in range(count):
        offset = cursor.offset
        shared = cursor.varint()
        if shared > len(encoded):
            raise CorruptError("name shares more than the name before it", rule="DIR-02", offset=offset)
        encoded = encoded[:shared] + _read_bytes(cursor, limits, shared)
        n_name_bytes += len(encoded)
        if n_name_bytes > limits.max_names_bytes:
            raise LimitError(
                f"tensor names exceed max_names_bytes={limits.max_names_bytes}", rule="LIM-07", offset=offset
            )
        name = _to_text(encoded, offset)
        if name in tensors:
            raise CorruptError("tensor name stands twice", rule="DIR-03", offset=offset, tensor=name)
        try:
            record, at = _read_tensor(cursor, name, at, in_order, limits)
        except (CorruptError, TruncatedError, UnsupportedError, LimitError) as error:
            error.tensor = name
            raise
        tensors[name] = record
        in_order.append(record)
    return tensors, at


def _read_tensor(
    cursor: Cursor, name: str, at: int, earlier: list[TensorRecord], limits: DecodeLimits
) -> tuple[TensorRecord, int]:
    """Read one record, name apart; return it and where the next chunk stands."""
    offset = cursor.offset
    code = cursor.u8()
    if code == 0:
        number = cursor.varint()
        if number >= len(earlier) or earlier[number].alias_of is not None:
            raise CorruptError("alias of no earlier tensor", rule="DIR-04", offset=offset)
        target = earlier[number]
        return TensorRecord(
            name,
            target.dtype,
            target.shape,
            target.coder,
            target.n_labels,
            target.n_kept,
            target.chunk_shift,
            target.chunks,
            target.digest,
            target.name,
        ), at
    dtype = DTYPE_BY_CODE.get(code)
    if dtype is None:
        raise UnsupportedError(
            f"unknown dtype {code}", rule="DIR-05", offset=offset, hint="upgrade dcompress"
        )
    shape, n_words = _read_shape(cursor, dtype, limits)
    if n_words == 0:
        return TensorRecord(name, dtype, shape), at
    coder, n_labels, n_kept = _read_coder(cursor, n_words)
    chunk_shift = cursor.u8()
    n_chunks = 1
    if chunk_shift:
        n_units = n_words if coder != CODER_CONTEXT else shape[0] if len(shape) > 1 else 1
        n_chunks = -(-n_units >> chunk_shift)
        if not 2 <= chunk_shift <= _MAX_CHUNK_SHIFT or n_chunks < 2:
            raise CorruptError(f"chunk shift {chunk_shift}", rule="DIR-09", offset=cursor.offset - 1)
        if n_chunks * _CHUNK_RECORD_BYTES > cursor.remaining:
            raise CorruptError(f"{n_chunks} chunks do not fit the directory", rule="DIR-10", offset=offset)
    chunks = []
    for _ in range(n_chunks):
        size = cursor.varint(_MAX_BYTES - at)
        chunks.append(ChunkRecord(at, size, cursor.u32()))
        at += size
    digest = 0 if coder == CODER_RAW else cursor.u32()
    return TensorRecord(name, dtype, shape, coder, n_labels, n_kept, chunk_shift, tuple(chunks), digest), at


def _read_shape(cursor: Cursor, dtype: DType, limits: DecodeLimits) -> tuple[tuple[int, ...], int]:
    """Read rank and sizes; return the shape and the number of words."""
    offset = cursor.offset
    rank = cursor.varint()
    if rank > limits.max_rank:
        raise LimitError(f"rank {rank} exceeds max_rank={limits.max_rank}", rule="LIM-03", offset=offset)
    shape = tuple(cursor.varint() for _ in range(rank))
    # The product leaves zeros out, so that a huge size beside a zero is refused as well.
    n_bytes = dtype.element_bytes
    for size in shape:
        n_bytes *= max(1, size)
        if n_bytes > _MAX_BYTES:
            raise CorruptError(f"shape {shape} overflows", rule="DIR-06", offset=offset)
    return shape, 0 if 0 in shape else n_bytes // dtype.word_bytes


def _read_coder(cursor: Cursor, n_words: int) -> tuple[int, int, int]:
    """Read the coder and its counts: coder, n_labels, n_kept."""
    offset = cursor.offset
    coder = cursor.u8()
    if coder not in CODER_NAMES:
        raise UnsupportedError(
            f"unknown coder {coder}", rule="DIR-07", offset=offset, hint="upgrade dcompress"
        )
    n_labels = cursor.varint() if coder in SHARED_CODERS else 0
    n_kept = cursor.varint() if coder in RUN_CODERS else n_words
    if coder in SHARED_CODERS and not 1 <= n_labels <= MAX_LABELS:
        raise CorruptError(f"{n_labels} labels", rule="DIR-08", offset=offset)
    if n_kept > n_words:
        raise CorruptError(f"{n_kept} kept of {n_words} words", rule="DIR-11", offset=offset)
    return coder, n_labels, n_kept


def _read_metadata(cursor: Cursor, limits: DecodeLimits) -> dict[str, str]:
    """Read the free string metadata."""
    metadata: dict[str, str] = {}
    for _ in range(cursor.varint(cursor.remaining)):
        offset = cursor.offset
        key = _to_text(_read_bytes(cursor, limits), offset)
        if key in metadata:
            raise CorruptError(f"metadata key {key!r} stands twice", rule="DIR-12", offset=offset)
        metadata[key] = _to_text(bytes(cursor.take(cursor.varint())), offset)
    return metadata


def _read_sections(cursor: Cursor, at: int) -> tuple[tuple[SectionRecord, ...], int]:
    """Read the ancillary sections; return them and where the frame ends."""
    sections = []
    for _ in range(cursor.varint(cursor.remaining)):
        kind = cursor.varint()
        size = cursor.varint(_MAX_BYTES - at)
        sections.append(SectionRecord(kind, at, size, cursor.u32()))
        at += size
    return tuple(sections), at


def _read_bytes(cursor: Cursor, limits: DecodeLimits, already: int = 0) -> bytes:
    """Read a length and that many bytes."""
    offset = cursor.offset
    n_bytes = cursor.varint()
    if n_bytes + already > limits.max_name_bytes:
        raise LimitError(
            f"{n_bytes + already} bytes of text exceed max_name_bytes={limits.max_name_bytes}",
            rule="LIM-04",
            offset=offset,
        )
    return bytes(cursor.take(n_bytes))


def _to_text(data: bytes, offset: int) -> str:
    """Decode strict UTF-8."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise CorruptError(f"text is not UTF-8: {error.reason}", rule="DIR-13", offset=offset) from None
