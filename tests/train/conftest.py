from __future__ import annotations

from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny tensors: threads only cost. And the same numbers on every machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tools_on_path(monkeypatch):
    """Import what is in tools/; what its commands set in torch is set back."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "tools"))
    deterministic = torch.are_deterministic_algorithms_enabled()
    yield
    if torch.are_deterministic_algorithms_enabled() != deterministic:  # the first call takes seconds
        torch.use_deterministic_algorithms(deterministic)
    torch.set_flush_denormal(False)
