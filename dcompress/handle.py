"""An open ``.dcz`` file as users see it: names, metadata, single tensors, slices, the compressed form."""

from __future__ import annotations

import io
import os
from abc import abstractmethod
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Generic, TypeVar

import numpy as np

from dcompress.constants import DTYPE_BY_NAME
from dcompress.decode import FrameReader, open_frame
from dcompress.limits import DecodeLimits
from dcompress.stages import SharedTensor, TensorData
from dcompress.threads import usable_threads

__all__ = ["OpenFile", "Slice"]

Array = TypeVar("Array")


class Slice(Generic[Array]):
    """A tensor that is decoded when it is indexed, chunk by chunk as far as needed.

    ``file.get_slice(name)[10:20]`` decodes only the chunks that hold rows 10 to 19; further indices apply to
    those rows.
    """

    def __init__(self, file: OpenFile[Array], name: str) -> None:
        self._file = file
        self._name = name

    def get_shape(self) -> list[int]:
        """Return the shape of the whole tensor."""
        return list(self._file.shape(self._name))

    def get_dtype(self) -> str:
        """Return the dtype, as torch spells it."""
        return self._file.dtype(self._name)

    def __getitem__(self, key: Any) -> Array:
        keys = key if isinstance(key, tuple) else (key,)
        if not keys or keys[0] is Ellipsis or not self.get_shape():
            whole: Any = self._file.get_tensor(self._name)
            return whole[key]  # type: ignore[no-any-return]
        first, *others = keys
        n_rows = self.get_shape()[0]
        if isinstance(first, slice):
            start, stop, step = first.indices(n_rows)
            if step != 1:
                raise ValueError("slices of the first dimension must have step 1")
            rows: Any = self._file.get_rows(self._name, start, max(start, stop))
            return rows[(slice(None), *others)]  # type: ignore[no-any-return]
        row = range(n_rows)[first]
        rows = self._file.get_rows(self._name, row, row + 1)
        return rows[(0, *others)]  # type: ignore[no-any-return]


class OpenFile(Generic[Array]):
    """A ``.dcz`` file, opened for reading single tensors. Use it in a ``with`` statement.

    Parameters
    ----------
    source : path-like, bytes or binary stream
        The frame.
    limits : DecodeLimits, optional
        Checked before anything is allocated.
    threads : int, optional
        Threads that decode; all there are by default.

    Raises
    ------
    OSError
        The file cannot be read.
    DecodeError
        It is no ``.dcz`` file, damaged, or exceeds a limit.
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | bytes | bytearray | memoryview | io.BufferedIOBase,
        *,
        limits: DecodeLimits | None = None,
        threads: int | None = None,
    ) -> None:
        self._reader: FrameReader = open_frame(source, limits=limits, threads=usable_threads(threads))

    def __enter__(self) -> OpenFile[Array]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reader.close()

    def __iter__(self) -> Iterator[str]:
        return iter(self._reader.directory.tensors)

    @abstractmethod
    def _convert(self, data: TensorData) -> Array:
        """Return exact tensor data as an array of the face."""

    def keys(self) -> list[str]:
        """Return the tensor names, in state-dict order."""
        return list(self._reader.directory.tensors)

    def metadata(self) -> dict[str, str]:
        """Return the free string metadata."""
        return dict(self._reader.directory.metadata)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor; nothing is decoded."""
        return self._reader.directory.tensors[name].shape

    def dtype(self, name: str) -> str:
        """Return the dtype of a tensor, as torch spells it; nothing is decoded."""
        return self._reader.directory.tensors[name].dtype.name

    @abstractmethod
    def _expose(self, out: Array) -> TensorData:
        """Return the memory of an array as tensor data, a copy if it cannot be shared."""

    def get_tensor(self, name: str, out: Array | None = None) -> Array:
        """Return one tensor; nothing else of the file is read.

        Parameters
        ----------
        name : str
            Name of the tensor.
        out : array, optional
            Contiguous, of the tensor's shape and dtype: it is filled and returned. Decoding to memory that
            was used before is about twice as fast as to new memory.

        Raises
        ------
        KeyError
            No tensor has this name.
        ValueError
            ``out`` does not fit.
        DecodeError
            The tensor is damaged, or exceeds a limit.
        """
        if out is None:
            return self._convert(self._reader.read_tensor(name))
        target = self._expose(out)
        record = self._reader.directory.tensors[name]
        if (target.dtype, target.shape) != (record.dtype, record.shape):
            raise ValueError(
                f"out is {target.dtype.name} {target.shape}; "
                f"tensor {name!r} is {record.dtype.name} {record.shape}"
            )
        self._reader.read_tensor(name, target.words)
        return out

    def get_slice(self, name: str) -> Slice[Array]:
        """Return a tensor to be indexed by its first dimension."""
        if name not in self._reader.directory.tensors:
            raise KeyError(name)
        return Slice(self, name)

    def get_rows(self, name: str, start: int, stop: int) -> Array:
        """Return rows ``start`` to ``stop`` of the first dimension, decoding only their chunks."""
        return self._convert(self._reader.read_rows(name, start, stop))

    def get_shared(self, name: str) -> SharedTensor | None:
        """Return the compressed form of a tensor, None if it was not stored as labels and codebook.

        Its ``mask`` and ``labels`` are flat, its ``codebook`` holds words; `get_codebook` has the values.
        """
        return self._reader.read_shared(name)

    def get_codebook(self, name: str) -> Array | None:
        """Return the shared values of a tensor by label, shape (n_groups, n_labels); None if it has none.

        ``codebook[0][shared.labels]`` is the flat tensor, if it has one group. Complex numbers are shared
        part by part, so theirs are real.
        """
        shared = self._reader.read_shared(name)
        if shared is None:
            return None
        parts = {"complex32": "float16", "complex64": "float32", "complex128": "float64"}
        dtype = DTYPE_BY_NAME[parts.get(shared.dtype.name, shared.dtype.name)]
        lookup = np.ascontiguousarray(shared.lookup())
        return self._convert(TensorData(dtype, lookup.shape, lookup.reshape(-1)))
