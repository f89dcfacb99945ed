"""Zero runs in Numba. See ``jit`` for what they promise."""

from __future__ import annotations

import numpy as np
from numba import njit

from dcompress.kernels.jit_symbols import TABLE_BITS, lane_status, load_be64, window_at
from dcompress.kernels.jit_words import partial_checksum, weighted
from dcompress.kernels.status import OK, OVERRUN, SHORT

U64 = np.uint64
_RUN_HEAD = 5  # numbers before the entries of a run table


@njit(cache=True, nogil=True)
def run_table(lengths, symbols, max_length, runs, labels, raw_bits):
    """Return the two tables that ``decode_runs`` wants, in one array.

    The first is indexed by the first TABLE_BITS bits, and stays in the fastest cache. Codes longer than
    that are all ones at their head, being the last in canonical order; they have an entry 0 there and are
    looked up in the second, by ``max_length`` bits, counted from the first of them.

    An entry holds, from its lowest bits up: code length plus raw bits (5), whether the label is kept (1),
    zero run bucket (12), label (12). Before them stand: bits of the first table, raw bits, the most a
    symbol can advance, ``max_length``, and what to subtract from a window to find its place in the second
    table.
    """
    bits = max(1, min(max_length, TABLE_BITS))  # a lone symbol has no bits: look it up by any one
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
    number = U64(first_word + 1)  # of the first word, as checksums count
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
                w0 = load_be64(stream, b0 >> U64(3)) << (b0 & U64(7))
                w1 = load_be64(stream, b1 >> U64(3)) << (b1 & U64(7))
                w2 = load_be64(stream, b2 >> U64(3)) << (b2 & U64(7))
                w3 = load_be64(stream, b3 >> U64(3)) << (b3 & U64(7))
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
                        total += weighted(number + p0, v0)
                        total += weighted(number + p1, v1)
                        total += weighted(number + p2, v2)
                        total += weighted(number + p3, v3)
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
            window = window_at(stream, at, end)
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
                total += weighted(number + U64(here), value)
            here += 1
        status = lane_status(stream, at, end)
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
                window = load_be64(stream, U64(at >> 3)) << U64(at & 7)
            else:
                window = window_at(stream, at, end)
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
                tally[0] += weighted(U64(first_word + here + 1), value)
            here += 1
        status = lane_status(stream, at, end)
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
