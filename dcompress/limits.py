"""What a reader agrees to before it allocates anything (spec section 13)."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["UNLIMITED", "DecodeLimits"]


@dataclass(frozen=True)
class DecodeLimits:
    """Caps that are checked before the memory they cover is allocated.

    Attributes
    ----------
    max_output_bytes : int or None
        Decoded bytes of all tensors together. None allows 4 GiB, or 4,096 times the frame if that is more,
        so that a small file cannot ask for all memory unnoticed.
    max_directory_bytes : int
        Bytes of the tensor directory.
    max_tensors : int
        Number of tensors, aliases included.
    max_name_bytes : int
        Bytes of one tensor name or metadata key.
    max_names_bytes : int
        Bytes of all tensor names together; names share prefixes in the file, but not in memory.
    max_rank : int
        Dimensions of one tensor.
    max_section_bytes : int
        Bytes of one ancillary section, as stored and unpacked.
    """

    max_output_bytes: int | None = None
    max_directory_bytes: int = 1 << 28
    max_tensors: int = 1 << 20
    max_name_bytes: int = 1 << 16
    max_names_bytes: int = 1 << 24
    max_rank: int = 64
    max_section_bytes: int = 1 << 26

    def output_bytes(self, frame_bytes: int) -> int:
        """Return the decoded bytes that a frame of this size may have."""
        if self.max_output_bytes is not None:
            return self.max_output_bytes
        return max(_SMALL_OUTPUT, _USUAL_RATIO * frame_bytes)


_SMALL_OUTPUT = 1 << 32
_USUAL_RATIO = 4096

UNLIMITED = DecodeLimits(*[1 << 62] * 7)  # for what this process has made itself
