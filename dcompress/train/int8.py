"""int8 after training, by torchao: linear layers, weights alone or activations too; and back from a file.

torchao does it because its tensors are plain int8 and float tensors in a wrapper, which a state dict can
carry; ``torch.ao.quantization`` is deprecated, and so are the quantized dtypes that it makes.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from dcompress.errors import EncodeError, RecipeError

__all__ = ["int8_from_plain", "int8_to_plain", "quantize_int8"]

_MODES = ("weight", "dynamic", "static")
_DETAILS = "int8"  # the suffix under which what is no tensor is kept
_PARTS = ("scale", "zero_point", "act_quant_scale", "act_quant_zero_point", "act_pre_scale")


def quantize_int8(
    model: nn.Module,
    mode: str = "dynamic",
    *,
    pattern: str = "*",
    per_channel: bool = True,
    affine: bool = False,
    calibration: Iterable[Tensor] | None = None,
) -> tuple[str, ...]:
    """Make the linear layers of a plain model compute with int8 weights; changed in place.

    Parameters
    ----------
    model : Module
        Trained; no Compressor stands on it any more.
    mode : {"weight", "dynamic", "static"}
        Only weights are int8; activations too, scaled anew for every row or batch; scaled by what
        ``calibration`` showed.
    pattern : str
        A glob of the names of the linear layers.
    per_channel : bool
        Whether each output channel of a weight has its own scale, or the tensor one.
    affine : bool
        Whether activations have a zero point; weights are symmetric.
    calibration : iterable of Tensor
        Input batches, for "static".

    Returns
    -------
    names : tuple of str
        The layers.

    Raises
    ------
    RecipeError
        An unknown mode, no linear layer matches, or calibration is missing, or not for this mode.
    ImportError
        torchao is not installed.
    """
    if mode not in _MODES:
        raise RecipeError(f"mode must be one of {', '.join(_MODES)}, not {mode!r}")
    if (calibration is not None) != (mode == "static"):
        raise RecipeError("calibration batches are for mode 'static', which needs them")
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and fnmatchcase(name, pattern)
    }
    if not layers:
        raise RecipeError(f"pattern {pattern!r} matches no linear layer of the model")
    for name, module in layers.items():
        if "weight" not in module._parameters:
            raise RecipeError(f"layer {name!r} is parametrized: call finish() of its Compressor before")
    with _torchao():
        from torchao.quantization import (
            Int8DynamicActivationInt8WeightConfig,
            Int8StaticActivationInt8WeightConfig,
            Int8WeightOnlyConfig,
            PerRow,
            PerTensor,
            quantize_,
        )
        from torchao.quantization.quant_primitives import MappingType

        grain = PerRow() if per_channel else PerTensor()
        mapping = MappingType.ASYMMETRIC if affine else MappingType.SYMMETRIC
        scales = _calibrate(model, layers, calibration, mapping) if calibration is not None else {}
        for module in layers.values():
            config: Any
            if mode == "weight":
                config = Int8WeightOnlyConfig(granularity=grain, set_inductor_config=False)
            elif mode == "dynamic":
                config = Int8DynamicActivationInt8WeightConfig(
                    granularity=[PerRow(), grain], act_mapping_type=mapping, set_inductor_config=False
                )
            else:
                scale, zero_point = scales[module]
                config = Int8StaticActivationInt8WeightConfig(
                    act_quant_scale=scale,
                    act_quant_zero_point=zero_point if affine else None,
                    granularity=[PerTensor(), grain],
                    act_mapping_type=mapping,
                    set_inductor_config=False,
                )
            quantize_(module, config)
    return tuple(layers)


def int8_to_plain(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state dict in which int8 weights are plain tensors, for ``save_file``.

    A weight becomes its int8 numbers under its own name, its scales and zero points under ``NAME.scale`` and
    so on, and what is no tensor under ``NAME.int8``. Everything else stays as it is.

    Raises
    ------
    EncodeError
        A name is taken already.
    """
    plain: dict[str, Any] = {}
    for name, value in state_dict.items():
        parts = {name: value}
        if _is_int8(value):
            parts = {name: value.qdata}
            parts |= {
                f"{name}.{part}": getattr(value, part) for part in _PARTS if getattr(value, part) is not None
            }
            parts[f"{name}.{_DETAILS}"] = _details(value)
        for key, part in parts.items():
            if key in plain or (key != name and key in state_dict):
                raise EncodeError(f"the state dict has a {key!r} already")
            plain[key] = part
    return plain


