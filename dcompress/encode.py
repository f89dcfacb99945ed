"""Checkpoint -> frame: stages 1 and 2 by recipe, stage 3 for every tensor, the container around them.

``encode_tensor`` is a pure function of its tensor, so tensors can be encoded anywhere, in any order.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from dcompress import kernels
from dcompress.checksum import fold, partial_sum
from dcompress.choice import Choice, choose_plain, choose_shared, table_bytes
from dcompress.coding import Codebook
from dcompress.coding.tables import ascending_order
from dcompress.compression import compress_checkpoint, compress_tensor
from dcompress.constants import (
    CODER_RAW,
    MAX_LABELS,
    RUN_CODERS,
    SECTION_RECEIPT,
    SECTION_TORCH,
    SHARED_CODERS,
)
from dcompress.container.writer import CodedTensor, Section, write_head
from dcompress.decibels import to_decibels
from dcompress.errors import EncodeError
from dcompress.floats import SHAREABLE, blocks, widen
from dcompress.limits import DecodeLimits
from dcompress.recipe import Recipe
from dcompress.stages import Checkpoint, SharedTensor, TensorData, Words, tensor_specs
from dcompress.values import find_values

__all__ = ["EncodedFrame", "TensorReport", "encode_checkpoint", "encode_tensor", "recognise"]

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
    """

    head: bytes
    reports: tuple[TensorReport, ...]
    sections: tuple[Section, ...]

    @property
    def n_bytes(self) -> int:
        """Bytes of the whole frame."""
        stored = sum(report.coded.stored_bytes for report in self.reports)
        return len(self.head) + stored + sum(len(section.data) for section in self.sections)

    def parts(self) -> Iterator[bytes]:
        """Give the frame piece by piece, from start to end."""
        yield self.head
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
    threads: int = 1,
    progress: Progress | None = None,
) -> EncodedFrame:
    """Return the frame of a checkpoint.

    Parameters
    ----------
    checkpoint : Checkpoint
        May be lazy; one tensor at a time is in memory, beside the coded ones.
    recipe : Recipe, optional
        What to prune and share; the ``balanced`` preset by default.
    receipt : bool
        Keep recipe and errors in the file, if compression changed anything.
    threads : int
        Threads that code chunks. The frame does not depend on it.
    progress : callable, optional
        Called with the bytes of each tensor that is done.

    Raises
    ------
    EncodeError
        The recipe does not fit, or a tensor cannot be stored.
    """
    recipe = recipe or Recipe()
    for name in checkpoint.tensors:
        _check_name(name)
    _check_metadata(checkpoint.metadata)
    specs = tensor_specs(checkpoint.tensors)
    for name, (dtype, shape) in specs.items():
        if dtype.element_bytes * math.prod(max(1, size) for size in shape) >= 1 << 63:
            raise EncodeError(f"tensor {name!r} has the shape {shape}, larger than a file can say")
    kernels.expect(sum(math.prod(shape) * dtype.words_per_element for dtype, shape in specs.values()))
    compressed = compress_checkpoint(checkpoint, recipe)
    coded: dict[str, CodedTensor | str] = {}
    reports: list[TensorReport] = []
    pool = ThreadPoolExecutor(threads) if threads > 1 else nullcontext()
    with pool as executor:
        for name in compressed:
            if name in checkpoint.ties:
                coded[name] = checkpoint.ties[name]
                continue
            original = checkpoint.tensors[name]
            tensor = compress_tensor(name, original, compressed.plan[name])
            one = encode_tensor(tensor, executor)
            coded[name] = one
            reports.append(TensorReport(name, one, _count_kept(tensor), *measure_error(original, tensor)))
            if progress is not None:
                progress(original.n_bytes)
    sections = _sections(checkpoint, recipe, reports, receipt)
    head = write_head(coded, checkpoint.metadata, sections)
    return EncodedFrame(head, tuple(reports), tuple(sections))


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
    words_of = _word_source(tensor)
    signal = noise = 0.0
    for part in blocks(original.words.size):
        before = widen(original.words[part], original.dtype).astype(np.float64)
        after = widen(words_of(part.start, part.stop), original.dtype)
        signal += float(before @ before)
        before -= after
        noise += float(before @ before)
    return signal, noise


def _sections(
    checkpoint: Checkpoint, recipe: Recipe, reports: list[TensorReport], receipt: bool
) -> list[Section]:
    """Return the ancillary sections of a frame."""
    sections = []
    changed = {number: report for number, report in enumerate(reports) if report.noise}
    if receipt and changed:
        errors = {str(number): [_short(r.signal), _short(r.noise)] for number, r in changed.items()}
        sections.append(
            Section(
                SECTION_RECEIPT,
                _pack_json({"version": _RECEIPT_VERSION, "recipe": recipe.to_dict(), "errors": errors}),
            )
        )
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


