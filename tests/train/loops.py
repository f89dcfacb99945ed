"""Small models and loops that the tests of dcompress.train share."""

from __future__ import annotations

from functools import cache

import torch
from torch import nn
from torch.nn.functional import cross_entropy


class TwoLayers(nn.Module):
    """A model with a class of its own, a buffer, and a parameter beside its layers."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(16, 24)
        self.norm = nn.BatchNorm1d(24)
        self.second = nn.Linear(24, 4)
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x):
        return self.second(torch.relu(self.norm(self.first(x)))) * self.scale


def two_layers(seed=1):
    torch.manual_seed(seed)
    return TwoLayers()


def batch(step, n=16):
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(n, 16, generator=generator)
    return x, torch.randint(4, (n,), generator=generator)


def train(model, compressor, optimizer, first, last, forward=None):
    """Train from one step to another, each step with its own batch."""
    forward = model if forward is None else forward
    for step in range(first, last):
        x, y = batch(step)
        optimizer.zero_grad()
        (cross_entropy(forward(x), y) + compressor.regularizer()).backward()
        optimizer.step()
        compressor.step()


@cache
def digits():
    """Return images (n, 64) from 0 to 1 and labels: 1,400 to train with, 397 to test with."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    x, y = torch.tensor(pixels / 16, dtype=torch.float32)[order], torch.tensor(labels)[order]
    return (x[:1400], y[:1400]), (x[1400:], y[1400:])
