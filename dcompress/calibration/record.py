"""The statistics of a whole model, and their file: safetensors, read and written without torch."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from dcompress.atomic import atomic_writer
from dcompress.calibration.moments import Moments
from dcompress.calibration.moments_file import (
    PackedMoments,
    read_count,
    read_moments,
    read_shape,
    shape_text,
)
from dcompress.errors import EncodeError
from dcompress.safetensors_file import read_safetensors, shortened, write_safetensors
from dcompress.stages import TensorSpec

__all__ = ["Calibration", "CalibrationLike", "as_calibration"]

_FORMAT = "dcompress-calibration"
_VERSION = 1


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
    sensitivity : mapping of str to float
        Of weight tensors: the squared error of the model's outputs, relative to their variance, for a tensor
        that alone is rounded to multiples of a step, divided by the square of that step. At least 0; 0, or no
        entry, if nothing was found out. See `dcompress.step_weights`.
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
    sensitivity: Mapping[str, float] = field(default_factory=dict)

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
                wrong.append(f"{name} {shape_text(shape)} is not there")
            elif tuple(specs[name][1]) != tuple(shape):
                wrong.append(f"{name} is {shape_text(specs[name][1])}, not {shape_text(shape)}")
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
        tensors = PackedMoments(self.moments)
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
            "sensitivity": dict(self.sensitivity),
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
            moments = read_moments(content["moments"], file.tensors, fail)
            return cls(
                moments,
                {str(name): read_shape(shape) for name, shape in content["shapes"].items()},
                read_count(content["n_parameters"]),
                read_count(content["n_batches"]),
                read_count(content["n_holdout_batches"]),
                {str(name): str(first) for name, first in content["ties"].items()},
                {str(name): str(reason) for name, reason in content["skipped"].items()},
                tuple(str(note) for note in content["notes"]),
                None if content["recipe"] is None else dict(content["recipe"]),
                read_count(content["effort"]),
                {str(name): _size(value) for name, value in content.get("sensitivity", {}).items()},
            )
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError, RecursionError) as error:
            fail(f"is damaged: {type(error).__name__}: {shortened(error)}")

    def __str__(self) -> str:
        held = f", {self.n_holdout_batches} of them held out" if self.n_holdout_batches else ""
        lines = [f"{len(self)} weight tensors, {self.n_batches} batches{held}"]
        for name, one in self.moments.items():
            groups = f", {one.n_groups} groups" if one.n_groups > 1 else ""
            count = int(one.n_vectors.max() + one.holdout_n_vectors.max())
            seen = f"{count:,} inputs of {one.n_columns}{groups}" if one.second else "rows looked up"
            lines.append(f"  {name} {shape_text(one.shape)}: {' + '.join(one.kinds)}, {seen}")
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


def _size(value: object) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < math.inf:
        raise ValueError(f"{shortened(value)} is not a size")
    return float(value)
