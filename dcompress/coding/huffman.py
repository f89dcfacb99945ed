"""Canonical, length-limited Huffman codes: counts -> code lengths -> codes -> windows (spec section 10)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from dcompress import kernels
from dcompress.constants import MAX_ALPHABET, MAX_CODE_LENGTH
from dcompress.errors import CorruptError

__all__ = ["HuffmanCode", "optimal_lengths"]

# A shorter limit makes smaller, faster decoding tables; it may cost this fraction of the stream.
_TOLERATED_LOSS = 0.0005
_SHORTEST_LIMIT = 11


def optimal_lengths(counts: NDArray[np.int64], limit: int = MAX_CODE_LENGTH) -> NDArray[np.uint8]:
    """Return the code lengths that cost least under a length limit.

    Parameters
    ----------
    counts : ndarray of shape (n_symbols,), dtype int64
        How often each symbol occurs; 0 = unused.
    limit : int
        Longest code length, in bits; ``2 ** limit`` must be at least the number of used symbols.

    Returns
    -------
    code_lengths : ndarray of shape (n_symbols,), dtype uint8
        0 = unused. A single used symbol gets length 1.

    Raises
    ------
    ValueError
        There are more used symbols than codes of that length.

    Notes
    -----
    Package-merge (Larmore and Hirschberg 1990). Integers only, ties by symbol number: deterministic.

    Examples
    --------
    >>> optimal_lengths(np.array([8, 3, 0, 1, 1])).tolist()
    [1, 2, 0, 3, 3]
    """
    code_lengths = np.zeros(counts.size, np.uint8)
    used = np.flatnonzero(counts)
    if used.size > 1 << limit:
        raise ValueError(f"{used.size} symbols have no code of at most {limit} bits")
    if used.size <= 1:
        code_lengths[used] = 1
        return code_lengths
    order = used[np.argsort(counts[used], kind="stable")]
    lengths = kernels.select(0).package_merge(counts[order], limit)
    code_lengths[order] = lengths
    return code_lengths


def fit_lengths(counts: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Return near-optimal code lengths with the smallest limit that costs next to nothing."""
    best = optimal_lengths(counts)
    floor = max(_SHORTEST_LIMIT, int(np.count_nonzero(counts) - 1).bit_length())
    longest = int(best.max(initial=0))
    allowed = (1 + _TOLERATED_LOSS) * int(counts @ best)
    for limit in range(floor, longest):
        shorter = optimal_lengths(counts, limit)
        if int(counts @ shorter) <= allowed:
            return shorter
    return best


@dataclass(frozen=True, eq=False)
class HuffmanCode:
    """A canonical code, defined by its code lengths alone.

    Attributes
    ----------
    code_lengths : ndarray of shape (n_symbols,), dtype uint8
        Code length of each symbol, in bits, 0..15; 0 = unused. If a single symbol is used, its length is
        written as 1 but its code has no bits at all.
    """

    code_lengths: NDArray[np.uint8]

    @classmethod
    def from_counts(cls, counts: NDArray[np.int64], draft: bool = False) -> HuffmanCode:
        """Return the code that fits these symbol counts best; a draft does not look for shorter tables."""
        return cls(optimal_lengths(counts) if draft else fit_lengths(counts))

    def check(self) -> None:
        """Prove that every bit string decodes, before any table is built.

        Raises
        ------
        CorruptError
            Alphabet empty or too large (HUF-01), oversubscribed or incomplete (HUF-02), length above the
            limit (HUF-03), lone symbol with a length other than 1 (HUF-04).
        """
        lengths = self.code_lengths
        used_by_length = np.bincount(lengths, minlength=MAX_CODE_LENGTH + 1).tolist()
        n_used = lengths.size - used_by_length[0]
        if n_used == 0 or lengths.size > MAX_ALPHABET:
            raise CorruptError(f"code for {n_used} of {lengths.size} symbols", rule="HUF-01")
        if len(used_by_length) > MAX_CODE_LENGTH + 1:
            longest = len(used_by_length) - 1
            raise CorruptError(f"code length {longest} exceeds {MAX_CODE_LENGTH}", rule="HUF-03")
        if n_used == 1:
            if used_by_length[1] != 1:
                raise CorruptError("a lone symbol must have code length 1", rule="HUF-04")
            return
        whole = 1 << MAX_CODE_LENGTH
        kraft = sum(n * (whole >> length) for length, n in enumerate(used_by_length) if length)
        if kraft != whole:
            kind = "oversubscribed" if kraft > whole else "incomplete"
            raise CorruptError(f"code lengths are {kind}: Kraft sum {kraft}/{whole}", rule="HUF-02")

    @cached_property
    def lone_symbol(self) -> int | None:
        """The only used symbol, whose code has no bits, or None."""
        used = self.code_lengths.nonzero()[0]
        return int(used[0]) if used.size == 1 else None

    @cached_property
    def bits(self) -> NDArray[np.uint8]:
        """Bits that each symbol takes in a stream."""
        return self.code_lengths if self.lone_symbol is None else np.zeros_like(self.code_lengths)

    @cached_property
    def max_length(self) -> int:
        """Longest code, in bits; 0 for a lone symbol."""
        return int(self.bits.max())

    def assign_codes(self) -> NDArray[np.uint16]:
        """Return the canonical code of every symbol, in the low bits; 0 where unused.

        Notes
        -----
        Spec 10.3: codes count up, shorter ones first, symbols of equal length in ascending order.

        Examples
        --------
        >>> HuffmanCode(np.array([1, 2, 0, 2], np.uint8)).assign_codes().tolist()
        [0, 2, 0, 3]
        """
        codes = np.zeros(self.code_lengths.size, np.uint16)
        order, lengths = self._canonical_order()
        spans = np.left_shift(1, self.max_length - lengths)
        firsts = np.cumsum(spans) - spans
        codes[order] = firsts >> (self.max_length - lengths)
        return codes

    def windows(self) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
        """Return code length and symbol for each window of ``max_length`` bits, the code at its head."""
        order, lengths = self._canonical_order()
        spans = 1 << (self.max_length - lengths)
        return lengths.astype(np.uint8).repeat(spans), order.astype(np.uint16).repeat(spans)

    def _canonical_order(self) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
        """Return the used symbols in canonical order, and their bits."""
        used = self.code_lengths.nonzero()[0]
        order = used[self.code_lengths[used].argsort(kind="stable")]
        return order, self.bits[order].astype(np.int64)
