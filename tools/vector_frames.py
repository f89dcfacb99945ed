"""Writers of frames: preamble, directory, all that follows; and whether the baseline profile reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from vector_bytes import DTYPES, checksum, pack_words, u32, varint
from vector_coders import CODERS, Tensor
from vector_context import TableSet

__all__ = ["BASELINE", "SIGNATURE", "Frame", "alias", "beyond_baseline", "empty"]

SIGNATURE = bytes.fromhex("89 44 43 5A 0D 0A 1A 0A")


@dataclass(frozen=True)
class Frame:
    """A frame field by field. What is None is written as it should be."""

    tensors: Sequence[Tensor] = ()
    metadata: Sequence[tuple[bytes, bytes]] = ()
    sections: Sequence[tuple[int, bytes]] = ()
    table_sets: Sequence[TableSet | bytes] = ()
    signature: bytes = SIGNATURE
    major: int = 1
    minor: int = 0
    features: int = 0
    counts: dict[str, bytes] = field(default_factory=dict)  # varints in place of the right counts
    sizes: dict[str, int] = field(
        default_factory=dict
    )  # sizes that are declared, by "chunk 0:1" and the like
    sums: dict[str, int] = field(default_factory=dict)  # checksums in place of the right ones
    directory: bytes | None = None
    directory_size: int | None = None
    tail: bytes = b""  # after the end of the frame
    cut: int | None = None  # how many bytes of it there are

    def but(self, **changes: Any) -> Frame:
        """Return the frame with some fields changed."""
        return replace(self, **changes)

    def _stored(self, what: str, data: bytes) -> bytes:
        """Return size and checksum of something stored."""
        return varint(self.sizes.get(what, len(data))) + u32(self.sums.get(what, checksum(data)))

    @cached_property
    def set_bytes(self) -> list[bytes]:
        """The table sets."""
        return [one.to_bytes() if isinstance(one, TableSet) else one for one in self.table_sets]

    def _record(self, number: int, before: bytes) -> bytes:
        t = self.tensors[number]
        prefix = t.shared_prefix
        if prefix is None:
            prefix = _n_shared(before, t.name)
        out = varint(prefix) + varint(len(t.name) - prefix) + t.name[prefix:]
        if t.raw_record is not None:
            return out + t.raw_record
        if t.alias_of is not None:
            return out + b"\0" + varint(t.alias_of)
        out += bytes([t.dtype.number]) + varint(len(t.shape)) + b"".join(map(varint, t.shape))
        if t.n_words == 0:
            return out
        out += bytes([t.coder])
        out += varint(t.n_labels) if t.coder >= 2 else b""
        out += varint(t.n_kept) if CODERS[t.coder] in ("zero_run", "split_run") else b""
        out += bytes([t.shift])
        for place, chunk in enumerate(t.chunks):
            out += self._stored(f"chunk {number}:{place}", chunk)
        if t.coder == 0:
            return out
        return out + u32(checksum(pack_words(t.words, t.dtype.word_bytes)) if t.digest is None else t.digest)

    def _count(self, what: str, n: int) -> bytes:
        return self.counts.get(what, varint(n))

    def make_directory(self) -> bytes:
        """Return the directory (spec 8.1)."""
        sets = self.set_bytes
        out = self._count("table_sets", len(sets))
        out += b"".join(self._stored(f"table set {number}", one) for number, one in enumerate(sets))
        out += self._count("tensors", len(self.tensors))
        before = b""
        for number, tensor in enumerate(self.tensors):
            out += self._record(number, before)
            before = tensor.name
        out += self._count("metadata", len(self.metadata))
        for key, value in self.metadata:
            out += varint(len(key)) + key + varint(len(value)) + value
        out += self._count("sections", len(self.sections))
        for number, (kind, data) in enumerate(self.sections):
            out += varint(kind) + self._stored(f"section {number}", data)
        return out

    def to_bytes(self) -> bytes:
        """Return the frame."""
        directory = self.make_directory() if self.directory is None else self.directory
        size = len(directory) if self.directory_size is None else self.directory_size
        preamble = (
            self.signature + bytes([self.major, self.minor]) + self.features.to_bytes(2, "little") + u32(size)
        )
        seal = u32(self.sums.get("head", checksum(preamble + directory)))
        chunks = [chunk for t in self.tensors if t.alias_of is None for chunk in t.chunks]
        parts = [preamble, seal, directory, *self.set_bytes, *chunks, *(data for _, data in self.sections)]
        return (b"".join(parts) + self.tail)[: self.cut]


def _n_shared(before: bytes, name: bytes) -> int:
    """Return how many bytes two names begin with alike."""
    return next(
        (k for k, (a, b) in enumerate(zip(before, name, strict=False)) if a != b), min(len(before), len(name))
    )


def alias(name: str, number: int) -> Tensor:
    """Return an alias of a tensor, by its place in the directory."""
    return Tensor(name.encode(), DTYPES["uint8"], (), [], alias_of=number, bodies=())


def empty(name: str, dtype: str, shape: Sequence[int]) -> Tensor:
    """Return a tensor without words."""
    return Tensor(name.encode(), DTYPES[dtype], tuple(shape), [], bodies=())


# The baseline profile of section 13, by what the maker knows of a frame.

BASELINE = {
    "directory bytes": (1048576, "LIM-01"),
    "tensors": (16384, "LIM-02"),
    "rank": (8, "LIM-03"),
    "name bytes": (255, "LIM-04"),
    "all name bytes": (1048576, "LIM-07"),
    "words of a chunk": (16384, "LIM-08"),
    "words of a row": (4096, "LIM-08"),
    "classes": (16384, "LIM-08"),
    "labels": (256, "LIM-08"),
    "codebook values": (4096, "LIM-08"),
    "table sets": (16, "LIM-08"),
    "tables": (64, "LIM-08"),
    "table set bytes": (8192, "LIM-08"),
}


def _chunk_words(tensor: Tensor) -> int:
    if tensor.n_words == 0:
        return 0
    unit = 1
    if CODERS[tensor.coder] == "context" and len(tensor.shape) > 1:
        unit = tensor.n_words // tensor.shape[0]
    return min(tensor.n_words, unit << tensor.shift) if tensor.shift else tensor.n_words


def beyond_baseline(frame: Frame) -> list[str]:
    """Return which caps of the baseline profile a frame exceeds."""
    sets = frame.set_bytes
    names = [t.name for t in frame.tensors]
    stored = [t for t in frame.tensors if t.alias_of is None]
    sizes = {
        "directory bytes": len(frame.make_directory()),
        "tensors": len(names),
        "rank": max((len(t.shape) for t in stored), default=0),
        "name bytes": max([len(n) for n in names] + [len(key) for key, _ in frame.metadata], default=0),
        "all name bytes": sum(map(len, names)),
        "words of a chunk": max(map(_chunk_words, stored), default=0),
        "words of a row": max((t.cost.get("row", 0) for t in stored), default=0),
        "classes": max((t.cost.get("classes", 0) for t in stored), default=0),
        "labels": max((t.n_labels for t in stored), default=0),
        "codebook values": max((t.cost.get("values", 0) for t in stored), default=0),
        "table sets": len(sets),
        "tables": max((t.cost.get("tables", 0) for t in stored), default=0),
        "table set bytes": max(map(len, sets), default=0),
    }
    return [name for name, (cap, _) in BASELINE.items() if sizes[name] > cap]
