"""The tensors of statistics in their safetensors file: packed one by one, and read with checksums."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from dcompress.calibration.moments import Moments, pack_triangles, unpack_triangles
from dcompress.constants import DTYPE_BY_NAME
from dcompress.errors import EncodeError
from dcompress.safetensors_file import listed, shortened
from dcompress.stages import TensorData, TensorSpec, word_dtype

__all__ = ["PackedMoments", "read_count", "read_moments", "read_shape", "shape_text"]

_DTYPES: dict[str, Any] = {"float32": "<f4", "float64": "<f8", "int64": "<i8"}
_ENTRY_KEYS = {"kinds", "shape", "layout", "groups", "blocks", "holdout", "row_weights", "influence"} | {
    "cross",
    "crc32",
}


class PackedMoments(Mapping[str, TensorData]):
    """The tensors of a file, packed at look-up, so that no second copy of all of them is held."""

    def __init__(self, moments: Mapping[str, Moments]) -> None:
        self._arrays: dict[str, tuple[NDArray[Any], bool]] = {}
        for name, one in moments.items():
            if "/" in name:
                raise EncodeError(f"a parameter's name must have no slash: {name!r}")
            self._arrays[f"{name}/n_vectors"] = one.n_vectors, False
            self._arrays[f"{name}/holdout_n_vectors"] = one.holdout_n_vectors, False
            self._arrays[f"{name}/total"] = one.total, False
            for number, block in enumerate(one.second):
                self._arrays[f"{name}/second.{number}"] = block, True
            for number, block in enumerate(one.holdout):
                self._arrays[f"{name}/holdout.{number}"] = block, True
            for number, block in enumerate(one.cross):
                self._arrays[f"{name}/cross.{number}"] = block, False
            for number, block in enumerate(one.holdout_cross):
                self._arrays[f"{name}/holdout_cross.{number}"] = block, False
            if one.row_weights is not None:
                self._arrays[f"{name}/row_weights"] = one.row_weights, False
            if one.influence is not None:
                self._arrays[f"{name}/influence"] = one.influence, False
        self.specs: dict[str, TensorSpec] = {
            key: (DTYPE_BY_NAME[array.dtype.name], _packed_shape(array.shape) if packed else array.shape)
            for key, (array, packed) in self._arrays.items()
        }

    def __getitem__(self, key: str) -> TensorData:
        array, packed = self._arrays[key]
        dtype, shape = self.specs[key]
        plain = np.ascontiguousarray(pack_triangles(array) if packed else array, _DTYPES[dtype.name])
        return TensorData(dtype, shape, plain.reshape(-1).view(word_dtype(dtype.word_bytes)))

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)


def _packed_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[0], shape[1] * (shape[1] + 1) // 2


def shape_text(shape: tuple[int, ...]) -> str:
    """Return a shape as errors show it."""
    return "x".join(map(str, shape)) or "0-d"


def read_count(value: object) -> int:
    """Return a count from a description; raise ValueError if it is none."""
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise ValueError(f"{shortened(value)} is not a count")
    return value


def read_shape(value: object) -> tuple[int, ...]:
    """Return a shape from a description; raise TypeError or ValueError if it is none."""
    if not isinstance(value, list):
        raise TypeError(f"{shortened(value)} is not a shape")
    return tuple(read_count(size) for size in value)


def read_moments(
    entries: Any, tensors: Mapping[str, TensorData], fail: Callable[[str], NoReturn]
) -> dict[str, Moments]:
    """Return the statistics by name; sizes are compared with the file's before anything is read."""
    moments = {}
    missing = set(tensors)
    for name, entry in entries.items():
        if {"cross", *entry} != _ENTRY_KEYS:  # files from before there was such a key are good
            raise ValueError(f"entry of {shortened(name)} has other keys")
        shape, groups, sizes = (
            read_shape(entry["shape"]),
            read_count(entry["groups"]),
            read_shape(entry["blocks"]),
        )
        crcs = entry["crc32"]

        def read(
            key: str,
            dtype: str,
            shape: tuple[int, ...],
            name: str = name,
            crcs: Mapping[str, int] = crcs,
        ) -> NDArray[Any]:
            whole = f"{name}/{key}"
            if whole not in missing:
                fail(f"is damaged: {shortened(whole)} is missing")
            missing.discard(whole)
            data = tensors[whole]
            if data.dtype.name != dtype or data.shape != shape:
                fail(f"is damaged: {shortened(whole)} is {data.dtype.name} {shape_text(data.shape)}")
            if crcs.get(key) != zlib.crc32(data.words.data):
                fail(f"is damaged: {shortened(whole)} does not match its checksum")
            values: NDArray[Any] = data.words.view(_DTYPES[dtype]).astype(dtype, copy=False).reshape(shape)
            if dtype != "int64" and not np.isfinite(values).all():
                fail(f"is damaged: {shortened(whole)} has NaN or infinite values")
            return values

        def read_blocks(
            key: str, groups: int = groups, sizes: tuple[int, ...] = sizes, read: Any = read
        ) -> tuple[NDArray[np.float32], ...]:
            return tuple(
                unpack_triangles(read(f"{key}.{number}", "float32", (groups, size * (size + 1) // 2)), size)
                for number, size in enumerate(sizes)
            )

        def read_squares(
            key: str, groups: int = groups, sizes: tuple[int, ...] = sizes, read: Any = read
        ) -> tuple[NDArray[np.float32], ...]:
            return tuple(
                read(f"{key}.{number}", "float32", (groups, size, size)) for number, size in enumerate(sizes)
            )

        layout = str(entry["layout"])
        n_columns, n_outputs = math.prod(shape[1:]), shape[0]
        if layout == "transposed":
            n_outputs = shape[1] * groups
            n_columns = shape[0] // max(1, groups) * math.prod(shape[2:])
        moments[str(name)] = Moments(
            tuple(str(kind) for kind in entry["kinds"]),
            shape,
            layout,
            read("n_vectors", "int64", (groups,)),
            read("total", "float32", (groups, n_columns)),
            read_blocks("second"),
            read("holdout_n_vectors", "int64", (groups,)),
            read_blocks("holdout") if entry["holdout"] else (),
            read("row_weights", "float64", shape[:1]) if entry["row_weights"] else None,
            read("influence", "float64", (n_outputs,)) if entry["influence"] else None,
            read_squares("cross") if entry.get("cross") else (),
            read_squares("holdout_cross") if entry.get("cross") and entry["holdout"] else (),
        )
    if missing:
        fail(f"is damaged: tensors that nobody describes: {listed(sorted(missing))}")
    return moments