def recognise(tensor: TensorData) -> SharedTensor | None:
    """Return a tensor of few distinct values as labels and codebook, exactly; None if it has many.

    Notes
    -----
    The bound is 4,096 values, the largest alphabet of the format: beyond it, byte planes come out smaller.
    """
    n_words = tensor.words.size
    if n_words == 0:
        return None

    def label_order(values: Words) -> NDArray[np.intp]:
        # Label 0 means the word 0; the others follow in ascending order of value.
        order = ascending_order(tensor.dtype, values)
        return np.concatenate([order[values[order] == 0], order[values[order] != 0]])

    def rank(values: Words) -> NDArray[np.uint16]:
        ranks = np.empty(values.size, np.uint16)
        ranks[label_order(values)] = np.arange(values.size, dtype=np.uint16)
        return ranks

    found = find_values(tensor.words, min(MAX_LABELS, n_words // 4 + 1), rank)
    if found is None:
        return None
    values, labels = found
    codebook = values[label_order(values)]
    has_zero = bool(codebook[0] == 0)
    return SharedTensor(tensor.dtype, tensor.shape, codebook[None, has_zero:], labels, has_zero)


def encode_tensor(tensor: TensorData | SharedTensor, executor: Executor | None = None) -> CodedTensor:
    """Return the smallest coded form of a tensor.

    Parameters
    ----------
    tensor : TensorData or SharedTensor
        Lossless words, or what stage 2 made. Words with few distinct values are recognised.
    executor : Executor, optional
        Where to code chunks side by side. The result does not depend on it.

    Notes
    -----
    Every coder that can hold the tensor is costed exactly, tables included; the smallest wins.
    """
    if isinstance(tensor, SharedTensor):
        shared: SharedTensor | None = tensor
        n_words = tensor.labels.size
    else:
        n_words = tensor.words.size
        shared = recognise(tensor)
    if n_words == 0:
        return CodedTensor(tensor.dtype, tensor.shape, CODER_RAW, 0, 0, 0, (), 0)
    if shared is not None and not (shared.n_labels <= MAX_LABELS and Codebook.of(shared).fits):
        shared = None
    best: Choice | None = None if shared is None else choose_shared(shared)
    words_of = _word_source(tensor)
    # A codebook at less than half of the bits of a word leaves nothing for the lossless coders to win.
    if best is None or best.cost > 4 * tensor.dtype.word_bytes * n_words:
        plain = choose_plain(tensor.dtype, words_of(0, n_words))
        if best is None or plain.cost < best.cost:
            best = plain
    return _encode_chunks(tensor, shared, best, words_of, executor)


def _word_source(tensor: TensorData | SharedTensor) -> Callable[[int, int], Words]:
    """Return a function that gives any stretch of the decoded words."""
    if isinstance(tensor, TensorData):
        words = tensor.words
        return lambda first, last: words[first:last]
    lookup = tensor.lookup()
    labels = tensor.labels
    stretch = labels.size // tensor.n_groups

    def gather(first: int, last: int) -> Words:
        groups = np.arange(first, last) // stretch if tensor.n_groups > 1 else 0
        words: Words = lookup[groups, labels[first:last]]
        return words

    return gather


def _encode_chunks(
    tensor: TensorData | SharedTensor,
    shared: SharedTensor | None,
    choice: Choice,
    words_of: Callable[[int, int], Words],
    executor: Executor | None,
) -> CodedTensor:
    """Code every chunk, and digest the words that a decoder must give back."""
    n_words = tensor.labels.size if isinstance(tensor, SharedTensor) else tensor.words.size
    coder, shift = choice.coder, choice.chunk_shift
    step = 1 << shift if shift else n_words
    word_bytes = tensor.dtype.word_bytes

    def code_one(first: int) -> tuple[bytes, int]:
        last = min(n_words, first + step)
        words = words_of(first, last)
        symbols: NDArray[Any] = words
        if coder.number in SHARED_CODERS:
            assert shared is not None
            symbols = shared.labels[first:last]
        return coder.encode_chunk(symbols), partial_sum(words, first * word_bytes, n_words)

    starts = range(0, n_words, step)
    done: Iterator[tuple[bytes, int]] = map(code_one, starts)
    if executor is not None and len(starts) > 1:
        done = iter(executor.map(code_one, starts))
    chunks, sums = zip(*done, strict=True)
    n_labels = n_kept = 0
    if coder.number in SHARED_CODERS:
        assert shared is not None
        n_labels = shared.n_labels
        n_kept = int(np.count_nonzero(shared.labels)) if coder.number in RUN_CODERS else 0
    first_chunk = table_bytes(coder) + chunks[0]
    return CodedTensor(
        tensor.dtype,
        tensor.shape,
        coder.number,
        n_labels,
        n_kept,
        shift,
        (first_chunk, *chunks[1:]),
        fold(sum(sums)),
    )
