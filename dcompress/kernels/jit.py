"""Kernels in Numba: the same functions as ``reference``, compiled at first use and cached on disk.

Inputs are trusted; the coders in ``coding`` checked them. Decoding loops run four lanes at a time without
a check inside, for as many symbols as no input could push past the end of a lane or of the output; a
careful loop finishes each lane. So no stream, however hostile, reads or writes out of bounds.
"""

from __future__ import annotations

from dcompress.kernels.jit_context import class_bases, decode_contexts, symbol_values, table_slots
from dcompress.kernels.jit_feedback import feed_labels, feed_path
from dcompress.kernels.jit_modelling import context_costs, context_counts, encode_contexts
from dcompress.kernels.jit_runs import decode_runs, decode_split_runs, run_table
from dcompress.kernels.jit_side import (
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
from dcompress.kernels.jit_side_writing import (
    start_writer,
    write_bit,
    write_gaps,
    write_lengths,
    write_number,
    write_raw,
    write_unary,
    written,
)
from dcompress.kernels.jit_symbols import (
    decode_symbols,
    package_merge,
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
