"""torch tensors and state dicts, to and from tensors and checkpoints without torch."""

from __future__ import annotations

import math
import re
import warnings
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from dcompress.constants import DTYPE_BY_NAME, DTYPES, DType
from dcompress.errors import EncodeError, UnsupportedTensorError
from dcompress.stages import Checkpoint, TensorData, word_dtype

__all__ = [
    "checkpoint_from_state_dict",
    "data_to_tensor",
    "state_dict_from_checkpoint",
    "tensor_to_data",
]

_TORCH_DTYPES: dict[str, torch.dtype] = {
    dtype.name: getattr(torch, dtype.name) for dtype in DTYPES if hasattr(torch, dtype.name)
}
_DTYPE_OF = {torch_dtype: DTYPE_BY_NAME[name] for name, torch_dtype in _TORCH_DTYPES.items()}
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_MAX_JSON_DEPTH = 32
_MAX_JSON_ITEMS = 1_000_000
_REALS = {2: torch.float16, 4: torch.float32, 8: torch.float64}


def tensor_to_data(name: str, tensor: torch.Tensor) -> TensorData:
    """Return the bits of a tensor, in C order, without a copy where it lies so in CPU memory.

    Parameters
    ----------
    name : str
        Name for messages.
    tensor : torch.Tensor
        Dense tensor or parameter, on any device, with any strides.

    Returns
    -------
    data : TensorData
        Its logical values: strides, conjugate and negative bits are resolved.

    Raises
    ------
    UnsupportedTensorError
        The tensor is quantized, sparse, nested, without data, a subclass, or of an unknown dtype.
    """
    dtype = check_tensor(name, tensor)
    plain = tensor.detach().cpu()
    if plain.is_conj() or plain.is_neg():
        with warnings.catch_warnings():  # complex32 is called experimental; it is only copied here
            warnings.simplefilter("ignore", UserWarning)
            plain = plain.resolve_conj().resolve_neg()
    if dtype.words_per_element == 2:
        plain = torch.view_as_real(plain)
    # Copies are made of integers: they exist for every dtype, and no NaN loses its payload.
    array = plain.view(_BITS[dtype.word_bytes]).contiguous().numpy().reshape(-1)
    unsigned = array.view(f"u{dtype.word_bytes}")
    words = unsigned.astype(word_dtype(dtype.word_bytes), copy=False)  # swaps on big-endian hosts
    return TensorData(dtype, tuple(tensor.shape), words)


def data_to_tensor(data: TensorData) -> torch.Tensor:
    """Return the torch tensor with these bits.

    It takes over the memory of the words, unless that is read-only, or that of another tensor.

    Parameters
    ----------
    data : TensorData
        Any tensor.

    Returns
    -------
    tensor : torch.Tensor
        On the CPU, contiguous, writable.

    Raises
    ------
    UnsupportedTensorError
        The installed torch does not have this dtype.
    """
    dtype = data.dtype
    torch_dtype = _TORCH_DTYPES.get(dtype.name)
    if torch_dtype is None:
        raise UnsupportedTensorError(f"torch {torch.__version__} has no {dtype.name}: upgrade torch")
    if not data.words.size:  # from_numpy would give it strides of zero
        return torch.empty(data.shape, dtype=torch_dtype)
    # "C", "A", "W": contiguous, aligned, writable; copies only if one of them is missing.
    words = np.require(data.words, f"=u{dtype.word_bytes}", ["C", "A", "W"])
    owner: object = words
    while isinstance(owner, np.ndarray):
        owner = owner.base
    flat = torch.from_numpy(words.copy() if isinstance(owner, torch.Tensor) else words)
    if dtype.words_per_element == 2:
        pairs = flat.view(_REALS[dtype.word_bytes]).reshape(*data.shape, 2)
        with warnings.catch_warnings():  # complex32 is called experimental; it is only viewed here
            warnings.simplefilter("ignore", UserWarning)
            return torch.view_as_complex(pairs)
    return flat.view(torch_dtype).reshape(data.shape)


