"""Codebooks and code lengths as side information (spec section 11)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dcompress.coding.huffman import HuffmanCode
from dcompress.coding.range_coder import SideReader, SideWriter
from dcompress.constants import MAX_ALPHABET, DType, WordKind
from dcompress.errors import CorruptError
from dcompress.stages import Words, word_dtype

__all__ = ["read_code", "read_codebook", "sort_keys", "write_code", "write_codebook"]

_KIND_COUNT = 0
_PRECISION = {"float16": 11, "bfloat16": 8, "float32": 24}  # bits, where values can be multiples of a step


def sort_keys(dtype: DType, words: Words) -> tuple[NDArray[np.bool_], NDArray[np.uint64]]:
    """Split words into sign and magnitude, so that ascending values are easy to step through.

    Floats have a sign bit; the magnitude of a negative signed integer is its complement, counted from -1
    down. NaNs sort by their bits, like huge numbers.
    """
    bits = 8 * dtype.word_bytes
    wide = words.astype(np.uint64)
    if dtype.kind is WordKind.UNSIGNED:
        return np.zeros(words.shape, np.bool_), wide
    negative = (wide >> np.uint64(bits - 1)).astype(np.bool_)
    if dtype.kind is WordKind.FLOAT:
        return negative, wide & np.uint64((1 << (bits - 1)) - 1)
    flipped = wide ^ np.uint64((1 << bits) - 1)
    return negative, np.where(negative, flipped, wide)


def _from_sort_keys(dtype: DType, n_negative: int, magnitudes: NDArray[np.uint64]) -> Words:
    """Put signs back: the first ``n_negative`` magnitudes are negative."""
    bits = 8 * dtype.word_bytes
    wide = magnitudes.copy()
    if dtype.kind is WordKind.SIGNED:
        wide[:n_negative] ^= np.uint64((1 << bits) - 1)
    else:
        wide[:n_negative] |= np.uint64(1 << (bits - 1))
    return wide.astype(word_dtype(dtype.word_bytes))


def ascending_order(dtype: DType, words: Words) -> NDArray[np.intp]:
    """Return the order that puts distinct words in ascending order of their values."""
    negative, magnitudes = sort_keys(dtype, words)
    top = np.uint64((1 << 63) - 1)
    # -x sorts before +y; among negatives the larger magnitude comes first.
    return np.lexsort((np.where(negative, ~magnitudes, magnitudes & (top * 2 + np.uint64(1))), ~negative))


def may_be_even(dtype: DType, n_groups: int, has_zero: bool, n_centroids: int) -> bool:
    """Return whether a codebook can stand as multiples of a step: it says so in a bit of its own."""
    return dtype.name in _PRECISION and n_groups == 1 and has_zero and n_centroids > 0


def even_values(dtype: DType, step: np.float32, n_negative: int, n_centroids: int) -> Words:
    """Return the words of ``step`` times -n_negative .. -1 and 1 .. n_centroids - n_negative.

    Each product is rounded to float32, then to the type; both to nearest, ties to even.
    """
    places = np.arange(-n_negative, n_centroids - n_negative + 1)
    with np.errstate(over="ignore"):
        products = (places[places != 0] * np.float64(step)).astype(np.float32)
        halves: Words = products.astype("<f2").view(np.uint16)
    if dtype.name == "float16":
        return halves
    words: Words = products.astype("<f4").view(np.uint32)
    if dtype.word_bytes == 4:
        return words
    halfway = np.uint32(0x7FFF) + (words >> np.uint32(16) & np.uint32(1))
    brain: Words = ((words + halfway) >> np.uint32(16)).astype(np.uint16)
    return brain


def rounding_of(values: NDArray[np.float64], dtype: DType) -> NDArray[np.float64]:
    """Return by how much a type may have rounded each of some normal numbers: half of its last place."""
    half: NDArray[np.float64] = np.ldexp(0.5, np.frexp(values)[1] - _PRECISION[dtype.name])
    return half


def even_step(dtype: DType, values: Words, n_negative: int) -> np.float32 | None:
    """Return the step that ascending values are multiples of, None if there is none."""
    shift = 16 if dtype.name == "bfloat16" else 0
    if dtype.name == "float16":
        wide = values.view(np.float16).astype(np.float32)
    else:
        wide = (values.astype(np.uint32) << np.uint32(shift)).view(np.float32)
    places = np.arange(-n_negative, values.size - n_negative + 1)
    places = places[places != 0]
    with np.errstate(all="ignore"):  # codebooks may have NaNs and infinities
        # What the step is between, by each value: the smallest one says it exactly in a wide enough type.
        exact = wide.astype(np.float64)
        quotients = exact / places
        reach = rounding_of(exact, dtype) / np.abs(places)
        bounds = (quotients - reach).max(), (quotients + reach).min()
        steps = np.float32(quotients[np.abs(places).argmin()]), np.float32(sum(bounds) / 2)
    for step in steps:
        if not (np.isfinite(step) and step > 0):
            continue
        if np.array_equal(even_values(dtype, step, n_negative, values.size), values):
            return np.float32(step)
    return None


def write_even(writer: SideWriter, step: np.float32, n_negative: int) -> None:
    """Write a codebook as the multiples of a step."""
    writer.raw(int(step.view(np.uint32)), 32)
    writer.number(_KIND_COUNT, n_negative)


def read_even(reader: SideReader, dtype: DType, n_centroids: int) -> Words:
    """Read what ``write_even`` wrote.

    Raises
    ------
    CorruptError
        The step is no positive finite number, or too small or large for distinct values (CBK-04), or more
        values than there are are negative (TAB-01).
    """
    step = np.uint32(reader.raw(32)).view(np.float32)
    n_negative = reader.number(_KIND_COUNT, n_centroids)
    if np.isfinite(step) and step > 0:
        values = even_values(dtype, step, n_negative, n_centroids)
        if np.unique(values).size == n_centroids:
            return values
    raise CorruptError(f"step {step} between codebook values", rule="CBK-04")


def write_codebook(writer: SideWriter, dtype: DType, values: Words) -> None:
    """Write one row of a codebook: distinct words in ascending order of value.

    Negative values are written from the smallest magnitude up, then the others. What is coded is the gap
    between neighbours, after dropping the low bits that are zero in all of them: float16 or fixed-point
    values in a float32 codebook cost only the bits they use.
    """
    negative, magnitudes = sort_keys(dtype, values)
    n_negative = int(np.count_nonzero(negative))
    ordered = np.concatenate([magnitudes[:n_negative][::-1], magnitudes[n_negative:]])
    together = int(np.bitwise_or.reduce(ordered)) if ordered.size else 0
    n_dropped = (together & -together).bit_length() - 1 if together else 0
    writer.number(_KIND_COUNT, n_negative)
    writer.number(_KIND_COUNT, n_dropped)
    writer.magnitudes(ordered >> np.uint64(n_dropped), n_negative)


def read_codebook(reader: SideReader, dtype: DType, n_centroids: int) -> Words:
    """Read what ``write_codebook`` wrote.

    Raises
    ------
    CorruptError
        A value does not fit its word, or the numbers break a limit (TAB-01, TAB-03).
    """
    bits = 8 * dtype.word_bytes
    magnitude_bits = bits if dtype.kind is WordKind.UNSIGNED else bits - 1
    n_negative = reader.number(_KIND_COUNT, 0 if dtype.kind is WordKind.UNSIGNED else n_centroids)
    n_dropped = reader.number(_KIND_COUNT, magnitude_bits)
    largest = ((1 << magnitude_bits) - 1) >> n_dropped
    wide = reader.magnitudes(n_centroids, n_negative, largest) << np.uint64(n_dropped)
    wide[:n_negative] = wide[:n_negative][::-1].copy()
    return _from_sort_keys(dtype, n_negative, wide)


def write_code(writer: SideWriter, code: HuffmanCode, n_columns: int) -> None:
    """Write code lengths row by row; a row has ``n_columns`` symbols that belong together."""
    writer.code_lengths(code.code_lengths, n_columns)


def read_code(reader: SideReader, n_symbols: int, n_columns: int) -> HuffmanCode:
    """Read what ``write_code`` wrote, and prove the code complete.

    Raises
    ------
    CorruptError
        Alphabet too large (HUF-01), length above the limit (HUF-03), or an illegal code (HUF-02, HUF-04).
    """
    if not 0 < n_symbols <= MAX_ALPHABET:
        raise CorruptError(f"alphabet of {n_symbols} symbols", rule="HUF-01")
    code = HuffmanCode(reader.code_lengths(n_symbols, n_columns))
    code.check()
    return code
