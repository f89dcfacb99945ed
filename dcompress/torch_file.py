"""Files that ``torch.save`` wrote: training checkpoints, unwrapped, and plain state dicts.

They are read with ``weights_only=True``, never with plain pickle, whatever they hold.
"""

from __future__ import annotations

import argparse
import os
import pickle
import re
from collections import OrderedDict
from collections.abc import Hashable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from dcompress.checkpoint import (
    check_key,
    check_tensor,
    checkpoint_from_state_dict,
    identity,
    kind_of,
    state_dict_from_checkpoint,
)
from dcompress.errors import EncodeError
from dcompress.npz_file import open_zip
from dcompress.safetensors_file import listed
from dcompress.stages import Checkpoint

__all__ = ["read_torch_file", "write_torch_file"]

# Where training scripts put the weights, most likely first.
_WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "module",
    "net",
    "network",
    "weights",
    "params",
    "ema_state_dict",
    "state_dict_ema",
    "model_ema",
    "params_ema",
    "ema",
)
# Larger files are mapped, to save memory. Smaller ones are read, because a process dies when a file that
# it has mapped is cut, and training scripts do write their checkpoints in place.
_MAP_ABOVE = 1 << 28
_MAX_DEPTH = 4  # of dicts around a state dict


def read_torch_file(
    path: str | os.PathLike[str], *, strip_module_prefix: bool = False, fold_masks: bool = True
) -> Checkpoint:
    """Return the state dict in a file that ``torch.save`` wrote, found inside a training checkpoint too.

    Parameters
    ----------
    path : path-like
        The file, in the zip format (mapped, not read, when it is large) or the legacy one.
    strip_module_prefix : bool
        Whether to strip the ``module.`` of DataParallel, when every name has it.
    fold_masks : bool
        Whether ``x_orig`` and ``x_mask`` of ``torch.nn.utils.prune`` become ``x``, with +0.0 where pruned.

    Returns
    -------
    checkpoint : Checkpoint
        ``notes`` say what was unwrapped, left out, stripped and folded.

    Raises
    ------
    EncodeError
        The file is damaged, holds no state dict or several, needs unsafe pickle, or torch is too old.
    UnsupportedTensorError
        A tensor of a kind that cannot be stored.
    OSError
        The file cannot be opened or read.
    """
    notes: list[str] = []
    content = _load(Path(path))
    try:
        state_dict = _find_state_dict(content, notes)
        for key in state_dict:
            check_key(key)
        if strip_module_prefix and state_dict and all(key.startswith("module.") for key in state_dict):
            consume_prefix_in_state_dict_if_present(state_dict, "module.")
            notes.append("stripped 'module.' from every name")
        if fold_masks:
            state_dict = _fold_masks(state_dict, notes)
        found = checkpoint_from_state_dict(state_dict)
    except EncodeError as error:
        raise type(error)(f"{path}: {error}") from None
    return Checkpoint(found.tensors, found.ties, found.metadata, found.torch_extra, tuple(notes))


def write_torch_file(stream: BinaryIO, checkpoint: Checkpoint) -> None:
    """Write a checkpoint as ``torch.save`` does: one OrderedDict, ties kept. Needs all tensors in memory.

    Parameters
    ----------
    stream : binary file
        Where to write; need not be seekable.
    checkpoint : Checkpoint
        As `state_dict_from_checkpoint` takes it.
    """
    torch.save(state_dict_from_checkpoint(checkpoint), stream)


