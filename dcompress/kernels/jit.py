"""Kernels in Numba: the same functions as ``reference``, compiled at first use and cached on disk.

Inputs are trusted; the coders in ``coding`` checked them. Decoding loops run four lanes at a time without
a check inside, for as many symbols as no input could push past the end of a lane or of the output; a
careful loop finishes each lane. So no stream, however hostile, reads or writes out of bounds.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from dcompress.kernels.reference import (
    OK,
    OVERRUN,
    PADDING,
    SHORT,
    SIDE_CEILING,
    SIDE_FLOOR,
    SIDE_SHIFTS,
    SURPLUS,
    neighbours,
)

U64 = np.uint64
_SHIFTS = np.array(SIDE_SHIFTS)
_RUN_HEAD = 5  # numbers before the entries of a run table
_TABLE_BITS = 12  # smallest multi-symbol table: wide enough for several short codes at once


@intrinsic
def _load_be64(typing_context: Any, array: Any, offset: Any) -> Any:
    """Load eight bytes at any offset of a uint8 array as a big-endian number."""
    signature = types.uint64(array, offset)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        view = context.make_array(signature.args[0])(context, builder, arguments[0])
        pointer = builder.gep(view.data, [arguments[1]])
        pointer = builder.bitcast(pointer, ir.IntType(64).as_pointer())
        word = builder.load(pointer)
        word.align = 1
        if sys.byteorder == "big":
            return word
        swap = builder.module.declare_intrinsic("llvm.bswap", [ir.IntType(64)])
        return builder.call(swap, [word])

    return signature, generate


@intrinsic
def _store_le64(typing_context: Any, array: Any, offset: Any, value: Any) -> Any:
    """Store a number as eight little-endian bytes at any offset of a uint8 array."""
    signature = types.void(array, offset, value)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        view = context.make_array(signature.args[0])(context, builder, arguments[0])
        pointer = builder.gep(view.data, [arguments[1]])
        pointer = builder.bitcast(pointer, ir.IntType(64).as_pointer())
        word = arguments[2]
        if sys.byteorder == "big":
            swap = builder.module.declare_intrinsic("llvm.bswap", [ir.IntType(64)])
            word = builder.call(swap, [word])
        builder.store(word, pointer).align = 1
        return context.get_dummy_value()

    return signature, generate


@njit(cache=True, nogil=True)
def _window(stream, bit, end):
    """Return the 64 bits that start at ``bit``; zeros from byte ``end`` on. Never reads beyond it."""
    byte = bit >> 3
    word = U64(0)
    for k in range(8):
        word <<= U64(8)
        if byte + k < end:
            word |= U64(stream[byte + k])
    return word << U64(bit & 7)


@njit(cache=True, nogil=True)
def _lane_status(stream, bit, end):
    """Return the status of a lane that ends at byte ``end`` and was read up to ``bit``."""
    left = 8 * end - bit
    if left < 0:
        return SHORT
    if left >= 8:
        return SURPLUS
    if left and stream[end - 1] & ((1 << left) - 1):
        return PADDING
    return OK


@njit(cache=True, nogil=True)
def _weighted(place, word):
    """Return what the 32-bit word at a place adds to a checksum sum (spec 12.1)."""
    # A product of two uint32 is a uint64 in Numba, so it is cut back at once.
    x = np.uint32(np.uint32(place + 1) * np.uint32(0x9E3779B1))
    return U64(word) * U64(x ^ (x >> np.uint32(15)))


@njit(cache=True, nogil=True)
def _partial_checksum(words, start):
    total = U64(0)
    for i in range(words.size):
        total += _weighted(start + i, words[i])
    return total


def partial_checksum(data, start):
    """Return the 64-bit checksum sum of bytes whose first 32-bit word has number ``start``."""
    tail = data.size % 4
    words = data[: data.size - tail].view("<u4")
    total = int(_partial_checksum(words, start))
    if tail:
        last = np.zeros(4, np.uint8)
        last[:tail] = data[data.size - tail :]
        total += int(_partial_checksum(last.view("<u4"), start + words.size))
    return total & 0xFFFFFFFFFFFFFFFF


@njit(cache=True, nogil=True)
def _side_bit(data, registers, chances, seen, context):
    """Read one bit of the side coder."""
    chance = chances[context]
    count = seen[context]
    bound = (registers[0] >> 12) * chance
    if registers[1] < bound:
        registers[0] = bound
        chances[context] = min(chance + ((4096 - chance) >> _SHIFTS[count]), SIDE_CEILING)
        bit = 0
    else:
        registers[1] -= bound
        registers[0] -= bound
        chances[context] = max(chance - (chance >> _SHIFTS[count]), SIDE_FLOOR)
        bit = 1
    seen[context] = min(count + 1, _SHIFTS.size - 1)
    while registers[0] < 1 << 24:
        registers[0] <<= 8
        byte = np.int64(data[registers[2]]) if registers[2] < data.size else np.int64(0)
        registers[1] = (registers[1] << 8 | byte) & 0xFFFFFFFF
        registers[2] += 1
    return bit


_neighbours = njit(cache=True, nogil=True)(neighbours)


@njit(cache=True, nogil=True)
def read_lengths(data, registers, chances, seen, n_columns, lengths):
    """Read code lengths from adaptively coded bytes; return OK, or OVERRUN if one is illegal."""
    done = np.zeros(lengths.size, np.int64)
    for at in range(lengths.size):
        used, guess = _neighbours(done, at, n_columns)
        if not _side_bit(data, registers, chances, seen, used):
            continue
        length = guess
        if _side_bit(data, registers, chances, seen, 4 + used):
            known = 1 if guess > 0 else 0
            down = known == 1 and _side_bit(data, registers, chances, seen, 8 + used) == 1
            step = 1
            while step < 16 and _side_bit(data, registers, chances, seen, 12 + 7 * known + min(step, 6)):
                step += 1
            length = guess - step if down else guess + step
        if not 0 < length < 16:
            return OVERRUN
        done[at] = length
        lengths[at] = length
    return OK


@njit(cache=True, nogil=True)
def symbol_table(lengths, symbols, max_length, width):
    """Return a table that decodes as many whole symbols as fit its window in one look-up.

    An entry holds, from its lowest bits up: the bits used (4), the number of symbols (4), the code length
    of the first (4), 4 unused, and the symbols themselves, of ``width`` bytes each. Element 0 of the array
    is the window size in bits, element 1 the capacity; the entries follow.
    """
    bits = max(max_length, _TABLE_BITS)
    capacity = 6 // width
    table = np.empty(2 + (1 << bits), np.uint64)
    table[0] = bits
    table[1] = capacity
    mask = (1 << bits) - 1
    for window in range(1 << bits):
        used = 0
        count = 0
        packed = U64(0)
        while count < capacity:
            place = ((window << used) & mask) >> (bits - max_length)
            length = np.int64(lengths[place])
            if used + length > bits:
                break
            if count == 0:
                packed = U64(length << 8)
            packed |= U64(symbols[place]) << U64(16 + 8 * width * count)
            used += length
            count += 1
        table[2 + window] = packed | U64(count << 4) | U64(used)
    return table


@njit(cache=True, nogil=True)
def decode_symbols(stream, lane_ends, lane_counts, table, out):
    """Decode Huffman symbols, lane after lane, into ``out``; return a status."""
    width = out.itemsize
    target = out.view(np.uint8)
    bits = np.int64(table[0])
    capacity = np.int64(table[1])
    entries = table[2:]
    down = U64(64 - bits)
    low = U64(15)
    n_lanes = lane_ends.size
    bit = np.empty(n_lanes, np.int64)  # next bit of each lane
    place = np.empty(n_lanes, np.int64)  # next output byte of each lane
    stop = np.empty(n_lanes, np.int64)  # output byte after the last of each lane
    filled = 0
    for lane in range(n_lanes):
        bit[lane] = 8 * lane_ends[lane - 1] if lane else 0
        place[lane] = filled * width
        filled += lane_counts[lane]
        stop[lane] = filled * width

    if n_lanes == 4:
        # Four look-ups a refill use at most 57 bits only if the table is narrow.
        rounds = 4 if bits <= 14 else 3
        step_bytes = (rounds * bits + 7) // 8 + 1
        step_out = rounds * capacity * width
        b0, b1, b2, b3 = U64(bit[0]), U64(bit[1]), U64(bit[2]), U64(bit[3])
        p0, p1, p2, p3 = U64(place[0]), U64(place[1]), U64(place[2]), U64(place[3])
        while True:
            # An entry is stored as eight bytes, so stay eight clear of the next lane's output.
            room = min(
                min(stop[0] - np.int64(p0), stop[1] - np.int64(p1)),
                min(stop[2] - np.int64(p2), stop[3] - np.int64(p3)),
            )
            fuel = min(
                min(lane_ends[0] - np.int64(b0 >> U64(3)), lane_ends[1] - np.int64(b1 >> U64(3))),
                min(lane_ends[2] - np.int64(b2 >> U64(3)), lane_ends[3] - np.int64(b3 >> U64(3))),
            )
            safe = min((room - 8) // step_out, (fuel - 8) // step_bytes)
            if safe <= 0:
                break
            for _ in range(safe):
                w0 = _load_be64(stream, b0 >> U64(3)) << (b0 & U64(7))
                w1 = _load_be64(stream, b1 >> U64(3)) << (b1 & U64(7))
                w2 = _load_be64(stream, b2 >> U64(3)) << (b2 & U64(7))
                w3 = _load_be64(stream, b3 >> U64(3)) << (b3 & U64(7))
                for _ in range(rounds):
                    e0, e1 = entries[w0 >> down], entries[w1 >> down]
                    e2, e3 = entries[w2 >> down], entries[w3 >> down]
                    w0 <<= e0 & low
                    w1 <<= e1 & low
                    w2 <<= e2 & low
                    w3 <<= e3 & low
                    b0 += e0 & low
                    b1 += e1 & low
                    b2 += e2 & low
                    b3 += e3 & low
                    _store_le64(target, p0, e0 >> U64(16))
                    _store_le64(target, p1, e1 >> U64(16))
                    _store_le64(target, p2, e2 >> U64(16))
                    _store_le64(target, p3, e3 >> U64(16))
                    p0 += ((e0 >> U64(4)) & low) * U64(width)
                    p1 += ((e1 >> U64(4)) & low) * U64(width)
                    p2 += ((e2 >> U64(4)) & low) * U64(width)
                    p3 += ((e3 >> U64(4)) & low) * U64(width)
        bit[0], bit[1], bit[2], bit[3] = b0, b1, b2, b3
        place[0], place[1], place[2], place[3] = p0, p1, p2, p3

    for lane in range(n_lanes):
        at = bit[lane]
        end = lane_ends[lane]
        i = place[lane] // width
        last = stop[lane] // width
        while i < last:
            window = _window(stream, at, end)
            entry = entries[window >> down]
            count = np.int64((entry >> U64(4)) & low)
            if i + count <= last:
                at += np.int64(entry & low)
                for k in range(count):
                    out[i + k] = entry >> U64(16 + 8 * width * k)
                i += count
            else:
                # The entry holds more symbols than are left: take its first alone.
                at += np.int64((entry >> U64(8)) & low)
                out[i] = entry >> U64(16)
                i += 1
            if at > 8 * end:
                return SHORT
        status = _lane_status(stream, at, end)
        if status != OK:
            return status
    return OK


@njit(cache=True, nogil=True)
def run_table(lengths, symbols, max_length, runs, labels, raw_bits):
    """Return the two tables that ``decode_runs`` wants, in one array.

    The first is indexed by the first _TABLE_BITS bits, and stays in the fastest cache. Codes longer than
    that are all ones at their head, being the last in canonical order; they have an entry 0 there and are
    looked up in the second, by ``max_length`` bits, counted from the first of them.

    An entry holds, from its lowest bits up: code length plus raw bits (5), whether the label is kept (1),
    zero run bucket (12), label (12). Before them stand: bits of the first table, raw bits, the most a
    symbol can advance, ``max_length``, and what to subtract from a window to find its place in the second
    table.
    """
    bits = max(1, min(max_length, _TABLE_BITS))  # a lone symbol has no bits: look it up by any one
    rest = max(0, max_length - bits)
    size = 1 << max_length
    n_long = 0
    while n_long < size and lengths[size - 1 - n_long] > bits:
        n_long += 1
    table = np.zeros(_RUN_HEAD + (1 << bits) + n_long, np.uint32)
    longest = 0
    for window in range(size):
        symbol = symbols[window]
        longest = max(longest, runs[symbol])
        entry = np.uint32(lengths[window]) + np.uint32(raw_bits)
        entry |= np.uint32(labels[symbol] != 0) << np.uint32(5)
        entry |= np.uint32(runs[symbol] >> raw_bits) << np.uint32(6)
        entry |= np.uint32(labels[symbol]) << np.uint32(18)
        if lengths[window] <= bits:
            table[_RUN_HEAD + (window >> rest)] = entry
        else:
            table[_RUN_HEAD + (1 << bits) + window - (size - n_long)] = entry
    if max_length == 0:
        table[_RUN_HEAD + 1] = table[_RUN_HEAD]
    table[0] = bits
    table[1] = raw_bits
    table[2] = longest + (1 << raw_bits)
    table[3] = max_length
    table[4] = size - n_long
    return table


@njit(cache=True, nogil=True)
def _decode_runs(stream, lane_ends, lane_counts, lane_starts, table, lookup, first_word, out, tally):
    sums = out.itemsize == 4
    total = U64(0)
    n_kept = U64(0)
    offset = U64(first_word)
    size = np.int64(out.size)
    bits = np.int64(table[0])
    raw_bits = np.int64(table[1])
    most = np.int64(table[2])
    max_length = np.int64(table[3])
    entries = table[_RUN_HEAD : _RUN_HEAD + (1 << bits)]
    others = table[_RUN_HEAD + (1 << bits) :]
    first_long = U64(table[4])
    down = U64(64 - bits)
    down_long = U64(64 - max_length)
    low = U64(31)
    far = U64(0xFFF)
    raw = U64(raw_bits)
    raw_mask = U64((1 << raw_bits) - 1)
    n_lanes = lane_ends.size
    bit = np.empty(n_lanes, np.int64)
    position = lane_starts.copy()
    done = 0
    for lane in range(n_lanes):
        bit[lane] = 8 * lane_ends[lane - 1] if lane else 0
        if lane_starts[lane] > size:
            return OVERRUN

    if n_lanes == 4:
        # Two symbols of at most 27 bits fit the 57 bits that a refill gives for sure.
        step_bytes = (2 * (max_length + raw_bits) + 7) // 8 + 1
        step_out = 2 * most
        symbols = min(min(lane_counts[0], lane_counts[1]), min(lane_counts[2], lane_counts[3]))
        b0, b1, b2, b3 = U64(bit[0]), U64(bit[1]), U64(bit[2]), U64(bit[3])
        p0, p1 = U64(position[0]), U64(position[1])
        p2, p3 = U64(position[2]), U64(position[3])
        while True:
            room = size - np.int64(max(max(p0, p1), max(p2, p3)))
            fuel = min(
                min(lane_ends[0] - np.int64(b0 >> U64(3)), lane_ends[1] - np.int64(b1 >> U64(3))),
                min(lane_ends[2] - np.int64(b2 >> U64(3)), lane_ends[3] - np.int64(b3 >> U64(3))),
            )
            safe = min(min(room // step_out, (fuel - 8) // step_bytes), (symbols - done) // 2)
            if safe <= 0:
                break
            done += safe * 2
            for _ in range(safe):
                w0 = _load_be64(stream, b0 >> U64(3)) << (b0 & U64(7))
                w1 = _load_be64(stream, b1 >> U64(3)) << (b1 & U64(7))
                w2 = _load_be64(stream, b2 >> U64(3)) << (b2 & U64(7))
                w3 = _load_be64(stream, b3 >> U64(3)) << (b3 & U64(7))
                for _ in range(2):
                    e0, e1 = entries[w0 >> down], entries[w1 >> down]
                    e2, e3 = entries[w2 >> down], entries[w3 >> down]
                    if e0 == 0:
                        e0 = others[(w0 >> down_long) - first_long]
                    if e1 == 0:
                        e1 = others[(w1 >> down_long) - first_long]
                    if e2 == 0:
                        e2 = others[(w2 >> down_long) - first_long]
                    if e3 == 0:
                        e3 = others[(w3 >> down_long) - first_long]
                    n0, n1, n2, n3 = U64(e0) & low, U64(e1) & low, U64(e2) & low, U64(e3) & low
                    r0 = (U64(e0) >> U64(6)) & far
                    r1 = (U64(e1) >> U64(6)) & far
                    r2 = (U64(e2) >> U64(6)) & far
                    r3 = (U64(e3) >> U64(6)) & far
                    if raw_bits == 0:
                        p0 += r0
                        p1 += r1
                        p2 += r2
                        p3 += r3
                    else:
                        p0 += (r0 << raw) + ((w0 >> (U64(64) - n0)) & raw_mask)
                        p1 += (r1 << raw) + ((w1 >> (U64(64) - n1)) & raw_mask)
                        p2 += (r2 << raw) + ((w2 >> (U64(64) - n2)) & raw_mask)
                        p3 += (r3 << raw) + ((w3 >> (U64(64) - n3)) & raw_mask)
                    w0 <<= n0
                    w1 <<= n1
                    w2 <<= n2
                    w3 <<= n3
                    b0 += n0
                    b1 += n1
                    b2 += n2
                    b3 += n3
                    v0 = lookup[U64(e0) >> U64(18)]
                    out[p0] = v0
                    v1 = lookup[U64(e1) >> U64(18)]
                    out[p1] = v1
                    v2 = lookup[U64(e2) >> U64(18)]
                    out[p2] = v2
                    v3 = lookup[U64(e3) >> U64(18)]
                    out[p3] = v3
                    n_kept += (U64(e0) >> U64(5)) & U64(1)
                    n_kept += (U64(e1) >> U64(5)) & U64(1)
                    n_kept += (U64(e2) >> U64(5)) & U64(1)
                    n_kept += (U64(e3) >> U64(5)) & U64(1)
                    if sums:
                        total += _weighted(offset + p0, v0)
                        total += _weighted(offset + p1, v1)
                        total += _weighted(offset + p2, v2)
                        total += _weighted(offset + p3, v3)
                    p0 += U64(1)
                    p1 += U64(1)
                    p2 += U64(1)
                    p3 += U64(1)
        bit[0], bit[1], bit[2], bit[3] = b0, b1, b2, b3
        position[0], position[1], position[2], position[3] = p0, p1, p2, p3

    for lane in range(n_lanes):
        at = bit[lane]
        end = lane_ends[lane]
        here = position[lane]
        for _ in range(done, lane_counts[lane]):
            window = _window(stream, at, end)
            entry = entries[window >> down]
            if entry == 0:
                entry = others[(window >> down_long) - first_long]
            used = U64(entry) & low
            here += np.int64(((U64(entry) >> U64(6)) & far) << raw)
            here += np.int64((window >> (U64(64) - used)) & raw_mask)
            at += np.int64(used)
            if at > 8 * end:
                return SHORT
            if here >= size:
                return OVERRUN
            value = lookup[U64(entry) >> U64(18)]
            out[here] = value
            n_kept += (U64(entry) >> U64(5)) & U64(1)
            if sums:
                total += _weighted(offset + U64(here), value)
            here += 1
        status = _lane_status(stream, at, end)
        if status != OK:
            return status
        if lane + 1 < n_lanes and here != lane_starts[lane + 1]:
            return OVERRUN
    tally[0] += total
    tally[1] += n_kept
    return OK


def decode_runs(stream, lane_ends, lane_counts, lane_starts, table, lookup, first_word, out, tally):
    """Decode joint (zero run, label) symbols into words; return a status. ``out`` is zero before."""
    status = _decode_runs(stream, lane_ends, lane_counts, lane_starts, table, lookup, first_word, out, tally)
    _tally_rest(first_word, out, tally)
    return status


def _tally_rest(first_word, out, tally):
    """Add the checksum sum of words whose kernel did not: those of other than four bytes."""
    if out.itemsize != 4:
        tally[0] += U64(partial_checksum(out.view(np.uint8), first_word * out.itemsize // 4))


@njit(cache=True, nogil=True)
def _first_symbol(table, window):
    """Return symbol and code length at the head of a 64-bit window."""
    entry = table[2 + np.int64(window >> U64(64 - np.int64(table[0])))]
    return np.int64((entry >> U64(16)) & U64(0xFFFF)), np.int64((entry >> U64(8)) & U64(15))


@njit(cache=True, nogil=True)
def _decode_split_runs(
    stream,
    lane_ends,
    lane_counts,
    lane_starts,
    run_codes,
    label_codes,
    raw_bits,
    lookup,
    first_word,
    out,
    tally,
):
    sums = out.itemsize == 4
    raw_mask = U64((1 << raw_bits) - 1)
    here = np.int64(0)
    for lane in range(lane_ends.size):
        if here != lane_starts[lane]:
            return OVERRUN
        at = np.int64(8 * lane_ends[lane - 1]) if lane else np.int64(0)
        end = lane_ends[lane]
        for _ in range(lane_counts[lane]):
            # A pair takes at most 15 + 16 + 15 bits, so one window holds it.
            if at + 64 <= 8 * end:
                window = _load_be64(stream, U64(at >> 3)) << U64(at & 7)
            else:
                window = _window(stream, at, end)
            run, used = _first_symbol(run_codes, window)
            window <<= U64(used)
            at += used + raw_bits
            here += run << raw_bits
            if raw_bits:
                here += np.int64((window >> U64(64 - raw_bits)) & raw_mask)
                window <<= U64(raw_bits)
            label, used = _first_symbol(label_codes, window)
            at += used
            if at > 8 * end:
                return SHORT
            if here >= out.size:
                return OVERRUN
            value = lookup[label]
            out[here] = value
            tally[1] += U64(label != 0)
            if sums:
                tally[0] += _weighted(U64(first_word + here), value)
            here += 1
        status = _lane_status(stream, at, end)
        if status != OK:
            return status
    return OK


def decode_split_runs(
    stream,
    lane_ends,
    lane_counts,
    lane_starts,
    run_codes,
    label_codes,
    raw_bits,
    lookup,
    first_word,
    out,
    tally,
):
    """Decode pairs of a run code and a label code into words, zero before; return a status."""
    status = _decode_split_runs(
        stream,
        lane_ends,
        lane_counts,
        lane_starts,
        run_codes,
        label_codes,
        raw_bits,
        lookup,
        first_word,
        out,
        tally,
    )
    _tally_rest(first_word, out, tally)
    return status


@njit(cache=True, nogil=True)
def unpack_fixed(stream, n_bits, out):
    """Unpack ``out.size`` fixed-width values of 1..16 bits; the stream has exactly their bytes."""
    held = U64(0)
    n_held = 0
    byte = 0
    mask = (U64(1) << U64(n_bits)) - U64(1)
    for i in range(out.size):
        while n_held < n_bits:
            held = (held << U64(8)) | U64(stream[byte])
            byte += 1
            n_held += 8
        n_held -= n_bits
        out[i] = (held >> U64(n_held)) & mask


@njit(cache=True, nogil=True)
def gather(lookup, labels, out):
    """Write ``lookup[labels]`` to ``out``."""
    for i in range(out.size):
        out[i] = lookup[labels[i]]


@njit(cache=True, nogil=True)
def gather_blocks(lookup, symbols, out):
    """Write the rows of ``lookup`` that symbols name to ``out``, one after the other, as far as it goes."""
    block = lookup.shape[1]
    n_whole = out.size // block
    if block == 2:
        for i in range(n_whole):
            out[2 * i] = lookup[symbols[i], 0]
            out[2 * i + 1] = lookup[symbols[i], 1]
    else:
        for i in range(n_whole):
            for k in range(block):
                out[i * block + k] = lookup[symbols[i], k]
    for k in range(out.size - n_whole * block):
        out[n_whole * block + k] = lookup[symbols[n_whole], k]


@njit(cache=True, nogil=True)
def _join_two(a, b, rotate, out):
    turn = np.uint16(1 if rotate else 0)
    back = np.uint16(15 if rotate else 0)
    for i in range(out.size):
        word = np.uint16(a[i]) | (np.uint16(b[i]) << np.uint16(8))
        out[i] = (word >> turn) | (word << back)


@njit(cache=True, nogil=True)
def _join_four(a, b, c, d, rotate, out):
    turn = np.uint32(1 if rotate else 0)
    back = np.uint32(31 if rotate else 0)
    for i in range(out.size):
        word = np.uint32(a[i]) | (np.uint32(b[i]) << np.uint32(8))
        word |= (np.uint32(c[i]) << np.uint32(16)) | (np.uint32(d[i]) << np.uint32(24))
        out[i] = (word >> turn) | (word << back)


@njit(cache=True, nogil=True)
def _join_any(planes, rotate, out):
    n = planes.shape[0]
    for i in range(out.size):
        word = U64(0)
        for k in range(n):
            word |= U64(planes[k, i]) << U64(8 * k)
        if rotate:
            word = (word >> U64(1)) | (word << U64(8 * n - 1))
        out[i] = word


def join_planes(planes, rotate, out):
    """Put byte planes, least significant first, together into words; ``rotate`` turns right by one bit."""
    if len(planes) == 2:
        _join_two(planes[0], planes[1], rotate, out)
    elif len(planes) == 4:
        _join_four(planes[0], planes[1], planes[2], planes[3], rotate, out)
    else:
        _join_any(np.stack(planes), rotate, out)


@njit(cache=True, nogil=True)
def _pack(values, widths, out):
    held = U64(0)
    n_held = 0
    byte = 0
    for i in range(values.size):
        width = np.int64(widths[i])
        held = (held << U64(width)) | (values[i] & ((U64(1) << U64(width)) - U64(1)))
        n_held += width
        while n_held >= 8:
            n_held -= 8
            out[byte] = (held >> U64(n_held)) & U64(255)
            byte += 1
    if n_held:
        out[byte] = (held << U64(8 - n_held)) & U64(255)


def pack_bits(values, widths):
    """Pack the low ``widths[i]`` (0..56) bits of each value, most significant bit first, into bytes."""
    out = np.empty((int(widths.sum(dtype=np.int64)) + 7) // 8, np.uint8)
    _pack(values, widths, out)
    return out


@njit(cache=True, nogil=True)
def _label_words(words, slots, places, shift, labels):
    mask = slots.size - 1
    last = words[0]
    last_label = places[0]
    first = True
    for i in range(words.size):
        word = words[i]
        if word != last or first:
            at = np.int64((U64(word) * U64(0x9E3779B97F4A7C15)) >> shift)
            while places[at] >= 0 and slots[at] != word:
                at = (at + 1) & mask
            if places[at] < 0:
                return False
            last = word
            last_label = places[at]
            first = False
        labels[i] = last_label
    return True


def label_words(words, values, places, labels):
    """Write to ``labels`` the ``places`` of each word among ascending ``values``; False if one is missing."""
    bits = max(int(values.size - 1).bit_length() + 2, 4)
    slots = np.zeros(1 << bits, values.dtype)
    slot_places = np.full(1 << bits, -1, np.int32)
    for place, value in zip(places.tolist(), values.tolist(), strict=True):
        at = ((value * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF) >> (64 - bits)
        while slot_places[at] >= 0:
            at = (at + 1) % (1 << bits)
        slots[at] = value
        slot_places[at] = place
    return words.size == 0 or bool(_label_words(words, slots, slot_places, U64(64 - bits), labels))


@njit(cache=True, nogil=True)
def zero_runs(labels):
    """Return how many zero labels come before each other one, and those others."""
    n_kept = 0
    for label in labels:
        n_kept += label != 0
    runs = np.empty(n_kept + 1, np.int32)
    kept = np.empty(n_kept + 1, np.uint16)
    run = np.int32(0)
    at = 0
    for label in labels:
        # Always write, advance only past a kept label: no branch to mispredict.
        runs[at] = run
        kept[at] = label
        step = label != 0
        at += step
        run = np.int32(0) if step else np.int32(run + 1)
    return runs[:n_kept], kept[:n_kept]
