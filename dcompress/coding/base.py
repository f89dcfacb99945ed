"""What every coder is, and what the coders of shared tensors have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from dcompress import kernels
from dcompress.coding.range_coder import SideReader, SideWriter
from dcompress.coding.tables import (
    even_step,
    may_be_even,
    read_codebook,
    read_even,
    sort_keys,
    write_codebook,
    write_even,
)
from dcompress.constants import DType
from dcompress.errors import CorruptError
from dcompress.stages import SharedTensor, Words, values_by_label, word_dtype

__all__ = ["Codebook", "Coder", "SharedCoder", "TensorLayout"]

_MAX_CODEBOOK_WORDS = 1 << 16
_KIND_GROUPS = 2


@dataclass(frozen=True)
class TensorLayout:
    """What the directory says about a tensor, as far as a coder needs it.

    Attributes
    ----------
    dtype : DType
        Element type.
    n_words : int
        Words of the whole tensor.
    n_labels : int
        Shared values, zero counted; 0 for coders without a codebook.
    shape : tuple of int
        As the framework shows it.
    n_bytes : int
        Bytes of all its chunks.
    n_table_sets : int
        Table sets of the frame.
    table_set : callable, optional
        Returns a table set by number.
    """

    dtype: DType
    n_words: int
    n_labels: int = 0
    shape: tuple[int, ...] = ()
    n_bytes: int = 0
    n_table_sets: int = 0
    table_set: Callable[[int], Any] | None = None


class Coder(ABC):
    """One way to code the words of a tensor, chunk by chunk.

    A coder holds the tables of its tensor. ``encode_chunk`` gets the labels (coders with a codebook) or the
    words (all others) of one chunk and returns its bytes; ``decode_chunk`` fills in its words, which must be
    zero before if the coder ``wants_zeros``.
    """

    number: ClassVar[int]
    wants_zeros: ClassVar[bool] = False

    @cached_property
    def _built(self) -> dict[str, Any]:
        return {}

    def decoding_tables(self, kernel: ModuleType) -> Any:
        """Return the tables of one kernel module, built once for all chunks."""
        if kernel.__name__ not in self._built:
            self._built[kernel.__name__] = self.build_tables(kernel)
        return self._built[kernel.__name__]

    def build_tables(self, kernel: ModuleType) -> Any:
        """Build what the kernels of this coder need to decode; nothing unless a coder says otherwise."""
        del kernel
        return None

    @abstractmethod
    def write_tables(self, writer: SideWriter) -> None:
        """Write the tables that all chunks share."""

    @classmethod
    @abstractmethod
    def read_tables(cls, reader: SideReader, layout: TensorLayout) -> Coder:
        """Read what ``write_tables`` wrote; raise CorruptError if it makes no sense."""

    @abstractmethod
    def encode_chunk(self, symbols: NDArray[Any], first_word: int = 0) -> bytes:
        """Return the bytes of one chunk, which starts at ``first_word`` of the tensor."""

    @abstractmethod
    def decode_chunk(
        self, chunk: memoryview, first_word: int, out: Words, work: int
    ) -> tuple[int, int] | None:
        """Decode one chunk into ``out``.

        Parameters
        ----------
        chunk : memoryview
            The bytes of the chunk, tables taken off, checksum already verified.
        first_word : int
            Number of the chunk's first word within the tensor.
        out : ndarray of shape (n_words_of_chunk,)
            Overwritten.
        work : int
            Symbols in the whole call, by which kernels are chosen.

        Returns
        -------
        tally : tuple of int, optional
            Checksum sum of the words and how many are kept, from coders that get them on the way.
        """


def _allowed_words(n_groups: int, n_words: int) -> int:
    """Return how many values the codebooks of a tensor may hold together (CBK-02)."""
    return _MAX_CODEBOOK_WORDS if n_groups == 1 else min(_MAX_CODEBOOK_WORDS, n_words)


@dataclass(frozen=True, eq=False)
class Codebook:
    """The shared values of a tensor, as the coders use them.

    Attributes
    ----------
    dtype : DType
        Element type of the values.
    rows : ndarray of shape (n_groups, n_centroids)
        Values as words, ascending by value in each row; without the zero if it stands apart.
    has_zero : bool
        Whether label 0 is the word 0.
    n_words : int
        Words of the whole tensor; each row serves an equal stretch of them.
    """

    dtype: DType
    rows: Words
    has_zero: bool
    n_words: int

    @property
    def n_groups(self) -> int:
        """Number of rows."""
        return int(self.rows.shape[0])

    @property
    def n_negative(self) -> int:
        """Values of the first row that stand below zero."""
        negative, _ = sort_keys(self.dtype, self.rows[0])
        return int(np.count_nonzero(negative))

    @property
    def n_labels(self) -> int:
        """Values a row can give, zero counted."""
        return int(self.rows.shape[1]) + self.has_zero

    def write(self, writer: SideWriter) -> None:
        """Write the codebook as side information."""
        writer.number(_KIND_GROUPS, self.n_groups - 1)
        writer.raw(int(self.has_zero), 1)
        if may_be_even(self.dtype, self.n_groups, self.has_zero, self.rows.shape[1]):
            step = even_step(self.dtype, self.rows[0], self.n_negative)
            writer.raw(int(step is not None), 1)
            if step is not None:
                write_even(writer, step, self.n_negative)
                return
        for row in self.rows:
            write_codebook(writer, self.dtype, row)

    @classmethod
    def read(cls, reader: SideReader, layout: TensorLayout) -> Codebook:
        """Read what ``write`` wrote.

        Raises
        ------
        CorruptError
            Groups that do not divide the tensor (CBK-01), a codebook too large (CBK-02), a zero that stands
            in the codebook as well as apart (CBK-03), a step that makes no codebook (CBK-04), or values that
            are out of range (TAB-01, TAB-03).
        """
        n_groups = reader.number(_KIND_GROUPS, layout.n_words) + 1
        if layout.n_words % n_groups:
            raise CorruptError(f"{n_groups} groups do not divide {layout.n_words} words", rule="CBK-01")
        has_zero = bool(reader.raw(1))
        n_centroids = layout.n_labels - has_zero
        if n_groups * max(1, n_centroids) > _allowed_words(n_groups, layout.n_words):
            raise CorruptError(f"{n_groups} codebooks of {n_centroids} values", rule="CBK-02")
        rows = np.empty((n_groups, n_centroids), word_dtype(layout.dtype.word_bytes))
        if may_be_even(layout.dtype, n_groups, has_zero, n_centroids) and reader.raw(1):
            rows[0] = read_even(reader, layout.dtype, n_centroids)
        else:
            for row in rows:
                row[:] = read_codebook(reader, layout.dtype, n_centroids)
        if has_zero and not rows.all():
            raise CorruptError("zero stands in the codebook and apart from it", rule="CBK-03")
        return cls(layout.dtype, rows, has_zero, layout.n_words)

    @classmethod
    def of(cls, shared: SharedTensor) -> Codebook:
        """Return the codebook of a shared tensor."""
        return cls(shared.dtype, shared.codebook, shared.has_zero, shared.labels.size)

    @property
    def fits(self) -> bool:
        """Whether the format can hold this codebook."""
        return self.rows.size <= _allowed_words(self.n_groups, self.n_words)

    @cached_property
    def lookup(self) -> Words:
        """Values by label, shape (n_groups, n_labels)."""
        return values_by_label(self.rows, self.has_zero)

    def gather(self, labels: NDArray[Any], first_word: int, out: Words, kernel: Any) -> None:
        """Write the words of ``labels``, which start at ``first_word`` of the tensor, to ``out``."""
        lookup = self.lookup
        stretch = self.n_words // self.n_groups
        done = 0
        while done < out.size:
            group, within = divmod(first_word + done, stretch)
            stop = min(out.size, done + stretch - within)
            kernel.gather(lookup[group], labels[done:stop], out[done:stop])
            done = stop


@dataclass(frozen=True, eq=False)
class SharedCoder(Coder):
    """A coder of labels, with the codebook that they refer to.

    Attributes
    ----------
    codebook : Codebook
        The shared values.
    """

    codebook: Codebook

    def write_tables(self, writer: SideWriter) -> None:
        """Write the codebook, then the codes."""
        self.codebook.write(writer)
        self.write_codes(writer)

    @abstractmethod
    def write_codes(self, writer: SideWriter) -> None:
        """Write what the labels are coded with."""

    @abstractmethod
    def decode_labels(
        self, chunk: memoryview, n_words: int, kernel: ModuleType, first_word: int = 0
    ) -> NDArray[Any]:
        """Return the labels of ``n_words`` words from ``first_word`` on; raise CorruptError if illegal."""

    def decode_chunk(
        self, chunk: memoryview, first_word: int, out: Words, work: int
    ) -> tuple[int, int] | None:
        """Decode the labels and gather their words."""
        kernel = kernels.select(work)
        labels = self.decode_labels(chunk, out.size, kernel, first_word)
        self.codebook.gather(labels, first_word, out, kernel)
        return None
