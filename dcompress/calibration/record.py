"""The statistics of a whole model, and their file: safetensors, read and written without torch."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from dcompress.atomic import atomic_writer
from dcompress.calibration.moments import Moments, pack_triangles, unpack_triangles
from dcompress.constants import DTYPE_BY_NAME
from dcompress.errors import EncodeError
from dcompress.safetensors_file import listed, read_safetensors, shortened, write_safetensors
from dcompress.stages import TensorData, TensorSpec, word_dtype

__all__ = ["Calibration", "CalibrationLike", "as_calibration"]

_FORMAT = "dcompress-calibration"
_VERSION = 1
_DTYPES: dict[str, Any] = {"float32": "<f4", "float64": "<f8", "int64": "<i8"}
_ENTRY_KEYS = {"kinds", "shape", "layout", "groups", "blocks", "holdout", "row_weights", "influence"} | {
    "cross",
    "crc32",
}


@dataclass(frozen=True, eq=False)
class Calibration(Mapping[str, Moments]):
    """What flowed into the layers of a model: a mapping of parameter names to `Moments`.

    A name that is tied to another one is found too, but not counted.

    Attributes
    ----------
    moments : mapping of str to Moments
        By name, in the order of the model.
    shapes : mapping of str to tuple of int
        Names and shapes of all the model's parameters with at least two dimensions: see `check`.
    n_parameters : int
        Number of weights of the model, in parameters of any shape.
    n_batches, n_holdout_batches : int
        Batches that the model saw, and how many of them were held out.
    ties : mapping of str to str
        Other names of a parameter.
    skipped : mapping of str to str
        Parameters with at least two dimensions of which nothing is known, and why.
    notes : tuple of str
        What else there is to say.
    recipe : mapping, optional
        If they were gathered layer by layer: for the recipe that this is the dictionary of.
    effort : int
        And for this effort. See `serves` and `plain`.
    """

    moments: Mapping[str, Moments]
    shapes: Mapping[str, tuple[int, ...]]
    n_parameters: int
    n_batches: int
    n_holdout_batches: int = 0
    ties: Mapping[str, str] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    recipe: Mapping[str, Any] | None = None
    effort: int = 0

    def __getitem__(self, name: str) -> Moments:
        return self.moments[self.ties.get(name, name)]

    def __iter__(self) -> Iterator[str]:
        return iter(self.moments)

    def __len__(self) -> int:
        return len(self.moments)

    def check(self, specs: Mapping[str, TensorSpec]) -> None:
        """Make sure that these statistics are of a certain model.

        Parameters
        ----------
        specs : mapping of str to (DType, tuple of int)
            Element type and shape of the tensors of a checkpoint; more of them than the model had
            parameters are no harm.

        Raises
        ------
        EncodeError
            A parameter is not there, or is of another shape; names and shapes are in the message.
        """
        wrong = []
        for name, shape in {**{name: one.shape for name, one in self.moments.items()}, **self.shapes}.items():
            if name not in specs:
                wrong.append(f"{name} {_text(shape)} is not there")
            elif tuple(specs[name][1]) != tuple(shape):
                wrong.append(f"{name} is {_text(specs[name][1])}, not {_text(shape)}")
        if not wrong:
            return
        shown = "; ".join(wrong[:4]) + (f" and {len(wrong) - 4} more" if len(wrong) > 4 else "")
        hint = ""
        for prefix in ("module.", "_orig_mod."):
            if any(prefix + name in specs for name in self.shapes):
                hint = f"; the model's names begin with {prefix!r}: take that off"
        if any(f"{name}_orig" in specs or ".parametrizations." in name for name in (*self.shapes, *specs)):
            hint += "; what torch has pruned or parametrized must be made permanent first (prune.remove, ...)"
        raise EncodeError(f"the statistics are of another model: {shown}{hint}")

    def serves(self, recipe: Mapping[str, Any], effort: int) -> bool:
        """Return whether these are statistics for any recipe, or for this one."""
        if self.recipe is None:
            return True
        mine, asked = (json.dumps(dict(one), sort_keys=True) for one in (self.recipe, recipe))
        return mine == asked and self.effort == effort

    def plain(self) -> Calibration:
        """Return what of statistics layer by layer serves other recipes.

        They make up for the very errors that one recipe makes in the layers before; to those of another they
        would add.
        """
        rest = {
            name: dataclasses.replace(one, cross=(), holdout_cross=()) for name, one in self.moments.items()
        }
        return dataclasses.replace(self, moments=rest, recipe=None, effort=0)

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = True) -> None:
        """Write a ``.safetensors`` file, atomically; the same statistics always give the same bytes.

        Parameters
        ----------
        path : path-like
            Output file.
        overwrite : bool
            Whether an existing file may be replaced.

        Raises
        ------
        EncodeError
            A name that the format cannot hold.
        OSError
            The file cannot be written, or exists and may not be replaced; an old file is kept.
        """
        entries: dict[str, Any] = {}
        tensors = _Packed(self.moments)
        for name, one in self.moments.items():
            keys = [key for key in tensors.specs if key.rpartition("/")[0] == name]
            entries[name] = {
                "kinds": list(one.kinds),
                "shape": list(one.shape),
                "layout": one.layout,
                "groups": one.n_groups,
                "blocks": [block.shape[-1] for block in one.second],
                "holdout": bool(one.holdout),
                "row_weights": one.row_weights is not None,
                "influence": one.influence is not None,
                "cross": bool(one.cross),
                "crc32": {key.rpartition("/")[2]: zlib.crc32(tensors[key].words.data) for key in keys},
            }
        content = {
            "moments": entries,
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "n_parameters": self.n_parameters,
            "n_batches": self.n_batches,
            "n_holdout_batches": self.n_holdout_batches,
            "ties": dict(self.ties),
            "skipped": dict(self.skipped),
            "notes": list(self.notes),
            "recipe": None if self.recipe is None else dict(self.recipe),
            "effort": self.effort,
        }
        text = json.dumps(content, separators=(",", ":"))
        metadata = {
            "format": _FORMAT,
            "version": str(_VERSION),
            "crc32": str(zlib.crc32(text.encode())),
            "calibration": text,
        }
        with atomic_writer(path, overwrite=overwrite) as stream:
            write_safetensors(stream, tensors.specs, tensors, metadata=metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Calibration:
        """Return the statistics in a file that `save` wrote; needs neither torch nor the model.

        Parameters
        ----------
        path : path-like
            The file.

        Raises
        ------
        EncodeError
            The file is of another kind, was written by a newer version, or is damaged.
        OSError
            It cannot be read.
        """
        file = read_safetensors(path)

        def fail(what: str) -> NoReturn:
            raise EncodeError(f"{path}: {what}")

        if file.metadata.get("format") != _FORMAT:
            fail("holds no calibration statistics: dcompress.calibrate makes them")
        version = file.metadata.get("version", "")
        if version != str(_VERSION):
            fail(f"statistics of version {shortened(version)}; this dcompress reads version {_VERSION}")
        text = file.metadata.get("calibration", "")
        if file.metadata.get("crc32") != str(zlib.crc32(text.encode())):
            fail("is damaged: the description does not match its checksum")
        try:
            content = json.loads(text)
            moments = _read_moments(content["moments"], file.tensors, fail)
            return cls(
                moments,
                {str(name): _shape(shape) for name, shape in content["shapes"].items()},
                _count(content["n_parameters"]),
                _count(content["n_batches"]),
                _count(content["n_holdout_batches"]),
                {str(name): str(first) for name, first in content["ties"].items()},
                {str(name): str(reason) for name, reason in content["skipped"].items()},
                tuple(str(note) for note in content["notes"]),
                None if content["recipe"] is None else dict(content["recipe"]),
                _count(content["effort"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            fail(f"is damaged: {type(error).__name__}: {shortened(error)}")

    def __str__(self) -> str:
        held = f", {self.n_holdout_batches} of them held out" if self.n_holdout_batches else ""
        lines = [f"{len(self)} weight tensors, {self.n_batches} batches{held}"]
        for name, one in self.moments.items():
            groups = f", {one.n_groups} groups" if one.n_groups > 1 else ""
            count = int(one.n_vectors.max() + one.holdout_n_vectors.max())
            seen = f"{count:,} inputs of {one.n_columns}{groups}" if one.second else "rows looked up"
            lines.append(f"  {name} {_text(one.shape)}: {' + '.join(one.kinds)}, {seen}")
        lines += [f"  {name}: skipped, {reason}" for name, reason in self.skipped.items()]
        return "\n".join([*lines, *self.notes])


CalibrationLike = Calibration | str | os.PathLike[str] | None


def as_calibration(calibration: object) -> Calibration | None:
    """Return statistics from statistics, the path of their file, or None.

    Raises
    ------
    EncodeError
        It is something else, or the file is none.
    OSError
        The file cannot be read.
    """
    if calibration is None or isinstance(calibration, Calibration):
        return calibration
    if not isinstance(calibration, (str, os.PathLike)):
        kind = type(calibration).__name__
        raise EncodeError(f"calibration must be what dcompress.calibrate returns, or its file, not {kind}")
    return Calibration.load(calibration)


def _text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "0-d"


class _Packed(Mapping[str, TensorData]):
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


def _count(value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise ValueError(f"{shortened(value)} is not a count")
    return value


def _shape(value: object) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise TypeError(f"{shortened(value)} is not a shape")
    return tuple(_count(size) for size in value)


def _read_moments(
    entries: Any, tensors: Mapping[str, TensorData], fail: Callable[[str], NoReturn]
) -> dict[str, Moments]:
    """Return the statistics by name; sizes are compared with the file's before anything is read."""
    moments = {}
    missing = set(tensors)
    for name, entry in entries.items():
        if {"cross", *entry} != _ENTRY_KEYS:  # files from before there was such a key are good
            raise ValueError(f"entry of {shortened(name)} has other keys")
        shape, groups, sizes = _shape(entry["shape"]), _count(entry["groups"]), _shape(entry["blocks"])
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
                fail(f"is damaged: {shortened(whole)} is {data.dtype.name} {_text(data.shape)}")
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
