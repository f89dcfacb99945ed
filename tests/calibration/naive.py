"""What layers see, by loops over samples, positions, kernel places and steps."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch.nn import functional


def outer_sum(vectors):
    vectors = [np.asarray(one, np.float64) for one in vectors]
    return sum(np.outer(one, one) for one in vectors), sum(vectors), len(vectors)


def patches(module, seen):
    """Return, for each group, what each output position of a convolution sees."""
    kernel, stride, dilation = module.kernel_size, module.stride, module.dilation
    n_dims = len(kernel)
    if isinstance(module.padding, str):
        both = [d * (k - 1) if module.padding == "same" else 0 for k, d in zip(kernel, dilation, strict=True)]
        pads = [(total // 2, total - total // 2) for total in both]
    else:
        pads = [(size, size) for size in module.padding]
    flat = [size for pair in reversed(pads) for size in pair]
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    padded = functional.pad(seen, flat, mode=mode).numpy()
    n_each = padded.shape[1] // module.groups
    spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    starts = [
        range(0, size - span + 1, s) for size, span, s in zip(padded.shape[2:], spans, stride, strict=True)
    ]
    found = [[] for _ in range(module.groups)]
    for sample in padded:
        for start in itertools.product(*starts):
            for group in range(module.groups):
                vector = []
                for channel in range(group * n_each, (group + 1) * n_each):
                    for place in itertools.product(*(range(k) for k in kernel)):
                        at = tuple(start[axis] + place[axis] * dilation[axis] for axis in range(n_dims))
                        vector.append(sample[(channel, *at)])
                found[group].append(vector)
    return found


def hidden_states(module, sequence, state=None):
    """Return the inputs and earlier hidden states of each weight, by running cells over one sequence.

    ``sequence`` has a row for each step; ``state`` is (h, c), each with a row for each layer and direction.
    """
    cells = {"LSTM": torch.nn.LSTMCell, "GRU": torch.nn.GRUCell}
    found = {}
    seen = list(sequence)
    directions = 2 if module.bidirectional else 1
    for layer in range(module.num_layers):
        sides = []
        for side in range(directions):
            suffix = f"_l{layer}" + ("_reverse" if side else "")
            options = {"bias": module.bias, "dtype": sequence.dtype}
            if module.mode in cells:
                cell = cells[module.mode](len(seen[0]), module.hidden_size, **options)
            else:
                kind = module.mode.removeprefix("RNN_").lower()
                cell = torch.nn.RNNCell(len(seen[0]), module.hidden_size, nonlinearity=kind, **options)
            with torch.no_grad():
                for name, parameter in cell.named_parameters():
                    parameter.copy_(getattr(module, name + suffix))
            row = layer * directions + side
            hidden = torch.zeros(module.hidden_size, dtype=sequence.dtype) if state is None else state[0][row]
            memory = torch.zeros_like(hidden) if state is None else state[1][row]
            inputs, pasts, outputs = [], [], []
            with torch.no_grad():
                for step in reversed(seen) if side else seen:
                    inputs.append(step.numpy())
                    pasts.append(hidden.numpy())
                    if module.mode == "LSTM":
                        hidden, memory = cell(step, (hidden, memory))
                    else:
                        hidden = cell(step, hidden)
                    outputs.append(hidden)
            found[f"weight_ih{suffix}"], found[f"weight_hh{suffix}"] = inputs, pasts
            sides.append(outputs[::-1] if side else outputs)
        seen = [torch.cat(pair) for pair in zip(*sides, strict=True)]
    return found, seen
