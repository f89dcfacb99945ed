"""What invalid vectors are, and what many of them start from."""

from __future__ import annotations

from dataclasses import dataclass, field

from vector_book import Book
from vector_bytes import varint
from vector_coders import Tensor, raw
from vector_frames import Frame

__all__ = ["BOOK", "BYTE", "ERRORS", "ONE", "WORDS", "Invalid", "bare", "record"]

ERRORS = {
    "FRM-01": "TruncatedError",
    "FRM-02": "NotDczError",
    **dict.fromkeys(("FRM-03", "FRM-04", "DIR-05", "DIR-07"), "UnsupportedError"),
    **dict.fromkeys(("FRM-05", "CHK-01", "DIG-01", "SEC-01"), "ChecksumError"),
}


@dataclass(frozen=True)
class Invalid:
    """A frame that breaks one rule, and what a careless decoder would do with it."""

    rule: str
    reason: str
    careless: str
    frame: Frame | bytes
    limits: dict[str, int] = field(default_factory=dict)  # instead of the default ones
    or_rule: str = ""  # another rule that may be reported (spec 4.3)
    read: str = ""  # "section": only who reads sections finds it; "json": who unpacks them
    hostile: bool = False  # asks for time or memory

    @property
    def error(self) -> str:
        """The class of error of section 14.6."""
        return "LimitError" if self.rule.startswith("LIM") else ERRORS.get(self.rule, "CorruptError")

    def to_bytes(self) -> bytes:
        """Return the frame."""
        return self.frame if isinstance(self.frame, bytes) else self.frame.to_bytes()


BYTE = raw("a", "uint8", (2,), [7, 8])
ONE = Frame([BYTE])
BOOK = Book([[1, 2, 255]])
WORDS = [0, 0, 1, 0, 2, 255, 0, 0, 0, 1, 0, 0]


def record(
    dtype: int = 2, shape: tuple[int, ...] = (2,), rest: bytes = b"", rank: bytes | None = None
) -> bytes:
    """Return a tensor record from Dtype on; dimensions as they are, then what follows."""
    return (
        bytes([dtype]) + (varint(len(shape)) if rank is None else rank) + b"".join(map(varint, shape)) + rest
    )


def bare(record: bytes, name: bytes = b"a", **changes: object) -> Frame:
    """Return a frame of one tensor, whose record is given as bytes and which has no chunks."""
    return Frame([Tensor(name, BYTE.dtype, (0,), [], raw_record=record, bodies=())]).but(**changes)
