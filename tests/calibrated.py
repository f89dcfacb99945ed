"""A small network, inputs that are correlated, and files of both, for tests of calibrated encoding."""

from __future__ import annotations

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

N_COLUMNS = 24


def network(seed=1):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(N_COLUMNS, 32), nn.ReLU(), nn.Linear(32, 8)).eval()


def inputs(seed=0):
    """Return batches whose columns are mixtures of few."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((6, 40, 5)) @ np.random.default_rng(9).standard_normal((5, N_COLUMNS))
    return [torch.tensor(one, dtype=torch.float32) for one in mixed + 0.1 * rng.standard_normal(mixed.shape)]


def error(state_dict):
    model, other = network(), network(2)
    other.load_state_dict(state_dict)
    with torch.no_grad():
        return sum(float((model(one) - other(one)).square().sum()) for one in inputs(3))


def write_files(folder, stats):
    """Write the network as model.safetensors, and its statistics as stats.safetensors; return the folder."""
    save_file(network().state_dict(), folder / "model.safetensors")
    stats.save(folder / "stats.safetensors")
    return folder
