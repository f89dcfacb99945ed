"""Words in Numba: checksums, gathering, planes, packing, labels. See ``jit`` for what they promise."""

from __future__ import annotations

import numpy as np
from numba import njit

U64 = np.uint64


@njit(cache=True, nogil=True)
def weighted(number, word):
    """Return what the ``number``-th 32-bit word, counted from 1, adds to a checksum sum (spec 12.1)."""
    # A product of two uint32 is a uint64 in Numba, so it is cut back at once.
    x = np.uint32(np.uint32(number) * np.uint32(0x9E3779B1))
    return U64(word) * U64(x ^ (x >> np.uint32(15)))


@njit(cache=True, nogil=True)
def _partial_checksum(words, start):
    total = U64(0)
    for i in range(words.size):
        total += weighted(start + i + 1, words[i])
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
                return i
            last = word
            last_label = places[at]
            first = False
        labels[i] = last_label
    return words.size


def label_words(words, values, places, labels):
    """Write to ``labels`` the ``places`` of each word among ascending ``values``; stop at a missing one."""
    bits = max(int(values.size - 1).bit_length() + 2, 4)
    slots = np.zeros(1 << bits, values.dtype)
    slot_places = np.full(1 << bits, -1, np.int32)
    for place, value in zip(places.tolist(), values.tolist(), strict=True):
        at = ((value * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF) >> (64 - bits)
        while slot_places[at] >= 0:
            at = (at + 1) % (1 << bits)
        slots[at] = value
        slot_places[at] = place
    if words.size == 0:
        return 0
    return int(_label_words(words, slots, slot_places, U64(64 - bits), labels))


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
    # Where labels are rare, look at four at once; elsewhere that costs more than it saves.
    n_head = labels.size // 4 * 4 if 16 * n_kept < labels.size else 0
    quads = labels[:n_head].view(np.uint64)
    for quad in range(quads.size):
        if quads[quad] == 0:
            run += np.int32(4)
            continue
        for k in range(4 * quad, 4 * quad + 4):
            runs[at] = run
            kept[at] = labels[k]
            step = labels[k] != 0
            at += step
            run = np.int32(0) if step else np.int32(run + 1)
    for label in labels[n_head:]:
        # Always write, advance only past a kept label: no branch to mispredict.
        runs[at] = run
        kept[at] = label
        step = label != 0
        at += step
        run = np.int32(0) if step else np.int32(run + 1)
    return runs[:n_kept], kept[:n_kept]