def int8_from_plain(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state dict that `int8_to_plain` was given; load it with ``assign=True``.

    Raises
    ------
    EncodeError
        It does not fit together.
    ImportError
        torchao is not installed, but needed.
    """
    suffix = f".{_DETAILS}"
    weights = [key.removesuffix(suffix) for key in state_dict if key.endswith(suffix)]
    hidden = {f"{name}.{part}" for name in weights for part in (*_PARTS, _DETAILS)}
    result: dict[str, Any] = {}
    for name, value in state_dict.items():
        if name in hidden:
            continue
        result[name] = _rebuild(name, state_dict) if name in weights else value
    missing = set(weights) - result.keys()
    if missing:
        raise EncodeError(f"the state dict has details of {min(missing)!r}, but not its weights")
    return result


@contextlib.contextmanager
def _torchao() -> Iterator[None]:
    """Import from torchao without its talk about libraries for other machines."""
    loggers = [logging.getLogger(name) for name in ("torchao", "torch.utils._pytree")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "torchao":
            raise
        raise ImportError("int8 after training needs torchao: pip install 'torchao>=0.18'") from None
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _is_int8(value: object) -> bool:
    """Return whether a value of a state dict is a torchao int8 tensor; without importing torchao."""
    return type(value).__name__ == "Int8Tensor" and type(value).__module__.startswith("torchao.")


def _calibrate(
    model: nn.Module, layers: Mapping[str, nn.Module], batches: Iterable[Tensor], mapping: Any
) -> dict[nn.Module, tuple[Tensor, Tensor]]:
    """Return scale and zero point of the inputs of each layer, over some batches."""
    from torchao.quantization import PerTensor
    from torchao.quantization.observer import AffineQuantizedMinMaxObserver

    observers = {
        module: AffineQuantizedMinMaxObserver(
            mapping,
            torch.int8,
            granularity=PerTensor(),
            eps=torch.finfo(torch.float32).eps,
            scale_dtype=torch.float32,
            zero_point_dtype=torch.int8,
            keepdim=True,
        )
        for module in layers.values()
    }

    def see(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        observers[module](inputs[0])

    hooks = [module.register_forward_pre_hook(see) for module in layers.values()]
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            for batch in batches:
                model(batch)
    finally:
        for hook in hooks:
            hook.remove()
        for module, was in training.items():
            module.training = was
    for name, module in layers.items():
        if not hasattr(observers[module], "min_val"):
            raise RecipeError(
                f"layer {name!r} saw no input: give calibration at least one batch that uses it"
            )
    return {module: observer.calculate_qparams() for module, observer in observers.items()}


def _details(weight: Any) -> dict[str, Any]:
    """Return what an int8 tensor holds beside tensors, as JSON values."""
    kwargs = weight.act_quant_kwargs
    return {
        "block_size": list(weight.block_size),
        "dtype": str(weight.dtype).removeprefix("torch."),
        "reduce_range": bool(weight.reduce_range),
        "activations": None
        if kwargs is None
        else {
            "granularity": type(kwargs.granularity).__name__,
            "mapping": kwargs.mapping_type.name,
            "reduce_range": bool(kwargs.reduce_range),
        },
    }


def _rebuild(name: str, state_dict: Mapping[str, Any]) -> Tensor:
    """Return the int8 tensor whose parts stand in a plain state dict."""
    with _torchao():
        from torchao.quantization import Int8Tensor, PerRow, PerTensor
        from torchao.quantization.quant_primitives import MappingType
        from torchao.quantization.quantize_.workflows.int8.int8_tensor import QuantizeTensorToInt8Kwargs

    details = state_dict[f"{name}.{_DETAILS}"]
    try:
        seen, kwargs = details["activations"], None
        if seen is not None:
            kwargs = QuantizeTensorToInt8Kwargs(
                {"PerRow": PerRow, "PerTensor": PerTensor}[seen["granularity"]](),
                MappingType[seen["mapping"]],
                seen["reduce_range"],
            )
        parts = {part: state_dict.get(f"{name}.{part}") for part in _PARTS}
        dtype = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[
            details["dtype"]
        ]
        tensor: Tensor = Int8Tensor(
            state_dict[name],
            block_size=details["block_size"],
            dtype=dtype,
            act_quant_kwargs=kwargs,
            reduce_range=details["reduce_range"],
            **parts,
        )
    except (KeyError, TypeError) as error:
        raise EncodeError(f"the parts of the int8 tensor {name!r} do not fit together: {error}") from error
    return tensor
