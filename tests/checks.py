"""Checks that many tests share, above all the contract of every coder; and a builder of frames by hand."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from dcompress.checksum import checksum
from dcompress.choice import Choice
from dcompress.coding import CODERS, TensorLayout
from dcompress.coding.range_coder import SideReader, SideWriter
from dcompress.constants import CODER_CONTEXT, CODER_RAW, RUN_CODERS, SHARED_CODERS, SIGNATURE
from dcompress.container.writer import write_head
from dcompress.decode import open_frame
from dcompress.errors import CorruptError, DecodeError, TruncatedError
from dcompress.packing import _encode_chunks, word_source
from dcompress.stages import SharedTensor, word_dtype

_GUARD = 0xA5
_MARGIN = 32


@contextmanager
def raises_rule(kind: type[DecodeError], rule: str) -> Iterator[None]:
    """Expect exactly this error for exactly this rule."""
    with pytest.raises(DecodeError) as caught:
        yield
    assert (type(caught.value), caught.value.rule) == (kind, rule), str(caught.value)


def error_of(function, *arguments) -> DecodeError | None:
    """Call a function; return the decode error that it ends with, None if it ends well."""
    try:
        function(*arguments)
    except DecodeError as error:
        return error
    return None


class Guarded:
    """An output array with guard bytes on both sides; ``intact`` tells whether all of them are left."""

    def __init__(self, n_words: int, dtype: np.dtype, zero: bool = False) -> None:
        dtype = np.dtype(dtype)
        self._memory = np.full(2 * _MARGIN + n_words * dtype.itemsize, _GUARD, np.uint8)
        self.words = self._memory[_MARGIN : self._memory.size - _MARGIN].view(dtype)
        if zero:
            self.words.fill(0)

    @property
    def intact(self) -> bool:
        return bool(np.all(self._memory[:_MARGIN] == _GUARD) and np.all(self._memory[-_MARGIN:] == _GUARD))


# The contract of every coder.


def layout_of(coder, tensor) -> TensorLayout:
    """Return what the directory of a frame would say about a tensor; its table set is that of the coder."""
    shared = isinstance(tensor, SharedTensor)
    size = tensor.labels.size if shared else tensor.words.size
    layout = TensorLayout(tensor.dtype, size, tensor.n_labels if shared else 0, tensor.shape, 1 << 20)
    if coder.number == CODER_CONTEXT:
        layout = replace(layout, n_table_sets=coder.set_number + 1, table_set=lambda number: coder.tables)
    return layout


def reread(coder, layout: TensorLayout):
    """Return a coder read back from its own tables; what it writes again must be the same bytes."""
    writer = SideWriter()
    coder.write_tables(writer)
    tables = writer.finish()
    reader = SideReader(tables)
    again = type(coder).read_tables(reader, layout)
    reader.finish()
    writer = SideWriter()
    again.write_tables(writer)
    assert writer.finish() == tables
    assert CODERS[coder.number] is type(coder)
    return again


def decode(coder, chunk: bytes, first_word: int, n_words: int, word_bytes: int) -> np.ndarray:
    """Decode a chunk; nothing beyond its words may be written, whatever the chunk is."""
    out = Guarded(n_words, word_dtype(word_bytes))
    if coder.wants_zeros:
        out.words[:] = 0
    try:
        coder.decode_chunk(memoryview(chunk), first_word, out.words, n_words)
    finally:
        assert out.intact
    return out.words


def check_coder(coder, tensor, chunk_words: int, kernel) -> list[bytes]:
    """Check that a coder gives back the words of a tensor, chunk by chunk; return the chunks.

    ``tensor`` is a SharedTensor for coders with a codebook, TensorData for the others.
    """
    shared = isinstance(tensor, SharedTensor)
    words = tensor.gather().words if shared else tensor.words
    symbols = tensor.labels if shared else words
    reader = reread(coder, layout_of(coder, tensor))
    chunks = []
    for first in range(0, words.size, chunk_words):
        part = slice(first, first + chunk_words)
        chunk = coder.encode_chunk(symbols[part], first)
        assert isinstance(chunk, bytes)
        got = decode(reader, chunk, first, words[part].size, tensor.dtype.word_bytes)
        np.testing.assert_array_equal(got, words[part])
        if shared:
            labels = reader.decode_labels(memoryview(chunk), words[part].size, kernel, first)
            np.testing.assert_array_equal(labels, symbols[part])
        chunks.append(chunk)
    return chunks


def damaged(chunk: bytes, extensions: int = 9) -> Iterator[bytes]:
    """Yield a chunk cut anywhere, grown a little, and with each bit flipped."""
    for length in range(len(chunk)):
        yield chunk[:length]
    for length in range(1, extensions):
        yield chunk + b"\x00" * length
        yield chunk + b"\xff" * length
    for bit in range(8 * len(chunk)):
        yield flipped(chunk, bit)


def flipped(data: bytes, bit: int) -> bytes:
    """Return bytes with one bit turned over."""
    changed = bytearray(data)
    changed[bit // 8] ^= 0x80 >> bit % 8
    return bytes(changed)


def check_damage(coder, chunk: bytes, first_word: int, n_words: int, word_bytes: int) -> int:
    """Check that a damaged chunk is refused, or decodes to something if its length is right.

    Nothing but CorruptError and TruncatedError may escape. Returns how many were refused.
    """
    refused = 0
    for bad in damaged(chunk):
        error = error_of(decode, coder, bad, first_word, n_words, word_bytes)
        if error is None:
            assert len(bad) == len(chunk), "a chunk of the wrong length was accepted"
            continue
        assert isinstance(error, (CorruptError, TruncatedError))
        assert error.rule
        refused += 1
    return refused


# Frames of our own making.


def coded(tensor, coder, chunk_shift: int = 0):
    """Return a tensor coded with a coder and chunk size of our choice."""
    shared = tensor if isinstance(tensor, SharedTensor) else None
    assert (coder.number in SHARED_CODERS) == (shared is not None)
    return _encode_chunks(tensor, shared, Choice(0.0, coder, chunk_shift), word_source(tensor), None)


def frame_of(tensors: dict, metadata=None, sections=(), table_sets=()) -> bytes:
    """Return the frame of coded tensors (and aliases, by name)."""
    head = write_head(tensors, metadata or {}, sections, table_sets)
    parts = [chunk for one in tensors.values() if not isinstance(one, str) for chunk in one.chunks]
    return b"".join([head, *table_sets, *parts, *(section.data for section in sections)])


def read_everything(frame: bytes, threads: int = 1):
    """Decode and check all that is in a frame."""
    with open_frame(frame, threads=threads) as reader:
        tensors = reader.read_all()
        reader.verify_sections()
    return tensors


def assert_same(got, want) -> None:
    """Check that two mappings hold the same tensors, bit for bit, in the same order."""
    assert list(got) == list(want)
    for name, tensor in want.items():
        expected = tensor.gather() if isinstance(tensor, SharedTensor) else tensor
        assert got[name].dtype is expected.dtype
        assert got[name].shape == expected.shape
        np.testing.assert_array_equal(got[name].words, expected.words)


# Directories field by field, right or wrong.


def varint(value: int, n_bytes: int = 0) -> bytes:
    """Return a varint; ``n_bytes`` makes it longer than it need be."""
    groups = []
    while True:
        groups.append(value & 0x7F)
        value >>= 7
        if not value:
            break
    groups += [0] * (n_bytes - len(groups))
    return bytes(group | 0x80 for group in groups[:-1]) + bytes(groups[-1:])


def text(data: bytes) -> bytes:
    """Return a length and bytes."""
    return varint(len(data)) + data


@dataclass
class Entry:
    """One tensor of a directory; every field can be set to nonsense."""

    name: bytes = b"w"
    prefix: int = 0
    dtype: int = 12
    shape: tuple[int, ...] = (3,)
    coder: int = CODER_RAW
    n_labels: int = 0
    n_kept: int = 0
    chunk_shift: int = 0
    chunks: tuple[bytes, ...] = (b"\x00" * 12,)
    digest: int = 0
    alias_of: int | None = None

    def to_bytes(self) -> bytes:
        out = varint(self.prefix) + text(self.name)
        if self.alias_of is not None:
            return out + b"\x00" + varint(self.alias_of)
        out += bytes([self.dtype]) + varint(len(self.shape)) + b"".join(map(varint, self.shape))
        if 0 in self.shape:
            return out
        out += bytes([self.coder])
        if self.coder in SHARED_CODERS:
            out += varint(self.n_labels)
        if self.coder in RUN_CODERS:
            out += varint(self.n_kept)
        out += bytes([self.chunk_shift])
        for chunk in self.chunks:
            out += varint(len(chunk)) + struct.pack("<I", checksum(chunk))
        return out + (b"" if self.coder == CODER_RAW else struct.pack("<I", self.digest))


@dataclass
class Frame:
    """A frame; every field can be set to nonsense, and the header's checksum is right all the same."""

    entries: list[Entry | bytes] = field(default_factory=list)
    metadata: list[tuple[bytes, bytes]] = field(default_factory=list)
    sections: list[tuple[int, bytes]] = field(default_factory=list)
    table_sets: list[bytes] = field(default_factory=list)
    signature: bytes = SIGNATURE
    major: int = 1
    minor: int = 0
    features: int = 0
    n_table_sets: bytes | None = None
    n_tensors: bytes | None = None
    n_metadata: bytes | None = None
    n_sections: bytes | None = None
    directory: bytes | None = None

    def _directory(self) -> bytes:
        out = varint(len(self.table_sets)) if self.n_table_sets is None else self.n_table_sets
        out += b"".join(varint(len(one)) + struct.pack("<I", checksum(one)) for one in self.table_sets)
        out += varint(len(self.entries)) if self.n_tensors is None else self.n_tensors
        out += b"".join(e if isinstance(e, bytes) else e.to_bytes() for e in self.entries)
        out += varint(len(self.metadata)) if self.n_metadata is None else self.n_metadata
        out += b"".join(text(key) + text(value) for key, value in self.metadata)
        out += varint(len(self.sections)) if self.n_sections is None else self.n_sections
        for kind, data in self.sections:
            out += varint(kind) + varint(len(data)) + struct.pack("<I", checksum(data))
        return out

    def _payload(self) -> Iterable[bytes]:
        yield from self.table_sets
        for entry in self.entries:
            if isinstance(entry, Entry) and entry.alias_of is None and 0 not in entry.shape:
                yield from entry.chunks
        for _, data in self.sections:
            yield data

    def to_bytes(self) -> bytes:
        directory = self._directory() if self.directory is None else self.directory
        preamble = self.signature + struct.pack(
            "<BBHI", self.major, self.minor, self.features, len(directory)
        )
        seal = struct.pack("<I", checksum(preamble + directory))
        return b"".join([preamble, seal, directory, *self._payload()])