def checkpoint_from_state_dict(
    state_dict: Mapping[str, Any], metadata: Mapping[str, str] | None = None
) -> Checkpoint:
    """Return a state dict as a checkpoint, its tensors taken apart only when looked up.

    Parameters
    ----------
    state_dict : mapping of str to torch.Tensor or JSON-safe value
        As ``module.state_dict()`` gives it.
    metadata : mapping of str to str
        Free string metadata.

    Returns
    -------
    checkpoint : Checkpoint
        Tied tensors stand in ``tensors`` under every name, and in ``ties``. ``torch_extra`` has, where
        there are any, ``"_metadata"``, ``"values"`` (the non-tensors) and ``"value_positions"``
        (their places among all keys, in the same order).

    Raises
    ------
    EncodeError
        A key is not a string, or a value is neither a tensor nor JSON-safe.
    UnsupportedTensorError
        A tensor of a kind that cannot be stored; see `tensor_to_data`.
    """
    given: object = state_dict
    if not isinstance(given, Mapping):
        hint = ": pass model.state_dict()" if isinstance(given, torch.nn.Module) else ""
        raise EncodeError(f"a state dict is wanted, not {kind_of(given)}{hint}")
    tensors: dict[str, torch.Tensor] = {}
    ties: dict[str, str] = {}
    first_names: dict[Hashable, str] = {}
    values: dict[str, Any] = {}
    positions: list[int] = []
    for position, (name, value) in enumerate(state_dict.items()):
        check_key(name)
        if isinstance(value, torch.Tensor):
            check_tensor(name, value)
            tensors[name] = value
            if value.numel() and value.untyped_storage().data_ptr():  # some devices show no address
                first = first_names.setdefault(identity(value), name)
                if first != name:
                    ties[name] = first
        else:
            if not _is_json_safe(value):
                raise EncodeError(
                    f"entry {name!r} ({kind_of(value)}) is neither a tensor nor plain JSON data"
                    + _advice(name, value)
                )
            values[name] = value
            positions.append(position)
    extra: dict[str, Any] = {}
    torch_metadata = getattr(state_dict, "_metadata", None)
    if torch_metadata is not None:
        if not _is_json_safe(torch_metadata):
            raise EncodeError("the state dict's _metadata is not plain JSON data: correct or delete it")
        extra["_metadata"] = dict(torch_metadata)
    if values:
        extra["values"] = values
        extra["value_positions"] = positions
    return Checkpoint(_TorchTensors(tensors), ties, dict(metadata or {}), extra)


def _advice(name: str, value: object) -> str:
    """Return what to do about a value that is no tensor, if it is a common slip."""
    if isinstance(value, np.ndarray):
        return "; dcompress.numpy takes arrays"
    if isinstance(value, Mapping) and any(isinstance(entry, torch.Tensor) for entry in value.values()):
        return f"; if this is a training checkpoint, pass its [{name!r}]"
    return ""


def state_dict_from_checkpoint(checkpoint: Checkpoint) -> OrderedDict[str, Any]:
    """Return a checkpoint as a state dict: same order, ties re-tied, values and ``_metadata`` put back.

    Parameters
    ----------
    checkpoint : Checkpoint
        Or anything with ``tensors``, ``ties`` and ``torch_extra`` like it. Names in ``ties`` are not
        looked up in ``tensors``.

    Returns
    -------
    state_dict : OrderedDict of str to torch.Tensor or value
        For ``load_state_dict``.
    """
    state_dict: OrderedDict[str, Any] = OrderedDict()
    extra = checkpoint.torch_extra
    values = extra.get("values", {})
    pending = list(zip(extra.get("value_positions", ()), values, strict=True))[::-1] if values else []
    for name in checkpoint.tensors:
        while pending and pending[-1][0] <= len(state_dict):
            key = pending.pop()[1]
            state_dict[key] = values[key]
        if name in checkpoint.ties:  # another tensor object on the same storage, as a tied module has it
            state_dict[name] = state_dict[checkpoint.ties[name]].detach()
        else:
            state_dict[name] = data_to_tensor(checkpoint.tensors[name])
    for _, key in pending[::-1]:
        state_dict[key] = values[key]
    if "_metadata" in extra:
        state_dict._metadata = OrderedDict(extra["_metadata"])  # type: ignore[attr-defined]
    return state_dict


