"""Matrix products by one thread at a time, so that their last bits do not depend on how many there are."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from threading import Lock

__all__ = ["one_blas_thread"]

_lock = Lock()
_open = contextlib.ExitStack()
_users = [0]


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """Keep the process's linear algebra to one thread for a while.

    The limit is the whole process's: several threads may ask for it at a time, and the last to leave lifts
    it. Then the same machine gives the same bits, whatever its threads; another kind of processor may not.
    """
    from threadpoolctl import threadpool_limits

    with _lock:
        if not _users[0]:
            _open.enter_context(threadpool_limits(1, user_api="blas"))
        _users[0] += 1
    try:
        yield
    finally:
        with _lock:
            _users[0] -= 1
            if not _users[0]:
                _open.close()
