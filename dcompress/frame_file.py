"""Checkpoint -> file, as all faces do it: recipe resolved, frame encoded, written atomically."""

from __future__ import annotations

import os
import warnings
from typing import Any

from dcompress.atomic import atomic_writer, check_writable_target
from dcompress.calibration import CalibrationLike, as_calibration
from dcompress.compression import levels_to_caller
from dcompress.encode import EncodedFrame, encode_checkpoint
from dcompress.errors import DcompressWarning
from dcompress.read_back import read_back
from dcompress.recipe import RecipeLike, as_recipe
from dcompress.settings import DEFAULT_EFFORT, check_effort
from dcompress.stages import Checkpoint
from dcompress.step_search import describe_miss, encode_to_target
from dcompress.targets import make_target
from dcompress.threads import usable_threads

__all__ = ["RecipeLike", "as_recipe", "checkpoint_to_frame", "save_checkpoint"]


def save_checkpoint(
    checkpoint: Checkpoint,
    path: str | os.PathLike[str],
    recipe: RecipeLike = None,
    *,
    overwrite: bool = True,
    **options: Any,
) -> EncodedFrame:
    """Encode a checkpoint and write its frame; an old file stays until the new one is complete.

    ``options`` are those of `checkpoint_to_frame`.
    """
    check_writable_target(path, overwrite)
    frame = checkpoint_to_frame(checkpoint, recipe, **options)
    with atomic_writer(path, overwrite=overwrite) as stream:
        frame.write(stream)
    return frame


def checkpoint_to_frame(
    checkpoint: Checkpoint,
    recipe: RecipeLike = None,
    *,
    effort: int = DEFAULT_EFFORT,
    threads: int | None = None,
    calibration: CalibrationLike = None,
    **targets: Any,
) -> EncodedFrame:
    """Encode a checkpoint; return its frame.

    Parameters
    ----------
    checkpoint : Checkpoint
        The model.
    recipe : Recipe, str, path-like, dict or None
        See `as_recipe`.
    effort : int
        From 1, fast, to 9, smallest.
    threads : int, optional
        Threads that encode; all there are by default.
    calibration : Calibration or path-like, optional
        What `dcompress.calibrate` gathered, or its file.
    **targets
        One of those that `dcompress.targets.make_target` knows, or none; None is none.

    Raises
    ------
    EncodeError
        The recipe does not fit, a tensor cannot be stored, a target is out of reach, or the statistics are of
        another model.
    """
    chosen, target = as_recipe(recipe), make_target(**targets)
    check_effort(effort)
    options: dict[str, Any] = {
        "effort": effort,
        "threads": usable_threads(threads),
        "calibration": as_calibration(calibration),
    }
    if target is None:
        frame = encode_checkpoint(checkpoint, chosen, **options)
    else:
        found = encode_to_target(checkpoint, chosen, target, **options)
        frame = found.frame
        if not found.met:
            warnings.warn(describe_miss(found), DcompressWarning, stacklevel=levels_to_caller())
    read_back(frame, options["threads"])
    return frame
