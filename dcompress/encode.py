"""Checkpoint -> frame: stages 1 and 2 by recipe, stage 3 for every tensor, the container around them.

``encode_tensor`` is a pure function of its tensor, so tensors can be encoded anywhere, in any order.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np

from dcompress import kernels
from dcompress.calibration import Calibration
from dcompress.compression import compress_checkpoint
from dcompress.constants import PREAMBLE_BYTES, SECTION_RECEIPT, SECTION_TORCH
from dcompress.container.writer import CodedTensor, Section, write_head
from dcompress.decibels import to_decibels
from dcompress.errors import EncodeError
from dcompress.floats import SHAREABLE, blocks, energy, widen
from dcompress.limits import DecodeLimits
from dcompress.packing import (
    GROUP_WORDS,
    Prepared,
    encode_group,
    encode_tensor,
    prepare,
    word_source,
)
from dcompress.profiles import PROFILES, Profile
from dcompress.recipe import Recipe, TensorRecipe
from dcompress.settings import DEFAULT_EFFORT
from dcompress.stages import Checkpoint, SharedTensor, TensorData, TensorSpec, tensor_specs

__all__ = ["EncodedFrame", "TensorReport", "encode_checkpoint", "encode_tensor"]

Progress = Callable[[int], None]
_RECEIPT_VERSION = 1


@dataclass(frozen=True)
class TensorReport:
    """What became of one tensor.

    Attributes
    ----------
    name : str
        Name of the tensor.
    coded : CodedTensor
        Its coded form.
    n_kept : int
        Words that are not pruned: not zero.
    signal, noise : float
        Sums of squares of the weights, and of what compression changed in them; noise 0 = exact.
    """

    name: str
    coded: CodedTensor
    n_kept: int
    signal: float = 0.0
    noise: float = 0.0

    @property
    def sqnr(self) -> float:
        """Signal to quantisation noise ratio in dB; infinite if nothing changed."""
        return to_decibels(self.signal, self.noise)


@dataclass(frozen=True, eq=False)
class EncodedFrame:
    """A frame, ready to be written.

    Attributes
    ----------
    head : bytes
        Preamble and directory.
    reports : tuple of TensorReport
        One per stored tensor, aliases left out.
    sections : tuple of Section
        Ancillary sections.
    table_sets : tuple of bytes
        What context-coded tensors share.
    plan : mapping of str to TensorRecipe
        What was done to each tensor, tied names included.
    """

    head: bytes
    reports: tuple[TensorReport, ...]
    sections: tuple[Section, ...]
    table_sets: tuple[bytes, ...] = ()
    plan: Mapping[str, TensorRecipe] = field(default_factory=dict)

    @property
    def n_bytes(self) -> int:
        """Bytes of the whole frame."""
        stored = sum(report.coded.stored_bytes for report in self.reports)
        shared = sum(len(table_set) for table_set in self.table_sets)
        return len(self.head) + shared + stored + sum(len(section.data) for section in self.sections)

    def parts(self) -> Iterator[bytes]:
        """Give the frame piece by piece, from start to end."""
        yield self.head
        yield from self.table_sets
        for report in self.reports:
            yield from report.coded.chunks
        for section in self.sections:
            yield section.data

    def write(self, stream: BinaryIO) -> None:
        """Write the frame to a binary stream; it need not be seekable."""
        for part in self.parts():
            stream.write(part)

    def to_bytes(self) -> bytes:
        """Return the frame as one byte string."""
        return b"".join(self.parts())


def encode_checkpoint(
    checkpoint: Checkpoint,
    recipe: Recipe | None = None,
    *,
    receipt: bool = True,
    effort: int = DEFAULT_EFFORT,
    threads: int = 1,
    progress: Progress | None = None,
    memo: dict[Any, TensorReport] | None = None,
    calibration: Calibration | None = None,
) -> EncodedFrame:
    """Return the frame of a checkpoint.

    Parameters
    ----------
    checkpoint : Checkpoint
        May be lazy; beside coded tensors, labels of up to 16 M words that wait for their group are in memory,
        and one tensor.
    recipe : Recipe, optional
        What to prune and share; the ``balanced`` preset by default.
    receipt : bool
        Keep recipe and errors in the file, if compression changed anything.
    effort : int
        From 1, fast, to 9, smallest.
    threads : int
        Threads that code chunks. The frame does not depend on it.
    progress : callable, optional
        Called with the bytes of each tensor that is done.
    memo : dict, optional
        Kept from one call to the next, for the same checkpoint: what depends on nothing that changed since
        is not coded again.
    calibration : Calibration, optional
        Of this model: stages 1 and 2 then keep what its layers give out, rather than their weights.

    Raises
    ------
    EncodeError
        The recipe does not fit, or a tensor cannot be stored.
    """
    recipe = recipe or Recipe()
    profile = PROFILES[recipe.profile]
    for name in checkpoint.tensors:
        _check_name(name)
    _check_metadata(checkpoint.metadata)
    specs = tensor_specs(checkpoint.tensors)
    for name, (dtype, shape) in specs.items():
        if dtype.element_bytes * math.prod(max(1, size) for size in shape) >= 1 << 63:
            raise EncodeError(f"tensor {name!r} has the shape {shape}, larger than a file can say")
    _check_profile(profile, specs, checkpoint.metadata)
    kernels.expect(sum(math.prod(shape) * dtype.words_per_element for dtype, shape in specs.values()))
    compressed = compress_checkpoint(
        checkpoint, recipe, effort=effort, threads=threads, calibration=calibration
    )
    done: dict[str, TensorReport] = {}
    table_sets: list[bytes] = []
    pending: dict[str, tuple[Prepared, int, tuple[float, float]]] = {}
    pool = ThreadPoolExecutor(threads) if threads > 1 else nullcontext()
    with pool as executor:

        def flush() -> None:
            """Code what is pending, which shares a table set."""
            group = [one for one, _, _ in pending.values()]
            coded, table_set = encode_group(group, len(table_sets), effort, executor)
            table_sets.extend([] if table_set is None else [table_set])
            for (name, (_, n_kept, errors)), one in zip(pending.items(), coded, strict=True):
                done[name] = TensorReport(name, one, n_kept, *errors)
            pending.clear()

        n_pending = 0
        for name in compressed:
            if name in checkpoint.ties:
                continue
            key = name, compressed.plan[name]
            if memo is not None and key in memo:
                done[name] = memo[key]
            else:
                original = checkpoint.tensors[name]
                tensor = compressed.compress(name, original)
                one = prepare(tensor, effort if len(table_sets) + 1 < profile.table_sets else 1, profile)
                n_kept, errors = _count_kept(tensor), measure_error(original, tensor)
                if one.in_grid:
                    pending[name] = one, n_kept, errors
                    n_pending += one.n_words
                else:
                    (alone,), _ = encode_group([one], 0, effort, executor)
                    done[name] = TensorReport(name, alone, n_kept, *errors)
                    if memo is not None and name not in compressed.groups:
                        memo[key] = done[name]
                del original, tensor, one
            if n_pending >= GROUP_WORDS:
                flush()
                n_pending = 0
            if progress is not None:
                progress(specs[name][0].element_bytes * math.prod(specs[name][1]))
        flush()
    names = {name: checkpoint.ties.get(name) for name in compressed}
    coded = {name: first if first is not None else done[name].coded for name, first in names.items()}
    reports = [done[name] for name, first in names.items() if first is None]
    sections = _sections(checkpoint, recipe, effort, reports, receipt)
    head = write_head(coded, checkpoint.metadata, sections, table_sets)
    _check_count(profile, "bytes of the directory", len(head) - PREAMBLE_BYTES, profile.directory_bytes)
    plan = {name: compressed.plan[checkpoint.ties.get(name, name)] for name in compressed}
    return EncodedFrame(head, tuple(reports), tuple(sections), tuple(table_sets), plan)


def _check_profile(profile: Profile, specs: Mapping[str, TensorSpec], metadata: Mapping[str, str]) -> None:
    """Refuse a model whose names and shapes are more than readers of a profile take."""
    _check_count(profile, "tensors", len(specs), profile.tensors)
    for name, (_, shape) in specs.items():
        _check_count(profile, f"dimensions of tensor {name!r}", len(shape), profile.rank)
        _check_count(profile, f"bytes of the name {name!r}", len(name.encode()), profile.name_bytes)
    for key in metadata:
        _check_count(profile, f"bytes of the metadata key {key!r}", len(key.encode()), profile.name_bytes)


def _check_count(profile: Profile, what: str, count: int, most: int) -> None:
    if count > most:
        raise EncodeError(f"{count} {what} are more than the {most} of profile {profile.name}")


def _check_name(name: str) -> None:
    """Check that a name can stand in a file.

    Raises
    ------
    EncodeError
        It is no string, reserved, no valid text, or longer than readers allow.
    """
    if not isinstance(name, str):
        raise EncodeError(f"tensor name {name!r} is not a string; rename the tensor")
    if name == "__metadata__":
        raise EncodeError("tensor name '__metadata__' is reserved; rename the tensor")
    try:
        n_bytes = len(name.encode())
    except UnicodeEncodeError:
        raise EncodeError(f"tensor name {name!r} is not valid Unicode; rename the tensor") from None
    if n_bytes > DecodeLimits.max_name_bytes:
        raise EncodeError(f"tensor name {name[:40]!r}... is {n_bytes} bytes long; rename the tensor")


def _check_metadata(metadata: Mapping[str, str]) -> None:
    """Refuse metadata that is no string, no valid text, or has a key longer than readers allow."""
    for key, value in metadata.items():
        if not (isinstance(key, str) and isinstance(value, str)):
            raise EncodeError(f"metadata {key!r}: {value!r} is not a string with a string as its key")
        try:
            n_bytes, _ = len(key.encode()), value.encode()
        except UnicodeEncodeError:
            raise EncodeError(f"metadata {key!r} is not valid Unicode") from None
        if n_bytes > DecodeLimits.max_name_bytes:
            raise EncodeError(f"metadata key {key[:40]!r}... is {n_bytes} bytes long; shorten it")


def _count_kept(tensor: TensorData | SharedTensor) -> int:
    """Return how many words of a tensor are not zero."""
    if isinstance(tensor, SharedTensor):
        return int(np.count_nonzero(tensor.labels)) if tensor.has_zero else tensor.labels.size
    return int(np.count_nonzero(tensor.words))


def measure_error(original: TensorData, tensor: TensorData | SharedTensor) -> tuple[float, float]:
    """Return the sums of squares of the original values and of the differences; (0, 0) if untouched."""
    if tensor is original or original.dtype.name not in SHAREABLE:
        return 0.0, 0.0
    words_of = word_source(tensor)
    signal = noise = 0.0
    for part in blocks(original.words.size):
        before = widen(original.words[part], original.dtype).astype(np.float64)
        after = widen(words_of(part.start, part.stop), original.dtype)
        signal += energy(before)
        before -= after
        noise += energy(before)
    return signal, noise


def _sections(
    checkpoint: Checkpoint, recipe: Recipe, effort: int, reports: list[TensorReport], receipt: bool
) -> list[Section]:
    """Return the ancillary sections of a frame."""
    sections = []
    changed = {number: report for number, report in enumerate(reports) if report.noise}
    if receipt and changed:
        errors = {str(number): [_short(r.signal), _short(r.noise)] for number, r in changed.items()}
        content = {
            "version": _RECEIPT_VERSION,
            "recipe": recipe.to_dict(),
            "effort": effort,
            "errors": errors,
        }
        sections.append(Section(SECTION_RECEIPT, _pack_json(content)))
    if checkpoint.torch_extra:
        sections.append(Section(SECTION_TORCH, _pack_json(checkpoint.torch_extra)))
    return sections


def _short(value: float) -> float:
    """Round to five significant digits, enough for a hundredth of a decibel."""
    return float(f"{value:.5g}")


def _pack_json(content: Mapping[str, Any]) -> bytes:
    """Return JSON as raw deflate, the same for the same content."""
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(text.encode()) + packer.flush()
