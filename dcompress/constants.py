"""Every number that stands in a ``.dcz`` file, and nothing else. The spec's registries mirror this file."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

SIGNATURE = b"\x89DCZ\r\n\x1a\n"
MAJOR_VERSION = 1
MINOR_VERSION = 0
PREAMBLE_BYTES = 20
KNOWN_FEATURES = 0

# Coders (spec section 9).
CODER_RAW = 0
CODER_PLANES = 1
CODER_FIXED = 2
CODER_LABELS = 3
CODER_ZERO_RUN = 4
CODER_SPLIT_RUN = 5
CODER_CONTEXT = 6
CODER_NAMES = {
    CODER_RAW: "raw",
    CODER_PLANES: "planes",
    CODER_FIXED: "fixed",
    CODER_LABELS: "labels",
    CODER_ZERO_RUN: "zero_run",
    CODER_SPLIT_RUN: "split_run",
    CODER_CONTEXT: "context",
}

SHARED_CODERS = (CODER_FIXED, CODER_LABELS, CODER_ZERO_RUN, CODER_SPLIT_RUN, CODER_CONTEXT)  # with a codebook
RUN_CODERS = (CODER_ZERO_RUN, CODER_SPLIT_RUN)  # zeros are not written

# Huffman codes (spec section 10).
MAX_CODE_LENGTH = 15
MAX_ALPHABET = 4096
MAX_LABELS = 4096
MAX_TABLE_SET_BYTES = 1 << 16
MAX_TABLE_SETS = 1 << 10
TRELLIS_STATES = (0, 4, 8, 16, 32, 64, 128, 256)  # by wire number; 0 is none

# Lanes: a stream of at least LANE_THRESHOLD symbols is cut into N_LANES independent lanes.
N_LANES = 4
LANE_THRESHOLD = 1024

# Ancillary sections (spec section 8).
SECTION_RECEIPT = 1
SECTION_TORCH = 2
SECTION_NAMES = {SECTION_RECEIPT: "receipt", SECTION_TORCH: "torch"}

# How the bytes of one plane are stored (spec section 9.2).
PLANE_CONSTANT = 0
PLANE_RAW = 1
PLANE_HUFFMAN = 2


class WordKind(Enum):
    """How the bits of a word are read when words are put in order."""

    FLOAT = "float"
    SIGNED = "signed"
    UNSIGNED = "unsigned"


@dataclass(frozen=True)
class DType:
    """One tensor element type: its wire number and how it breaks into words.

    Attributes
    ----------
    code : int
        Wire number. 0 is kept for aliases.
    name : str
        Name as torch spells it.
    safetensors_name : str
        Name in a safetensors header; empty if that format cannot hold it.
    kind : WordKind
        How one word is ordered.
    word_bytes : int
        Bytes of one word: 1, 2, 4 or 8.
    words_per_element : int
        1, or 2 for complex numbers.
    """

    code: int
    name: str
    safetensors_name: str
    kind: WordKind
    word_bytes: int
    words_per_element: int = 1

    @property
    def element_bytes(self) -> int:
        """Bytes of one element."""
        return self.word_bytes * self.words_per_element


DTYPES: tuple[DType, ...] = (
    DType(1, "bool", "BOOL", WordKind.UNSIGNED, 1),
    DType(2, "uint8", "U8", WordKind.UNSIGNED, 1),
    DType(3, "int8", "I8", WordKind.SIGNED, 1),
    DType(4, "uint16", "U16", WordKind.UNSIGNED, 2),
    DType(5, "int16", "I16", WordKind.SIGNED, 2),
    DType(6, "uint32", "U32", WordKind.UNSIGNED, 4),
    DType(7, "int32", "I32", WordKind.SIGNED, 4),
    DType(8, "uint64", "U64", WordKind.UNSIGNED, 8),
    DType(9, "int64", "I64", WordKind.SIGNED, 8),
    DType(10, "float16", "F16", WordKind.FLOAT, 2),
    DType(11, "bfloat16", "BF16", WordKind.FLOAT, 2),
    DType(12, "float32", "F32", WordKind.FLOAT, 4),
    DType(13, "float64", "F64", WordKind.FLOAT, 8),
    DType(14, "float8_e4m3fn", "F8_E4M3", WordKind.FLOAT, 1),
    DType(15, "float8_e5m2", "F8_E5M2", WordKind.FLOAT, 1),
    DType(16, "float8_e4m3fnuz", "F8_E4M3FNUZ", WordKind.FLOAT, 1),
    DType(17, "float8_e5m2fnuz", "F8_E5M2FNUZ", WordKind.FLOAT, 1),
    DType(18, "float8_e8m0fnu", "F8_E8M0", WordKind.UNSIGNED, 1),
    DType(19, "float4_e2m1fn_x2", "F4", WordKind.UNSIGNED, 1),
    DType(20, "complex32", "", WordKind.FLOAT, 2, 2),
    DType(21, "complex64", "C64", WordKind.FLOAT, 4, 2),
    DType(22, "complex128", "", WordKind.FLOAT, 8, 2),
)
DTYPE_BY_CODE = {dtype.code: dtype for dtype in DTYPES}
DTYPE_BY_NAME = {dtype.name: dtype for dtype in DTYPES}
DTYPE_BY_SAFETENSORS = {dtype.safetensors_name: dtype for dtype in DTYPES if dtype.safetensors_name}
