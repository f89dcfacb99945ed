"""The NumPy face: ``.dcz`` files without torch. The four verbs are those of safetensors.

Dtypes that NumPy lacks (bfloat16, the float8 family, float4, complex32) come as unsigned integers of the same
size that hold the bits; ``safe_open(...).dtype(name)`` tells what they are.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dcompress.constants import DTYPE_BY_NAME
from dcompress.decode import open_frame
from dcompress.errors import DecodeError, UnsupportedError, UnsupportedTensorError
from dcompress.handle import OpenFile
from dcompress.limits import DecodeLimits
from dcompress.settings import DEFAULT_EFFORT
from dcompress.stages import Checkpoint, TensorData, word_dtype
from dcompress.threads import usable_threads

__all__ = [
    "array_from_data",
    "data_from_array",
    "load",
    "load_file",
    "safe_open",
    "salvage",
    "save",
    "save_file",
]

_LACKING = {
    "bfloat16",
    "float8_e4m3fn",
    "float8_e5m2",
    "float8_e4m3fnuz",
    "float8_e5m2fnuz",
    "float8_e8m0fnu",
    "float4_e2m1fn_x2",
    "complex32",
}


def array_from_data(data: TensorData) -> NDArray[Any]:
    """Return exact tensor data as an array, without a copy; bits where NumPy lacks the dtype.

    Raises
    ------
    UnsupportedError
        A complex32 tensor has as many dimensions as NumPy allows, so that its parts find no room.
    """
    if data.dtype.name not in _LACKING:
        return data.words.view(np.dtype(data.dtype.name)).reshape(data.shape)
    shape = data.shape if data.dtype.words_per_element == 1 else (*data.shape, 2)
    try:
        return data.words.reshape(shape)
    except ValueError:
        raise UnsupportedError(f"NumPy cannot hold a {data.dtype.name} of rank {len(data.shape)}") from None


def data_from_array(name: str, array: NDArray[Any]) -> TensorData:
    """Return an array as exact tensor data in C order.

    Raises
    ------
    UnsupportedTensorError
        The dtype has no counterpart in torch (strings, objects, long double, ...).
    """
    array = np.asarray(array)
    dtype = DTYPE_BY_NAME.get(array.dtype.name)
    if dtype is None:
        raise UnsupportedTensorError(f"tensor {name!r}: a .dcz file cannot hold dtype {array.dtype}")
    flat = np.ascontiguousarray(array.reshape(-1)).astype(array.dtype.newbyteorder("<"), copy=False)
    return TensorData(dtype, array.shape, flat.view(word_dtype(dtype.word_bytes)))


class safe_open(OpenFile[NDArray[Any]]):  # noqa: N801 (safetensors' own name)
    """A ``.dcz`` file opened for reading single tensors as NumPy arrays."""

    def _convert(self, data: TensorData) -> NDArray[Any]:
        return array_from_data(data)

    def _expose(self, out: NDArray[Any]) -> TensorData:
        data = data_from_array("out", out)
        if out.size and not (out.flags.writeable and np.shares_memory(data.words, out)):
            raise ValueError("out must be writable, contiguous and little-endian")
        return data


def load_file(
    path: str | os.PathLike[str], *, limits: DecodeLimits | None = None, threads: int | None = None
) -> dict[str, NDArray[Any]]:
    """Return all tensors of a ``.dcz`` file, in order.

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


def load(
    data: bytes, *, limits: DecodeLimits | None = None, threads: int | None = None
) -> dict[str, NDArray[Any]]:
    """Return all tensors of a frame in memory; see `load_file`."""
    return _load(data, limits, threads)


def save_file(
    tensors: Mapping[str, NDArray[Any]],
    path: str | os.PathLike[str],
    *,
    recipe: Any = None,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = True,
    effort: int = DEFAULT_EFFORT,
    target_size: int | str | None = None,
    target_ratio: float | None = None,
    target_bpw: float | None = None,
    quality: float | None = None,
    threads: int | None = None,
    calibration: Any = None,
) -> None:
    """Compress arrays by a recipe and write them to a ``.dcz`` file, atomically.

    Parameters
    ----------
    tensors : mapping of str to ndarray
        The model.
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
        Statistics that `dcompress.calibrate` gathered from this model, or their file: weights are then pruned
        and shared so that the outputs of their layers are kept.

    Raises
    ------
    EncodeError
        The recipe does not fit, a tensor cannot be stored, a target is out of reach, or the statistics are of
        another model.
    OSError
        The file cannot be written; an old file is kept.
    """
    from dcompress.frame_file import save_checkpoint

    save_checkpoint(
        _checkpoint(tensors, metadata),
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


def save(
    tensors: Mapping[str, NDArray[Any]],
    *,
    recipe: Any = None,
    metadata: Mapping[str, str] | None = None,
    effort: int = DEFAULT_EFFORT,
    target_size: int | str | None = None,
    target_ratio: float | None = None,
    target_bpw: float | None = None,
    quality: float | None = None,
    threads: int | None = None,
    calibration: Any = None,
) -> bytes:
    """Return the frame that `save_file` would write."""
    from dcompress.frame_file import checkpoint_to_frame

    return checkpoint_to_frame(
        _checkpoint(tensors, metadata),
        recipe,
        effort=effort,
        target_size=target_size,
        target_ratio=target_ratio,
        target_bpw=target_bpw,
        quality=quality,
        threads=threads,
        calibration=calibration,
    ).to_bytes()


def salvage(
    source: str | os.PathLike[str] | bytes | io.BufferedIOBase,
    *,
    limits: DecodeLimits | None = None,
    threads: int | None = None,
) -> tuple[dict[str, NDArray[Any]], list[DecodeError]]:
    """Return every tensor of a damaged frame that is not damaged, and what is wrong with the rest.

    Parameters
    ----------
    source : path-like, bytes or binary stream
        The frame.
    limits, threads
        As for `load_file`.

    Returns
    -------
    arrays : dict of str to ndarray
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
    from dcompress.rescue import salvage_checkpoint

    with open_frame(source, limits=limits, threads=usable_threads(threads), partial=True) as reader:
        checkpoint, damages = salvage_checkpoint(reader)
    return _arrays(checkpoint.tensors), damages


def _load(
    source: str | os.PathLike[str] | bytes | io.BufferedIOBase,
    limits: DecodeLimits | None,
    threads: int | None,
) -> dict[str, NDArray[Any]]:
    with open_frame(source, limits=limits, threads=usable_threads(threads)) as reader:
        tensors = reader.read_all()
    return _arrays(tensors)


def _arrays(tensors: Mapping[str, TensorData]) -> dict[str, NDArray[Any]]:
    """Return tensors as arrays; what is the same object stays so."""
    arrays = {id(data): array_from_data(data) for data in tensors.values()}
    return {name: arrays[id(data)] for name, data in tensors.items()}


def _checkpoint(tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str] | None) -> Checkpoint:
    """Return a checkpoint of arrays; names of the very same memory are tied."""
    # Held on to: a mapping may make its arrays anew, and memory that was let go of may serve the next one.
    arrays = {name: np.asarray(array) for name, array in tensors.items()}
    firsts: dict[Any, str] = {}
    ties = {}
    for name, array in arrays.items():
        if array.size:
            place = (array.__array_interface__["data"][0], array.shape, array.strides, array.dtype)
            if firsts.setdefault(place, name) != name:
                ties[name] = firsts[place]
    data = {name: data_from_array(name, array) for name, array in arrays.items()}
    return Checkpoint(data, ties, dict(metadata or {}))
