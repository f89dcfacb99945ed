"""Channel pruning that really removes: the tensors become smaller, and so do the model and its work.

Which tensors hang together is what torch-pruning's dependency graph says. Channels are chosen by the norm of
their filters, or by what they add to the outputs of the layers that read them (He et al. 2017; Luo et al.
2017), and these layers are then fitted, by least squares, to the outputs that they had.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from dcompress.errors import RecipeError
from dcompress.settings import near
from dcompress.train.channel_choice import (
    Array,
    feature_error,
    keep_by_features,
    keep_by_lasso,
    keep_by_score,
)
from dcompress.train.channel_graph import ChannelGraph, Coupled
from dcompress.train.channel_moments import Moments, columns_of, gather_moments
from dcompress.train.running import as_inputs
from dcompress.train.text import align

__all__ = ["ChannelGroup", "ChannelPruning", "cut_channels", "prune_channels"]

METHODS = ("l1", "l2", "features", "lasso")
# Of the mean square of an input: holds weights near their old values where the samples say little. Without it
# large weights cancel out, which no rounding survives; on digits 1e-3 gave a file a sixth smaller than 1e-7.
_DAMPING = 1e-3


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that stand or fall together.

    Attributes
    ----------
    name : str
        The layer that stands for the group.
    producers, consumers : tuple of str
        Layers that make these channels, and convolutions and linear layers that read them.
    n_channels : int
        Before.
    kept : tuple of int
        What is left, in the numbers of ``name``'s output channels.
    error, fitted_error : float or None
        Squared error of the consumers' outputs over their squares, before and after their weights were
        fitted; None without samples.
    """

    name: str
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    n_channels: int
    kept: tuple[int, ...]
    error: float | None = None
    fitted_error: float | None = None


@dataclass(frozen=True, eq=False)
class ChannelPruning:
    """A smaller model.

    Attributes
    ----------
    model : Module
        New; of the same class, its tensors smaller.
    groups : tuple of ChannelGroup
        What was cut, from the first layer to the last.
    skipped : dict of str to str
        Layers whose outputs were left alone, and why.
    """

    model: nn.Module
    groups: tuple[ChannelGroup, ...]
    skipped: dict[str, str]

    @property
    def kept(self) -> dict[str, list[int]]:
        """The channels that are left, by layer: plain values, for `cut_channels`."""
        return {group.name: list(group.kept) for group in self.groups}

    def __str__(self) -> str:
        rows = []
        for group in self.groups:
            errors = ["-" if error is None else f"{error:.2e}" for error in (group.error, group.fitted_error)]
            rows.append([group.name, f"{group.n_channels} -> {len(group.kept)}", *errors])
        return "\n".join(align(["layer", "channels", "error", "fitted"], rows))


@dataclass(frozen=True)
class _Fitted:
    """Weights and biases of consumers, and the mean of their relative errors."""

    tensors: dict[str, tuple[Tensor, Tensor | None]]
    error: float


