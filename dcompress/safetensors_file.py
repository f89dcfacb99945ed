"""safetensors files, read and written tensor by tensor with NumPy alone.

So a model larger than memory passes through, and bfloat16 and float8 need no torch. The reader is as
strict as the safetensors library, and stricter where that one lets duplicate keys pass.

The order of the tensors is that of the JSON header. The library writes header and data in one and the
same order, so there the two agree. Our writer keeps the order of the state dict in the header, and sorts
the data by element size, as the library does, so that every tensor is aligned.
"""

from __future__ import annotations

import itertools
import json
import os
import struct
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, BinaryIO, NoReturn

import numpy as np

from dcompress.constants import DTYPE_BY_SAFETENSORS, DType
from dcompress.errors import EncodeError, UnsupportedTensorError
from dcompress.stages import Checkpoint, TensorData, TensorSpec, word_dtype

__all__ = ["LazyTensors", "listed", "read_safetensors", "shortened", "write_safetensors"]


_MAX_HEADER_BYTES = 100_000_000  # the library's own cap
_MAX_COUNT = (1 << 63) - 1  # neither a dimension nor a number of elements fits into more anywhere
_ABSENT = frozenset({"complex32", "complex128"})  # dtypes that safetensors cannot hold
_FLOAT4 = "float4_e2m1fn_x2"
_READ_BYTES = 1 << 30  # systems read no more than 2 GiB at once

_Stamp = tuple[int, int, int, int]


