"""The pseudo-code of the spec as one more decoder. Slow: for small frames, now and then."""

from __future__ import annotations

import re
import struct
import zlib
from functools import cache, lru_cache
from pathlib import Path
from types import SimpleNamespace

from tests.fuzz.frames import LIMITS

SPEC = Path(__file__).parents[2] / "spec" / "dcz-1.md"


class Breach(Exception):  # noqa: N818
    """What the pseudo-code's ``fail`` raises."""


def _fail(rule):
    raise Breach(rule)


def _is_utf8(data):
    try:
        bytes(data).decode()
    except UnicodeDecodeError:
        return False
    return True


@cache
def load_spec() -> SimpleNamespace:
    """Return the names that the pseudo-code defines."""
    names = {
        "fail": _fail,
        "is_utf8": _is_utf8,
        "bit_length": int.bit_length,
        "little_endian": lambda words, n: b"".join(word.to_bytes(n, "little") for word in words),
    }
    for block in re.findall(r"```python\n(.*?)```", SPEC.read_text(encoding="utf-8"), re.DOTALL):
        exec(block, names)
    assign_codes = lru_cache(names["assign_codes"])
    names["assign_codes"] = lambda lengths: assign_codes(tuple(lengths))
    return SimpleNamespace(**names)


def verdict_of_spec(data: bytes) -> str:
    """Return what the pseudo-code says of a frame, as `tests.fuzz.frames.verdict` does."""
    spec = load_spec()
    try:
        tensors = spec.decode_frame(data, LIMITS)
    except Breach as breach:
        return str(breach)
    total = 0
    for name, dtype, shape, words in tensors:
        head = struct.pack("<I", len(name)) + bytes(name) + struct.pack("<BI", dtype, len(shape))
        total = zlib.crc32(head + struct.pack(f"<{len(shape)}Q", *shape), total)
        n_bytes = spec.DTYPES[dtype][1]
        total = zlib.crc32(b"".join(word.to_bytes(n_bytes, "little") for word in words), total)
    return f"ok {total:08x}"
