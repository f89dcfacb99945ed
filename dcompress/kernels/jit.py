"""Kernels in Numba: the same functions as ``reference``, compiled at first use and cached on disk.

Inputs are trusted; the coders in ``coding`` checked them. Decoding loops run four lanes at a time without
a check inside, for as many symbols as no input could push past the end of a lane or of the output; a
careful loop finishes each lane. So no stream, however hostile, reads or writes out of bounds.
"""

from __future__ import annotations

from dcompress.kernels.jit_context import decode_contexts
from dcompress.kernels.jit_modelling import context_costs, context_counts, encode_contexts
from dcompress.kernels.jit_runs import decode_runs, decode_split_runs, run_table
from dcompress.kernels.jit_symbols import (
    decode_symbols,
    read_classes,
    read_lengths,
    symbol_table,
    unpack_fixed,
)
from dcompress.kernels.jit_trellis import find_path, walk
from dcompress.kernels.jit_words import (
    gather,
    gather_blocks,
    join_planes,
    label_words,
    pack_bits,
    partial_checksum,
    zero_runs,
)

__all__ = [
    "context_costs",
    "context_counts",
    "decode_contexts",
    "decode_runs",
    "decode_split_runs",
    "decode_symbols",
    "encode_contexts",
    "find_path",
    "gather",
    "gather_blocks",
    "join_planes",
    "label_words",
    "pack_bits",
    "partial_checksum",
    "read_classes",
    "read_lengths",
    "run_table",
    "symbol_table",
    "unpack_fixed",
    "walk",
    "zero_runs",
]
