"""For each kind of layer: what its weights are multiplied with when it is called."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dcompress.calibration.columns import conv_columns, conv_transpose_columns, flat_rows, pad_input
from dcompress.calibration.recurrent import recurrent_inputs

__all__ = ["Reading", "find_reader", "read_function"]


@dataclass(frozen=True, eq=False)
class Reading:
    """Some inputs of one weight.

    Attributes
    ----------
    weight : str or Tensor
        Path of the attribute from the module, or what the function was called with.
    kind : str
        Name of the use.
    rows : Tensor of shape (n_groups, n_vectors, n_columns), optional
        Inputs.
    places, factors : Tensor, optional
        Rows of the weight that were looked up, and the square of the factor of each.
    layout : str
        As in `Moments`.
    part, n_parts : int
        Which share of the rows it is about.
    """

    weight: str | Tensor
    kind: str
    rows: Tensor | None = None
    places: Tensor | None = None
    factors: Tensor | None = None
    layout: str = "rows"
    part: int | None = None
    n_parts: int = 1


Reader = Callable[[Any, tuple[Any, ...], dict[str, Any]], Iterator[Reading]]


def find_reader(module: nn.Module) -> Reader | None:
    """Return what reads a layer, or None; a subclass with a forward of its own is no such layer."""
    for kind, reader in _READERS.items():
        if isinstance(module, kind) and type(module).forward is kind.forward:
            return reader
    return None


def _bound(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call by name, defaults too."""
    bound = inspect.signature(module.forward).bind(*args, **kwargs)
    bound.apply_defaults()
    return bound.arguments


def _read_linear(module: nn.Linear, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Reading]:
    yield Reading("weight", "linear", flat_rows(_bound(module, args, kwargs)["input"]))