def prune_channels(
    model: nn.Module,
    example_inputs: Tensor | tuple[Any, ...],
    sparsity: float | Mapping[str, float],
    *,
    method: str = "lasso",
    samples: Iterable[Tensor | tuple[Any, ...]] | None = None,
    reconstruct: bool | None = None,
) -> ChannelPruning:
    """Return a copy of a model with fewer channels.

    Parameters
    ----------
    model : Module
        Left as it is. Sequential, residual or concatenating, as far as torch-pruning follows it.
    example_inputs : Tensor or tuple
        What it can be called with, to trace it.
    sparsity : float, or dict of str to float
        Fraction of the channels to remove from each group, in [0, 1): rounded down, and one is always left;
        or by glob of the names of the layers that make them, as ``{"features.*": 0.5}``; the others are left
        alone.
    method : {"l1", "l2", "features", "lasso"}
        By the norm of what is left of the filters when the layers before are cut; by greedy error of the
        outputs of the layers that read them (ThiNet); by LASSO on these outputs (He et al.).
    samples : iterable of Tensor or tuple, optional
        Batches that the model is called with; kept in memory. A few hundred inputs are enough.
    reconstruct : bool, optional
        Whether the layers that read fewer channels are fitted to the outputs they had, by least squares. By
        default if there are samples.

    Returns
    -------
    pruning : ChannelPruning
        The new model, and what was cut.

    Raises
    ------
    RecipeError
        An argument makes no sense, samples are needed, a pattern matches nothing, or the model cannot be
        traced or cut.
    ImportError
        torch-pruning is not installed.

    Notes
    -----
    Groups are worked on from the first to the last; each takes the inputs of the model as it is by then, and
    aims at the outputs of the original one, so that later layers make up for what earlier ones lost.
    """
    if method not in METHODS:
        raise RecipeError(
            f"method must be one of {', '.join(METHODS)}, not {method!r}{near(method, METHODS)}"
        )
    reconstruct = samples is not None if reconstruct is None else reconstruct
    if samples is None and (reconstruct or method in ("features", "lasso")):
        raise RecipeError(
            f"method {method!r}{', reconstruct = True' * reconstruct}: samples are needed, batches that the "
            "model is called with"
        )
    batches = None if samples is None else [as_inputs(sample) for sample in samples]
    if batches is not None and not batches:
        raise RecipeError("there are no samples")
    graph = ChannelGraph(copy.deepcopy(model), as_inputs(example_inputs))
    original = copy.deepcopy(model).eval()
    amounts = _amounts(graph, sparsity)
    groups = []
    skipped = dict(graph.skipped)
    for name in list(graph.groups):
        coupled = graph.groups[name]
        n_kept = coupled.n_channels - int(amounts.get(coupled.name, 0.0) * coupled.n_channels + 1e-9)
        if n_kept == coupled.n_channels:
            continue
        if not coupled.consumers and (reconstruct or method in ("features", "lasso")):
            skipped[coupled.name] = "no convolution and no linear layer reads it"
            continue
        moments = {}
        if batches is not None:
            moments = gather_moments(graph.model, original, coupled.consumers, graph.outputs, batches)
        products = _products(graph.model, coupled, moments) if moments else None
        if method in ("features", "lasso"):
            assert products is not None
            choose = keep_by_features if method == "features" else keep_by_lasso
            kept = choose(*products[:2], max(1, n_kept))
        else:
            kept = keep_by_score(graph.norms(coupled, method), max(1, n_kept))
        error = feature_error(*products, kept) if products is not None else None
        fitted = _fit(graph.model, coupled, kept, moments) if reconstruct else None
        graph.cut(coupled, kept)
        if fitted is not None:
            _put(graph.model, fitted)
        groups.append(
            ChannelGroup(
                coupled.name,
                tuple(coupled.producers),
                tuple(coupled.consumers),
                coupled.n_channels,
                tuple(kept),
                error,
                None if fitted is None else fitted.error,
            )
        )
    return ChannelPruning(graph.finish(), tuple(groups), skipped)


def cut_channels(
    model: nn.Module, example_inputs: Tensor | tuple[Any, ...], kept: Mapping[str, Iterable[int]]
) -> nn.Module:
    """Return a copy of a model with some channels alone, their weights as they are.

    This makes, of a model of the same class, one whose tensors a file of a pruned model fits.

    Parameters
    ----------
    model : Module
        Left as it is.
    example_inputs : Tensor or tuple
        What it can be called with, to trace it.
    kept : dict of str to list of int
        As `ChannelPruning.kept` has it.

    Raises
    ------
    RecipeError
        A layer stands for no group of channels, or a channel is not there.
    """
    graph = ChannelGraph(copy.deepcopy(model), as_inputs(example_inputs))
    for name, channels in kept.items():
        if name not in graph.groups:
            why = f": {graph.skipped[name]}" if name in graph.skipped else near(name, graph.groups)
            raise RecipeError(f"layer {name!r} has no channels that can be cut{why}")
        chosen = sorted(channels)
        most = graph.groups[name].n_channels
        if not chosen or chosen[0] < 0 or chosen[-1] >= most or len(set(chosen)) != len(chosen):
            raise RecipeError(f"the channels of {name!r} must be some of 0 to {most - 1}, each once")
        graph.cut(graph.groups[name], chosen)
    return graph.finish()


def _amounts(graph: ChannelGraph, sparsity: float | Mapping[str, float]) -> dict[str, float]:
    """Return the sparsity of each group."""
    patterns = dict(sparsity) if isinstance(sparsity, Mapping) else {"*": sparsity}
    if not graph.groups:
        reasons = "; ".join(f"{name!r}: {why}" for name, why in graph.skipped.items())
        raise RecipeError(f"the model has no channels that can be cut{': ' if reasons else ''}{reasons}")
    amounts: dict[str, float] = {}
    for pattern, amount in patterns.items():
        number = isinstance(amount, (int, float)) and not isinstance(amount, bool)
        if not number or not 0 <= amount < 1:
            raise RecipeError(f"sparsity of {pattern!r} must be a fraction from 0 to below 1, not {amount!r}")
        found = False
        for coupled in graph.groups.values():
            if any(fnmatchcase(name, pattern) for name in coupled.producers):
                found = True
                if amounts.setdefault(coupled.name, amount) != amount:
                    raise RecipeError(
                        f"the channels of {', '.join(coupled.producers)} hang together, but "
                        f"{pattern!r} and another pattern give them different sparsities"
                    )
        if not found:
            known = [name for coupled in graph.groups.values() for name in coupled.producers]
            why = next(
                (f": {name!r}: {why}" for name, why in graph.skipped.items() if fnmatchcase(name, pattern)),
                "",
            )
            hint = why or near(pattern, known, 3)
            raise RecipeError(f"pattern {pattern!r} matches no layer whose channels can be cut{hint}")
    return amounts


