"""A frame is read before it is written: what no reader would take must not become somebody's only file."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate

from dcompress.decode import FrameReader
from dcompress.encode import EncodedFrame
from dcompress.errors import DecodeError, EncodeError
from dcompress.limits import UNLIMITED

__all__ = ["read_back"]


def read_back(frame: EncodedFrame, threads: int = 1) -> None:
    """Decode all tensors of a frame, one at a time; digests tell whether they are those that were encoded.

    Parameters
    ----------
    frame : EncodedFrame
        Not written yet.
    threads : int
        Threads that decode.

    Raises
    ------
    EncodeError
        A reader would refuse the frame: a bug of the encoder.
    """
    try:
        with FrameReader(_Parts(frame), UNLIMITED, threads) as reader:
            for name, record in reader.directory.tensors.items():
                if record.alias_of is None:
                    reader.read_tensor(name)
            reader.verify_sections()
    except DecodeError as error:
        raise EncodeError(
            f"what was encoded cannot be read back ({error}), so nothing was written. This is a bug of "
            "dcompress: please report it; another step, effort or preset may serve meanwhile"
        ) from error


class _Parts:
    """A frame in memory whose pieces are not put together."""

    def __init__(self, frame: EncodedFrame) -> None:
        self._parts = [part for part in frame.parts() if part]
        self._ends = list(accumulate(map(len, self._parts)))

    def size(self) -> int:
        """Return how many bytes there are."""
        return self._ends[-1]

    def read(self, offset: int, n_bytes: int) -> memoryview:
        """Return bytes from an offset on; fewer at the end."""
        first = bisect_right(self._ends, offset)
        last = bisect_right(self._ends, offset + n_bytes - 1)
        if first == last < len(self._parts):  # a whole chunk mostly
            part, start = memoryview(self._parts[first]), self._ends[first] - len(self._parts[first])
            return part[offset - start : offset - start + n_bytes]
        joined = b"".join(self._parts[first : last + 1])
        start = self._ends[first - 1] if first else 0
        return memoryview(joined)[offset - start : offset - start + n_bytes]

    def close(self) -> None:
        """Let go of the bytes."""
        self._parts = []
