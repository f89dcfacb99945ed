"""The two LeNets as chains of layers: put hidden units in order, drop dead ones, pad with zeros again.

The order of hidden units means nothing to a network, but something to a coder: rows and columns of like
density should stand together, and those without weights at the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from train_lenet import LeNet5, LeNet300100

State = dict[str, Tensor]


@dataclass(frozen=True)
class Link:
    """Two layers that follow each other.

    Attributes
    ----------
    producer, consumer : str
        Layers.
    fan : int
        Inputs of the consumer that stem from one output of the producer: pixels of a feature map.
    """

    producer: str
    consumer: str
    fan: int = 1


@dataclass(frozen=True)
class Network:
    """A network of the paper.

    Attributes
    ----------
    title : str
        As the paper calls it.
    build : type
        Makes it, with fresh random weights.
    layers : tuple of str
        In order.
    links : tuple of Link
        The hidden layers.
    """

    title: str
    build: type[nn.Module]
    layers: tuple[str, ...]
    links: tuple[Link, ...]


NETWORKS = {
    "lenet_300_100": Network(
        "LeNet-300-100", LeNet300100, ("fc1", "fc2", "fc3"), (Link("fc1", "fc2"), Link("fc2", "fc3"))
    ),
    "lenet_5": Network(
        "LeNet-5",
        LeNet5,
        ("conv1", "conv2", "fc1", "fc2"),
        (Link("conv1", "conv2"), Link("conv2", "fc1", 16), Link("fc1", "fc2")),
    ),
}


def tidy(state: Mapping[str, Tensor], network: Network) -> State:
    """Return a network that computes the same, without weights that do nothing, its hidden units sorted.

    Units whose output nobody reads lose their weights, and units that are always zero lose their readers;
    then units are sorted by the number of their weights, the most first.

    Parameters
    ----------
    state : mapping of str to Tensor
        A state dict.
    network : Network
        Whose it is, of any widths.

    Returns
    -------
    state : dict of str to Tensor
        New tensors, of the same names and shapes.
    """
    found = {name: tensor.detach().clone() for name, tensor in state.items()}
    for _ in network.links:  # what one removes may leave its neighbour without work
        for link in network.links:
            weight, bias, reader = _tensors(found, link)
            unread = ~reader.ne(0).any(2).any(0)
            weight[unread], bias[unread] = 0, 0
            silent = ~weight.ne(0).any(1) & (bias == 0)
            reader[:, silent] = 0
    for link in network.links:
        weight, bias, reader = _tensors(found, link)
        counts = weight.ne(0).sum(1) * 1000 + reader.ne(0).sum((0, 2))
        order = counts.sort(descending=True, stable=True).indices
        for part, dim in ((weight, 0), (bias, 0), (reader, 1)):
            part.copy_(part.index_select(dim, order))
    return found


def widen(state: Mapping[str, Tensor], network: Network) -> State:
    """Return a narrow network in the full shapes: the units that it lacks are zero, at the end."""
    full = {name: torch.zeros_like(tensor) for name, tensor in network.build().state_dict().items()}
    for name, tensor in state.items():
        full[name][tuple(slice(0, size) for size in tensor.shape)] = tensor
    return full


def _tensors(state: Mapping[str, Tensor], link: Link) -> tuple[Tensor, Tensor, Tensor]:
    """Return views: the producer's weights (n, rest) and biases (n,), the consumer's weights (m, n, fan)."""
    weight, reader = state[f"{link.producer}.weight"], state[f"{link.consumer}.weight"]
    n = len(weight)
    rest = reader.numel() // (len(reader) * n)
    return weight.view(n, -1), state[f"{link.producer}.bias"], reader.view(len(reader), n, rest)
