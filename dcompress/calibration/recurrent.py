"""What the weights of recurrent layers are multiplied with: inputs, and the hidden states of every step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence

__all__ = ["recurrent_inputs"]


def recurrent_inputs(module: nn.RNNBase, seen: Any, state: Any) -> Iterator[tuple[str, Tensor]]:
    """Return what each weight matrix of an RNN, LSTM or GRU is multiplied with, step by step.

    The layers are run once more, one step at a time, since they show no hidden state but the last layer's.

    Parameters
    ----------
    module : RNN, LSTM or GRU
        In evaluation mode; any number of layers, both directions, projections.
    seen : Tensor or PackedSequence
        Its input.
    state : Tensor, tuple of Tensor or None
        Its initial state.

    Yields
    ------
    name : str
        Of a weight, as the module calls it.
    rows : Tensor of shape (1, n_vectors, n_columns)
        One row for each step of each sequence.
    """
    data, sizes, state = _packed(module, seen, state)
    n_directions = 2 if module.bidirectional else 1
    n_hidden = module.proj_size or module.hidden_size
    for layer in range(module.num_layers):
        outputs = []
        for direction in range(n_directions):
            suffix = f"_l{layer}{'_reverse' if direction else ''}"
            place = layer * n_directions + direction
            hidden = data.new_zeros(sizes[0], n_hidden) if state is None else state[0][place]
            cell = None
            if module.mode == "LSTM":
                cell = data.new_zeros(sizes[0], module.hidden_size) if state is None else state[1][place]
            output, past, unprojected = _run(module, suffix, data, sizes, hidden, cell, bool(direction))
            yield f"weight_ih{suffix}", data[None]
            yield f"weight_hh{suffix}", past[None]
            if module.proj_size:
                yield f"weight_hr{suffix}", unprojected[None]
            outputs.append(output)
        data = torch.cat(outputs, 1)


def _packed(module: nn.RNNBase, seen: Any, state: Any) -> tuple[Tensor, list[int], Any]:
    """Return the input as the data and sizes of a packed sequence, and the state in that order, batched."""
    states = None if state is None else state if isinstance(state, tuple) else (state,)
    if isinstance(seen, PackedSequence):
        if states is not None and seen.sorted_indices is not None:
            states = tuple(one.index_select(1, seen.sorted_indices) for one in states)
        return seen.data, seen.batch_sizes.tolist(), states
    if seen.ndim == 2:
        states = None if states is None else tuple(one.unsqueeze(1) for one in states)
        steps = seen.unsqueeze(1)
    else:
        steps = seen.transpose(0, 1) if module.batch_first else seen
    return steps.reshape(-1, steps.shape[-1]), [steps.shape[1]] * steps.shape[0], states


def _run(
    module: nn.RNNBase,
    suffix: str,
    data: Tensor,
    sizes: list[int],
    hidden: Tensor,
    cell: Tensor | None,
    backwards: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return outputs, hidden states before each step, and outputs before projection, of one direction.

    Sequences are sorted by length, so those that go on are the first ones; a sequence that has not begun
    (backwards) or has ended keeps its state.
    """
    weight_ih, weight_hh = getattr(module, f"weight_ih{suffix}"), getattr(module, f"weight_hh{suffix}")
    bias_ih = getattr(module, f"bias_ih{suffix}") if module.bias else None
    bias_hh = getattr(module, f"bias_hh{suffix}") if module.bias else None
    inner = functional.linear(data, weight_ih, bias_ih)
    past = data.new_empty(len(data), hidden.shape[1])
    output = torch.empty_like(past)
    unprojected = data.new_empty(len(data), module.hidden_size if module.proj_size else 0)
    ends = torch.tensor(sizes).cumsum(0).tolist()
    for step in reversed(range(len(sizes))) if backwards else range(len(sizes)):
        size, end = sizes[step], ends[step]
        here = slice(end - size, end)
        old = hidden[:size]
        past[here] = old
        outer = functional.linear(old, weight_hh, bias_hh)
        if module.mode == "LSTM":
            assert cell is not None
            i, f, g, o = (inner[here] + outer).chunk(4, 1)
            new_cell = f.sigmoid() * cell[:size] + i.sigmoid() * g.tanh()
            cell = torch.cat([new_cell, cell[size:]])
            new = o.sigmoid() * new_cell.tanh()
            if module.proj_size:
                unprojected[here] = new
                new = functional.linear(new, getattr(module, f"weight_hr{suffix}"))
        elif module.mode == "GRU":
            reset, update, new = inner[here].chunk(3, 1)
            hidden_reset, hidden_update, hidden_new = outer.chunk(3, 1)
            new = (new + (reset + hidden_reset).sigmoid() * hidden_new).tanh()
            gate = (update + hidden_update).sigmoid()
            new = new + gate * (old - new)
        else:
            summed = inner[here] + outer
            new = summed.tanh() if module.mode == "RNN_TANH" else summed.relu()
        output[here] = new
        hidden = torch.cat([new, hidden[size:]])
    return output, past, unprojected
