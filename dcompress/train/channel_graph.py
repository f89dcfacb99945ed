"""Which channels of which layers hang together, by torch-pruning, and how they are cut."""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dcompress.errors import RecipeError
from dcompress.train.channel_choice import Array
from dcompress.train.channel_moments import Readable
from dcompress.train.running import leaves

__all__ = ["ChannelGraph", "Coupled"]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_ROOTS = (*_CONVOLUTIONS, *_TRANSPOSED, nn.Linear)


@dataclass(frozen=True)
class Coupled:
    """Channels that can only be cut together.

    Attributes
    ----------
    name : str
        The first layer that makes them, in the order of the calls.
    n_channels : int
        Its output channels.
    producers, readers : dict of str to list of tuple of int
        Layers that make them, and that read them: for each channel, the output or input channels of the
        layer that belong to it.
    consumers : dict of str to list of tuple of int
        The readers of ``Readable`` kinds.
    """

    name: str
    n_channels: int
    producers: dict[str, list[tuple[int, ...]]]
    readers: dict[str, list[tuple[int, ...]]]
    consumers: dict[str, list[tuple[int, ...]]]


class ChannelGraph:
    """A model that is cut in place.

    Parameters
    ----------
    model : Module
        A copy, to be cut.
    example_inputs : tuple
        What it is called with.

    Attributes
    ----------
    groups : dict of str to Coupled
        By name, in the order of the calls; as they are after the last cut.
    skipped : dict of str to str
        Layers whose outputs cannot be cut, and why.
    outputs : dict of str to list of int
        By layer that was cut: its output channels that are left, in the numbers of the original.

    Raises
    ------
    RecipeError
        The model cannot be traced.
    ImportError
        torch-pruning is not installed.
    """

    def __init__(self, model: nn.Module, example_inputs: tuple[Any, ...]) -> None:
        try:
            import torch_pruning
        except ModuleNotFoundError as error:
            if error.name != "torch_pruning":
                raise
            raise ImportError(
                "cutting channels needs torch-pruning: pip install 'dcompress[channels]'"
            ) from None
        _check(model)
        self.model = model
        self.groups: dict[str, Coupled] = {}
        self.skipped: dict[str, str] = {}
        self.outputs: dict[str, list[int]] = {}
        self._output_op: type = torch_pruning.ops._OutputOp
        self._inputs = example_inputs
        self._modes = [(module, module.training) for module in model.modules()]
        self._trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
        model.eval()
        self._calls, outputs = self._run()
        self._shapes = [one.shape for one in outputs]
        for parameter in model.parameters():  # what is frozen is part of the graph too
            parameter.requires_grad_(parameter.is_floating_point())
        self._names = {module: name for name, module in model.named_modules()}
        self._graph = torch_pruning.DependencyGraph()
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")  # of parameters beside layers: they are cut along
            try:
                self._graph.build_dependency(model, example_inputs, verbose=False)
            except Exception as error:
                raise RecipeError(f"torch-pruning cannot follow the model: {error}") from error
        self._find()

    def norms(self, coupled: Coupled, method: str) -> Array:
        """Return the norm of what makes each channel, over all layers that make it."""
        power = 1 if method == "l1" else 2
        total = torch.zeros(coupled.n_channels, dtype=torch.float64)
        for name, outputs in coupled.producers.items():
            module = self.model.get_submodule(name)
            weight = module.weight
            assert isinstance(weight, Tensor)
            filters = weight.transpose(0, 1) if isinstance(module, _TRANSPOSED) else weight
            each = filters.detach().double().abs().pow(power).flatten(1).sum(1).cpu()
            total += torch.stack([each[list(places)].sum() for places in outputs])
        score: Array = np.asarray(total.pow(1 / power).numpy(), np.float64)
        return score

    def cut(self, coupled: Coupled, kept: list[int]) -> None:
        """Remove all channels of a group but some.

        Raises
        ------
        RecipeError
            The model does not run any more, or computes something else than with zeros for these channels:
            it joins channels in a way that torch-pruning does not follow.
        """
        gone = sorted(set(range(coupled.n_channels)) - set(kept))
        if not gone:
            return
        wanted = self._outputs_without(coupled, gone)
        module = self.model.get_submodule(coupled.name)
        prune = self._graph.get_pruner_of_module(module).prune_out_channels
        self._graph.get_pruning_group(module, prune, gone).prune()
        for name, made in coupled.producers.items():
            n_before = sum(map(len, made))
            lost = {place for channel in gone for place in made[channel]}
            before = self.outputs.get(name, list(range(n_before)))
            self.outputs[name] = [one for place, one in enumerate(before) if place not in lost]
        try:
            outputs = self._run()[1]
        except Exception as error:
            raise RecipeError(
                f"the model does not run without some channels of {coupled.name!r} (is a size written into "
                f"its code?), leave that layer out of sparsity: {error}"
            ) from error
        if [one.shape for one in outputs] != self._shapes:
            raise RecipeError(
                f"the outputs change their shapes without some channels of {coupled.name!r}: leave that "
                "layer out of sparsity"
            )
        if wanted is not None and not all(map(_same, outputs, wanted)):
            raise RecipeError(
                f"torch-pruning does not follow how the channels of {coupled.name!r} flow (are they padded, "
                "sliced or shuffled?): leave that layer out of sparsity"
            )
        self._find()  # a layer that reads several groups has other numbers now

    def finish(self) -> nn.Module:
        """Return the model, its modes and what is trained as they were."""
        for module, training in self._modes:
            module.training = training
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(self._trained[name])
            parameter.grad = None
        return self.model

    def _outputs_without(self, coupled: Coupled, gone: list[int]) -> list[Tensor] | None:
        """Return the outputs with nothing read from some channels; None if a layer that reads is unknown."""
        saved = []
        try:
            with torch.no_grad():
                for name, inputs in coupled.readers.items():
                    module = self.model.get_submodule(name)
                    if not isinstance(module, _ROOTS):
                        return None
                    weight = module.weight
                    saved.append((weight, weight.clone()))
                    places = [place for channel in gone for place in inputs[channel]]
                    (weight if isinstance(module, _TRANSPOSED) else weight.transpose(0, 1))[places] = 0
            return self._run()[1]
        finally:
            with torch.no_grad():
                for weight, before in saved:
                    weight.copy_(before)

    def _run(self) -> tuple[Counter[str], list[Tensor]]:
        """Return how often each layer is called, in order, and the outputs."""
        calls: Counter[str] = Counter()
        hooks = [
            module.register_forward_hook(lambda *_, name=name: calls.update([name]))
            for name, module in self.model.named_modules()
            if not list(module.children())
        ]
        try:
            with torch.no_grad(), torch.random.fork_rng():
                torch.manual_seed(0)
                outputs = self.model(*self._inputs)
        finally:
            for hook in hooks:
                hook.remove()
        return calls, leaves(outputs)

    def _find(self) -> None:
        """Find the groups."""
        order = {name: place for place, name in enumerate(self._calls)}
        found = []
        for group in self._graph.get_all_groups(root_module_types=list(_ROOTS)):
            producers: dict[str, list[tuple[int, ...]]] = {}
            readers: dict[str, list[tuple[int, ...]]] = {}
            n_channels = len(group[0].idxs)
            why = ""
            for item in group:
                module, handler = item.dep.target.module, item.dep.handler
                name = self._names.get(module) if isinstance(module, nn.Module) else None
                if isinstance(module, self._output_op):
                    why = "the model's output"
                if name is None:
                    continue
                if self._calls[name] > 1:
                    why = why or f"layer {name!r} is used more than once"
                is_out = self._graph.is_out_channel_pruning_fn(handler)
                if getattr(module, "groups", 1) > 1 and not _is_depthwise(module):
                    why = why or f"layer {name!r} is a convolution in groups"
                places: list[list[int]] = [[] for _ in range(n_channels)]
                for root, place in zip(item.root_idxs, item.idxs, strict=True):
                    places[root].append(place)
                by_channel = [tuple(sorted(each)) for each in places]
                if isinstance(module, _ROOTS) and not _fits(module, item.idxs, is_out):
                    why = why or f"torch-pruning does not follow how these channels come to {name!r}"
                if isinstance(module, _ROOTS) and is_out and not _is_depthwise(module):
                    producers[name] = by_channel
                elif not is_out and self._graph.is_in_channel_pruning_fn(handler):
                    readers[name] = by_channel
            names = sorted(producers, key=lambda name: order.get(name, len(order)))
            if not names:
                continue
            root_name = self._names[group[0].dep.target.module]
            if not why and not readers:
                why = "nothing reads it: the model's output"
            if why:
                self.skipped.update(dict.fromkeys(names, why))
                continue
            ordered = {name: producers[name] for name in names}
            consumers = {
                name: places
                for name, places in readers.items()
                if isinstance(self.model.get_submodule(name), Readable)
            }
            coupled = Coupled(root_name, n_channels, ordered, readers, consumers)
            found.append((order.get(names[0], 0), coupled))
        self.groups = {one.name: one for _, one in sorted(found, key=lambda pair: pair[0])}


