"""Run a model on a few batches, and add up what flows into its layers."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence, Sized
from typing import Any

import torch
from torch import Tensor, nn

from dcompress.calibration.collector import Collector
from dcompress.calibration.inventory import take_inventory, unwrapped
from dcompress.calibration.record import Calibration
from dcompress.calibration.restoring import as_it_was
from dcompress.calibration.sensitivity import N_PROBES, RunModel, measure_sensitivity
from dcompress.calibration.sequence import layer_by_layer
from dcompress.compression import levels_to_caller
from dcompress.errors import DcompressWarning, EncodeError
from dcompress.recipe import Recipe, RecipeLike, as_recipe
from dcompress.safetensors_file import listed
from dcompress.settings import DEFAULT_EFFORT, check_effort

__all__ = ["calibrate", "calibrator"]

MAX_COLUMNS, HOLDOUT = 4096, 5

Forward = Callable[[Any, Any], Any]
Progress = Callable[[int, "int | None"], None]


def calibrate(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    forward: Forward | None = None,
    loss: Forward | None = None,
    progress: Progress | None = None,
    max_columns: int = MAX_COLUMNS,
    holdout: int = HOLDOUT,
    recipe: RecipeLike = None,
    effort: int = DEFAULT_EFFORT,
    sensitivity: bool = True,
) -> Calibration:
    """Return what flows into the layers of a model, summed over some batches.

    The model runs in evaluation mode, without gradients, and is left as it was, also if something fails:
    hooks, modes, buffers, and torch's random numbers.

    Parameters
    ----------
    model : Module
        Any; of one that is compiled or data-parallel, the plain one inside runs. What is read: linear
        and bilinear layers, convolutions and transposed ones, embeddings and bags, recurrent layers and
        cells, `torch.nn.MultiheadAttention`, and weights that are used directly in ``linear``,
        ``embedding`` and products like ``x @ weight``.
    batches : iterable
        A few hundred samples like those of training. A batch is a tensor; a tuple or list, of which the
        first entry is the model's input and the others, such as labels, are left; or a dict of keyword
        arguments. Tensors are moved to the model's device.
    forward : callable, optional
        Called with the model and a batch as it is, if the batches are anything else.
    loss : callable, optional
        Called like ``forward``, and instead of it; returns a number to differentiate, summed over the
        samples of the batch. Gives `Moments.influence` of linear layers and convolutions, and takes as much
        memory as training.
    progress : callable, optional
        Called after each batch with the number of batches done, and of all, or None if that is unknown. With
        a recipe, then after each layer too, with the number of layers.
    max_columns : int
        Layers with more inputs get blocks along the diagonal of at most this size instead of one matrix:
        memory is at most 4 ``max_columns`` bytes for each input of a layer, twice if batches are held out
        (double that while collecting, for layers of up to 1,024 inputs).
    holdout : int
        Every so many batches, one is held out; 0: none.
    recipe : Recipe, str, path-like or dict, optional
        By which the file will be encoded. If it is given, the statistics are gathered layer by layer, with
        the inputs that each layer gets when all that comes before it is compressed already: this gives the
        better file, by this recipe. A copy of the model runs beside it; all batches (a few dozen at most) are
        in memory, with what flows between two layers. Recurrent layers, those that are called several times,
        and weights that are used outside of layers, get plain statistics, which `Calibration.notes` says.
        ``loss`` does not go with it.
    effort : int
        With a recipe: the effort by which the file will be encoded.
    sensitivity : bool
        Whether to find out which tensors need finer steps than others: the model runs again on up to four
        batches with each weight tensor rounded on its own, and its outputs are compared. For a deep model
        this takes longer than all the rest; for one whose layers are alike it gives little.

    Returns
    -------
    calibration : Calibration
        By parameter. The same model, batches and threads give the same bits.

    Raises
    ------
    EncodeError
        No batches; inputs of a layer that are NaN or infinite, with layer and batch named; nothing to read;
        with a recipe: a loss, or a model that cannot be copied.
    RecipeError
        The recipe does not fit the model.

    Warns
    -----
    DcompressWarning
        Weights with two dimensions or more of which nothing is known; `Calibration.skipped` says why.
    """
    _check(
        model,
        batches,
        forward,
        loss,
        max_columns=max_columns,
        holdout=holdout,
        sensitivity=sensitivity,
    )
    check_effort(effort)
    settings: dict[str, Any] = {
        "holdout": holdout,
        "max_columns": max_columns,
        "progress": progress,
        "sensitivity": sensitivity,
    }
    if recipe is None:
        return _Gathered.of(model, batches, forward, loss, **settings).with_sensitivity(None)
    if loss is not None:
        raise EncodeError("statistics layer by layer have no use for a loss: leave it out")
    chosen = as_recipe(recipe)
    return calibrator(model, batches, forward=forward, effort=effort, **settings)(chosen)


def calibrator(
    model: nn.Module, batches: Iterable[Any], *, effort: int = DEFAULT_EFFORT, **settings: Any
) -> Callable[[Recipe], Calibration]:
    """Return what calibrates a model layer by layer for one recipe after the other.

    Arguments and errors are those of `calibrate`, which see. What does not depend on the recipe is gathered
    once, here.
    """
    kept = list(batches)
    # Each run has its own copies: a model may change its input in place.
    gathered = _Gathered.of(model, _Copies(kept), **settings)
    return lambda recipe: gathered.layer_by_layer(kept, recipe, effort)


@dataclasses.dataclass(frozen=True, eq=False)
class _Gathered:
    """The plain statistics of a model, and what is needed to find out more."""

    static: Calibration
    model: nn.Module
    run: RunModel
    probes: Sequence[Any]  # copies of the first batches; none if nothing is to be probed
    n_calls: Mapping[str, int]
    settings: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        model: nn.Module,
        batches: Iterable[Any],
        forward: Forward | None = None,
        loss: Forward | None = None,
        *,
        holdout: int = HOLDOUT,
        max_columns: int = MAX_COLUMNS,
        progress: Progress | None = None,
        sensitivity: bool = True,
    ) -> _Gathered:
        """Run a model on all batches."""
        plain = unwrapped(model)
        with as_it_was(plain):  # a parametrization may change its buffers when it is looked at
            collector = Collector(plain, take_inventory(plain), max_columns)
        probes: list[Any] = []
        n_probes = N_PROBES if sensitivity else 0
        watched = _first_noted(batches, probes, n_probes)
        n_all = len(batches) if isinstance(batches, Sized) else None
        static = _gather(collector, plain, watched, n_all, forward, loss, holdout, progress)

        def run(one: nn.Module, batch: Any) -> None:
            with torch.set_grad_enabled(loss is not None):
                _run(one, _copied(batch), forward or loss)

        settings = {"holdout": holdout, "max_columns": max_columns, "progress": progress}
        return cls(static, plain, run, probes, collector.n_calls, settings)

    def with_sensitivity(self, recipe: Recipe | None) -> Calibration:
        """Return statistics with the sensitivity of tensors, or with a note why there is none."""
        if not self.probes:
            return self.static
        try:
            found = measure_sensitivity(self.model, self.probes, self.run, self.static, recipe)
        except Exception as error:  # noqa: BLE001 (files are good without it, and the model is the user's)
            found, why = {}, f"{type(error).__name__}: {error}"
        else:
            why = "" if found else "there are no two tensors of one step, or outputs do not tell"
        notes = (f"sensitivity is not known: {why}",) if why else ()
        return dataclasses.replace(self.static, sensitivity=found, notes=(*self.static.notes, *notes))

    def layer_by_layer(self, batches: Sequence[Any], recipe: Recipe, effort: int) -> Calibration:
        """Return statistics for one recipe."""
        if missing := sorted(self.static.moments.keys() - self.model.state_dict().keys()):
            raise EncodeError(
                f"{listed(missing)}: pruned or parametrized by torch; make that permanent first "
                "(prune.remove, parametrize.remove_parametrizations)"
            )
        once = {path for path, count in self.n_calls.items() if count == len(batches)}
        static = self.with_sensitivity(recipe)
        return layer_by_layer(
            self.model, batches, self.run, static, recipe, effort=effort, once=once, **self.settings
        )


def _first_noted(batches: Iterable[Any], noted: list[Any], most: int) -> Iterator[Any]:
    """Give all batches; put copies of the first ones into a list."""
    for batch in batches:
        if len(noted) < most:
            noted.append(_copied(batch))
        yield batch


class _Copies(Sequence[Any]):
    """Batches, copied when they are asked for."""

    def __init__(self, batches: Sequence[Any]) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, place: Any) -> Any:
        return _copied(self._batches[place])


def _copied(batch: Any) -> Any:
    """Return a batch whose tensors are copies, in lists, tuples and dicts too."""
    if isinstance(batch, Tensor):
        return batch.clone()
    if isinstance(batch, MutableMapping):
        other = copy.copy(batch)
        other.update({name: _copied(value) for name, value in batch.items()})
        return other
    if type(batch) in (list, tuple):
        return type(batch)(_copied(one) for one in batch)
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(_copied(one) for one in batch))
    return batch


def _check(
    model: object,
    batches: object,
    forward: object,
    loss: object,
    *,
    max_columns: object,
    holdout: object,
    sensitivity: object,
) -> None:
    """Refuse arguments of another kind."""
    if not isinstance(model, nn.Module):
        raise EncodeError(f"a torch module is wanted, not {type(model).__name__}")
    if isinstance(batches, (Tensor, Mapping, str, bytes)) or not isinstance(batches, Iterable):
        raise EncodeError(
            f"batches must be an iterable of them, a list or a DataLoader, not {type(batches).__name__}"
        )
    for name, value, least in (("max_columns", max_columns, 1), ("holdout", holdout, 0)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise EncodeError(f"{name} must be an integer of at least {least}, not {value!r}")
    if not isinstance(sensitivity, bool):
        raise EncodeError(f"sensitivity must be True or False, not {sensitivity!r}")
    if holdout == 1:
        raise EncodeError("holdout of 1 would hold out every batch")
    if forward is not None and loss is not None:
        raise EncodeError("loss runs the model itself: leave forward out")


def _gather(
    collector: Collector,
    model: nn.Module,
    batches: Iterable[Any],
    n_all: int | None,
    forward: Forward | None,
    loss: Forward | None,
    holdout: int,
    progress: Progress | None,
) -> Calibration:
    """Return what flows into the layers of the model as it is."""
    n_batches = n_holdout = 0
    with as_it_was(model), collector.watching():
        for batch in batches:
            held_out = bool(holdout) and n_batches % holdout == holdout - 1
            n_holdout += held_out
            collector.begin(n_batches, held_out)
            if loss is None:
                _run(model, batch, forward)
            else:
                _differentiate(model, batch, loss)
            n_batches += 1
            if progress is not None:
                progress(n_batches, n_all)
    if not n_batches:
        raise EncodeError("there are no batches: nothing can be calibrated")
    calibration = collector.finish(n_batches, n_holdout)
    if not len(calibration):
        raise EncodeError(f"no layer of the model could be read: {_reasons(calibration.skipped)}")
    if calibration.skipped:
        warnings.warn(
            f"no statistics of {_reasons(calibration.skipped)}; these are encoded without",
            DcompressWarning,
            stacklevel=levels_to_caller(),
        )
    return calibration


def _reasons(skipped: Mapping[str, str]) -> str:
    """Return names by reason, in one line."""
    names: dict[str, list[str]] = {}
    for name, reason in skipped.items():
        names.setdefault(reason, []).append(name)
    return "; ".join(f"{listed(some)} ({reason})" for reason, some in names.items()) or "it has no matrices"


def _run(model: nn.Module, batch: Any, forward: Forward | None) -> None:
    """Run the model on one batch."""
    if forward is not None:
        forward(model, batch)
        return
    device = next((one.device for one in [*model.parameters(), *model.buffers()]), None)
    if isinstance(batch, Mapping):
        model(**{name: _moved(value, device) for name, value in batch.items()})
    elif isinstance(batch, (tuple, list)) and not hasattr(batch, "batch_sizes"):
        if not batch:
            raise EncodeError("a batch is an empty tuple or list")
        model(_moved(batch[0], device))
    else:
        model(_moved(batch, device))


def _differentiate(model: nn.Module, batch: Any, loss: Forward) -> None:
    """Run the model and its loss backwards; hooks at the outputs see the gradients, parameters do not."""
    parameters = [one for one in model.parameters() if one.is_floating_point()]
    with torch.enable_grad():
        for one in parameters:
            one.requires_grad_(True)
        value = loss(model, batch)
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
            raise EncodeError("loss must return one number as a tensor that depends on the model's weights")
        torch.autograd.grad(value.sum(), parameters, allow_unused=True)


def _moved(value: Any, device: torch.device | None) -> Any:
    """Return a value on the model's device, if it can be moved at all."""
    return value.to(device) if device is not None and hasattr(value, "to") else value
