"""From a dense network to a file and back, on scikit-learn's digits."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import dcompress
from dcompress.train import Compressor
from tests.train.loops import digits


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
