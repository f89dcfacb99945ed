"""Symbols in Numba: Huffman symbols, fixed-width labels. See ``jit`` for what they promise."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from dcompress.kernels.status import OK, PADDING, SHORT, SURPLUS

U64 = np.uint64
TABLE_BITS = 12  # smallest multi-symbol table: wide enough for several short codes at once


@intrinsic
def load_be64(typing_context: Any, array: Any, offset: Any) -> Any:
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
def store_le64(typing_context: Any, array: Any, offset: Any, value: Any) -> Any:
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
def window_at(stream, bit, end):
    """Return the 64 bits that start at ``bit``; zeros from byte ``end`` on. Never reads beyond it."""
    byte = bit >> 3
    word = U64(0)
    for k in range(8):
        word <<= U64(8)
        if byte + k < end:
            word |= U64(stream[byte + k])
    return word << U64(bit & 7)


@njit(cache=True, nogil=True)
def lane_status(stream, bit, end):
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
def symbol_table(lengths, symbols, max_length, width):
    """Return a table that decodes as many whole symbols as fit its window in one look-up.

    An entry holds, from its lowest bits up: the bits used (4), the number of symbols (4), the code length
    of the first (4), 4 unused, and the symbols themselves, of ``width`` bytes each. Element 0 of the array
    is the window size in bits, element 1 the capacity; the entries follow.
    """
    bits = max(max_length, TABLE_BITS)
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
                w0 = load_be64(stream, b0 >> U64(3)) << (b0 & U64(7))
                w1 = load_be64(stream, b1 >> U64(3)) << (b1 & U64(7))
                w2 = load_be64(stream, b2 >> U64(3)) << (b2 & U64(7))
                w3 = load_be64(stream, b3 >> U64(3)) << (b3 & U64(7))
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
                    store_le64(target, p0, e0 >> U64(16))
                    store_le64(target, p1, e1 >> U64(16))
                    store_le64(target, p2, e2 >> U64(16))
                    store_le64(target, p3, e3 >> U64(16))
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
            window = window_at(stream, at, end)
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
        status = lane_status(stream, at, end)
        if status != OK:
            return status
    return OK


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
def package_merge(counts, limit):
    """Return the code lengths, of at most ``limit`` bits, that cost least; counts ascend, two at least."""
    n = counts.size
    leaf_counts = np.zeros((limit, 2 * n), np.int32)
    packages = np.zeros(n, np.int64)
    merged = np.zeros(2 * n, np.int64)
    n_packages = 0
    for depth in range(limit):
        leaf = 0
        package = 0
        for at in range(n + n_packages):
            if package == n_packages or (leaf < n and counts[leaf] <= packages[package]):
                merged[at] = counts[leaf]
                leaf += 1
            else:
                merged[at] = packages[package]
                package += 1
            leaf_counts[depth, at + 1] = leaf
        n_packages = (n + n_packages) // 2
        for at in range(n_packages):
            packages[at] = merged[2 * at] + merged[2 * at + 1]
    lengths = np.zeros(n, np.uint8)
    taken = 2 * n - 2
    for depth in range(limit - 1, -1, -1):
        n_leaves = np.int64(leaf_counts[depth, taken])
        for at in range(n_leaves):
            lengths[at] += 1
        taken = 2 * (taken - n_leaves)
    return lengths
