"""Policy of stage 3: which coder, with which parameters, comes out smallest for a tensor.

Every coder that can hold the tensor is costed exactly, tables included. Bounds only serve to skip what
cannot win.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dcompress.coding import Codebook, Coder, FixedWidth, Labels, Planes, Raw, SharedCoder, SplitRun, ZeroRun
from dcompress.coding.range_coder import SideWriter
from dcompress.coding.zero_run import RunStatistics
from dcompress.constants import CODER_RAW, MAX_ALPHABET, DType
from dcompress.cursor import write_varint
from dcompress.profiles import FULL, Profile
from dcompress.stages import SharedTensor, Words

__all__ = ["Choice", "choose_plain", "choose_shared", "table_bytes"]

_DENSE_SHIFT = 19  # words of a chunk, by which Python's share of its time is small
_DENSE_CHUNK_BITS = 1 << 18  # coded bits of a dense chunk, below which its head would weigh too much
_PLANES_SHIFT = 18  # the same for words of four and eight bytes
_ENTRIES_SHIFT = 16  # entries of a sparse chunk, below which its head would weigh too much
_SPARSE_SHIFTS = (16, 20)
_MAX_RAW_BITS = 7
_COUNT_BLOCK = 1 << 20
_SAMPLE, _STRETCH = 1 << 20, 1 << 16  # labels looked at to dismiss dense coding, and at a stretch
_HOPELESS = 1.03
_BUCKET_CHOICES = (2, 4, 6, 8, 11, 16, 24, 32, 64, 128, 256)
_TABLE_BITS_PER_SYMBOL = 0.4  # fewer than any code table takes


@dataclass(frozen=True, eq=False)
class Choice:
    """A way to code a tensor, and what it costs.

    Attributes
    ----------
    cost : float
        Bits of tables and streams.
    coder : Coder
        With its tables.
    chunk_shift : int
        Each chunk but the last holds ``2 ** chunk_shift`` words; 0 = one chunk.
    """

    cost: float
    coder: Coder
    chunk_shift: int


def table_bytes(coder: Coder) -> bytes:
    """Return what stands before the first chunk: the size of the tables, and the tables."""
    if coder.number == CODER_RAW:
        return b""
    writer = SideWriter()
    coder.write_tables(writer)
    tables = writer.finish()
    head = bytearray()
    write_varint(head, len(tables))
    return bytes(head) + tables


def _code_bits(coder: SharedCoder) -> int:
    """Return the bits of a coder's tables, codebook apart."""
    writer = SideWriter()
    coder.write_codes(writer)
    return 8 * len(writer.finish())


def _shift_for(n_words: int, shift: int, profile: Profile) -> int:
    """Return the chunk shift, 0 if the tensor is one chunk, or little more."""
    if profile.chunk_words is not None:
        return profile.shift(shift) if n_words > profile.chunk_words else 0
    return shift if n_words > 3 << (shift - 1) else 0


def choose_plain(dtype: DType, words: Words, profile: Profile = FULL) -> Choice:
    """Return the best coder without a codebook."""
    planes, cost = Planes.fit(dtype, words)
    cost += 8 * len(table_bytes(planes))
    shift = _shift_for(words.size, _PLANES_SHIFT if dtype.word_bytes > 2 else _DENSE_SHIFT, profile)
    raw_cost = 8 * words.nbytes
    return Choice(cost, planes, shift) if cost < raw_cost else Choice(raw_cost, Raw(), shift)


def choose_shared(shared: SharedTensor, to_beat: float = np.inf, profile: Profile = FULL) -> Choice | None:
    """Return the best coder with a codebook, or None if none costs less than ``to_beat`` bits."""
    labels = shared.labels
    codebook = Codebook.of(shared)
    density = np.count_nonzero(labels) / labels.size if shared.has_zero and shared.n_labels > 1 else 1
    # The codebook is the same for all, so it is costed once, here.
    writer = SideWriter()
    codebook.write(writer)
    common = 8 * len(writer.finish())
    best = None
    if 0 < density < 1 and codebook.n_labels <= labels.size:
        best = _choose_sparse(codebook, labels, density, to_beat - common, profile)
    cost = to_beat - common if best is None else best.cost
    if not _hopeless(codebook, labels, cost):
        best = _choose_dense(codebook, labels, cost, profile) or best
    return None if best is None else replace(best, cost=best.cost + common)


