"""What the directory of a frame says, as frozen records."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dcompress.constants import CODER_CONTEXT, CODER_NAMES, DType

__all__ = ["ChunkRecord", "Directory", "SectionRecord", "TensorRecord"]


@dataclass(frozen=True)
class ChunkRecord:
    """One stored chunk: where it is, how long, and its checksum."""

    offset: int
    n_bytes: int
    checksum: int


@dataclass(frozen=True)
class SectionRecord:
    """One ancillary section: what kind it is, where, how long, and its checksum."""

    kind: int
    offset: int
    n_bytes: int
    checksum: int


@dataclass(frozen=True)
class TensorRecord:
    """One tensor of the directory.

    Attributes
    ----------
    name : str
        Unique within the frame. An opaque key, never a path.
    dtype : DType
        Element type.
    shape : tuple of int
        As the framework shows it.
    coder : int
        Wire number of the coder.
    n_labels : int
        Shared values, zero counted; 0 for coders without a codebook.
    n_kept : int
        Words that are not pruned; all of them unless a run coder says otherwise.
    chunk_shift : int
        Each chunk but the last holds ``2 ** chunk_shift`` units: rows of a context-coded tensor, words of
        any other; 0 = one chunk holds all.
    chunks : tuple of ChunkRecord
        In order; empty if the tensor has no words.
    digest : int
        Checksum of the decoded words.
    alias_of : str or None
        The earlier tensor whose storage this one shares; then everything else is that tensor's.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    coder: int = 0
    n_labels: int = 0
    n_kept: int = 0
    chunk_shift: int = 0
    chunks: tuple[ChunkRecord, ...] = ()
    digest: int = 0
    alias_of: str | None = None

    @property
    def n_words(self) -> int:
        """Words of the decoded tensor."""
        return math.prod(self.shape) * self.dtype.words_per_element

    @property
    def decoded_bytes(self) -> int:
        """Bytes of the decoded tensor."""
        return self.n_words * self.dtype.word_bytes

    @property
    def stored_bytes(self) -> int:
        """Bytes of the chunks; nothing for an alias."""
        return 0 if self.alias_of is not None else sum(chunk.n_bytes for chunk in self.chunks)

    @property
    def coder_name(self) -> str:
        """Name of the coder."""
        return CODER_NAMES[self.coder]

    @property
    def unit_words(self) -> int:
        """Words of a unit that no chunk cuts apart."""
        if self.coder != CODER_CONTEXT:
            return 1
        return self.n_words // self.shape[0] if len(self.shape) > 1 else self.n_words

    def chunk_words(self, number: int) -> tuple[int, int]:
        """Return the first word of a chunk and the word after its last."""
        if self.chunk_shift == 0:
            return 0, self.n_words
        size = self.unit_words << self.chunk_shift
        return number * size, min(self.n_words, (number + 1) * size)


@dataclass(frozen=True)
class Directory:
    """Everything that a frame says before its chunks.

    Attributes
    ----------
    version : tuple of int
        Major and minor version.
    tensors : dict of str to TensorRecord
        In state-dict order.
    metadata : dict of str to str
        Free string metadata.
    table_sets : tuple of ChunkRecord
        Where the table sets are.
    sections : tuple of SectionRecord
        Ancillary sections, known or not.
    head_bytes : int
        Bytes of preamble and directory.
    frame_bytes : int
        Bytes of the whole frame.
    """

    version: tuple[int, int]
    tensors: dict[str, TensorRecord]
    metadata: dict[str, str]
    table_sets: tuple[ChunkRecord, ...]
    sections: tuple[SectionRecord, ...]
    head_bytes: int
    frame_bytes: int
