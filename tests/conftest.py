from __future__ import annotations

from importlib import import_module

import pytest
from hypothesis import settings

# A kernel may be compiled in the midst of an example: no deadline could tell that from slow code.
# The same examples in every run: a change is judged by what it did, not by luck.
settings.register_profile("dcompress", deadline=None, derandomize=True)
settings.load_profile("dcompress")

_MODULES = {"numpy": "dcompress.kernels.reference", "numba": "dcompress.kernels.jit"}


@pytest.fixture(scope="module", params=sorted(_MODULES, reverse=True))
def kernel(request):
    """Each kernel module in turn, chosen for everything that the test does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DCOMPRESS_KERNELS", request.param)
        yield import_module(_MODULES[request.param])


@pytest.fixture
def reference_kernels(monkeypatch):
    """NumPy kernels, for tests in which the kernels do not matter but their start does."""
    monkeypatch.setenv("DCOMPRESS_KERNELS", "numpy")
