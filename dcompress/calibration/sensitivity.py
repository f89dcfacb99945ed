"""How much the outputs of a model suffer when one of its weight tensors is rounded."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dcompress.calibration.record import Calibration
from dcompress.calibration.restoring import as_it_was
from dcompress.checkpoint import checkpoint_from_state_dict, data_to_tensor
from dcompress.compression import CompressedTensors, compress_checkpoint
from dcompress.rate_groups import rate_groups
from dcompress.recipe import Recipe
from dcompress.rules import RateRule
from dcompress.stages import SharedTensor, TensorData, tensor_specs

__all__ = ["N_PROBES", "RunModel", "as_tensor", "measure_sensitivity"]

N_PROBES = 4  # batches at most
_MOST_RUNS = 256  # of the model, if one batch for each tensor is not more
_EFFORT = 1  # of the files that are compared
_TOO_MUCH = 0.25  # of the variance of the outputs: then errors do not add up any more
_MOST_STEPS = 5  # that are tried, each half of the one before
_NOISE = 0.01  # of the least error: what outputs may differ by from one run to the next

RunModel = Callable[[nn.Module, Any], Any]


def measure_sensitivity(
    model: nn.Module, batches: Sequence[Any], run: RunModel, static: Calibration, recipe: Recipe | None
) -> dict[str, float]:
    """Return what `Calibration.sensitivity` says of the weight tensors that share a step.

    Each is rounded on its own, with what is known of its inputs and without pruning; the model runs with it,
    and its outputs are compared with what they were. Where little is left of a tensor or of the outputs, half
    the step is tried.

    Parameters
    ----------
    model : Module
        Plain; left as it was.
    batches : sequence
        A few.
    run : callable
        Runs a model on a batch; must not change the batch.
    static : Calibration
        Of the model, without sensitivities.
    recipe : Recipe, optional
        By which the file will be encoded. Otherwise a tensor's step is its root mean square.

    Returns
    -------
    sensitivity : dict of str to float
        Above 0. Nothing if there are no two such tensors, if the model gives no floats, or others each time.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    checkpoint = checkpoint_from_state_dict(parameters if recipe is None else model.state_dict())
    compressed = compress_checkpoint(
        checkpoint, Recipe(step=1.0) if recipe is None else recipe, effort=_EFFORT, calibration=static
    )
    rules = {
        name: rule.share
        for name, rule in compressed.plan.items()
        if isinstance(rule.share, RateRule) and rule.share.takes_model_step and name in parameters
    }
    if len(rules) < 2:
        return {}
    if recipe is None:
        rules = {
            name: dataclasses.replace(rule, step=_root_mean_square(parameters[name]) or 1.0)
            for name, rule in rules.items()
        }
    tied = {
        name: [parameters[other] for other in parameters if checkpoint.ties.get(other, other) == name]
        for name in rules
    }
    n_batches = max(1, min(N_PROBES, _MOST_RUNS // len(rules)))
    found: dict[str, float] = {}
    for _ in range(_MOST_STEPS):
        rounded = _rounded(compressed, rules)
        errors = _errors(model, batches[:n_batches], run, tied, rounded)
        coarse = {name for name, error in errors.items() if error > _TOO_MUCH or not rounded[name].any()}
        found |= {
            name: error / rules[name].step ** 2
            for name, error in errors.items()
            if error and name not in coarse
        }
        rules = {name: dataclasses.replace(rules[name], step=rules[name].step / 2) for name in coarse}
        if not rules:
            break
    return found


def as_tensor(compressed: SharedTensor | TensorData) -> Tensor:
    """Return a compressed tensor as one of torch."""
    data = compressed.gather() if isinstance(compressed, SharedTensor) else compressed
    return data_to_tensor(data)


def _root_mean_square(weights: Tensor) -> float:
    return math.sqrt(float(weights.detach().double().square().mean())) if weights.numel() else 0.0


def _rounded(compressed: CompressedTensors, rules: Mapping[str, RateRule]) -> dict[str, Tensor]:
    """Return weight tensors rounded by rules of their own, and not pruned."""
    checkpoint = compressed.checkpoint
    plan = {
        name: dataclasses.replace(compressed.plan[name], prune=None, share=rule)
        for name, rule in rules.items()
    }
    groups = rate_groups(plan, tensor_specs(checkpoint.tensors))
    again = CompressedTensors(checkpoint, plan, groups, _EFFORT)
    again.moments = compressed.moments
    return {name: as_tensor(again[name]) for name in plan}


def _errors(
    model: nn.Module,
    batches: Sequence[Any],
    run: RunModel,
    tied: Mapping[str, Sequence[nn.Parameter]],
    rounded: Mapping[str, Tensor],
) -> dict[str, float]:
    """Return the mean squared error of the outputs, relative to their variance, for each tensor.

    Nothing if outputs are not the same each time, beside such errors.
    """
    total, noise = dict.fromkeys(rounded, 0.0), 0.0
    for batch in batches:
        dense = _outputs(model, batch, run)
        noise += _error(dense, _outputs(model, batch, run))
        for name, values in rounded.items():
            with _in_place(tied[name], values):
                total[name] += _error(dense, _outputs(model, batch, run))
    known = {name: one / len(batches) for name, one in total.items() if math.isfinite(one)}
    least = min((one for one in known.values() if one), default=0.0)
    return known if noise / len(batches) <= _NOISE * least else {}


@contextlib.contextmanager
def _in_place(parameters: Sequence[nn.Parameter], values: Tensor) -> Iterator[None]:
    """Return a context in which parameters have other values; their own memory is not touched."""
    own = [one.data for one in parameters]
    try:
        for one, data in zip(parameters, own, strict=True):
            one.data = values.to(data.device, data.dtype).reshape(data.shape)
        yield
    finally:
        for one, data in zip(parameters, own, strict=True):
            one.data = data


def _outputs(model: nn.Module, batch: Any, run: RunModel) -> list[Tensor]:
    """Return all float tensors that the model itself gives, however often it is called.

    Each run begins with the same buffers and random numbers.
    """
    found: list[Tensor] = []

    def note(module: nn.Module, arguments: Any, output: Any) -> None:
        found.extend(_float_tensors(output))

    with as_it_was(model):
        torch.manual_seed(0)
        handle = model.register_forward_hook(note)
        try:
            run(model, batch)
        finally:
            handle.remove()
    return found


def _float_tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        if output.layout == torch.strided and not output.is_nested and output.numel():
            plain = torch.view_as_real(output) if output.is_complex() else output
            if plain.is_floating_point():
                yield plain.detach().clone()  # the model may go on to change it
    elif isinstance(output, Mapping):
        for one in output.values():
            yield from _float_tensors(one)
    elif isinstance(output, (list, tuple)):
        for one in output:
            yield from _float_tensors(one)


def _error(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """Return the mean over all tensors of squared error by variance; NaN if they cannot be compared.

    What was not finite before, such as a masked logit, does not count.
    """
    if not before or [one.shape for one in before] != [one.shape for one in after]:
        return math.nan
    ratios = []
    for old, new in zip(before, after, strict=True):
        finite = old.isfinite()
        one, other = old[finite].float(), new[finite].float()
        variance = float(torch.var(one, correction=0)) if one.numel() else 0.0
        if variance:
            ratios.append(float((other - one).square().mean()) / variance)
    return sum(ratios) / len(ratios) if ratios else math.nan
