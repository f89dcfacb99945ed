"""Model files of every readable kind: told apart by content, then by suffix. Torch only where needed."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from dcompress.atomic import atomic_writer
from dcompress.constants import SIGNATURE
from dcompress.errors import EncodeError
from dcompress.npz_file import open_zip, read_npz, write_npz
from dcompress.safetensors_file import listed, read_safetensors, write_safetensors
from dcompress.stages import Checkpoint, TensorSpec, tensor_specs

__all__ = ["WRITABLE_KINDS", "kind_of_suffix", "read_checkpoint", "write_model"]

WRITABLE_KINDS = ("safetensors", "pt", "npz")

_KIND_OF_SUFFIX = {
    ".safetensors": "safetensors",
    ".npz": "npz",
    **dict.fromkeys((".pt", ".pth", ".th", ".tar", ".bin", ".ckpt"), "pt"),
}
_MAX_PLAUSIBLE_HEADER = 1 << 40
_PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")  # by protocol
_INSTALL = "pip install 'dcompress[torch]'"


def read_checkpoint(
    path: str | os.PathLike[str], *, strip_module_prefix: bool = False, fold_masks: bool = True
) -> Checkpoint:
    """Return the model in a safetensors, torch or npz file; what kind it is, its content says first.

    Parameters
    ----------
    path : path-like
        The file.
    strip_module_prefix, fold_masks : bool
        For torch files: see `dcompress.torch_file.read_torch_file`.

    Returns
    -------
    checkpoint : Checkpoint
        From safetensors lazily, from torch's zip format mapped, otherwise in memory.

    Raises
    ------
    EncodeError
        The file is of no known kind, damaged, or needs torch where there is none.
    UnsupportedTensorError
        A tensor of a kind that cannot be stored.
    OSError
        The file cannot be opened or read.
    """
    path = Path(path)
    kind = _kind_of_file(path)
    if kind == "safetensors":
        return read_safetensors(path)
    if kind == "npz":
        return read_npz(path)
    try:
        from dcompress.torch_file import read_torch_file
    except ImportError as error:
        raise EncodeError(f"{path}: PyTorch files need PyTorch: {_INSTALL} ({error})") from None
    return read_torch_file(path, strip_module_prefix=strip_module_prefix, fold_masks=fold_masks)


def write_model(
    target: str | os.PathLike[str] | BinaryIO,
    checkpoint: Checkpoint,
    *,
    kind: str | None = None,
    specs: Mapping[str, TensorSpec] | None = None,
    overwrite: bool = False,
) -> tuple[str, ...]:
    """Write a model as safetensors, torch or npz file; return what the format could not hold.

    A file appears whole or not at all. safetensors and npz are written with one tensor in memory at a
    time, each looked up once; torch needs them all.

    Parameters
    ----------
    target : path-like or binary file
        Where to write; an open file need not be seekable.
    checkpoint : Checkpoint
        The model; ``tensors`` may be lazy.
    kind : {"safetensors", "pt", "npz"}, optional
        What to write; by default what the suffix says.
    specs : mapping of str to (DType, tuple of int), optional
        Element type and shape of every tensor, in order, where they are known without decoding.
    overwrite : bool
        Whether an existing file may be replaced.

    Returns
    -------
    notes : tuple of str
        Ties written as copies, dtypes written as bits, metadata and values left out.

    Raises
    ------
    EncodeError
        An unknown suffix, or something that the format cannot hold.
    OSError
        The file cannot be written.
    """
    if isinstance(target, (str, os.PathLike)):
        kind = kind or kind_of_suffix(target)
        with atomic_writer(target, overwrite=overwrite) as stream:
            return _write(stream, checkpoint, kind, specs)
    if kind is None:
        raise ValueError("an open file has no suffix: state the kind")
    return _write(target, checkpoint, kind, specs)


def kind_of_suffix(path: str | os.PathLike[str]) -> str:
    """Return the kind of model file that a suffix asks for: one of ``WRITABLE_KINDS``.

    Raises
    ------
    EncodeError
        The suffix says nothing.

    Examples
    --------
    >>> kind_of_suffix("model.PTH")
    'pt'
    """
    kind = _KIND_OF_SUFFIX.get(Path(path).suffix.lower())
    if kind is None:
        raise EncodeError(f"{os.fspath(path)}: the suffix must be .safetensors, .pt or .npz")
    return kind


def _write(
    stream: BinaryIO, checkpoint: Checkpoint, kind: str, specs: Mapping[str, TensorSpec] | None
) -> tuple[str, ...]:
    """Write one kind; add to its notes what it left out."""
    notes = []
    if checkpoint.metadata and kind != "safetensors":
        notes.append(f"{kind} holds no metadata; left out: {listed(checkpoint.metadata)}")
    values = checkpoint.torch_extra.get("values")
    if values and kind != "pt":
        notes.append(f"{kind} holds tensors only; left out: {listed(values)}")
    if kind == "pt":
        try:
            from dcompress.torch_file import write_torch_file
        except ImportError as error:
            raise EncodeError(f"writing PyTorch files needs PyTorch: {_INSTALL} ({error})") from None
        write_torch_file(stream, checkpoint)
        return tuple(notes)
    specs = tensor_specs(checkpoint.tensors) if specs is None else specs
    tensors, ties = checkpoint.tensors, checkpoint.ties
    if kind == "safetensors":
        return (*notes, *write_safetensors(stream, specs, tensors, ties=ties, metadata=checkpoint.metadata))
    if kind == "npz":
        return (*notes, *write_npz(stream, specs, tensors, ties=ties))
    raise ValueError(f"kind must be one of {', '.join(WRITABLE_KINDS)}, not {kind!r}")


def _kind_of_file(path: Path) -> str:
    """Return the kind of a model file by its first bytes, or else by its suffix."""
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "model is a folder, not a file", str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "model is not a regular file", str(path))
    with path.open("rb") as stream:
        head = stream.read(32)
    if not head:
        raise EncodeError(f"{path}: is empty")
    if head.startswith(SIGNATURE):
        raise EncodeError(f"{path}: is a .dcz file already")
    if head.startswith(b"version https://git-lfs"):
        raise EncodeError(f"{path}: is a Git LFS pointer, not the model itself: run 'git lfs pull'")
    if head.startswith(b"PK\x03\x04"):
        return "npz" if _is_npz(path) else "pt"
    by_suffix = _KIND_OF_SUFFIX.get(path.suffix.lower())
    plausible = by_suffix == "safetensors" or int.from_bytes(head[:8], "little") < _MAX_PLAUSIBLE_HEADER
    if head[8:9] == b"{" and plausible:
        return "safetensors"
    if head[:2] in _PICKLES:
        return "pt"
    if by_suffix is None:
        raise EncodeError(f"{path}: is no model file that can be read (.safetensors, .pt, .npz)")
    return by_suffix


def _is_npz(path: Path) -> bool:
    """Whether a zip holds arrays; torch reports on any other zip."""
    with open_zip(path) as archive:
        names = archive.namelist()
    return any(name.endswith(".npy") for name in names) and not any(n.endswith("/data.pkl") for n in names)
