"""Hooks and watchers that see what a model's weights are multiplied with while it runs."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dcompress.calibration.inventory import Inventory
from dcompress.calibration.readers import Reader, Reading, find_reader, read_function
from dcompress.calibration.record import Calibration
from dcompress.calibration.sums import Sums
from dcompress.errors import EncodeError
from dcompress.safetensors_file import shortened

__all__ = ["Collector"]


class Collector:
    """Sums by parameter, and what feeds them while the model runs."""

    def __init__(self, model: nn.Module, inventory: Inventory, max_columns: int) -> None:
        self._batch = 0
        self._holding_out = False
        self._model = model
        self._inventory = inventory
        self._max_columns = max_columns
        self._sums: dict[str, Sums] = {}
        self._depth = 0
        self._unread: dict[str, list[str]] = {}  # by parameter: what used it and is not read
        self._refused: dict[str, str] = {}
        self.n_calls: Counter[str] = Counter()  # by the path of a layer
        # Casts and transposes of weights, by identity; kept, so that no other tensor takes theirs.
        self._aliases: dict[int, tuple[Tensor, str, bool]] = {}

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Return a context in which everything that the model does is seen."""
        handles = []
        try:
            for path, module in self._model.named_modules():
                reader = find_reader(module)
                if reader is None:
                    continue
                before, after = self._hooks(path, reader)
                handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
                handles.append(module.register_forward_hook(after, always_call=True))
            with _FunctionWatcher(self):
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _hooks(self, path: str, reader: Reader) -> tuple[Any, Any]:
        prefix = f"{path}." if path else ""

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._depth += 1
            self.n_calls[path] += 1
            try:
                with torch.no_grad():
                    for reading in reader(module, args, kwargs):
                        assert isinstance(reading.weight, str)
                        self._count(prefix + reading.weight, reading, _shape_of(module, reading.weight))
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, TypeError, AttributeError, NotImplementedError) as error:
                # Inputs of a kind that no reader knows: that is no reason to stop, but to say so.
                ties = self._inventory.ties
                for name in (*self._inventory.shapes, *ties):
                    if name.startswith(prefix) and "." not in name[len(prefix) :].replace("out_proj.", ""):
                        self._refused[ties.get(name, name)] = f"its inputs cannot be read: {shortened(error)}"

        def after(module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
            self._depth -= 1
            if isinstance(module, _WITH_OUTPUTS) and isinstance(output, Tensor):
                self._await_gradient(f"{prefix}weight", module.weight.ndim, output)

        return before, after

    def see_function(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Count a call of a torch function outside of the layers that are read."""
        if self._depth or function in (torch.autograd.grad, torch.autograd.backward):
            return
        used = [one for one in _tensors(args, kwargs) if self._known(one) is not None]
        if not used or any(result is one for one in used):
            return
        turns = _turns(function, used[0])
        if turns is not None and isinstance(result, Tensor):
            name, turned = self._known(used[0]) or ("", False)
            self._aliases[id(result)] = result, name, turned != turns
            return
        self._depth += 1
        try:
            with torch.no_grad():
                readings = read_function(function, args, kwargs, self._is_turned)
            for reading in readings or ():
                name = (self._known(reading.weight) or ("", False))[0]
                self._count(name, reading, self._inventory.shapes[name])
            if readings and readings[0].rows is not None and isinstance(result, Tensor):
                self._await_gradient(name, len(self._inventory.shapes[name]), result)
        finally:
            self._depth -= 1
        if readings is None:
            for one in used:
                uses = self._unread.setdefault((self._known(one) or ("", False))[0], [])
                name = getattr(function, "__name__", str(function))
                if name not in uses:
                    uses.append(name)

    def _await_gradient(self, name: str, n_dims: int, output: Tensor) -> None:
        """Count the gradient at an output, if there is to be one."""
        name = self._inventory.ties.get(name, name)
        if not output.requires_grad or name not in self._sums:
            return
        channel_dim = -1 if n_dims == 2 or self._sums[name].kinds[-1] == "bilinear" else 1 - n_dims

        def hook(gradient: Tensor) -> None:
            with torch.no_grad():
                try:
                    self._sums[name].add_gradient(gradient, channel_dim)
                except ValueError as error:
                    raise EncodeError(f"layer of {name!r}, batch {self._batch}: {error}") from None

        output.register_hook(hook)  # type: ignore[no-untyped-call]

    def begin(self, batch: int, holding_out: bool) -> None:
        """Say which batch comes now, and whether it is held out."""
        self._batch, self._holding_out = batch, holding_out
        self._aliases.clear()

    def _is_turned(self, value: Any) -> bool | None:
        known = self._known(value)
        return None if known is None else known[1]

    def _known(self, value: Any) -> tuple[str, bool] | None:
        """Return which weight a tensor is, and whether transposed; None for anything else."""
        alias = self._aliases.get(id(value))
        if alias is not None:
            return alias[1:]
        name = self._inventory.names.get(id(value))
        return (name, False) if name in self._inventory.shapes else None

    def _count(self, name: str, reading: Reading, shape: tuple[int, ...]) -> None:
        name = self._inventory.ties.get(name, name)
        sums = self._sums.setdefault(name, Sums(shape, reading.layout, self._max_columns))
        if sums.shape != shape or (sums.layout != reading.layout and reading.rows is not None):
            self._refused[name] = f"used as {sums.kinds[0]} and, the other way round, as {reading.kind}"
            return
        if reading.kind not in sums.kinds:
            sums.kinds.append(reading.kind)
        try:
            if reading.rows is not None:
                sums.add(reading.rows, holdout=self._holding_out, part=reading.part, n_parts=reading.n_parts)
            elif reading.places is not None:
                sums.add_row_weights(reading.places, reading.factors)
        except ValueError as error:
            raise EncodeError(f"layer of {name!r}, batch {self._batch}: {error}") from None

    def finish(self, n_batches: int, n_holdout: int) -> Calibration:
        """Return everything, on the CPU, in the order of the model."""
        found = self._inventory
        moments, skipped, notes = {}, {}, []
        order = [*found.shapes, *(name for name in self._sums if name not in found.shapes)]
        for name in order:
            unread = ", ".join(self._unread.get(name, ()))
            if name in self._refused:
                skipped[name] = self._refused[name]
            elif name in self._sums:
                moments[name] = self._sums.pop(name).finish(name)
                if unread:
                    notes.append(f"{name} is also used by {unread}, which is not read")
                if len(moments[name].kinds) > 1:
                    notes.append(f"{name} is used as {' and '.join(moments[name].kinds)}: both are added up")
            elif unread:
                skipped[name] = f"used by {unread}, which is not read"
            else:
                skipped[name] = self._why_not(name)
        ties = {name: first for name, first in found.ties.items() if first in moments}
        notes += [f"{name} is {first}: what both do is added up" for name, first in ties.items()]
        if not n_holdout:
            notes.append("no batch was held out")
        return Calibration(
            moments,
            found.shapes,
            found.n_parameters,
            n_batches,
            n_holdout,
            ties,
            skipped,
            tuple(notes),
        )

    def _why_not(self, name: str) -> str:
        path = name.rpartition(".")[0]
        try:
            module = self._model.get_submodule(path)
        except AttributeError:
            return "never used"
        if find_reader(module) is not None:
            return "its layer was never called"
        return f"{self._inventory.owners[name]} is not read"


# Layers of which an output channel is a row of the weight's matrices.
_WITH_OUTPUTS = (
    *(nn.Linear, nn.Bilinear, nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)


class _FunctionWatcher(TorchFunctionMode):
    """Sees every torch function that is called with a weight, to find what happens outside of layers."""

    def __init__(self, collector: Collector) -> None:
        super().__init__()
        self._collector = collector

    def __torch_function__(
        self, func: Any, _types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if isinstance(result, (Tensor, tuple, list)) and not isinstance(result, torch.Size):
            self._collector.see_function(func, args, kwargs, result)
        return result


def _tensors(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """Return the tensors among arguments, and in lists and tuples of them."""
    found: list[Tensor] = []
    for one in (*args, *kwargs.values()):
        some = one if isinstance(one, (list, tuple)) else (one,)
        found.extend(inner for inner in some if isinstance(inner, Tensor))
    return found


def _turns(function: Any, weight: Tensor) -> bool | None:
    """Whether a function transposes a matrix; False if it casts or copies one; None if it does more."""
    name = getattr(function, "__name__", "")
    if function in _TURNING_GETTERS or (name in ("t", "transpose") and weight.ndim == 2):
        return True
    return False if name in _KEEPING else None


_TURNING_GETTERS: tuple[Any, ...] = tuple(getattr(one, "__get__") for one in (Tensor.T, Tensor.mT))  # noqa: B009
_KEEPING = {"to", "float", "double", "half", "bfloat16", "type_as", "contiguous", "detach", "clone"}


def _shape_of(module: nn.Module, path: str) -> tuple[int, ...]:
    owner, _, attribute = path.rpartition(".")
    weight = getattr(module.get_submodule(owner), attribute)
    assert isinstance(weight, Tensor)
    return tuple(weight.shape)
