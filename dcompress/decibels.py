"""The one measure of error that encoding, receipts and comparisons share."""

from __future__ import annotations

import math

__all__ = ["to_decibels"]


def to_decibels(signal: float, noise: float) -> float:
    """Return 10 log10(signal / noise); infinite without noise, minus infinite without signal.

    NaN if the sums of squares are negative or have left the range of float64.
    """
    if noise == 0:
        return math.inf
    if not (0 <= signal < math.inf and 0 < noise < math.inf):
        return math.nan
    # The quotient may underflow where its logarithm does not.
    return 10 * (math.log10(signal) - math.log10(noise)) if signal else -math.inf