def _hopeless(codebook: Codebook, labels: NDArray[np.uint16], to_beat: float) -> bool:
    """Return whether a sample of a large tensor shows that dense coding cannot come near a cost."""
    if labels.size < 4 * _SAMPLE:
        return False
    starts = np.linspace(0, labels.size - _STRETCH, _SAMPLE // _STRETCH).astype(np.int64)
    sample = np.concatenate([labels[start : start + _STRETCH] for start in starts])
    cost = min(cost for _, cost in Labels.fit(codebook, sample, sample.size))
    return cost * (labels.size / sample.size) > _HOPELESS * to_beat


def _choose_dense(
    codebook: Codebook, labels: NDArray[np.uint16], to_beat: float, profile: Profile
) -> Choice | None:
    """Return the best coder that gives every word a label, codebook not costed, if it beats a cost."""
    entropy = _entropy_bits(_count(labels, codebook.n_labels)) / labels.size
    wanted = int(np.ceil(np.log2(_DENSE_CHUNK_BITS / max(entropy, 0.25))))
    shift = _shift_for(labels.size, max(_DENSE_SHIFT, wanted), profile)
    fixed = FixedWidth(codebook)
    cost: float = fixed.n_bits * labels.size + _code_bits(fixed)
    best = Choice(cost, fixed, shift) if cost < to_beat else None
    to_beat = min(cost, to_beat)
    if codebook.n_labels > labels.size:
        return best  # no code for so many labels pays in so few words
    for coder, cost in Labels.fit(codebook, labels, 1 << shift if shift else labels.size, to_beat):
        cost += _code_bits(coder)
        if cost < to_beat:
            best, to_beat = Choice(cost, coder, shift), cost
    return best


def _choose_sparse(
    codebook: Codebook, labels: NDArray[np.uint16], density: float, to_beat: float, profile: Profile
) -> Choice | None:
    """Return the best run coder, codebook not costed, if it beats a cost; likely cuts are tried first."""
    wanted = _ENTRIES_SHIFT + int(np.ceil(-np.log2(max(density, 2.0**-20))))
    shift = _shift_for(labels.size, min(max(wanted, _SPARSE_SHIFTS[0]), _SPARSE_SHIFTS[1]), profile)
    statistics = RunStatistics(labels, codebook.n_labels, 1 << shift if shift else labels.size)
    best_cost = to_beat
    best_cut: tuple[type[ZeroRun] | type[SplitRun], int, int] | None = None
    for bound, kind, n_buckets, raw_bits in _bound_cuts(statistics, density):
        if bound >= best_cost:
            break
        coder, cost = kind.fit(codebook, statistics, n_buckets, raw_bits, draft=True)
        if coder.usable and cost < best_cost:
            cost += _code_bits(coder)
            if cost < best_cost:
                best_cost, best_cut = cost, (kind, n_buckets, raw_bits)
    if best_cut is None:
        return None
    chosen, n_buckets, raw_bits = best_cut
    coder, cost = chosen.fit(codebook, statistics, n_buckets, raw_bits)
    return Choice(cost + _code_bits(coder), coder, shift)


def _bound_cuts(
    statistics: RunStatistics, density: float
) -> list[tuple[float, type[ZeroRun] | type[SplitRun], int, int]]:
    """Return a lower bound in bits for each coder, number of buckets and raw bits, lowest first."""
    bounds: list[tuple[float, type[ZeroRun] | type[SplitRun], int, int]] = []
    for n_buckets, raw_bits in itertools.product(_BUCKET_CHOICES, range(_MAX_RAW_BITS + 1)):
        if raw_bits and n_buckets << raw_bits > 16 / density:
            continue
        table, n_fillers = statistics.counts(n_buckets, raw_bits)
        extra = raw_bits * (statistics.n_kept + n_fillers)
        if table.size + 1 <= MAX_ALPHABET:
            bound = _entropy_bits(np.append(table.reshape(-1), n_fillers)) + extra
            bounds.append((bound, ZeroRun, n_buckets, raw_bits))
        runs = table.sum(axis=1)
        runs[-1] += n_fillers
        bound = _entropy_bits(runs) + _entropy_bits(np.append(table.sum(axis=0), n_fillers)) + extra
        bounds.append((bound, SplitRun, n_buckets, raw_bits))
    return sorted(bounds, key=lambda item: (item[0], item[1].number, item[2], item[3]))


def _count(labels: NDArray[np.uint16], n_labels: int) -> NDArray[np.int64]:
    """Return how often each label occurs, block by block to save memory."""
    counts = np.zeros(n_labels, np.int64)
    for first in range(0, labels.size, _COUNT_BLOCK):
        counts += np.bincount(labels[first : first + _COUNT_BLOCK], minlength=n_labels)
    return counts


def _entropy_bits(counts: NDArray[np.int64]) -> float:
    """Return the order-0 bits of these counts, and the least that their code table takes."""
    used = counts[counts > 0]
    total = used.sum()
    bits = float(total * np.log2(total) - (used * np.log2(used)).sum()) if total else 0.0
    return bits + _TABLE_BITS_PER_SYMBOL * used.size
