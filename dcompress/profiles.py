"""What a file may ask of its reader: anything, or what a small device has (spec sections 3 and 13)."""

from __future__ import annotations

from dataclasses import dataclass

from dcompress.constants import MAX_LABELS, MAX_TABLE_SETS

__all__ = ["BASELINE", "FULL", "PROFILES", "Profile"]


@dataclass(frozen=True)
class Profile:
    """Bounds that an encoder keeps to.

    Attributes
    ----------
    name : str
        As recipes and the command line say it.
    chunk_words : int, optional
        Words of a chunk; None = as many as make decoding fast.
    row_words, classes : int
        Words of a row, and rows, columns and positions together, of a tensor that contexts code.
    labels, values : int
        Labels of a tensor, and values of all its codebooks.
    table_sets, table_set_bytes : int
        Table sets of a file, and the bytes of one.
    rank, name_bytes, tensors, directory_bytes : int
        Dimensions of a tensor, bytes of a name or metadata key; tensors, and bytes of the directory.
    """

    name: str
    chunk_words: int | None
    row_words: int
    classes: int
    labels: int
    values: int
    table_sets: int
    table_set_bytes: int
    rank: int
    name_bytes: int
    tensors: int
    directory_bytes: int

    @property
    def steps(self) -> int:
        """Most steps from zero to the largest weight of a tensor: a path may go two further."""
        return self.labels // 2 - 3

    def shift(self, wanted: int) -> int:
        """Return a chunk shift in words, no larger than wanted or allowed."""
        return wanted if self.chunk_words is None else min(wanted, self.chunk_words.bit_length() - 1)


FULL = Profile(
    name="full",
    chunk_words=None,
    row_words=1 << 22,
    classes=1 << 62,
    labels=MAX_LABELS,
    values=1 << 16,
    table_sets=MAX_TABLE_SETS,
    table_set_bytes=1 << 16,
    rank=64,
    name_bytes=1 << 16,
    tensors=1 << 20,
    directory_bytes=1 << 28,
)
BASELINE = Profile(
    name="baseline",
    chunk_words=1 << 14,
    row_words=1 << 12,
    classes=1 << 14,
    labels=1 << 8,
    values=1 << 12,
    table_sets=16,
    table_set_bytes=1 << 13,
    rank=8,
    name_bytes=255,
    tensors=1 << 14,
    directory_bytes=1 << 20,
)
PROFILES = {profile.name: profile for profile in (FULL, BASELINE)}
