"""What flows into a layer: products of its inputs with themselves and with the outputs that are wanted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dcompress.errors import RecipeError

__all__ = ["Moments", "Readable", "columns_of", "gather_moments", "input_columns"]

# Layers whose output is a matrix product of their input.
Readable = (nn.Linear, nn.Conv1d, nn.Conv2d)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)


def input_columns(module: nn.Module, seen: Tensor) -> Tensor:
    """Return an input of a layer as the rows that its weight matrix is multiplied with.

    Parameters
    ----------
    module : Linear, Conv1d or Conv2d
        One group of channels; any stride, padding and dilation.
    seen : Tensor
        What it is called with.

    Returns
    -------
    rows : Tensor of shape (n_outputs, n_columns), float64
        One row for each output position; columns as in ``weight.flatten(1)``.
    """
    if isinstance(module, _CONVOLUTIONS):
        padded = seen.unsqueeze(0) if seen.ndim == module.weight.ndim - 1 else seen
        if any(module._reversed_padding_repeated_twice):
            mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
            padded = functional.pad(padded, module._reversed_padding_repeated_twice, mode=mode)
        sizes = module.kernel_size, module.dilation, module.stride
        if isinstance(module, nn.Conv1d):
            padded, sizes = padded.unsqueeze(2), tuple((1, *size) for size in sizes)  # type: ignore[assignment]
        kernel, dilation, stride = sizes
        cut = functional.unfold(padded.double(), kernel, dilation=dilation, stride=stride)
        return cut.transpose(1, 2).flatten(0, 1)
    return seen.double().reshape(-1, seen.shape[-1])


def columns_of(module: nn.Module, inputs: Sequence[int]) -> list[int]:
    """Return the columns of a layer's weight matrix that belong to some of its input channels."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    wide = weight[0, 0].numel() if weight.ndim > 2 else 1
    return [place * wide + offset for place in inputs for offset in range(wide)]


class Moments:
    """Sums over all samples for one layer.

    Attributes
    ----------
    inner : Tensor of shape (n_columns + 1, n_columns + 1), float64
        Of its inputs, with a column of ones at the end.
    cross : Tensor of shape (n_columns + 1, n_outputs), float64
        Of its inputs and the outputs wanted.
    squares : float
        Sum of squares of the outputs wanted.
    """

    def __init__(self, module: nn.Module) -> None:
        weight = module.weight
        assert isinstance(weight, Tensor)
        n_columns, device = weight[0].numel() + 1, weight.device
        self.inner = torch.zeros(n_columns, n_columns, dtype=torch.float64, device=device)
        self.cross = torch.zeros(n_columns, len(weight), dtype=torch.float64, device=device)
        self.squares = 0.0

    def add(self, rows: Tensor, wanted: Tensor) -> None:
        """Count some rows of inputs, and the outputs that are wanted of them."""
        rows = functional.pad(rows, (0, 1), value=1.0)
        self.inner += rows.T @ rows
        self.cross += rows.T @ wanted
        self.squares += float(wanted.square().sum())

    def energy(self, bias: Tensor | None) -> float:
        """Return the sum of squares of the outputs wanted, less the bias."""
        if bias is None:
            return self.squares
        bias = bias.detach().double()
        return self.squares - float((2 * self.cross[-1] - self.inner[-1, -1] * bias) @ bias)

    def error(self, weight: Tensor, bias: Tensor | None, columns: list[int]) -> float:
        """Return the squared error of the outputs with a weight matrix for some columns of the input."""
        if bias is not None:
            weight = torch.cat([weight, bias.detach().double()[:, None]], 1)
            columns = [*columns, len(self.inner) - 1]
        inner, cross = self.inner[columns][:, columns], self.cross[columns]
        return max(
            0.0, self.squares - 2 * float((weight * cross.T).sum()) + float(((weight @ inner) * weight).sum())
        )


@torch.no_grad()
def gather_moments(
    model: nn.Module,
    original: nn.Module,
    names: Iterable[str],
    outputs_left: Mapping[str, list[int]],
    samples: Iterable[tuple[Any, ...]],
) -> dict[str, Moments]:
    """Return the moments of some layers: inputs of a model, outputs of the original one.

    Parameters
    ----------
    model, original : Module
        Of the same structure; run in evaluation mode.
    names : iterable of str
        Layers of the kinds in ``Readable``.
    outputs_left : mapping of str to list of int
        By layer that has fewer outputs than the original's: those that are left.
    samples : iterable of tuple
        What the model is called with.

    Raises
    ------
    RecipeError
        A layer was not called just once, or its values are not finite.
    """
    moments = {name: Moments(model.get_submodule(name)) for name in names}
    inputs: dict[str, list[Tensor]] = {}
    outputs: dict[str, list[Tensor]] = {}
    hooks = []

    def keep(name: str, into: dict[str, list[Tensor]], of_inputs: bool) -> Any:
        def hook(_module: nn.Module, seen: tuple[Any, ...], output: Tensor) -> None:
            into.setdefault(name, []).append(seen[0] if of_inputs else output)

        return hook

    for name in moments:
        hooks.append(model.get_submodule(name).register_forward_hook(keep(name, inputs, True)))
        hooks.append(original.get_submodule(name).register_forward_hook(keep(name, outputs, False)))
    try:
        for sample in samples:
            inputs.clear()
            outputs.clear()
            model(*sample)
            original(*sample)
            for name, sums in moments.items():
                seen, made = inputs.get(name, []), outputs.get(name, [])
                if len(seen) != 1 or len(made) != 1:
                    raise RecipeError(f"layer {name!r} was called {len(seen)} times for a sample, not once")
                module = original.get_submodule(name)
                wanted = made[0].double()
                if isinstance(module, _CONVOLUTIONS):
                    batched = wanted.unsqueeze(0) if wanted.ndim == module.weight.ndim - 1 else wanted
                    wanted = batched.flatten(2).transpose(1, 2)
                wanted = wanted.reshape(-1, wanted.shape[-1])
                wanted = wanted[:, outputs_left[name]] if name in outputs_left else wanted
                sums.add(input_columns(model.get_submodule(name), seen[0]), wanted)
    finally:
        for hook in hooks:
            hook.remove()
    for name, sums in moments.items():
        if not bool(sums.inner.isfinite().all() and sums.cross.isfinite().all()):
            raise RecipeError(f"the samples give NaN or infinite values at layer {name!r}")
        if not float(sums.inner[-1, -1]):
            raise RecipeError("there are no samples")
    return moments
