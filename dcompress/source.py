"""Where the bytes of a frame come from: memory, or a file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

import numpy as np

__all__ = ["BytesSource", "FileSource", "Source"]


class Source(Protocol):
    """Where a frame's bytes come from."""

    def size(self) -> int:
        """Return how many bytes there are."""

    def read(self, offset: int, n_bytes: int) -> memoryview:
        """Return bytes from an offset on; fewer at the end. Safe in many threads at once."""

    def close(self) -> None:
        """Let go of the bytes."""


class BytesSource:
    """A frame in memory."""

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        self._data = memoryview(data).cast("B")

    def size(self) -> int:
        """Return how many bytes there are."""
        return len(self._data)

    def read(self, offset: int, n_bytes: int) -> memoryview:
        """Return bytes from an offset on; fewer at the end."""
        return self._data[offset : offset + n_bytes]

    def close(self) -> None:
        """Let go of the bytes."""
        self._data.release()


class FileSource:
    """A frame on disk. Read, not mapped: a file that shrinks meanwhile must not end the process."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._file = Path(path).open("rb", buffering=0)  # noqa: SIM115 (closed by close)

    def size(self) -> int:
        """Return how many bytes there are."""
        return os.fstat(self._file.fileno()).st_size

    def read(self, offset: int, n_bytes: int) -> memoryview:
        """Return bytes from an offset on; fewer at the end."""
        n_bytes = max(0, min(n_bytes, self.size() - offset))
        buffer = np.empty(n_bytes, np.uint8).data
        done = 0
        while done < n_bytes:
            part = os.preadv(self._file.fileno(), [buffer[done:]], offset + done)
            if part == 0:
                break
            done += part
        return buffer[:done]

    def close(self) -> None:
        """Close the file."""
        self._file.close()
