"""Batch norms of a network in evaluation: statistics folded away, and grids for what is left."""

from __future__ import annotations

import math

import torch
from torch import nn

# Steps are these parts of the median magnitude, or up to twice as fine: powers of two.
FINENESS = {"weight": 12, "bias": 8}


def norm_after(model: nn.Module, kernel: str) -> nn.BatchNorm2d | None:
    """Return the batch norm behind a convolution, from the name of its kernel: bn1 after conv1, and so on."""
    path, _, layer = kernel.removesuffix(".weight").rpartition(".")
    if not layer.startswith("conv"):
        return None
    found = model.get_submodule(f"{path}.{layer.replace('conv', 'bn')}".lstrip("."))
    assert isinstance(found, nn.BatchNorm2d)
    return found


@torch.no_grad()
def fold_norms(model: nn.Module) -> None:
    """Set the statistics of all batch norms to 0 and 1, and their weights and biases to what does the same.

    Half of what a batch norm holds is then the same for all networks, and takes next to nothing in a file.
    Where a filter is all zeros the weight becomes 0.
    """
    for name, kernel in model.named_parameters():
        norm = norm_after(model, name)
        if norm is not None:
            assert norm.running_mean is not None
            assert norm.running_var is not None
            scale = norm.weight / (norm.running_var + norm.eps).sqrt() * kernel.flatten(1).any(1)
            norm.bias.sub_(norm.running_mean * scale)
            norm.weight.copy_(scale * (1 + norm.eps) ** 0.5)
            norm.running_mean.zero_()
            norm.running_var.fill_(1)


def vector_steps(model: nn.Module) -> dict[str, float]:
    """Return a step for each bias and each weight of a norm, by name: a power of two."""
    steps = {}
    for name, value in model.named_parameters():
        if value.ndim == 1:
            sizes = value.detach().abs()
            middle = float(sizes[sizes > 0].median()) if sizes.any() else 1.0
            steps[name] = 2.0 ** math.floor(math.log2(middle / FINENESS[name.rpartition(".")[2]]))
    return steps