def _matrix(module: nn.Module) -> Tensor:
    """Return the weight of a layer as a float64 matrix."""
    assert isinstance(module.weight, Tensor)
    return module.weight.detach().double().flatten(1)


def _bias(module: nn.Module) -> Tensor | None:
    """Return the bias of a layer in float64."""
    return module.bias.detach().double() if isinstance(module.bias, Tensor) else None


def _products(
    model: nn.Module, coupled: Coupled, moments: Mapping[str, Moments]
) -> tuple[Array, Array, float]:
    """Return gram, target and energy of a group's contributions; each consumer counts alike.

    Outputs wanted are those of the original less the bias, and less what inputs outside of the group give.
    """
    n = coupled.n_channels
    device = next(iter(moments.values())).inner.device
    gram = torch.zeros(n, n, dtype=torch.float64, device=device)
    target = torch.zeros(n, dtype=torch.float64, device=device)
    energy = 0.0
    for name, inputs in coupled.consumers.items():
        module, sums = model.get_submodule(name), moments[name]
        weight = _matrix(module)
        owner = torch.full((weight.shape[1],), n, device=device)
        for channel, places in enumerate(inputs):
            owner[columns_of(module, places)] = channel
        mine = torch.nn.functional.one_hot(owner, n + 1)[:, :n].double()
        inner, cross = sums.inner[:-1, :-1], sums.cross[:-1]
        bias = _bias(module)
        if bias is not None:
            cross = cross - sums.inner[:-1, -1:] @ bias[None]
        others = weight * (owner == n)
        share = 1 / (sums.energy(bias) or 1.0)
        energy += share * (
            sums.energy(bias) + float(((others @ inner) * others - 2 * others * cross.T).sum())
        )
        cross = cross - inner @ others.T
        gram += share * (mine.T @ (inner * (weight.T @ weight)) @ mine)
        target += share * (mine.T @ (weight.T * cross).sum(1))
    n_consumers = len(coupled.consumers)
    return (
        gram.cpu().numpy() / n_consumers,
        target.cpu().numpy() / n_consumers,
        energy / n_consumers,
    )


def _fit(model: nn.Module, coupled: Coupled, kept: list[int], moments: Mapping[str, Moments]) -> _Fitted:
    """Return what each consumer's weight and bias become, fitted to the outputs wanted, and the error."""
    tensors = {}
    errors = []
    for name, inputs in coupled.consumers.items():
        module, sums = model.get_submodule(name), moments[name]
        weight, bias = _matrix(module), _bias(module)
        gone = set(range(coupled.n_channels)) - set(kept)
        lost = set(columns_of(module, [place for channel in gone for place in inputs[channel]]))
        rest = [column for column in range(weight.shape[1]) if column not in lost]
        columns, old = rest, weight[:, rest]
        if bias is not None:
            columns, old = [*rest, weight.shape[1]], torch.cat([old, bias[:, None]], 1)
        inner, cross = sums.inner[columns][:, columns], sums.cross[columns]
        # The old weights, and what the samples say of their error.
        strength = _DAMPING * float(inner.diagonal().mean()) or 1.0
        held = inner + strength * torch.eye(len(columns), dtype=inner.dtype, device=inner.device)
        new = old + torch.linalg.solve(held, cross - inner @ old.T).T
        part = len(rest)
        tensors[name] = new[:, :part], new[:, part] if bias is not None else None
        error = sums.error(new[:, :part], tensors[name][1], rest)
        errors.append(error / (sums.energy(bias) or 1.0))
    return _Fitted(tensors, sum(errors) / len(errors))


@torch.no_grad()
def _put(model: nn.Module, fitted: _Fitted) -> None:
    """Give the consumers, which are smaller by now, their fitted weights."""
    for name, (weight, bias) in fitted.tensors.items():
        module = model.get_submodule(name)
        assert isinstance(module.weight, Tensor)
        module.weight.copy_(weight.reshape(module.weight.shape))
        if bias is not None:
            assert isinstance(module.bias, Tensor)
            module.bias.copy_(bias)
