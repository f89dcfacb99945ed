"""From a dense network to a file and back, on scikit-learn's digits."""

from __future__ import annotations

import itertools
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, pixel_unshuffle

import dcompress
import dcompress.numpy
from dcompress.train import Compressor, ShareStage
from dcompress.train.settings import IMPORTANCES, SCHEDULES
from tests.train.loops import digits
from tests.train.test_grid import GRANULARITIES, impossible, own_function, stage_of


def network(convolutions):
    torch.manual_seed(0)
    if convolutions:
        return nn.Sequential(
            nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 12, 3), nn.ReLU(), nn.Flatten(), nn.Linear(432, 10)
        )
    return nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10))


RECIPES = {
    "deep compression": (False, 13, """
        [[train]]
        pattern = "*.weight"
        sparsity = 0.8
        scope = "global"
        schedule = "cubic"
        begin = 100
        end = 300
        every = 20
        [[train]]
        pattern = "*.weight"
        bits = 4
        begin = 350
    """),
    "quantisation-aware": (False, 8, """
        [[train]]
        pattern = "*.weight"
        method = "uniform"
        bits = 4
        begin = 200
    """),
    "bits at a price": (False, 16, """
        [[train]]
        pattern = "*.weight"
        step = 0.25
        price = 0.3
        begin = 100
        [[train]]
        pattern = "*.bias"
        step = 0.1
        begin = 100
    """),
    "fewer filters, 2:4, fixed point": (True, 7, """
        [[train]]
        pattern = "1.weight"
        granularity = "filter"
        importance = "taylor"
        sparsity = 0.25
        begin = 100
        [[train]]
        pattern = "4.weight"
        granularity = "2:4"
        schedule = "iterative"
        begin = 150
        end = 300
        every = 50
        [[train]]
        pattern = "4.weight"
        method = "fixed_point"
        integer_bits = 0
        fraction_bits = 4
        begin = 350
        [[train]]
        pattern = "*.weight"
        group_lasso = 1e-5
        end = 150
    """),
    "RigL, then sharing": (False, 5, """
        [[train]]
        pattern = "0.weight"
        sparsity = 0.8
        importance = "random"
        schedule = "regrow"
        end = 300
        every = 25
        [[train]]
        pattern = "0.weight"
        bits = 5
        begin = 350
    """),
}  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_a_trained_model_comes_back_from_its_file_exactly(name, tmp_path):
    convolutions, least_ratio, text = RECIPES[name]
    (x, y), (x_test, y_test) = digits()
    model = network(convolutions)
    keys = list(model.state_dict())
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    compressor = Compressor(model, path)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    shuffle = torch.Generator().manual_seed(1)
    for _ in range(500):
        chosen = torch.randint(len(y), (64,), generator=shuffle)
        loss = cross_entropy(model(x[chosen]), y[chosen]) + compressor.regularizer()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        compressor.step()
    model = compressor.finish()
    dcompress.save_model(model, tmp_path / "m.dcz", recipe=compressor.recipe.encode)

    other = network(convolutions)
    dcompress.load_model(other, tmp_path / "m.dcz")
    assert list(other.state_dict()) == keys
    for key, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[key].view(torch.int32), value.view(torch.int32))
    wrong = (other(x_test).argmax(1) != y_test).sum().item()
    assert wrong < 0.08 * len(y_test)  # dense: 3.5 %
    n_bytes = sum(4 * value.numel() for value in model.state_dict().values())
    assert n_bytes > least_ratio * (tmp_path / "m.dcz").stat().st_size


def quarters(x):
    """Return images of 8 x 8 as four channels of 4 x 4."""
    return pixel_unshuffle(x.reshape(-1, 1, 8, 8), 2)


def small_steps(model, optimizer, n_steps, after_step=lambda: None):
    (x, y), _ = digits()
    shuffle = torch.Generator().manual_seed(1)
    for _ in range(n_steps):
        chosen = torch.randint(len(y), (32,), generator=shuffle)
        optimizer.zero_grad()
        cross_entropy(model(quarters(x[chosen])), y[chosen]).backward()
        optimizer.step()
        after_step()


def convolution():
    return nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 10))


@cache  # no fixture of the module: that would come before the one that sets the threads
def trained():
    torch.manual_seed(0)
    model = convolution()
    small_steps(model, torch.optim.Adam(model.parameters(), 3e-3), 300)
    return model.state_dict()


def word(value):
    return getattr(value, "__name__", value)


COMBINATIONS = [
    combination
    for combination in itertools.product(GRANULARITIES, (*IMPORTANCES, own_function), SCHEDULES)
    if not impossible(*combination)
]


def test_there_are_as_many_combinations_as_the_grid_has():
    assert len(COMBINATIONS) == 6 * 11 * 4 - 4 * 4 - 10


@pytest.mark.parametrize(("granularity", "importance", "schedule"), COMBINATIONS, ids=word)
def test_every_combination_comes_back_from_its_file(granularity, importance, schedule, tmp_path):
    """Prune a trained network, share what is left, write it, read it by NumPy: masks, values, error."""
    _, (x, y) = digits()
    model = convolution()
    model.load_state_dict(trained())
    compressor = Compressor(
        model, [stage_of(granularity, importance, schedule), ShareStage("0.weight", bits=4, begin=9)]
    )
    small_steps(model, torch.optim.Adam(model.parameters(), 3e-3), 12, compressor.step)
    mask = compressor.masks()["0.weight"].numpy()
    dcompress.save_model(compressor.finish(), tmp_path / "m.dcz", recipe="lossless")

    arrays = dcompress.numpy.load_file(tmp_path / "m.dcz")
    for name, tensor in model.state_dict().items():
        assert arrays[name].tobytes() == tensor.numpy().tobytes()
    weight = arrays["0.weight"]
    assert np.array_equal(weight != 0, mask)
    assert mask.mean() == 0.5
    assert np.unique(weight[mask]).size <= 16
    if granularity in ("filter", "channel", "kernel"):
        rest = {"filter": (1, 2, 3), "channel": (0, 2, 3), "kernel": (2, 3)}[granularity]
        assert set(mask.mean(rest).flat) == {0.0, 1.0}
    if granularity == "2:4":
        assert (mask.sum(1) == 2).all()
    hidden = np.maximum(model[0](quarters(x)).detach().numpy(), 0).reshape(len(x), -1)
    scores = hidden @ arrays["3.weight"].T + arrays["3.bias"]
    assert (scores.argmax(1) != y.numpy()).mean() < 0.35
