"""How far two tensors are apart: bit for bit, and by value. Pure functions, block by block."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dcompress.constants import DType, WordKind
from dcompress.decibels import to_decibels
from dcompress.floats import blocks, energy
from dcompress.stages import TensorData, Words

__all__ = ["Difference", "compare_tensors", "to_values"]

_FLOAT4 = "float4_e2m1fn_x2"
_FLOAT4_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
# Exponent bits, mantissa bits, bias, and the words that are NaN.
_FLOAT8 = {
    "float8_e4m3fn": (4, 3, 7, (0x7F, 0xFF)),
    "float8_e4m3fnuz": (4, 3, 8, (0x80,)),
    "float8_e5m2fnuz": (5, 2, 16, (0x80,)),
}


@dataclass(frozen=True)
class Difference:
    """What tells two tensors apart.

    Attributes
    ----------
    identical : bool
        Same dtype, same shape, same bits.
    comparable : bool
        Same shape, and dtypes of one kind (floats, integers, complex numbers), so that the values can be
        set against each other; the rest is 0 otherwise.
    n_different : int
        Values that differ. Two NaN do not; a NaN and a number do.
    max_error : float
        Largest absolute difference; infinite between a NaN and a number.
    signal, noise : float
        Sums of squares of the finite values of the first tensor, and of the differences.
    """

    identical: bool
    comparable: bool = True
    n_different: int = 0
    max_error: float = 0.0
    signal: float = 0.0
    noise: float = 0.0

    @property
    def sqnr(self) -> float:
        """Signal to noise ratio in dB; infinite if no value differs, NaN if the squares leave float64."""
        if self.n_different == 0:
            return math.inf
        if self.signal == 0 or math.isinf(self.max_error):
            return -math.inf
        return to_decibels(self.signal, self.noise) if self.noise else math.nan


def compare_tensors(first: TensorData, second: TensorData) -> Difference:
    """Return the difference of two tensors of any dtypes.

    Parameters
    ----------
    first, second : TensorData
        The first is the reference of the signal to noise ratio.

    Notes
    -----
    Integers of one dtype are subtracted exactly, everything else as float64.
    """
    if first.shape != second.shape:
        return Difference(identical=False, comparable=False)
    if first.dtype == second.dtype:
        parts = blocks(first.words.size)
        if all(np.array_equal(first.words[part], second.words[part]) for part in parts):
            return Difference(identical=True)
    both = (first, second)
    n_parts = [data.dtype.words_per_element for data in both]
    if _family(first.dtype) != _family(second.dtype):  # integers may be the bits of floats
        return Difference(identical=False, comparable=False)
    if n_parts[0] != n_parts[1] or sum(data.dtype.name == _FLOAT4 for data in both) == 1:
        return Difference(identical=False, comparable=False)
    n_different = 0
    max_error = signal = noise = 0.0
    with np.errstate(all="ignore"):
        for part in blocks(first.words.size):
            values = to_values(first.words[part], first.dtype)
            finite = values[np.isfinite(values)]
            signal += energy(finite)
            errors = _errors(first, second, part)
            n_different += int(np.count_nonzero(errors))
            max_error = max(max_error, float(errors.max(initial=0.0)))
            noise += energy(errors)
    return Difference(False, True, n_different, max_error, signal, noise)


def _family(dtype: DType) -> str:
    """Return which kind of numbers a dtype holds."""
    return next((kind for kind in ("float", "complex") if kind in dtype.name), "integer")


def to_values(words: Words, dtype: DType) -> NDArray[np.float64]:
    """Return the values of words of any dtype as float64; complex numbers as real and imaginary parts."""
    if dtype.name == _FLOAT4:
        table = np.array([*_FLOAT4_VALUES, *(-value for value in _FLOAT4_VALUES)])
        return table[np.stack([words & 15, words >> 4], axis=1)].reshape(-1)
    if dtype.name == "float8_e8m0fnu":
        return np.where(words == 0xFF, np.nan, np.ldexp(1.0, words.astype(np.int32) - 127))
    if dtype.name in _FLOAT8:
        return _float8_table(*_FLOAT8[dtype.name])[words]
    if dtype.name == "float8_e5m2":  # the upper half of a float16
        return _widened((words.astype(np.uint16) << 8).view(np.float16))
    if dtype.name == "bfloat16":  # the upper half of a float32
        return _widened((words.astype(np.uint32) << 16).view(np.float32))
    letter = {WordKind.FLOAT: "f", WordKind.SIGNED: "i", WordKind.UNSIGNED: "u"}[dtype.kind]
    return _widened(words.view(f"<{letter}{dtype.word_bytes}"))


def _widened(values: NDArray[Any]) -> NDArray[np.float64]:
    """Return values as float64; a signalling NaN becomes a quiet one without a word."""
    with np.errstate(invalid="ignore"):
        return values.astype(np.float64)


def _errors(first: TensorData, second: TensorData, part: slice) -> NDArray[np.float64]:
    """Return absolute differences; 0 between NaNs and between equal infinities."""
    dtype = first.dtype
    whole = dtype.kind != WordKind.FLOAT and not dtype.name.startswith("float")
    if dtype == second.dtype and whole:
        letter = "i" if dtype.kind == WordKind.SIGNED else "u"
        a, b = (data.words[part].view(f"<{letter}{dtype.word_bytes}") for data in (first, second))
        low, high = np.minimum(a, b), np.maximum(a, b)
        distance: NDArray[Any] = high.view(first.words.dtype) - low.view(first.words.dtype)
        exact: NDArray[np.float64] = distance.astype(np.float64)
        return exact
    x = to_values(first.words[part], dtype)
    y = to_values(second.words[part], second.dtype)
    errors = np.abs(x - y)
    errors[np.isnan(errors)] = np.inf
    errors[(x == y) | (np.isnan(x) & np.isnan(y))] = 0.0
    return errors


def _float8_table(
    exponent_bits: int, mantissa_bits: int, bias: int, nans: tuple[int, ...]
) -> NDArray[np.float64]:
    """Return the 256 values of a float8 dtype without infinities."""
    words = np.arange(256)
    mantissa = words & ((1 << mantissa_bits) - 1)
    exponent = (words >> mantissa_bits) & ((1 << exponent_bits) - 1)
    normal = exponent > 0
    significand = mantissa + (normal << mantissa_bits)
    powers = np.where(normal, exponent, 1) - bias - mantissa_bits
    values: NDArray[np.float64] = np.where(words < 128, 1.0, -1.0) * np.ldexp(1.0, powers) * significand
    values[list(nans)] = np.nan
    return values
