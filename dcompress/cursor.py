"""A bounds-checked reader over bytes, and the varint it reads (spec section 4)."""

from __future__ import annotations

from dcompress.errors import CorruptError, TruncatedError

__all__ = ["Cursor", "write_varint"]

_MAX_VARINT = (1 << 64) - 1


def write_varint(out: bytearray, value: int) -> None:
    """Append a number of 0..2**64-1, seven bits a byte, least significant first."""
    if not 0 <= value <= _MAX_VARINT:
        raise ValueError(f"varint out of range: {value}")
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)


class Cursor:
    """Read numbers and byte strings one after the other.

    Parameters
    ----------
    data : bytes-like
        What to read.
    base : int
        Offset of the first byte within the frame, for error messages.
    """

    def __init__(self, data: bytes | memoryview, base: int = 0) -> None:
        self._data = memoryview(data)
        self._base = base
        self._at = 0

    @property
    def offset(self) -> int:
        """Offset of the next byte within the frame."""
        return self._base + self._at

    @property
    def remaining(self) -> int:
        """Bytes not yet read."""
        return len(self._data) - self._at

    def take(self, n_bytes: int) -> memoryview:
        """Return the next ``n_bytes``.

        Raises
        ------
        TruncatedError
            Fewer bytes are left (FRM-01).
        """
        if n_bytes > self.remaining:
            raise TruncatedError(
                f"{n_bytes} bytes wanted, {self.remaining} left", rule="FRM-01", offset=self.offset
            )
        taken = self._data[self._at : self._at + n_bytes]
        self._at += n_bytes
        return taken

    def u8(self) -> int:
        """Return the next byte."""
        return self.take(1)[0]

    def u32(self) -> int:
        """Return the next four bytes as a little-endian number."""
        return int.from_bytes(self.take(4), "little")

    def varint(self, limit: int = _MAX_VARINT) -> int:
        """Return the next varint.

        Raises
        ------
        CorruptError
            More bytes than needed, or more than 64 bits (NUM-01); more than ``limit`` (NUM-02).
        """
        # Written out, not built on u8: a chunk's head is a dozen varints, and there are many chunks.
        data, at = self._data, self._at
        value = shift = 0
        while True:
            if at == len(data):
                raise TruncatedError("the bytes end within a number", rule="FRM-01", offset=self._base + at)
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
            shift += 7
            if shift > 63:
                raise CorruptError("varint longer than ten bytes", rule="NUM-01", offset=self.offset)
        if (byte == 0 and shift) or value > _MAX_VARINT:
            raise CorruptError("varint not in its shortest form", rule="NUM-01", offset=self.offset)
        if value > limit:
            raise CorruptError(f"number {value} exceeds {limit}", rule="NUM-02", offset=self.offset)
        self._at = at
        return value

    def finish(self, rule: str) -> None:
        """Check that everything was read.

        Raises
        ------
        CorruptError
            Bytes are left over.
        """
        if self.remaining:
            raise CorruptError(f"{self.remaining} bytes left over", rule=rule, offset=self.offset)
