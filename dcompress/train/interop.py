"""Masks to and from `torch.nn.utils.prune`, and from the zeros of a plain model."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from dcompress.errors import RecipeError

__all__ = ["from_torch_prune", "to_torch_prune", "zero_masks"]


def from_torch_prune(model: nn.Module) -> dict[str, Tensor]:
    """Take over a model that `torch.nn.utils.prune` pruned: it becomes plain, its masks are returned.

    Unlike ``torch.nn.utils.prune.remove`` this keeps the weights beneath the mask.

    Parameters
    ----------
    model : Module
        Changed in place: ``weight_orig`` and ``weight_mask`` become ``weight``, the last parameter of its
        module: that is where torch moved it.

    Returns
    -------
    masks : dict of str to Tensor
        For the ``masks`` of a `dcompress.train.Compressor`: bool, True = kept.

    Raises
    ------
    RecipeError
        Nothing in the model is pruned so.
    """
    masks = {}
    for path, module in model.named_modules():
        for raw in [name for name in module._parameters if name.endswith("_orig")]:
            name = raw.removesuffix("_orig")
            mask = module._buffers.get(f"{name}_mask")
            original = module._parameters[raw]
            if mask is None or original is None:
                continue
            kept = original.detach().clone()
            masks[f"{path}.{name}" if path else name] = mask.bool()
            prune.remove(module, name)  # type: ignore[no-untyped-call]
            with torch.no_grad():
                module.get_parameter(name).copy_(kept)
    if not masks:
        raise RecipeError(
            "no parameter of the model is pruned by torch.nn.utils.prune (weight_orig, weight_mask)"
        )
    return masks


def to_torch_prune(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Prune a plain model by `torch.nn.utils.prune`, with given masks.

    Parameters
    ----------
    model : Module
        Changed in place: each parameter becomes ``..._orig`` and ``..._mask``.
    masks : mapping of str to Tensor
        By the parameter's name: bool, True = kept, in its shape; `Compressor.masks` gives them.

    Raises
    ------
    RecipeError
        A name is unknown, or a mask does not fit; nothing was changed then.
    """
    parameters = dict(model.named_parameters())
    for name, mask in masks.items():
        if name not in parameters:
            raise RecipeError(f"masks: the model has no parameter {name!r}")
        if mask.dtype != torch.bool or mask.shape != parameters[name].shape:
            raise RecipeError(
                f"the mask of {name!r} must be a bool tensor of shape {tuple(parameters[name].shape)}, "
                f"not {mask.dtype}, {tuple(mask.shape)}"
            )
    for name, mask in masks.items():
        path, _, attribute = name.rpartition(".")
        prune.custom_from_mask(model.get_submodule(path), attribute, mask)  # type: ignore[no-untyped-call]


def zero_masks(model: nn.Module) -> dict[str, Tensor]:
    """Return masks that keep the zeros of a plain model zero: bool, True = kept.

    Only of the parameters that have zeros, and at least two dimensions.
    """
    masks = {}
    for name, parameter in model.named_parameters():
        kept = parameter.detach() != 0
        if parameter.ndim >= 2 and not bool(kept.all()):
            masks[name] = kept
    return masks
