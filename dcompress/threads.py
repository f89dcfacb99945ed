"""How many threads there are to use."""

from __future__ import annotations

import os

__all__ = ["usable_threads"]


def usable_threads(threads: int | None = None) -> int:
    """Return the asked number of threads, or what this process may use if none is asked for.

    Raises
    ------
    ValueError
        Less than one thread is asked for.
    """
    if threads is None:
        if hasattr(os, "sched_getaffinity"):
            return max(1, len(os.sched_getaffinity(0)))
        return os.cpu_count() or 1
    if threads < 1:
        raise ValueError(f"threads must be at least 1, not {threads}")
    return threads
