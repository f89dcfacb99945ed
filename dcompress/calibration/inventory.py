"""The weights of a model, by the names that its plain state dict has for them."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize

from dcompress.checkpoint import identity
from dcompress.errors import EncodeError

__all__ = ["Inventory", "take_inventory", "unwrapped"]


@dataclass(eq=False)
class Inventory:
    """What weights there are.

    Attributes
    ----------
    shapes : dict of str to tuple of int
        Of the weights with at least two dimensions, by name; tied ones under their first name.
    owners : dict of str to str
        Class of the module that each belongs to.
    ties : dict of str to str
        Other names of a weight.
    names : dict of int to str
        By the identity of the parameter.
    places : dict of hashable to str
        By where in memory the parameter lies: a checkpoint ties those that lie in the same place.
    n_parameters : int
        Number of weights of the model, in parameters of any shape.
    """

    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    owners: dict[str, str] = field(default_factory=dict)
    ties: dict[str, str] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)
    places: dict[Hashable, str] = field(default_factory=dict)
    n_parameters: int = 0


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module that a compiled or data-parallel one is made of.

    Raises
    ------
    EncodeError
        The wrapper keeps its weights in pieces.
    """
    while True:
        if type(model).__name__ in ("FullyShardedDataParallel", "FSDPModule"):
            raise EncodeError("FullyShardedDataParallel keeps weights in pieces: pass the plain model")
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def take_inventory(model: nn.Module) -> Inventory:
    """Return the weights of a model, named as if it were neither parametrized nor pruned by torch.

    Raises
    ------
    EncodeError
        A weight has no shape yet.
    """
    found = Inventory()
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, parametrize.ParametrizationList) or ".parametrizations." in f".{path}.":
            continue
        prefix = f"{path}." if path else ""
        for attribute, parameter in module._parameters.items():
            if parameter is None:
                continue
            if isinstance(parameter, UninitializedParameter):
                raise EncodeError(
                    f"parameter {prefix + attribute!r} has no shape yet: run the model once before"
                )
            plain = attribute.removesuffix("_orig")
            if plain != attribute and not hasattr(module, f"{plain}_mask"):
                plain = attribute
            _add(found, prefix + plain, parameter, parameter, type(module).__name__)
        if parametrize.is_parametrized(module):
            lists = module.parametrizations
            assert isinstance(lists, nn.ModuleDict)
            for attribute, entry in lists.items():
                original = getattr(entry, "original", None)
                used = getattr(module, attribute)
                key = original if isinstance(original, Tensor) else used
                _add(found, prefix + attribute, key, used, type(module).__name__)
    return found


def _add(found: Inventory, name: str, key: Tensor, used: Tensor, owner: str) -> None:
    if isinstance(key, nn.Parameter):  # what several originals make is freed at once: its place says nothing
        first = found.names.get(id(key))
        if first is None and key.numel() and not key.is_meta and type(key) is nn.Parameter:
            first = found.places.setdefault(identity(key), name)
        first = found.names[id(key)] = name if first is None else first
        if first != name:
            found.ties[name] = first
        if first != name or name in found.shapes:
            return
    found.n_parameters += used.numel()
    if used.ndim >= 2:
        found.shapes[name] = tuple(used.shape)
        found.owners[name] = owner
