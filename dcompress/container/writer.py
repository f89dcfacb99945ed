"""Records -> bytes: the preamble and the directory of a frame (spec sections 6 to 8)."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dcompress.checksum import checksum
from dcompress.constants import (
    CODER_RAW,
    MAJOR_VERSION,
    MINOR_VERSION,
    RUN_CODERS,
    SHARED_CODERS,
    SIGNATURE,
    DType,
)
from dcompress.cursor import write_varint

__all__ = ["CodedTensor", "Section", "write_head"]


@dataclass(frozen=True, eq=False)
class CodedTensor:
    """Stage 3: a tensor as it will stand in the file.

    Attributes
    ----------
    dtype, shape, coder, n_labels, n_kept, chunk_shift, digest
        As in TensorRecord.
    chunks : tuple of bytes
        The chunks; tables stand at the head of the first.
    """

    dtype: DType
    shape: tuple[int, ...]
    coder: int
    n_labels: int
    n_kept: int
    chunk_shift: int
    chunks: tuple[bytes, ...]
    digest: int

    @property
    def stored_bytes(self) -> int:
        """Bytes of all chunks."""
        return sum(len(chunk) for chunk in self.chunks)


@dataclass(frozen=True)
class Section:
    """An ancillary section: its kind and its bytes."""

    kind: int
    data: bytes


def write_head(
    tensors: Mapping[str, CodedTensor | str],
    metadata: Mapping[str, str],
    sections: Sequence[Section],
    table_sets: Sequence[bytes] = (),
) -> bytes:
    """Return preamble and directory; table sets, chunks and sections follow, each in the same order.

    Parameters
    ----------
    tensors : mapping of str to CodedTensor or str
        In state-dict order; a string names the earlier tensor whose storage is shared.
    metadata : mapping of str to str
        Free string metadata.
    sections : sequence of Section
        Ancillary sections.
    table_sets : sequence of bytes
        What context-coded tensors share.
    """
    out = bytearray()
    write_varint(out, len(table_sets))
    for table_set in table_sets:
        write_varint(out, len(table_set))
        out += checksum(table_set).to_bytes(4, "little")
    write_varint(out, len(tensors))
    numbers = {name: number for number, name in enumerate(tensors)}
    previous = b""
    for name, tensor in tensors.items():
        encoded = name.encode()
        shared = _shared_prefix(previous, encoded)
        previous = encoded
        write_varint(out, shared)
        _write_bytes(out, encoded[shared:])
        if isinstance(tensor, str):
            out.append(0)
            write_varint(out, numbers[tensor])
        else:
            _write_tensor(out, tensor)
    write_varint(out, len(metadata))
    for key, value in metadata.items():
        _write_bytes(out, key.encode())
        _write_bytes(out, value.encode())
    write_varint(out, len(sections))
    for section in sections:
        write_varint(out, section.kind)
        write_varint(out, len(section.data))
        out += checksum(section.data).to_bytes(4, "little")
    preamble = struct.pack("<8sBBHI", SIGNATURE, MAJOR_VERSION, MINOR_VERSION, 0, len(out))
    seal = checksum(preamble + out)
    return preamble + seal.to_bytes(4, "little") + bytes(out)


def _write_tensor(out: bytearray, tensor: CodedTensor) -> None:
    """Append one record, name apart."""
    out.append(tensor.dtype.code)
    write_varint(out, len(tensor.shape))
    for size in tensor.shape:
        write_varint(out, size)
    if not tensor.chunks:
        return
    out.append(tensor.coder)
    if tensor.coder in SHARED_CODERS:
        write_varint(out, tensor.n_labels)
    if tensor.coder in RUN_CODERS:
        write_varint(out, tensor.n_kept)
    out.append(tensor.chunk_shift)
    for chunk in tensor.chunks:
        write_varint(out, len(chunk))
        out += checksum(chunk).to_bytes(4, "little")
    if tensor.coder != CODER_RAW:
        out += tensor.digest.to_bytes(4, "little")


def _write_bytes(out: bytearray, data: bytes) -> None:
    """Append a length and that many bytes."""
    write_varint(out, len(data))
    out += data


def _shared_prefix(previous: bytes, name: bytes) -> int:
    """Return how many leading bytes two names share."""
    shared = 0
    for a, b in zip(previous, name, strict=False):
        if a != b:
            break
        shared += 1
    return shared