def _read_bilinear(module: nn.Bilinear, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Reading]:
    named = _bound(module, args, kwargs)
    one, other = flat_rows(named["input1"])[0], flat_rows(named["input2"])[0]
    step = max(1, (1 << 24) // (one.shape[1] * other.shape[1]))
    for begin in range(0, len(one), step):
        here = slice(begin, begin + step)
        yield Reading("weight", "bilinear", (one[here, :, None] * other[here, None, :]).flatten(1)[None])


def _read_conv(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Reading]:
    padded = pad_input(module, _bound(module, args, kwargs)["input"])
    sizes = module.kernel_size, module.stride, module.dilation
    for rows in conv_columns(padded, *sizes, module.groups):
        yield Reading("weight", "convolution", rows)


def _read_conv_transpose(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Reading]:
    named = _bound(module, args, kwargs)
    seen, n_dims = named["input"], module.weight.ndim - 2
    seen = seen.unsqueeze(0) if seen.ndim == n_dims + 1 else seen
    extra = module._output_padding(
        seen,
        named["output_size"],
        module.stride,
        module.padding,
        module.kernel_size,
        n_dims,
        module.dilation,
    )
    sizes = module.kernel_size, module.stride, module.padding, extra, module.dilation
    for rows in conv_transpose_columns(seen, *sizes, module.groups):
        yield Reading("weight", "transposed convolution", rows, layout="transposed")


def _read_embedding(module: nn.Embedding, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Reading]:
    yield Reading("weight", "embedding", places=_bound(module, args, kwargs)["input"])


def _read_bag(module: nn.EmbeddingBag, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Reading]:
    named = _bound(module, args, kwargs)
    places, offsets, weights = named["input"], named["offsets"], named["per_sample_weights"]
    if places.ndim == 2:
        offsets = torch.arange(0, places.numel(), places.shape[1], device=places.device)
        places = places.reshape(-1)
        weights = None if weights is None else weights.reshape(-1)
    elif module.include_last_offset:
        offsets = offsets[:-1]
    counted = torch.ones(len(places), dtype=torch.float64, device=places.device)
    if module.padding_idx is not None:
        counted[places == module.padding_idx] = 0.0
    # Which bag an entry is in: how many bags begin at or before it. Those before the first are in none.
    order = torch.arange(len(places), device=places.device)
    bag = torch.searchsorted(offsets.contiguous(), order, right=True)
    factors = counted * (bag > 0)
    if module.mode == "mean":
        sizes = torch.bincount(bag.cpu(), factors.cpu(), minlength=len(offsets) + 1).to(places.device)
        factors = factors / sizes.clamp(min=1)[bag].square()
    elif weights is not None:
        factors = factors * weights.double().square()
    yield Reading("weight", "embedding bag", places=places, factors=factors)


def _read_recurrent(module: nn.RNNBase, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Reading]:
    named = _bound(module, args, kwargs)
    for name, rows in recurrent_inputs(module, named["input"], named["hx"]):
        yield Reading(name, "recurrent", rows)


def _read_cell(module: nn.RNNCellBase, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Reading]:
    named = _bound(module, args, kwargs)
    seen, state = named["input"], named["hx"]
    hidden = state[0] if isinstance(state, tuple) else state
    if hidden is None:
        hidden = seen.new_zeros(*seen.shape[:-1], module.hidden_size)
    yield Reading("weight_ih", "recurrent", flat_rows(seen))
    yield Reading("weight_hh", "recurrent", flat_rows(hidden))


def _read_attention(
    module: nn.MultiheadAttention, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Iterator[Reading]:
    named = _bound(module, args, kwargs)
    seen = named["query"], named["key"], named["value"]
    if module._qkv_same_embed_dim:
        if seen[0] is seen[1] and seen[1] is seen[2]:
            yield Reading("in_proj_weight", "attention", flat_rows(seen[0]))
        else:
            for part, one in enumerate(seen):
                yield Reading("in_proj_weight", "attention", flat_rows(one), part=part, n_parts=3)
    else:
        for name, one in zip("qkv", seen, strict=True):
            yield Reading(f"{name}_proj_weight", "attention", flat_rows(one))
    yield Reading("out_proj.weight", "attention", flat_rows(_heads(module, named)))


def _heads(module: nn.MultiheadAttention, named: dict[str, Any]) -> Tensor:
    """Return what the output projection of an attention layer is given, projecting by the unit matrix."""
    seen = [named["query"], named["key"], named["value"]]
    if module.batch_first and seen[0].ndim == 3:
        seen = [one.transpose(0, 1) for one in seen]
    like = module.out_proj.weight
    unit = torch.eye(module.embed_dim, dtype=like.dtype, device=like.device)
    query, key, value = seen
    heads: Tensor = functional.multi_head_attention_forward(
        query,
        key,
        value,
        module.embed_dim,
        module.num_heads,
        module.in_proj_weight,
        module.in_proj_bias,
        module.bias_k,
        module.bias_v,
        module.add_zero_attn,
        0.0,
        unit,
        None,
        training=False,
        key_padding_mask=named["key_padding_mask"],
        need_weights=named["need_weights"],
        attn_mask=named["attn_mask"],
        use_separate_proj_weight=not module._qkv_same_embed_dim,
        q_proj_weight=None if module._qkv_same_embed_dim else module.q_proj_weight,
        k_proj_weight=None if module._qkv_same_embed_dim else module.k_proj_weight,
        v_proj_weight=None if module._qkv_same_embed_dim else module.v_proj_weight,
        average_attn_weights=named["average_attn_weights"],
        is_causal=named["is_causal"],
    )[0]
    return heads


_READERS: dict[Any, Reader] = {
    nn.Linear: _read_linear,
    nn.Bilinear: _read_bilinear,
    nn.Conv1d: _read_conv,
    nn.Conv2d: _read_conv,
    nn.Conv3d: _read_conv,
    nn.ConvTranspose1d: _read_conv_transpose,
    nn.ConvTranspose2d: _read_conv_transpose,
    nn.ConvTranspose3d: _read_conv_transpose,
    nn.Embedding: _read_embedding,
    nn.EmbeddingBag: _read_bag,
    nn.RNN: _read_recurrent,
    nn.LSTM: _read_recurrent,
    nn.GRU: _read_recurrent,
    nn.RNNCell: _read_cell,
    nn.LSTMCell: _read_cell,
    nn.GRUCell: _read_cell,
    nn.MultiheadAttention: _read_attention,
}


def read_function(
    function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], is_turned: Callable[[Any], bool | None]
) -> list[Reading] | None:
    """Return what a function that is called with a weight multiplies it with, or None if it is not read.

    Parameters
    ----------
    function : callable
        Of torch.
    args, kwargs
        What it is called with.
    is_turned : callable
        Whether an argument is the transpose of a weight of the model; None if it is no weight at all.
    """
    if function in _PRODUCTS or function in (torch.addmm, Tensor.addmm):
        factors = [*args, *kwargs.values()] if function in _PRODUCTS else list(args[1:])
        if len(factors) != 2:
            return None
        named = dict(zip(("input", "weight"), factors, strict=True))
    elif function in _NAMES:
        named = dict(zip(_NAMES[function], args, strict=False)) | kwargs
    else:
        return None
    seen, weight = named.get("input"), named.get("weight")
    turned = is_turned(weight)
    if turned is None or is_turned(seen) is not None or not isinstance(seen, Tensor):
        return None
    assert isinstance(weight, Tensor)
    if function is functional.embedding:
        plain = not turned and named.get("max_norm") is None
        return [Reading(weight, "functional embedding", places=seen)] if plain else None
    if function in _CONVOLUTIONS:
        return None if turned else _functional_conv(seen, weight, named)
    if weight.ndim != 2:
        return None
    if function is not functional.linear:
        turned = not turned
    return [Reading(weight, "matrix product", flat_rows(seen), layout="transposed" if turned else "rows")]


def _functional_conv(seen: Tensor, weight: Tensor, named: dict[str, Any]) -> list[Reading]:
    """Return what a convolution sees, as `torch.nn.functional.conv2d` is called."""
    n_dims = weight.ndim - 2
    seen = seen.unsqueeze(0) if seen.ndim == n_dims + 1 else seen
    kernel = weight.shape[2:]
    stride, dilation = (_each(named.get(name, 1), n_dims) for name in ("stride", "dilation"))
    padding = named.get("padding", 0)
    pads: list[int] = []
    for place in range(n_dims):
        both = dilation[place] * (kernel[place] - 1)
        if isinstance(padding, str):
            low, high = (both // 2, both - both // 2) if padding == "same" else (0, 0)
        else:
            low = high = _each(padding, n_dims)[place]
        pads = [low, high, *pads]
    pieces = conv_columns(functional.pad(seen, pads), kernel, stride, dilation, named.get("groups", 1))
    return [Reading(weight, "convolution", rows) for rows in pieces]


def _each(value: Any, n_dims: int) -> tuple[int, ...]:
    """Return a size for every dimension."""
    some = (value,) if isinstance(value, int) else tuple(value)
    return some * n_dims if len(some) == 1 else some


_PRODUCTS = (torch.matmul, torch.mm, Tensor.matmul, Tensor.mm, Tensor.__matmul__)
_CONVOLUTIONS = (torch.conv1d, torch.conv2d, torch.conv3d)
_CONV_NAMES = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_NAMES: dict[Any, tuple[str, ...]] = {
    functional.linear: ("input", "weight", "bias"),
    functional.embedding: ("input", "weight", "padding_idx", "max_norm"),
    **dict.fromkeys(_CONVOLUTIONS, _CONV_NAMES),
}
