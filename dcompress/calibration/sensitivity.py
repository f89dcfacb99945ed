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
from dcompress.compression import compress_checkpoint
from dcompress.recipe import Recipe
from dcompress.rules import RateRule
from dcompress.stages import Checkpoint, SharedTensor, TensorData

__all__ = ["N_PROBES", "as_tensor", "measure_sensitivity"]

N_PROBES = 4  # batches at most
_MOST_RUNS = 256  # of the model, if one batch for each tensor is not more
_EFFORT = 1  # of the files that are compared
_TOO_MUCH = 0.5  # of the variance of the outputs: then errors do not add up any more
_MOST_FINER = 4

RunModel = Callable[[nn.Module, Any], Any]


def measure_sensitivity(
    model: nn.Module, batches: Sequence[Any], run: RunModel, static: Calibration, recipe: Recipe | None
) -> dict[str, float]:
    """Return what `Calibration.sensitivity` says of the weight tensors that share a step.

    Each is rounded on its own, with what is known of its inputs; the model runs with it, and its outputs are
    compared with what they were.

    Parameters
    ----------
    model : Module
        Plain; left as it was.
    batches : sequence
        A few.
    run : callable
        Runs a model on a batch; may change neither.
    static : Calibration
        Of the model, without sensitivities.
    recipe : Recipe, optional
        By which the file will be encoded. Otherwise all weights take the step that is their root mean square.

    Returns
    -------
    sensitivity : dict of str to float
        Nothing if there are no two such tensors, or if the model gives no floats.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    checkpoint = checkpoint_from_state_dict(parameters if recipe is None else model.state_dict())
    chosen = Recipe(step=_root_mean_square(parameters, static)) if recipe is None else recipe
    found: dict[str, float] = {}
    for _ in range(_MOST_FINER):
        rounded = _rounded(checkpoint, chosen, static, parameters)
        if len(rounded) < 2:
            return {}
        n_batches = max(1, min(N_PROBES, _MOST_RUNS // len(rounded)))
        errors = _errors(model, batches[:n_batches], run, parameters, rounded)
        found = {name: error / rounded[name][1] ** 2 for name, error in errors.items()}
        if chosen.step is None or sum(errors.values()) < _TOO_MUCH:
            break
        chosen = dataclasses.replace(chosen, step=chosen.step / 2)
    return found


def as_tensor(compressed: SharedTensor | TensorData) -> Tensor:
    """Return a compressed tensor as one of torch."""
    data = compressed.gather() if isinstance(compressed, SharedTensor) else compressed
    return data_to_tensor(data)


def _root_mean_square(parameters: Mapping[str, nn.Parameter], static: Calibration) -> float:
    """Return that of all weights whose inputs are known."""
    known = [parameters[name].detach().double() for name in static.moments if name in parameters]
    total = sum(float(one.square().sum()) for one in known)
    return math.sqrt(total / max(1, sum(one.numel() for one in known))) or 1.0


def _rounded(
    checkpoint: Checkpoint, recipe: Recipe, static: Calibration, parameters: Mapping[str, nn.Parameter]
) -> dict[str, tuple[Tensor, float]]:
    """Return weight tensors as they would be in a file, with their steps."""
    compressed = compress_checkpoint(checkpoint, recipe, effort=_EFFORT, calibration=static)
    return {
        name: (as_tensor(compressed[name]), rule.share.step)
        for name, rule in compressed.plan.items()
        if isinstance(rule.share, RateRule) and not rule.share.fine and not rule.share.own
        if name in parameters
    }


def _errors(
    model: nn.Module,
    batches: Sequence[Any],
    run: RunModel,
    parameters: Mapping[str, nn.Parameter],
    rounded: Mapping[str, tuple[Tensor, float]],
) -> dict[str, float]:
    """Return the mean squared error of the outputs, relative to their variance, for each tensor."""
    total = dict.fromkeys(rounded, 0.0)
    with as_it_was(model):
        for batch in batches:
            dense = _outputs(model, batch, run)
            for name, (values, _) in rounded.items():
                with _in_place(parameters[name], values):
                    total[name] += _error(dense, _outputs(model, batch, run))
    return {name: one / len(batches) for name, one in total.items() if math.isfinite(one)}


@contextlib.contextmanager
def _in_place(parameter: nn.Parameter, values: Tensor) -> Iterator[None]:
    """Return a context in which a parameter has other values; its own memory is not touched."""
    own = parameter.data
    parameter.data = values.to(own.device, own.dtype).reshape(own.shape)
    try:
        yield
    finally:
        parameter.data = own


def _outputs(model: nn.Module, batch: Any, run: RunModel) -> list[Tensor]:
    """Return all float tensors that the model itself gives, however often it is called."""
    found: list[Tensor] = []

    def note(module: nn.Module, arguments: Any, output: Any) -> None:
        found.extend(_float_tensors(output))

    handle = model.register_forward_hook(note)
    try:
        run(model, batch)
    finally:
        handle.remove()
    return found


def _float_tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        if output.is_floating_point() and output.numel():
            yield output.detach().clone()  # the model may go on to change it
    elif isinstance(output, Mapping):
        for one in output.values():
            yield from _float_tensors(one)
    elif isinstance(output, (list, tuple)):
        for one in output:
            yield from _float_tensors(one)


def _error(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """Return the mean over all tensors of squared error by variance; NaN if they cannot be compared."""
    if not before or [one.shape for one in before] != [one.shape for one in after]:
        return math.nan
    ratios = []
    for old, new in zip(before, after, strict=True):
        variance = float(torch.var(old.float(), correction=0))
        if variance:
            ratios.append(float((new.float() - old.float()).square().mean()) / variance)
    return sum(ratios) / len(ratios) if ratios else math.nan
