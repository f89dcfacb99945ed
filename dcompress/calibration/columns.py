"""What a convolution multiplies its kernels with, as the columns of a matrix product."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["conv_columns", "conv_transpose_columns", "flat_rows", "pad_input"]

_MOST_VALUES = 1 << 24  # in one piece of unfolded input: 64 MB of float32


def flat_rows(seen: Tensor) -> Tensor:
    """Return an input of a linear layer as rows, of shape (1, n_vectors, n_columns); nested tensors too."""
    if seen.is_nested:
        return torch.cat([one.reshape(-1, one.shape[-1]) for one in seen.unbind()])[None]
    return seen.reshape(1, -1, seen.shape[-1])


def pad_input(module: nn.Module, seen: Tensor) -> Tensor:
    """Return the input of a convolution module, padded as the module does it, with a batch dimension."""
    assert isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
    batched = seen.unsqueeze(0) if seen.ndim == module.weight.ndim - 1 else seen
    if any(module._reversed_padding_repeated_twice):
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        return functional.pad(batched, module._reversed_padding_repeated_twice, mode=mode)
    return batched


def conv_columns(
    padded: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int], groups: int
) -> Iterator[Tensor]:
    """Return, piece by piece, what each output position of a convolution sees.

    Parameters
    ----------
    padded : Tensor of shape (n_samples, n_channels, ...)
        Input with its padding.
    kernel, stride, dilation : sequence of int
        One each for every dimension after the channels.
    groups : int
        Groups of channels.

    Yields
    ------
    rows : Tensor of shape (groups, n_positions, n_columns)
        Columns as in ``weight.flatten(1)``.
    """
    padded = padded.contiguous()
    n_samples, n_channels, *sizes = padded.shape
    spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    n_out = [(size - span) // s + 1 for size, span, s in zip(sizes, spans, stride, strict=True)]
    if min(n_out, default=1) < 1:
        return
    steps = padded.stride()[2:]
    windows = padded.as_strided(
        (n_samples, groups, n_channels // groups, *n_out, *kernel),
        (
            padded.stride(0),
            padded.stride(1) * (n_channels // groups),
            padded.stride(1),
            *(step * s for step, s in zip(steps, stride, strict=True)),
            *(step * d for step, d in zip(steps, dilation, strict=True)),
        ),
        padded.storage_offset(),
    )
    n_dims = len(sizes)
    # group, channel, kernel, sample, positions: as the input lies in memory, so it is copied in runs
    windows = windows.permute(1, 2, *range(3 + n_dims, 3 + 2 * n_dims), 0, *range(3, 3 + n_dims))
    values_each = max(1, n_channels * math.prod(kernel) * math.prod(n_out))
    step = max(1, _MOST_VALUES // values_each)
    n_columns = n_channels // groups * math.prod(kernel)
    for begin in range(0, max(1, n_samples), step):  # once for no sample too: the layer was called
        piece = windows.narrow(2 + n_dims, begin, min(step, n_samples - begin))
        yield piece.reshape(groups, n_columns, piece.shape[2 + n_dims] * math.prod(n_out)).mT


def conv_transpose_columns(
    seen: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Iterator[Tensor]:
    """Return, piece by piece, what each output position of a transposed convolution sees.

    It is a convolution over the input with zeros between its elements, by the kernel turned round.

    Parameters
    ----------
    seen : Tensor of shape (n_samples, n_channels, ...)
        Input.
    kernel, stride, padding, output_padding, dilation : sequence of int
        One each for every dimension after the channels.
    groups : int
        Groups of channels.

    Yields
    ------
    rows : Tensor of shape (groups, n_positions, n_columns)
        Columns are input channel and place in the kernel, in the order of the weight tensor.
    """
    sizes = seen.shape[2:]
    wide = seen.new_zeros(*seen.shape[:2], *((n - 1) * s + 1 for n, s in zip(sizes, stride, strict=True)))
    wide[(slice(None), slice(None), *(slice(None, None, s) for s in stride))] = seen
    pads: list[int] = []
    for k, p, extra, d in zip(kernel, padding, output_padding, dilation, strict=True):
        edge = d * (k - 1) - p
        pads = [edge, edge + extra, *pads]  # negative ones cut
    ones = [1] * len(sizes)
    n_kernel = math.prod(kernel)
    for rows in conv_columns(functional.pad(wide, pads), kernel, ones, dilation, groups):
        yield rows.reshape(*rows.shape[:2], -1, n_kernel).flip(3).flatten(2)