def _load(path: Path) -> object:
    """Return what ``torch.load`` makes of the file, without unsafe pickle and without surprises."""
    version = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
    if version < (2, 10):
        raise EncodeError(
            f"torch {torch.__version__} cannot load untrusted .pt files safely (CVE-2025-32434, "
            "CVE-2026-24747): upgrade to torch 2.10 or newer, or convert the file to safetensors"
        )
    with path.open("rb") as stream:
        zipped = stream.read(4) == b"PK\x03\x04"
    if zipped:
        _check_zip(path)
    # Training scripts often save their arguments: a Namespace is a bare bag of attributes without code.
    allowed: list[Any] = [argparse.Namespace]
    allowed = [kind for kind in allowed if kind not in torch.serialization.get_safe_globals()]
    try:
        with torch.serialization.safe_globals(allowed):
            if zipped and path.stat().st_size > _MAP_ABOVE and path.suffix != ".safetensors":
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            # By its open file, since torch itself would go by the suffix .safetensors.
            with path.open("rb") as stream:
                return torch.load(stream, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise
    except pickle.UnpicklingError as error:
        raise EncodeError(f"{path}: {_refusal(str(error))}") from None
    except Exception as error:  # noqa: BLE001 - a hostile file makes torch raise anything
        reason = str(error).partition("\n")[0][:200] or type(error).__name__
        raise EncodeError(f"{path}: {_damaged(reason)}") from None


def _refusal(message: str) -> str:
    """Return in one line why torch refused a pickle; its own message is a screenful of advice."""
    found = re.search(r"GLOBAL (\S+) (?:was not an allowed global|whose module)", message)
    if found:
        return (
            f"holds a Python object ({found[1]}) that only unsafe pickle would load; if you trust the file, "
            "load it yourself with weights_only=False and torch.save() its state dict alone"
        )
    reason = re.search(r"WeightsUnpickler error:\s*(.*)", message) or re.search(r"(\S.*)\s*\Z", message)
    return _damaged(reason[1][:200] if reason else "")


def _damaged(reason: str) -> str:
    """Return in words that a file cannot be read, with torch's reason if that is more than a bare value."""
    said = f": {reason}" if re.search(r"[A-Za-z]{2,}[,;:]? \S", reason) else ""
    return f"damaged, or not a PyTorch file{said}"


def _check_zip(path: Path) -> None:
    """Check that a zip is what ``torch.save`` writes, and its checksums, at which torch never looks."""
    with open_zip(path) as archive:
        members = archive.infolist()
        names = {member.filename.partition("/")[2] for member in members}
        if "constants.pkl" in names:
            raise EncodeError(f"{path}: is a TorchScript program: torch.save() its state_dict() instead")
        if "data.pkl" not in names:
            raise EncodeError(f"{path}: is a zip file, but holds no PyTorch checkpoint")
        for member in members:
            if member.CRC:  # torch can be told to write none
                with archive.open(member) as source:
                    while source.read(1 << 20):
                        pass


def _find_state_dict(content: object, notes: list[str]) -> dict[str, Any]:
    """Return the state dict among what a file holds; note what was left out on the way."""
    trail: list[str] = []
    left_out: list[str] = []
    while isinstance(content, dict) and (key := _find_wrapper(content, _MAX_DEPTH - len(trail))) is not None:
        left_out += [str(other) for other in content if other != key]
        trail.append(key)
        content = content[key]
    if not isinstance(content, dict):
        raise EncodeError(f"no state dict found, but a value of type {kind_of(content)}")
    if content and not _holds_tensors(content):
        keys = listed([str(key) for key in content])
        raise EncodeError(f"no state dict found, or more than one, under the keys {keys}; save one alone")
    if trail:
        dropped = f"; left out: {listed(left_out)}" if left_out else ""
        notes.append(f"took the state dict from {'/'.join(trail)!r}{dropped}")
    return content


def _holds_tensors(content: object) -> bool:
    """Whether this is a dict with tensors directly in it."""
    return isinstance(content, dict) and any(isinstance(value, torch.Tensor) for value in content.values())


def _find_wrapper(content: dict[Any, Any], depth: int) -> str | None:
    """Return the key under which the state dict lies, or None if this is it, or nothing is."""
    if depth <= 0:  # dicts of a hostile file may hold themselves
        return None
    for key in _WRAPPERS:
        inner = content.get(key)
        if _holds_tensors(inner) or (isinstance(inner, dict) and _find_wrapper(inner, depth - 1)):
            return key
    if _holds_tensors(content):
        return None
    candidates = [key for key, inner in content.items() if isinstance(key, str) and _holds_tensors(inner)]
    return candidates[0] if len(candidates) == 1 else None


def _fold_masks(state_dict: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    """Return the state dict with every pair ``x_orig`` and ``x_mask`` multiplied into ``x``."""
    stems = {name[:-5] for name in state_dict if name.endswith("_orig") and _is_pair(state_dict, name[:-5])}
    if not stems:
        return state_dict
    folded: OrderedDict[str, Any] = OrderedDict()
    known: dict[Hashable, torch.Tensor] = {}  # so that tied pairs stay tied
    for name, value in state_dict.items():
        stem = name[:-5]
        if stem not in stems or name[-5:] not in ("_orig", "_mask"):
            folded[name] = value
        elif name.endswith("_orig"):
            mask = state_dict[f"{stem}_mask"].detach()
            pair = identity(value), identity(mask)
            if pair not in known:
                exact = bool(((mask == 0) | (mask == 1)).all())  # a product could touch the bits of a NaN
                product = value.detach() if exact else (value.detach() * mask).to(value.dtype)
                known[pair] = product.masked_fill(mask == 0, 0)  # +0.0, where a product may give -0.0
            folded[stem] = known[pair]
    if hasattr(state_dict, "_metadata"):
        folded._metadata = state_dict._metadata  # type: ignore[attr-defined]
    notes.append(f"folded {len(stems)} pruning masks into their weights")
    return folded


def _is_pair(state_dict: dict[str, Any], stem: str) -> bool:
    """Whether ``stem_orig`` and ``stem_mask`` are a pruned parameter."""
    pair = [state_dict.get(f"{stem}{end}") for end in ("_orig", "_mask")]
    tensors = [tensor for tensor in pair if isinstance(tensor, torch.Tensor)]
    if len(tensors) < 2 or stem in state_dict or tensors[0].shape != tensors[1].shape:
        return False
    for tensor, end in zip(tensors, ("_orig", "_mask"), strict=True):
        check_tensor(f"{stem}{end}", tensor)
    return True
