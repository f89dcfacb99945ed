"""Stage 3: how the words or labels of one tensor become bytes, and back. One class a coder."""

from __future__ import annotations

from dcompress.coding.base import Codebook, Coder, SharedCoder, TensorLayout
from dcompress.coding.context import Context
from dcompress.coding.labels import FixedWidth, Labels
from dcompress.coding.plain import Planes, Raw
from dcompress.coding.table_set import TableSet
from dcompress.coding.zero_run import SplitRun, ZeroRun
from dcompress.constants import (
    CODER_CONTEXT,
    CODER_FIXED,
    CODER_LABELS,
    CODER_PLANES,
    CODER_RAW,
    CODER_SPLIT_RUN,
    CODER_ZERO_RUN,
)

__all__ = [
    "CODERS",
    "Codebook",
    "Coder",
    "Context",
    "FixedWidth",
    "Labels",
    "Planes",
    "Raw",
    "SharedCoder",
    "SplitRun",
    "TableSet",
    "TensorLayout",
    "ZeroRun",
]

CODERS: dict[int, type[Coder]] = {
    CODER_RAW: Raw,
    CODER_PLANES: Planes,
    CODER_FIXED: FixedWidth,
    CODER_LABELS: Labels,
    CODER_ZERO_RUN: ZeroRun,
    CODER_SPLIT_RUN: SplitRun,
    CODER_CONTEXT: Context,
}
