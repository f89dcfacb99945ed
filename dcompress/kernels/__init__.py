"""The loops that touch every weight, twice: in NumPy (``reference``) and in Numba (``jit``).

Both modules have the same functions with the same signatures and give the same bytes. ``select`` picks one
by the amount of work, so that a small model never waits for a compiler and a large one never for NumPy.
"""

from __future__ import annotations

import os
from importlib import util
from types import ModuleType

from dcompress.errors import DcompressError
from dcompress.kernels import reference

__all__ = ["JIT_MIN_WORK", "expect", "select"]

# Below this many coded symbols NumPy finishes before Numba has loaded its compiled kernels
# (measured by tools/bench.py --only start).
JIT_MIN_WORK = 1_000_000

_loaded: list[ModuleType] = []
_expected = [0]


def expect(work: int) -> None:
    """Announce a call's work. Small calls add up: in the long run Numba pays in every process."""
    _expected[0] += work


def select(work: int) -> ModuleType:
    """Return the kernel module for ``work`` coded symbols.

    Parameters
    ----------
    work : int
        Symbols to code or decode in the whole call, not per tensor.

    Returns
    -------
    module
        ``reference`` or ``jit``. ``DCOMPRESS_KERNELS=numpy`` or ``=numba`` overrides the choice; without
        Numba it is ``reference``. Once Numba kernels are loaded they serve every size.

    Raises
    ------
    DcompressError
        ``DCOMPRESS_KERNELS`` is something else, or asks for Numba where there is none.
    """
    choice = os.environ.get("DCOMPRESS_KERNELS", "")
    if choice == "numpy":
        return reference
    if choice not in ("", "numba"):
        raise DcompressError(f"DCOMPRESS_KERNELS is {choice!r}: it may be numpy, or numba, or not set")
    if _loaded:
        return _loaded[0]
    if not choice and max(work, _expected[0]) < JIT_MIN_WORK:
        return reference
    if util.find_spec("numba") is None:
        if choice:
            raise DcompressError("DCOMPRESS_KERNELS asks for Numba, which is missing: pip install numba")
        return reference
    from dcompress.kernels import jit

    # Noted only now: other threads must not see a module that is still being imported.
    _loaded.append(jit)
    return jit
