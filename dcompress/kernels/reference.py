"""Kernels in NumPy: no compiler, no Numba. Inputs are trusted; the coders in ``coding`` checked them.

Streams are decoded by looking at every bit position at once: one vectorised pass finds the length of the
code that would start there, a short Python walk then hops from code to code. Sizes are in bits or bytes
as named; ``stream`` is always a flat uint8 array, most significant bit first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dcompress.kernels.feedback import feed_labels, feed_path
from dcompress.kernels.reference_context import (
    class_bases,
    context_costs,
    context_counts,
    decode_contexts,
    encode_contexts,
    symbol_values,
    table_slots,
)
from dcompress.kernels.reference_symbols import (
    SymbolTable,
    decode_symbols,
    end_status,
    hop,
    lane_streams,
    package_merge,
    symbol_table,
    unpack_fixed,
    windows_at,
)
from dcompress.kernels.side import (
    bytes_used,
    read_bit,
    read_classes,
    read_gaps,
    read_lengths,
    read_number,
    read_raw,
    read_tables,
    read_unary,
    start_side,
)
from dcompress.kernels.side_writing import (
    start_writer,
    write_bit,
    write_gaps,
    write_lengths,
    write_number,
    write_raw,
    write_unary,
    written,
)
from dcompress.kernels.status import OK, OVERRUN, PADDING, SHORT, SURPLUS
from dcompress.kernels.trellis import find_path, walk

__all__ = [
    "OK",
    "OVERRUN",
    "PADDING",
    "SHORT",
    "SURPLUS",
    "RunTable",
    "SymbolTable",
    "bytes_used",
    "class_bases",
    "context_costs",
    "context_counts",
    "decode_contexts",
    "decode_runs",
    "decode_split_runs",
    "decode_symbols",
    "encode_contexts",
    "feed_labels",
    "feed_path",
    "find_path",
    "gather",
    "gather_blocks",
    "join_planes",
    "label_words",
    "pack_bits",
    "package_merge",
    "partial_checksum",
    "read_bit",
    "read_classes",
    "read_gaps",
    "read_lengths",
    "read_number",
    "read_raw",
    "read_tables",
    "read_unary",
    "run_table",
    "start_side",
    "start_writer",
    "symbol_table",
    "symbol_values",
    "table_slots",
    "unpack_fixed",
    "walk",
    "write_bit",
    "write_gaps",
    "write_lengths",
    "write_number",
    "write_raw",
    "write_unary",
    "written",
    "zero_runs",
]

U8 = NDArray[np.uint8]
I64 = NDArray[np.int64]
Unsigned = NDArray[np.unsignedinteger[Any]]

_KEY_BLOCK = 1 << 20


class RunTable(NamedTuple):
    """As SymbolTable, for joint symbols: zero run base and label of every symbol."""

    windows: SymbolTable
    runs: I64
    labels: NDArray[np.uint16]
    raw_bits: int


def _keys(start: int, n: int) -> NDArray[np.uint32]:
    """Return the checksum multipliers of words ``start`` .. ``start + n`` (spec 12.1)."""
    with np.errstate(over="ignore"):
        x = np.arange(start + 1, start + n + 1, dtype=np.uint64).astype(np.uint32)
        x *= np.uint32(0x9E3779B1)
    x ^= x >> np.uint32(15)
    return x


def partial_checksum(data: U8, start: int) -> int:
    """Return the 64-bit checksum sum of bytes whose first 32-bit word has number ``start``."""
    tail = data.size % 4
    words = data[: data.size - tail].view("<u4")
    total = 0
    for first in range(0, words.size, _KEY_BLOCK):
        block = words[first : first + _KEY_BLOCK].astype(np.uint64)
        block *= _keys(start + first, block.size)
        total += int(block.sum(dtype=np.uint64))
    if tail:
        last = int.from_bytes(data[data.size - tail :].tobytes(), "little")
        total += last * int(_keys(start + words.size, 1)[0])
    return total & 0xFFFFFFFFFFFFFFFF


def run_table(
    lengths: U8,
    symbols: NDArray[np.uint16],
    max_length: int,
    runs: I64,
    labels: NDArray[np.uint16],
    raw_bits: int,
) -> RunTable:
    """Return the table that ``decode_runs`` wants."""
    return RunTable(SymbolTable(lengths, symbols, max_length), runs, labels, raw_bits)


def decode_runs(
    stream: U8,
    lane_ends: I64,
    lane_counts: I64,
    lane_starts: I64,
    table: RunTable,
    lookup: Unsigned,
    first_word: int,
    out: Unsigned,
    tally: NDArray[np.uint64],
) -> int:
    """Decode joint (zero run, label) symbols into words; return a status. ``out`` is zero before.

    ``tally`` is added to: the checksum sum of the words, ``first_word`` being the number of the first, and
    how many labels are not 0.
    """
    code, runs, labels, raw_bits = table
    position = n_kept = 0
    for lane, count, start in zip(
        lane_streams(stream, lane_ends), lane_counts.tolist(), lane_starts.tolist(), strict=True
    ):
        if start != position:
            return OVERRUN
        windows = windows_at(lane, code.max_length)
        lengths = code.lengths[windows]
        starts, end = hop((lengths + np.uint8(raw_bits)).tobytes(), count)
        status = end_status(lane, end)
        if status != OK:
            return status
        at = np.array(starts, np.int64)
        symbols = code.symbols[windows[at]]
        advance = runs[symbols] + _raw(lane, at + lengths[at], raw_bits)
        position = _scatter(position, advance, labels[symbols], lookup, out)
        if position < 0:
            return OVERRUN
        n_kept += int(np.count_nonzero(labels[symbols]))
    _add_tally(first_word, out, n_kept, tally)
    return OK


def decode_split_runs(
    stream: U8,
    lane_ends: I64,
    lane_counts: I64,
    lane_starts: I64,
    run_codes: SymbolTable,
    label_codes: SymbolTable,
    raw_bits: int,
    lookup: Unsigned,
    first_word: int,
    out: Unsigned,
    tally: NDArray[np.uint64],
) -> int:
    """Decode pairs of a run code and a label code, otherwise as ``decode_runs``."""
    position = n_kept = 0
    for lane, count, start in zip(
        lane_streams(stream, lane_ends), lane_counts.tolist(), lane_starts.tolist(), strict=True
    ):
        if start != position:
            return OVERRUN
        run_windows = windows_at(lane, run_codes.max_length)
        label_windows = windows_at(lane, label_codes.max_length)
        run_lengths = run_codes.lengths[run_windows]
        label_lengths = label_codes.lengths[label_windows]
        # Where the label code of a pair starts, for a pair at every bit; past the end it does not matter.
        label_at = np.arange(run_lengths.size) + run_lengths + raw_bits
        inside = np.minimum(label_at, run_lengths.size - 1)
        steps = run_lengths + np.uint8(raw_bits) + (label_lengths[inside] if inside.size else 0)
        starts, end = hop(steps.astype(np.uint8).tobytes(), count)
        status = end_status(lane, end)
        if status != OK:
            return status
        at = np.array(starts, np.int64)
        runs = run_codes.symbols[run_windows[at]].astype(np.int64) << raw_bits
        runs += _raw(lane, at + run_lengths[at], raw_bits)
        # A label of zero bits may sit at the very end of the lane.
        labels = label_codes.symbols[label_windows[inside[at]]]
        position = _scatter(position, runs, labels, lookup, out)
        if position < 0:
            return OVERRUN
        n_kept += int(np.count_nonzero(labels))
    _add_tally(first_word, out, n_kept, tally)
    return OK


def _add_tally(first_word: int, out: Unsigned, n_kept: int, tally: NDArray[np.uint64]) -> None:
    """Add a chunk's checksum sum and kept labels."""
    tally[0] += np.uint64(partial_checksum(out.view(np.uint8), first_word * out.itemsize // 4))
    tally[1] += np.uint64(n_kept)


def _raw(lane: U8, bits: I64, raw_bits: int) -> I64:
    """Return the ``raw_bits`` (at most 16) bits that start at each of ``bits``."""
    if raw_bits == 0:
        return np.zeros(bits.size, np.int64)
    padded = np.zeros(lane.size + 3, np.int64)
    padded[: lane.size] = lane
    byte = bits >> 3
    words: I64 = (padded[byte] << 16) | (padded[byte + 1] << 8) | padded[byte + 2]
    words >>= 24 - raw_bits - (bits & 7)
    words &= (1 << raw_bits) - 1
    return words


def _scatter(position: int, runs: I64, labels: NDArray[np.uint16], lookup: Unsigned, out: Unsigned) -> int:
    """Write one lane's words; return the position after the last, -1 if it passes the end of ``out``."""
    if not runs.size:
        return position
    positions = np.cumsum(runs + 1) + (position - 1)
    last = int(positions[-1])
    if last >= out.size:
        return -1
    out[positions] = lookup[labels]
    return last + 1


def gather(lookup: Unsigned, labels: Unsigned, out: Unsigned) -> None:
    """Write ``lookup[labels]`` to ``out``."""
    np.take(lookup, labels, out=out, mode="clip")


def gather_blocks(lookup: Unsigned, symbols: Unsigned, out: Unsigned) -> None:
    """Write the rows of ``lookup`` that symbols name to ``out``, one after the other, as far as it goes."""
    out[:] = np.take(lookup, symbols, axis=0).reshape(-1)[: out.size]


def join_planes(planes: Sequence[U8], rotate: bool, out: Unsigned) -> None:
    """Put byte planes, least significant first, together into words; ``rotate`` turns right by one bit."""
    kind = out.dtype.type
    words = planes[0].astype(out.dtype)
    for number in range(1, len(planes)):
        words |= planes[number].astype(out.dtype) << kind(8 * number)
    if rotate:
        words = (words >> kind(1)) | (words << kind(8 * len(planes) - 1))
    out[:] = words


def pack_bits(values: NDArray[np.uint64], widths: U8) -> U8:
    """Pack the low ``widths[i]`` (0..56) bits of each value, most significant bit first, into bytes."""
    ends = np.cumsum(widths, dtype=np.int64)
    n_bits = int(ends[-1]) if ends.size else 0
    bits = np.zeros(n_bits, np.uint8)
    for down in range(int(widths.max(initial=0))):
        longer = widths > down
        bits[ends[longer] - 1 - down] = (values[longer] >> np.uint64(down)) & np.uint64(1)
    return np.packbits(bits)


def label_words(
    words: Unsigned, values: Unsigned, places: NDArray[np.uint16], labels: NDArray[np.uint16]
) -> int:
    """Write to ``labels`` the ``places`` of each word among ascending ``values``; stop at a missing one.

    Returns how many words were found.
    """
    for first in range(0, words.size, _KEY_BLOCK):
        block = words[first : first + _KEY_BLOCK]
        found = np.minimum(np.searchsorted(values, block), values.size - 1)
        labels[first : first + _KEY_BLOCK] = places[found]
        missing = np.flatnonzero(values[found] != block)
        if missing.size:
            return first + int(missing[0])
    return words.size


def zero_runs(labels: NDArray[np.uint16]) -> tuple[NDArray[np.int32], NDArray[np.uint16]]:
    """Return how many zero labels come before each other one, and those others."""
    positions = np.flatnonzero(labels)
    return (np.diff(positions, prepend=-1) - 1).astype(np.int32), labels[positions]