class _TorchTensors(Mapping[str, TensorData]):
    """Tensors of a state dict, converted at look-up, so that copies do not pile up."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self._tensors = tensors
        self.specs = {name: (_DTYPE_OF[t.dtype], tuple(t.shape)) for name, t in tensors.items()}

    def __getitem__(self, name: str) -> TensorData:
        return tensor_to_data(name, self._tensors[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def check_key(key: object) -> None:
    """Refuse a key that is no string, or that no file can hold."""
    if not isinstance(key, str):
        raise EncodeError(f"state dict key {key!r} ({kind_of(key)}) is not a string")
    if not _is_json_safe(str(key)):
        raise EncodeError(f"state dict key {key!r} is not valid Unicode")


def kind_of(value: object) -> str:
    """Return the full name of a value's class."""
    return f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")


def check_tensor(name: str, tensor: torch.Tensor) -> DType:
    """Return the dtype of a tensor that a file can hold; refuse the others, saying what to do."""
    kind = advice = ""
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        kind = f"a {kind_of(tensor)}"
        advice = "turn it into a plain tensor first (.full_tensor(), .dequantize())"
    elif tensor.is_quantized:
        kind, advice = "quantized", "store .dequantize(), or .int_repr() beside its scales"
    elif tensor.is_nested or tensor.layout != torch.strided:
        kind = "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.")
        advice = "make it dense first (.to_dense(), .to_padded_tensor())"
    elif tensor.is_meta:
        kind, advice = "on the meta device, without data", "load the weights first"
    elif tensor.numel() and tensor.device.type in ("cpu", "cuda") and not tensor.data_ptr():
        kind, advice = "without memory of its own", "gather or clone it first"
    elif tensor.dtype not in _DTYPE_OF:
        kind, advice = f"of dtype {tensor.dtype}", "convert it to a dtype with whole bytes"
    if kind:
        raise UnsupportedTensorError(f"tensor {name!r} is {kind}, which cannot be stored: {advice}")
    return _DTYPE_OF[tensor.dtype]


def identity(tensor: torch.Tensor) -> Hashable:
    """Return what two names of one and the same tensor have in common."""
    return (
        tensor.device,
        tensor.untyped_storage().data_ptr(),
        tensor.storage_offset(),
        tuple(tensor.shape),
        tensor.stride(),
        tensor.dtype,
        tensor.is_conj(),
        tensor.is_neg(),
    )


def _is_json_safe(value: object) -> bool:
    """Whether JSON gives back an equal value: no tuples, no NaN, no keys but strings, no bombs."""
    pending = [(value, 0)]
    n_seen = 0
    while pending:
        item, depth = pending.pop()
        n_seen += 1
        if depth > _MAX_JSON_DEPTH or n_seen > _MAX_JSON_ITEMS:  # it may hold itself, or the same often
            return False
        if isinstance(item, dict):
            if not all(type(key) is str for key in item):
                return False
            pending += [(inner, depth + 1) for inner in (*item, *item.values())]
        elif isinstance(item, list):
            pending += [(inner, depth + 1) for inner in item]
        elif not _is_json_scalar(item):
            return False
    return True


def _is_json_scalar(value: object) -> bool:
    """Whether this is None, a bool, an integer of 64 bits, a finite float or valid Unicode."""
    if type(value) is str:
        return not re.search("[\ud800-\udfff]", value)
    if type(value) is int:
        return -(1 << 63) <= value < 1 << 63
    return value is None or type(value) is bool or (type(value) is float and math.isfinite(value))
