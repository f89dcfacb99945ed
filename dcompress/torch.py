"""The torch face: state dicts in and out. The four verbs are those of safetensors."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from typing import Any

import torch

from dcompress.calibration import CalibrationLike, as_calibration
from dcompress.checkpoint import (
    checkpoint_from_state_dict,
    data_to_tensor,
    state_dict_from_checkpoint,
    tensor_to_data,
)
from dcompress.compression import compress_checkpoint
from dcompress.decode import open_frame
from dcompress.errors import DecodeError, EncodeError
from dcompress.frame_file import checkpoint_to_frame, save_checkpoint
from dcompress.handle import OpenFile
from dcompress.inspection import read_torch_extra
from dcompress.limits import DecodeLimits
from dcompress.recipe import RecipeLike, as_recipe
from dcompress.rescue import salvage_checkpoint
from dcompress.settings import DEFAULT_EFFORT, check_effort
from dcompress.stages import Checkpoint, SharedTensor, TensorData
from dcompress.threads import usable_threads

__all__ = [
    "compress",
    "load",
    "load_file",
    "load_model",
    "safe_open",
    "salvage",
    "save",
    "save_file",
    "save_model",
]

StateDict = dict[str, Any]


class safe_open(OpenFile[torch.Tensor]):  # noqa: N801 (safetensors' own name)
    """A ``.dcz`` file opened for reading single tensors as torch tensors."""

    def _convert(self, data: TensorData) -> torch.Tensor:
        return data_to_tensor(data)

    def _expose(self, out: torch.Tensor) -> TensorData:
        data = tensor_to_data("out", out)
        if out.numel() and data.words.ctypes.data != out.data_ptr():
            raise ValueError("out must be a contiguous CPU tensor")
        return data


def save_file(
    state_dict: Mapping[str, Any],
    path: str | os.PathLike[str],
    *,
    recipe: RecipeLike = None,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = True,
    effort: int = DEFAULT_EFFORT,
    target_size: int | str | None = None,
    target_ratio: float | None = None,
    target_bpw: float | None = None,
    quality: float | None = None,
    threads: int | None = None,
    calibration: CalibrationLike = None,
) -> None:
    """Compress a state dict by a recipe and write it to a ``.dcz`` file, atomically.

    Parameters
    ----------
    state_dict : mapping of str to Tensor
        The model; tied tensors are stored once. `load_file` gives back what `compress` returns for it.
    path : path-like
        Where to write.
    recipe : Recipe, str, path-like, dict or None
        A recipe, the name of a preset, the path of a TOML file, a recipe as a dict, or None for
        ``balanced``.
    metadata : mapping of str to str, optional
        Free string metadata.
    overwrite : bool
        Whether an existing file may be replaced.
    effort : int
        From 1, fast, to 9, smallest.
    target_size, target_ratio, target_bpw, quality : optional
        At most one: what the file shall come to, met by up to 1 % and never on the wrong side, by a search
        over the precision of the weights; the recipe's rules and exclusions stay in force. Bytes of the file
        (or text such as "500kB"); decoded bytes over those of the file; bits of the file per weight of
        matrices and kernels; SQNR of all matrices and kernels together, in dB. That is of weights, and a
        calibration gives it up for what layers give out: ask for a size then.
    threads : int, optional
        Threads that encode; all there are by default. The file does not depend on it.
    calibration : Calibration or path-like, optional
        What `dcompress.calibrate` gathered from this model, or its file: weights are then pruned and shared
        so that the outputs of their layers are kept.

    Raises
    ------
    EncodeError
        The recipe does not fit, a tensor cannot be stored, a target is out of reach, or the statistics are of
        another model.
    OSError
        The file cannot be written; an old file is kept.
    """
    save_checkpoint(
        checkpoint_from_state_dict(state_dict, dict(metadata or {})),
        path,
        recipe,
        overwrite=overwrite,
        effort=effort,
        target_size=target_size,
        target_ratio=target_ratio,
        target_bpw=target_bpw,
        quality=quality,
        threads=threads,
        calibration=calibration,
    )


def save_model(model: torch.nn.Module, path: str | os.PathLike[str], **options: Any) -> None:
    """Write the state dict of a module; ``options`` are those of `save_file`.

    Raises
    ------
    EncodeError
        The module is still in a `dcompress.train.Compressor`; and as `save_file` does.
    """
    for name, module in model.named_modules():
        if type(module).__module__.startswith("dcompress.train"):
            raise EncodeError(f"{name!r} is still in a Compressor: call its finish() first")
    save_file(model.state_dict(), path, **options)


def save(
    state_dict: Mapping[str, Any],
    *,
    recipe: RecipeLike = None,
    metadata: Mapping[str, str] | None = None,
    effort: int = DEFAULT_EFFORT,
    target_size: int | str | None = None,
    target_ratio: float | None = None,
    target_bpw: float | None = None,
    quality: float | None = None,
    threads: int | None = None,
    calibration: CalibrationLike = None,
) -> bytes:
    """Return the frame that `save_file` would write."""
    checkpoint = checkpoint_from_state_dict(state_dict, dict(metadata or {}))
    return checkpoint_to_frame(
        checkpoint,
        recipe,
        effort=effort,
        target_size=target_size,
        target_ratio=target_ratio,
        target_bpw=target_bpw,
        quality=quality,
        threads=threads,
        calibration=calibration,
    ).to_bytes()


def load_file(
    path: str | os.PathLike[str], *, limits: DecodeLimits | None = None, threads: int | None = None
) -> StateDict:
    """Return the state dict of a ``.dcz`` file: order, ties and module versions as they were saved.

    Parameters
    ----------
    path : path-like
        The file.
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
    return _load(path, limits, threads)