class LazyTensors(Mapping[str, TensorData]):
    """The tensors of a file, each read anew at every look-up and freed when its user drops it.

    Reading is preferred to mapping: a file that shrinks meanwhile is an error, not a dead process; no
    tensor holds a file descriptor; and the words are aligned and writable. It is picklable.

    Attributes
    ----------
    specs : dict of str to (DType, tuple of int)
        Element type and shape of every tensor, known without reading it.
    """

    def __init__(
        self, path: Path, stamp: _Stamp, specs: dict[str, TensorSpec], offsets: dict[str, int]
    ) -> None:
        self.specs = specs
        self._path = path
        self._stamp = stamp
        self._offsets = offsets

    def __getitem__(self, name: str) -> TensorData:
        dtype, shape = self.specs[name]
        words = np.empty(_n_bytes(dtype, shape) // dtype.word_bytes, word_dtype(dtype.word_bytes))
        with self._path.open("rb", buffering=0) as stream:
            complete = _stamp_of(stream) == self._stamp
            stream.seek(self._offsets[name])
            view = words.view(np.uint8).data
            while complete and len(view):
                n_read = stream.readinto(view[:_READ_BYTES])
                complete = bool(n_read)
                view = view[n_read or 0 :]
        if not complete:
            raise EncodeError(f"{self._path}: tensor {name!r}: the file changed while it was being read")
        return TensorData(dtype, shape, words)

    def __iter__(self) -> Iterator[str]:
        return iter(self.specs)

    def __len__(self) -> int:
        return len(self.specs)


def read_safetensors(path: str | os.PathLike[str]) -> Checkpoint:
    """Return the checkpoint in a safetensors file, of which only the header is read now.

    Parameters
    ----------
    path : path-like
        The file.

    Returns
    -------
    checkpoint : Checkpoint
        ``tensors`` is a `LazyTensors`, in the order of the file's header. No ties: the format has none.

    Raises
    ------
    EncodeError
        The file breaks the format; the message names the file and the tensor.
    UnsupportedTensorError
        A tensor has an element type that PyTorch has not.
    OSError
        The file cannot be opened or read.
    """
    path = Path(path)
    with path.open("rb") as stream:
        stamp = _stamp_of(stream)
        text = _read_header(path, stream, stamp[2])
    start = 8 + len(text)
    header = _parse_json(path, text)
    metadata = header.pop("__metadata__", None)
    specs: dict[str, TensorSpec] = {}
    extents: dict[str, tuple[int, int]] = {}
    for name, entry in header.items():
        specs[name], extents[name] = _parse_entry(entry, _failer(path, name))
    _check_tiling(path, extents, stamp[2] - start)
    offsets = {name: start + begin for name, (begin, _) in extents.items()}
    tensors = LazyTensors(path, stamp, specs, offsets)
    return Checkpoint(tensors, metadata=_check_metadata(metadata, _failer(path)))


def write_safetensors(
    stream: BinaryIO,
    specs: Mapping[str, TensorSpec],
    tensors: Mapping[str, TensorData],
    *,
    ties: Mapping[str, str] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> tuple[str, ...]:
    """Write a safetensors file with one tensor in memory at a time; return what there is to say about it.

    Parameters
    ----------
    stream : binary file
        Where to write; need not be seekable.
    specs : mapping of str to (DType, tuple of int)
        Element type and shape of every tensor to write, in the order of the state dict.
    tensors : mapping of str to TensorData
        Looked up once for every name of ``specs``, larger elements first.
    ties : mapping of str to str
        Tied tensors, for the note only: the format has no ties, so each is written as a copy.
    metadata : mapping of str to str
        Free string metadata.

    Returns
    -------
    notes : tuple of str
        Which tied tensors were written as copies.

    Raises
    ------
    UnsupportedTensorError
        An element type or a shape that the format cannot hold.
    EncodeError
        A name or metadata that the format cannot hold, or a header above its limit.
    """
    specs = dict(specs)
    order = sorted(specs, key=lambda name: -specs[name][0].element_bytes)  # stable
    extents: dict[str, tuple[int, int]] = {}
    end = 0
    for name in order:
        begin, end = end, end + _n_bytes(*specs[name])
        extents[name] = begin, end
    header: dict[str, Any] = {}
    if metadata:
        header["__metadata__"] = _check_metadata(dict(metadata), _failer("safetensors"))
    for name, (dtype, shape) in specs.items():
        header[name] = _make_entry(name, dtype, shape, extents[name])
    text = _dump_json(header)
    stream.write(struct.pack("<Q", len(text)) + text)
    for name in order:
        data = tensors[name]
        if (data.dtype, tuple(data.shape)) != specs[name]:
            raise ValueError(f"tensor {name!r} is not what was announced: {data.dtype.name} {data.shape}")
        stream.write(np.ascontiguousarray(data.words).view(np.uint8).data)
    copies = [name for name in specs if name in (ties or {})]
    if not copies:
        return ()
    return (f"safetensors has no tied tensors, so these are written as copies: {listed(copies)}",)


def listed(names: Collection[str]) -> str:
    """Return names in one line of bearable length, for messages."""
    shown = ", ".join(_cut(name) for name in itertools.islice(names, 8))
    return shown if len(names) <= 8 else f"{shown} and {len(names) - 8} more"


def shortened(value: object) -> str:
    """Return a value from a hostile file, or the text of an error, in one line of bearable length."""
    return _cut(str(value) if isinstance(value, Exception) else repr(value))


def _cut(text: str) -> str:
    line = text.partition("\n")[0]
    return line if len(line) <= 120 else f"{line[:117]}..."


def _stamp_of(stream: IO[bytes]) -> _Stamp:
    """Return what changes when a file is replaced or written to."""
    status = os.fstat(stream.fileno())
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _failer(path: str | Path, name: str | None = None) -> Callable[[str], NoReturn]:
    """Return a function that raises `EncodeError` with the file and the tensor named."""
    where = f"{path}: " if name is None else f"{path}: tensor {shortened(name)}: "

    def fail(what: str) -> NoReturn:
        raise EncodeError(where + what)

    return fail


def _n_bytes(dtype: DType, shape: tuple[int, ...]) -> int:
    """Return the bytes of a tensor; the product is exact at any size."""
    count = dtype.element_bytes
    for dim in shape:
        count *= dim
    return count


def _read_header(path: Path, stream: BinaryIO, file_bytes: int) -> bytes:
    """Return the JSON header, its length checked before it is read."""
    fail = _failer(path)
    prefix = stream.read(8)
    if len(prefix) < 8:
        fail(f"is not a safetensors file: {file_bytes} bytes are too few for a header")
    (length,) = struct.unpack("<Q", prefix)
    if length > _MAX_HEADER_BYTES:
        fail(f"header of {length} bytes is above the limit of {_MAX_HEADER_BYTES}")
    if length > file_bytes - 8:
        fail(f"is cut short: header of {length} bytes announced, {file_bytes - 8} bytes follow")
    text = stream.read(length)
    if len(text) < length:
        fail("the file changed while it was being read")
    if text[:1] != b"{":
        fail("is not a safetensors file: the header is not a JSON object")
    return text


def _parse_json(path: Path, text: bytes) -> dict[str, Any]:
    """Return the header as a dict; duplicate keys at any depth and lone surrogates are refused."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise EncodeError(f"{path}: header has the key {shortened(key)} twice")
            found[key] = value
        return found

    def constant(word: str) -> NoReturn:
        raise ValueError(f"{word} is not JSON")

    try:
        header: dict[str, Any] = json.loads(
            text.decode("utf-8"), object_pairs_hook=unique, parse_constant=constant
        )
        for name in header:
            name.encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise EncodeError(f"{path}: header is not UTF-8 JSON: {shortened(error)}") from None
    return header


def _parse_entry(entry: object, fail: Callable[[str], NoReturn]) -> tuple[TensorSpec, tuple[int, int]]:
    """Return dtype, shape and extent of one tensor of the header."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        fail("header entry must have exactly dtype, shape and data_offsets")
    dtype = DTYPE_BY_SAFETENSORS.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None or dtype.name in _ABSENT:
        try:
            fail(f"dtype {shortened(entry['dtype'])} has no counterpart in PyTorch")
        except EncodeError as error:
            raise UnsupportedTensorError(*error.args) from None
    shape, extent = entry["shape"], entry["data_offsets"]
    if not _is_counts(shape):
        fail(f"shape {shortened(shape)} is not a list of non-negative integers")
    if not _is_counts(extent) or len(extent) != 2 or extent[0] > extent[1]:
        fail(f"data_offsets {shortened(extent)} are not a begin and an end")
    if dtype.name == _FLOAT4:  # two numbers a byte; safetensors counts numbers, torch bytes
        if not shape or shape[-1] % 2:
            fail(f"shape {shortened(shape)} of dtype F4 must have an even last dimension")
        shape = [*shape[:-1], shape[-1] // 2]
    count = dtype.element_bytes
    for dim in shape:
        count *= dim or 1  # a zero excuses no absurd dimension beside it
        if count > _MAX_COUNT:
            fail(f"shape {shortened(shape)} is too large")
    n_bytes = 0 if 0 in shape else count
    if n_bytes != extent[1] - extent[0]:
        fail(f"shape {shortened(shape)} of {dtype.name} needs {n_bytes} bytes, not {extent[1] - extent[0]}")
    return (dtype, tuple(shape)), (extent[0], extent[1])


def _is_counts(values: object) -> bool:
    """Whether this is a list of integers that 63 bits hold; True and 1.0 are none."""
    return isinstance(values, list) and all(type(v) is int and 0 <= v <= _MAX_COUNT for v in values)


def _check_tiling(path: Path, extents: dict[str, tuple[int, int]], n_bytes: int) -> None:
    """Check that the tensors fill the data part without holes or overlaps."""
    position = 0
    for name, (begin, end) in sorted(extents.items(), key=lambda item: item[1]):
        if begin != position:
            kind = "overlaps another tensor" if begin < position else "leaves a hole before it"
            raise EncodeError(
                f"{path}: tensor {shortened(name)}: starts at {begin}, not at {position}, so it {kind}"
            )
        position = end
    if position != n_bytes:
        what = "is cut short" if position > n_bytes else "has bytes after the last tensor"
        raise EncodeError(f"{path}: {what}: {position} bytes of tensors announced, {n_bytes} bytes there")


def _check_metadata(metadata: object, fail: Callable[[str], NoReturn]) -> dict[str, str]:
    """Return the metadata, proven to map strings to strings; nothing or null is none."""
    if metadata is None:
        return {}
    if not isinstance(metadata, dict):
        fail("__metadata__ must be an object")
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str):
            fail(f"metadata {shortened(key)} must be a string")
        try:
            (key + value).encode("utf-8")
        except UnicodeEncodeError:
            fail(f"metadata {shortened(key)} is not valid Unicode")
    return metadata


def _make_entry(name: str, dtype: DType, shape: tuple[int, ...], extent: tuple[int, int]) -> dict[str, Any]:
    """Return the header entry of one tensor."""
    if name == "__metadata__":
        raise EncodeError("safetensors keeps the name '__metadata__' for itself: rename the tensor")
    if dtype.name in _ABSENT or (dtype.name == _FLOAT4 and not shape):
        kind = f"{'' if shape else '0-d '}{dtype.name}"
        raise UnsupportedTensorError(f"tensor {name!r}: safetensors cannot hold {kind}; write a .pt file")
    if dtype.name == _FLOAT4:
        shape = (*shape[:-1], shape[-1] * 2)
    return {"dtype": dtype.safetensors_name, "shape": list(shape), "data_offsets": list(extent)}


def _dump_json(header: dict[str, Any]) -> bytes:
    """Return the header as the library writes it: compact, UTF-8, padded with spaces to 8 bytes."""
    try:
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    except UnicodeEncodeError as error:
        raise EncodeError(f"safetensors: a tensor name is not valid Unicode: {error}") from None
    text += b" " * (-len(text) % 8)
    if len(text) > _MAX_HEADER_BYTES:
        raise EncodeError(f"safetensors: header of {len(text)} bytes, above the limit of {_MAX_HEADER_BYTES}")
    return text
