"""Layer by layer: what flows into each layer when all that comes before it is compressed already.

Errors of early layers change the inputs of later ones, which can make up for part of them if they know. So
the model and a copy of it run side by side on all batches, which wait for each other before each layer. There
the inputs of both are added up, the layer of the copy is compressed just as encoding will compress it, and
then all go on.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dcompress.calibration.inventory import take_inventory
from dcompress.calibration.lockstep import Call, Runner
from dcompress.calibration.moments import Moments
from dcompress.calibration.readers import Reading, find_reader
from dcompress.calibration.record import Calibration
from dcompress.calibration.restoring import as_it_was
from dcompress.calibration.sensitivity import RunModel, as_tensor
from dcompress.calibration.sums import Sums
from dcompress.checkpoint import checkpoint_from_state_dict
from dcompress.compression import compress_checkpoint, compress_tensor
from dcompress.errors import EncodeError
from dcompress.recipe import Recipe
from dcompress.safetensors_file import listed
from dcompress.stages import SharedTensor, TensorData

__all__ = ["layer_by_layer"]

_SAME = 1e-3  # of the largest sum of inputs: what batches of other sizes may differ by


def layer_by_layer(
    model: nn.Module,
    batches: Sequence[Any],
    run: RunModel,
    static: Calibration,
    recipe: Recipe,
    *,
    effort: int,
    max_columns: int,
    holdout: int,
    once: set[str],
    progress: Callable[[int, int], None] | None = None,
) -> Calibration:
    """Return moments of the inputs that layers get when what comes before them is compressed.

    Parameters
    ----------
    model : Module
        Plain: neither compiled nor data-parallel.
    batches : sequence
        All of them are in memory at once, with what flows between two layers.
    run : callable
        Runs a model on a batch.
    static : Calibration
        Of the model as it is: serves all tensors that this cannot, such as those of layers that are called
        several times.
    recipe, effort
        By which the file will be encoded. For another recipe the statistics serve less well.
    max_columns, holdout
        As for `dcompress.calibrate`.
    once : set of str
        Paths of the layers that each batch calls just once.
    progress : callable, optional
        Called with the number of layers that are done, and of all.

    Raises
    ------
    EncodeError
        The model cannot be copied; its inputs are NaN or infinite, with layer and batch named.
    """
    try:
        twin = copy.deepcopy(model)
    except Exception as error:
        raise EncodeError(f"calibrating layer by layer needs a copy of the model: {error}") from error
    compressor = _Compressor(model, static, recipe, effort)
    twin.load_state_dict(compressor.state_dict(), strict=False)
    found: dict[str, Moments] = {}
    done: set[str] = set()
    n_met = 0  # layers before which a run of the model and one of the copy have met
    with as_it_was(model), as_it_was(twin), contextlib.ExitStack() as stack:
        layers = _layers(model, compressor.names) & once
        runs = [
            _Pair(*(_runner(stack, one, layers, partial(run, one, batch), done) for one in (model, twin)))
            for batch in batches
        ]
        while True:
            for pair in runs:
                pair.go_on()
            path = next((path for pair in runs for path in pair.paths), None)
            if path is None:
                break
            n_met += any(pair.calls(path) is not None for pair in runs)
            read = _read(path, runs, max_columns, holdout, static)
            for name, moments in read.items():
                if name in compressor.names:
                    found[name] = moments
                    _put(twin, name, compressor.compress(name, moments))
            done.add(path)
            if progress is not None:
                progress(len(done), len(layers))
            for pair in runs:
                pair.leave(path)
    if layers and not n_met:
        raise EncodeError("no layer was reached: forward must run the model that it is given")
    merged = {name: found.get(name, one) for name, one in static.moments.items()}
    notes = [*static.notes, f"layer by layer, for effort {effort} and the recipe {recipe.to_dict()}"]
    if rest := sorted(compressor.names - found.keys()):
        why = "recurrent, tied, called several times, outside of a layer, or not alike"
        notes.append(f"not layer by layer ({why}): {listed(rest)}")
    return dataclasses.replace(
        static, moments=merged, notes=tuple(notes), recipe=recipe.to_dict(), effort=effort
    )


@dataclasses.dataclass(frozen=True, eq=False)
class _Pair:
    """The runs of a model and of its compressed copy on one batch."""

    before: Runner
    after: Runner

    @property
    def paths(self) -> list[str]:
        """Layers that they wait before: none if both are done."""
        return [one.at.path for one in (self.after, self.before) if one.at is not None]

    def go_on(self) -> None:
        """Run both until they stop."""
        for one in (self.before, self.after):
            if one.at is None:
                one.proceed()

    def leave(self, path: str) -> None:
        """Run those on that wait before a layer."""
        for one in (self.before, self.after):
            if one.at is not None and one.at.path == path:
                one.proceed()

    def calls(self, path: str) -> tuple[Call, Call] | None:
        """Return both calls of a layer, if both wait before it."""
        before, after = self.before.at, self.after.at
        if before is None or after is None or not before.path == after.path == path:
            return None
        return before, after


class _Compressor:
    """The tensors of a model as they will be compressed, one by one."""

    def __init__(self, model: nn.Module, static: Calibration, recipe: Recipe, effort: int) -> None:
        self._checkpoint = checkpoint_from_state_dict(model.state_dict())
        compressed = compress_checkpoint(self._checkpoint, recipe, effort=effort, calibration=static)
        self._plan, self._static = compressed.plan, compressed.moments
        self._effort = effort
        self._groups = {
            group: compressed.opened(group) for group in dict.fromkeys(compressed.groups.values())
        }
        self._opened = {name: opened for group, opened in self._groups.items() for name in group}
        self.names = {
            name
            for name, rule in self._plan.items()
            if name in static.moments and (rule.share is not None or rule.prune is not None)
        }

    def state_dict(self) -> dict[str, Tensor]:
        """Return the model as it will be, with what is known so far."""
        made: dict[str, SharedTensor | TensorData] = dict(self._checkpoint.tensors)
        for opened in self._groups.values():
            made |= opened.share_all(self._static)
        found = {
            name: as_tensor(made[name])
            if name in self._opened
            else self.compress(name, self._static.get(name))
            for name in self._plan
        }
        return found | {name: found[first] for name, first in self._checkpoint.ties.items()}

    def compress(self, name: str, moments: Moments | None) -> Tensor:
        """Return a tensor compressed with what is known of its inputs."""
        if name in self._opened:
            return as_tensor(self._opened[name].share(name, moments))
        rule, data = self._plan[name], self._checkpoint.tensors[name]
        return as_tensor(compress_tensor(name, data, rule, effort=self._effort, moments=moments))


def _layers(model: nn.Module, names: set[str]) -> set[str]:
    """Return the paths of layers whose weights are their own, plain, and to be compressed."""
    ties = take_inventory(model).ties
    tied = set(ties) | set(ties.values())
    found = set()
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        own = {prefix + name for name, _ in module.named_parameters()}
        # The states of a recurrent layer are not yet those that it will have when it is compressed whole.
        if isinstance(module, nn.RNNBase):
            continue
        if find_reader(module) is not None and own & names and not own & tied:
            found.add(path)
    return found


def _runner(
    stack: contextlib.ExitStack, model: nn.Module, layers: set[str], run: Callable[[], None], done: set[str]
) -> Runner:
    """Return a run of a model that stops before each layer that is not done."""
    runner = Runner(run, lambda path: path not in done)
    stack.callback(runner.stop)
    for path, module in model.named_modules():
        if path in layers:
            stack.callback(runner.watch(path, module).remove)
    return runner


def _read(
    path: str, runs: Sequence[_Pair], max_columns: int, holdout: int, static: Calibration
) -> dict[str, Moments]:
    """Return the moments of a layer's weights from the batches that wait before it.

    Without those whose inputs before compression are not what they were when each batch ran alone: a model
    that keeps something on itself while it runs mixes up what belongs to different batches.
    """
    prefix = f"{path}." if path else ""
    sums: dict[str, Sums] = {}
    for batch, pair in enumerate(runs):
        calls = pair.calls(path)
        if calls is None:
            continue
        held_out = bool(holdout) and batch % holdout == holdout - 1
        for old, new, weight in _readings(*calls):
            name = prefix + str(new.weight)
            if new.rows is None or old.rows is None:
                continue
            if name not in sums:
                sums[name] = Sums(tuple(weight.shape), new.layout, max_columns)
                sums[name].kinds.append(new.kind)
            part, n_parts = new.part, new.n_parts
            try:
                sums[name].add(new.rows, holdout=held_out, part=part, n_parts=n_parts, before=old.rows)
            except ValueError as error:
                raise EncodeError(f"layer of {name!r}, batch {batch}: {error}") from None
    return {
        name: one.finish(name)
        for name, one in sums.items()
        if name in static.moments and _is_close(one.total_before(), static.moments[name].total)
    }


def _is_close(found: Tensor | None, wanted: NDArray[np.float32]) -> bool:
    one = np.zeros_like(wanted) if found is None else found.cpu().numpy()
    return one.shape == wanted.shape and bool(
        np.abs(one - wanted).max(initial=0) <= _SAME * np.abs(wanted).max(initial=0)
    )


def _readings(before: Call, after: Call) -> Iterator[tuple[Reading, Reading, Tensor]]:
    """Return what a layer is given before and after compression, and the weight that it is for."""
    reader = find_reader(after.module)
    assert reader is not None
    with torch.no_grad():
        old = reader(before.module, *before.arguments)
        new = reader(after.module, *after.arguments)
        for one, other in zip(old, new, strict=True):
            assert isinstance(other.weight, str)
            yield one, other, after.module.get_parameter(other.weight)


def _put(model: nn.Module, name: str, values: Tensor) -> None:
    """Give a parameter of a model other values."""
    with torch.no_grad():
        parameter = model.get_parameter(name)
        parameter.copy_(values.to(parameter.device).reshape(parameter.shape))