def load(data: bytes, *, limits: DecodeLimits | None = None, threads: int | None = None) -> StateDict:
    """Return the state dict of a frame in memory; see `load_file`."""
    return _load(data, limits, threads)


def load_model(
    model: torch.nn.Module,
    path: str | os.PathLike[str],
    *,
    strict: bool = True,
    limits: DecodeLimits | None = None,
    threads: int | None = None,
) -> tuple[list[str], list[str]]:
    """Load a ``.dcz`` file into a module.

    Parameters
    ----------
    model : Module
        Its parameters and buffers are overwritten.
    path : path-like
        The file.
    strict : bool
        Whether names must match exactly.
    limits, threads
        As for `load_file`.

    Returns
    -------
    missing, unexpected : list of str
        Names that the file lacks, and names that the module lacks.

    Raises
    ------
    RuntimeError
        Names or shapes do not match (torch's own message).
    """
    result = model.load_state_dict(load_file(path, limits=limits, threads=threads), strict=strict)
    return list(result.missing_keys), list(result.unexpected_keys)


def salvage(
    source: str | os.PathLike[str] | bytes | io.BufferedIOBase,
    *,
    limits: DecodeLimits | None = None,
    threads: int | None = None,
) -> tuple[StateDict, list[DecodeError]]:
    """Return every tensor of a damaged frame that is not damaged, and what is wrong with the rest.

    Parameters
    ----------
    source : path-like, bytes or binary stream
        The frame.
    limits, threads
        As for `load_file`.

    Returns
    -------
    state_dict : dict of str to Tensor or value
        What is sound, in order, each checked against its checksums and its digest.
    damages : list of DecodeError
        What is wrong with the file as a whole (``tensor`` is None), and with each tensor that is lost; those
        tied to one are lost as well. Empty if the file is sound.

    Raises
    ------
    OSError
        The file cannot be read.
    DecodeError
        The directory is damaged, so that nothing can be found, or the tensors exceed a limit.
    """
    with open_frame(source, limits=limits, threads=usable_threads(threads), partial=True) as reader:
        checkpoint, damages = salvage_checkpoint(reader)
    return state_dict_from_checkpoint(checkpoint), damages


def compress(
    state_dict: Mapping[str, Any],
    recipe: RecipeLike = None,
    *,
    effort: int = DEFAULT_EFFORT,
    calibration: CalibrationLike = None,
) -> StateDict:
    """Return a state dict pruned and shared by a recipe: stages 1 and 2, nothing is coded.

    This is, bit for bit, what `load_file` returns after `save_file` with the same recipe, effort and
    calibration.
    """
    check_effort(effort)
    checkpoint = checkpoint_from_state_dict(state_dict)
    known = as_calibration(calibration)
    compressed = compress_checkpoint(checkpoint, as_recipe(recipe), effort=effort, calibration=known)
    tensors = {}
    for name, tensor in compressed.items():
        if name not in checkpoint.ties:
            tensors[name] = tensor.gather() if isinstance(tensor, SharedTensor) else tensor
    tensors = {name: tensors[checkpoint.ties.get(name, name)] for name in compressed}
    return state_dict_from_checkpoint(Checkpoint(tensors, checkpoint.ties, {}, checkpoint.torch_extra))


def _load(
    source: str | os.PathLike[str] | bytes | io.BufferedIOBase,
    limits: DecodeLimits | None,
    threads: int | None,
) -> StateDict:
    with open_frame(source, limits=limits, threads=usable_threads(threads)) as reader:
        tensors = reader.read_all()
        records = reader.directory.tensors
        ties = {name: record.alias_of for name, record in records.items() if record.alias_of is not None}
        extra = read_torch_extra(reader)
    return state_dict_from_checkpoint(Checkpoint(tensors, ties, {}, extra))