def _is_depthwise(module: nn.Module) -> bool:
    """Return whether each output channel has an input channel of its own."""
    return isinstance(module, _CONVOLUTIONS) and module.groups == module.out_channels > 1


def _fits(module: nn.Module, places: list[int], is_out: bool) -> bool:
    """Return whether channels are those of a layer: all of its outputs, or some of its inputs."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    if is_out:
        n_outputs = weight.shape[1] if isinstance(module, _TRANSPOSED) else weight.shape[0]
        return sorted(places) == list(range(n_outputs))
    return max(places, default=0) < weight.shape[0 if isinstance(module, _TRANSPOSED) else 1]


def _same(one: Tensor, other: Tensor) -> bool:
    """Return whether two outputs differ by rounding alone."""
    if not one.is_floating_point():
        return True
    near = 50 * torch.finfo(one.dtype).eps ** 0.75
    scale = float(other.double().abs().max()) if other.numel() else 0.0
    return bool(((one.double() - other.double()).abs() <= near * scale).all())


def _check(model: nn.Module) -> None:
    """Raise unless a model is plain."""
    given: object = model
    if not isinstance(given, nn.Module):
        raise RecipeError(f"a torch module is wanted, not {type(given).__name__}")
    if hasattr(model, "_orig_mod"):
        raise RecipeError("the model is compiled: cut its channels first, then call torch.compile")
    seen: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        first = seen.setdefault(id(parameter), name)
        if first != name:
            raise RecipeError(f"parameters {first!r} and {name!r} are one: tied layers cannot be cut")
    for name, module in model.named_modules():
        if parametrize.is_parametrized(module):
            raise RecipeError(f"layer {name!r} is parametrized: call finish() of its Compressor before")
        if any(key.endswith("_orig") for key in module._parameters):
            raise RecipeError(f"layer {name!r} is pruned by torch.nn.utils.prune: call prune.remove before")
