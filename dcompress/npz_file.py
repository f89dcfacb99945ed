"""NumPy's ``.npz`` files, written one tensor at a time.

Element types that NumPy lacks are written as their bits, in unsigned integers of the same size.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from dcompress.constants import DTYPE_BY_NAME, DType
from dcompress.errors import EncodeError, UnsupportedTensorError
from dcompress.safetensors_file import listed, shortened
from dcompress.stages import Checkpoint, TensorData, TensorSpec, word_dtype

__all__ = ["open_zip", "read_npz", "write_npz"]

_NATIVE = {
    "bool": "|b1",
    "uint8": "|u1",
    "int8": "|i1",
    "uint16": "<u2",
    "int16": "<i2",
    "uint32": "<u4",
    "int32": "<i4",
    "uint64": "<u8",
    "int64": "<i8",
    "float16": "<f2",
    "float32": "<f4",
    "float64": "<f8",
    "complex64": "<c8",
    "complex128": "<c16",
}
_BY_DESCR = {descr: DTYPE_BY_NAME[name] for name, descr in _NATIVE.items()}
_ZIP = b"PK\x03\x04"
_READ_BYTES = 1 << 24
_MAX_RATIO = 1100  # deflate never does better
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    tokenize.TokenError,
    EOFError,
    OverflowError,
    RecursionError,
    RuntimeError,
    ValueError,
)


def write_npz(
    stream: BinaryIO,
    specs: Mapping[str, TensorSpec],
    tensors: Mapping[str, TensorData],
    *,
    ties: Mapping[str, str] | None = None,
) -> tuple[str, ...]:
    """Write an ``.npz`` file with one tensor in memory at a time; return what there is to say about it.

    Parameters
    ----------
    stream : binary file
        Where to write; need not be seekable.
    specs : mapping of str to (DType, tuple of int)
        Element type and shape of every tensor to write, in order.
    tensors : mapping of str to TensorData
        Looked up once for every name of ``specs``, in that order.
    ties : mapping of str to str
        Tied tensors, for the note only: each is written as a copy.

    Returns
    -------
    notes : tuple of str
        Which tensors were written as bits, and which as copies.

    Raises
    ------
    EncodeError
        A name that the zip format cannot hold, or that NumPy would confuse with another.
    """
    as_bits: dict[str, list[str]] = {}
    for name, (dtype, _) in specs.items():
        _check_name(name, specs)
        if dtype.name not in _NATIVE:
            as_bits.setdefault(dtype.name, []).append(name)
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, (dtype, shape) in specs.items():
            data = tensors[name]
            if (data.dtype, tuple(data.shape)) != (dtype, tuple(shape)):
                raise ValueError(f"tensor {name!r} is not what was announced: {data.dtype.name} {data.shape}")
            member = zipfile.ZipInfo(f"{name}.npy")  # dated 1980, so equal models make equal files
            with archive.open(member, "w", force_zip64=True) as target:
                header = {"descr": _descr(dtype), "fortran_order": False, "shape": tuple(shape)}
                np.lib.format.write_array_header_1_0(target, header)
                target.write(np.ascontiguousarray(data.words).view(np.uint8).data)
    notes = [
        f"NumPy has no {kind}, so its bits are written as unsigned integers: {listed(names)}"
        for kind, names in as_bits.items()
    ]
    copies = [name for name in specs if name in (ties or {})]
    if copies:
        notes.append(f"npz has no tied tensors, so these are written as copies: {listed(copies)}")
    return tuple(notes)


def read_npz(path: str | os.PathLike[str]) -> Checkpoint:
    """Return the checkpoint in an ``.npz`` file, read as a whole, its checksums verified.

    Parameters
    ----------
    path : path-like
        The file.

    Returns
    -------
    checkpoint : Checkpoint
        The arrays in the order of the file.

    Raises
    ------
    EncodeError
        The file is damaged, has a name twice or holds something other than arrays.
    UnsupportedTensorError
        An array holds Python objects, or an element type that PyTorch has not.
    OSError
        The file cannot be opened or read.
    """
    path = Path(path)
    tensors: dict[str, TensorData] = {}
    with open_zip(path) as archive:
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            if name == member.filename:
                raise EncodeError(f"{path}: member {shortened(name)} is not an array")
            if name in tensors:
                raise EncodeError(f"{path}: array {shortened(name)} is there twice")
            tensors[name] = _read_member(archive, member, f"{path}: array {shortened(name)}")
    return Checkpoint(tensors)


@contextlib.contextmanager
def open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """Return a context with the zip file at ``path``; what its damage raises becomes `EncodeError`."""
    head = b""
    opened = False
    try:
        with path.open("rb") as stream:
            head = stream.read(len(_ZIP))
        with path.open("rb") as stream, zipfile.ZipFile(stream) as archive:
            opened = True
            file_bytes = os.fstat(stream.fileno()).st_size
            for member in archive.infolist():
                if member.compress_size > file_bytes:
                    raise EncodeError(f"{path}: is cut short or damaged")
                if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise EncodeError(
                        f"{path}: member {shortened(member.filename)} is compressed in an unusual way"
                    )
            yield archive
    except _DAMAGE as error:
        if isinstance(error, zipfile.BadZipFile) and not opened:  # "File is not a zip file"
            what = "is cut short or damaged" if head == _ZIP else "is not an .npz file, or damaged"
            raise EncodeError(f"{path}: {what}") from None
        raise EncodeError(f"{path}: damaged: {shortened(error)}") from None
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise EncodeError(f"{path}: damaged: an offset lies outside the file") from None


def _check_name(name: str, names: Mapping[str, Any]) -> None:
    """Check that a tensor name survives as the name of an ``.npz`` member."""
    if "\0" in name or (os.sep != "/" and os.sep in name):
        raise EncodeError(f"tensor {name!r}: npz cannot hold this name; write a .pt or .safetensors file")
    if name.endswith(".npy") and name[:-4] in names:
        raise EncodeError(f"tensor {name!r}: NumPy would confuse it with {name[:-4]!r}; write a .pt file")
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        raise EncodeError(f"tensor {name!r}: the name is not valid Unicode") from None


def _descr(dtype: DType) -> str:
    """Return NumPy's description of an element type, or of the unsigned integer of its size."""
    return _NATIVE.get(dtype.name, f"{'|' if dtype.element_bytes == 1 else '<'}u{dtype.element_bytes}")


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, where: str) -> TensorData:
    """Return one array; its size is compared with the member's before anything is allocated."""
    with archive.open(member) as source:
        version = np.lib.format.read_magic(source)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if read_header is None:
            raise EncodeError(f"{where}: npy version {version[0]}.{version[1]} is for structured arrays only")
        shape, fortran_order, source_dtype = read_header(source)
        dtype = _BY_DESCR.get(source_dtype.newbyteorder("<").str)
        if dtype is None:
            raise UnsupportedTensorError(
                f"{where}: element type {shortened(source_dtype.str)} has no counterpart in PyTorch"
            )
        n_bytes = math.prod(shape) * dtype.element_bytes
        if n_bytes != member.file_size - source.tell() or n_bytes > member.compress_size * _MAX_RATIO:
            raise EncodeError(
                f"{where}: shape {shortened(shape)} of {dtype.name} does not fit its size in the file"
            )
        content = np.empty(n_bytes, np.uint8)
        position = 0
        # Reading up to the very end makes zipfile compare the checksum.
        while chunk := source.read(_READ_BYTES):
            content[position : position + len(chunk)] = np.frombuffer(chunk, np.uint8)
            position += len(chunk)
        if position != n_bytes:
            raise EncodeError(f"{where}: is cut short")
    values = content.view(source_dtype).reshape(shape, order="F" if fortran_order else "C")
    flat = np.ascontiguousarray(values, source_dtype.newbyteorder("<")).reshape(-1)
    return TensorData(dtype, tuple(shape), flat.view(word_dtype(dtype.word_bytes)))
