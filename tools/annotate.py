"""Print a small ``.dcz`` frame field by field: a hex dump, then what every bit of it means.

python tools/annotate.py FILE.dcz     annotate a frame
python tools/annotate.py --check      is the worked example of the spec what the encoder writes?
python tools/annotate.py --update     write the worked example: the fixture, and appendix A of the spec
"""

from __future__ import annotations

import argparse
import math
import runpy
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from annotate_side import TracedSide, make_table, side_table

from dcompress import constants
from dcompress.coding import CODERS, Coder, Context, Planes, Raw, SplitRun, TableSet, TensorLayout, ZeroRun
from dcompress.coding.context import lanes_of
from dcompress.coding.huffman import HuffmanCode
from dcompress.coding.labels import FixedWidth, Labels
from dcompress.coding.lanes import lane_counts
from dcompress.cursor import Cursor
from dcompress.decode import open_frame

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "fixtures" / "examples" / "worked.dcz"
SPEC = ROOT / "spec" / "dcz-1.md"
BEGIN = "<!-- written by tools/annotate.py --update; do not edit -->\n"
END = "<!-- end -->\n"
MAX_BYTES = 1 << 16

_SIZES = {"u8": 1, "u16": 2, "u32": 4, "u64": 8}


@dataclass(frozen=True)
class Row:
    """One field: where it starts and how long it is, in bits, what stands there, what it means."""

    start: int
    n_bits: int
    contents: str
    meaning: str

    def cells(self) -> list[str]:
        """Return the cells of its table row."""
        byte, bit = divmod(self.start, 8)
        length = f"{self.n_bits // 8} B" if self.contents[:2] == "0x" else f"{self.n_bits} b"
        return [f"{byte}+{bit}", length, self.contents, self.meaning]


class FieldReader(Cursor):
    """A cursor that writes a row for every field it reads."""

    def __init__(self, data: bytes, base: int, rows: list[Row]) -> None:
        super().__init__(data, base)
        self._rows = rows
        self._bytes = data
        self._first = base

    def field(self, kind: str, meaning: str, size: int = 0) -> Any:
        """Read a field: kind ``varint``, ``u8`` ... or ``bytes``; ``{}`` in the meaning is its value."""
        start = self.offset
        value: Any = self.varint() if kind == "varint" else bytes(self.take(size or _SIZES.get(kind, 0)))
        if kind[0] == "u":
            value = int.from_bytes(value, "little")
        stored = self._bytes[start - self._first : self.offset - self._first]
        contents = "0x" + stored.hex().upper() if len(stored) <= 8 else f"0x{stored[:7].hex().upper()}..."
        if stored:
            self._rows.append(Row(8 * start, 8 * len(stored), contents, meaning.format(value)))
        return value


class BitReader:
    """Reads the codes of a stream, and writes a row for each."""

    def __init__(self, data: bytes, first_byte: int, rows: list[Row]) -> None:
        self._bits = "".join(f"{byte:08b}" for byte in data)
        self._base = 8 * first_byte
        self._at = 0
        self._rows = rows

    def take(self, n_bits: int) -> str:
        """Return the next bits as text."""
        self._at += n_bits
        return self._bits[self._at - n_bits : self._at]

    def symbol(self, code: HuffmanCode) -> tuple[str, int]:
        """Return the bits of the next code, and its symbol."""
        codes, bits = code.assign_codes(), code.bits
        for symbol in np.flatnonzero(code.code_lengths).tolist():
            text = f"{int(codes[symbol]):0{int(bits[symbol])}b}" if bits[symbol] else ""
            if self._bits.startswith(text, self._at):
                return self.take(len(text)), symbol
        raise ValueError("the stream is damaged")

    def note(self, parts: list[str], meaning: str) -> None:
        """Write a row for what was read last."""
        n_bits = sum(map(len, parts))
        self._rows.append(Row(self._base + self._at - n_bits, n_bits, " ".join(filter(None, parts)), meaning))

    def finish(self) -> None:
        """Note the padding."""
        if self._at < len(self._bits):
            self.note([self.take(len(self._bits) - self._at)], "padding")


def annotate(frame: bytes) -> str:
    """Return hex dump and tables of a frame, as Markdown."""
    with open_frame(frame) as reader:
        reader.read_all()  # a damaged frame is not worth annotating
        directory = reader.directory
    rows: list[Row] = []
    _head(frame[: directory.head_bytes], rows)
    sides = []
    for number, stored in enumerate(directory.table_sets):
        data = frame[stored.offset : stored.offset + stored.n_bytes]
        FieldReader(data, stored.offset, rows).field("bytes", f"table set {number}", len(data))

    def table_set(number: int) -> TableSet:
        stored = directory.table_sets[number]
        return TableSet.from_bytes(frame[stored.offset : stored.offset + stored.n_bytes])

    for record in directory.tensors.values():
        if record.alias_of is not None or not record.chunks:
            continue
        coder: Coder = Raw()
        for number, chunk in enumerate(record.chunks):
            fields = FieldReader(frame[chunk.offset : chunk.offset + chunk.n_bytes], chunk.offset, rows)
            if number == 0 and record.coder != constants.CODER_RAW:
                size = fields.field("varint", "Tables_Size = {}")
                side = TracedSide(fields.field("bytes", f"Tables of {record.name}: see below", size))
                layout = TensorLayout(
                    record.dtype,
                    record.n_words,
                    record.n_labels,
                    record.shape,
                    record.stored_bytes,
                    len(directory.table_sets),
                    table_set,
                )
                coder = CODERS[record.coder].read_tables(side, layout)
                sides.append(side_table(record.name, side, coder))
            first, last = record.chunk_words(number)
            _body(coder, fields, rows, last - first, record.dtype.word_bytes)
    for section in directory.sections:
        data = frame[section.offset : section.offset + section.n_bytes]
        FieldReader(data, section.offset, rows).field("bytes", f"section of kind {section.kind}", len(data))
    header = ["Start", "Length", "Contents", "Meaning"]
    return "\n".join([_hex_dump(frame), make_table(header, [row.cells() for row in rows]), *sides])


def _head(head: bytes, rows: list[Row]) -> None:
    """Note preamble and directory."""
    fields = FieldReader(head, 0, rows)
    fields.field("bytes", "Signature", 8)
    fields.field("u8", "Major_Version = {}")
    fields.field("u8", "Minor_Version = {}")
    fields.field("u16", "Required_Features = {}")
    fields.field("u32", "Directory_Size = {}")
    fields.field("u32", "Head_Checksum = 0x{:08X}")
    for number in range(fields.field("varint", "N_Table_Sets = {}")):
        fields.field("varint", f"table set {number}: Table_Set_Size = {{}}")
        fields.field("u32", "Table_Set_Checksum = 0x{:08X}")
    name = b""
    for number in range(fields.field("varint", "N_Tensors = {}")):
        shared = fields.field("varint", f"tensor {number}: Shared_Prefix = {{}}")
        rest = fields.field("bytes", "Name_Rest", fields.field("varint", "Rest_Size = {}"))
        name = name[:shared] + rest
        _extend(rows, f"name is {name.decode()}")
        _tensor(fields, rows)
    for number in range(fields.field("varint", "N_Metadata = {}")):
        for part in ("Key", "Value"):
            size = fields.field("varint", f"metadata {number}: {part}_Size = {{}}")
            text = fields.field("bytes", part, size)
            _extend(rows, text.decode())
    for number in range(fields.field("varint", "N_Sections = {}")):
        fields.field("varint", f"section {number}: Section_Kind = {{}}")
        fields.field("varint", "Section_Size = {}")
        fields.field("u32", "Section_Checksum = 0x{:08X}")


def _tensor(fields: FieldReader, rows: list[Row]) -> None:
    """Note a tensor record, name apart."""
    code = fields.field("u8", "Dtype = {}")
    if code == 0:
        fields.field("varint", "Alias_Of = {}")
        return
    dtype = constants.DTYPE_BY_CODE[code]
    _extend(rows, dtype.name)
    shape = [fields.field("varint", "Dimension = {}") for _ in range(fields.field("varint", "Rank = {}"))]
    n_units = math.prod(shape) * dtype.words_per_element
    if n_units == 0:
        return
    coder = fields.field("u8", "Coder = {}")
    _extend(rows, constants.CODER_NAMES[coder])
    if coder in constants.SHARED_CODERS:
        fields.field("varint", "N_Labels = {}")
    if coder in constants.RUN_CODERS:
        fields.field("varint", "N_Kept = {}")
    if coder == constants.CODER_CONTEXT:
        n_units = shape[0] if len(shape) > 1 else 1
    shift = fields.field("u8", "Chunk_Shift = {}")
    for _ in range(-(-n_units >> shift) if shift else 1):
        fields.field("varint", "Chunk_Size = {}")
        fields.field("u32", "Chunk_Checksum = 0x{:08X}")
    if coder != constants.CODER_RAW:
        fields.field("u32", "Digest = 0x{:08X}")


def _extend(rows: list[Row], text: str) -> None:
    """Add what a number stands for to the last row."""
    last = rows[-1]
    rows[-1] = Row(last.start, last.n_bits, last.contents, f"{last.meaning} ({text})")


def _body(coder: Coder, fields: FieldReader, rows: list[Row], n_words: int, word_bytes: int) -> None:
    """Note the body of a chunk."""
    if isinstance(coder, Raw):
        for place in range(n_words):
            fields.field(f"u{8 * word_bytes}", f"word {place} = 0x{{:0{2 * word_bytes}X}}")
    elif isinstance(coder, FixedWidth):
        bits = BitReader(
            bytes(fields.take(fields.remaining)), fields.offset - -(-n_words * coder.n_bits // 8), rows
        )
        for place in range(n_words):
            text = bits.take(coder.n_bits)
            bits.note([text], f"label {int(text, 2)} of word {place}")
        bits.finish()
    elif isinstance(coder, Planes):
        for place, (constant, code) in enumerate(zip(coder.constants, coder.codes, strict=True)):
            if code is not None:
                _lanes(fields, rows, n_words, lambda bits, code=code: _note_symbol(bits, code))
            elif constant is None:
                fields.field("bytes", f"plane {place}, raw", n_words)
    elif isinstance(coder, Labels):
        if coder.code.lone_symbol is None:
            _lanes(fields, rows, -(-n_words // coder.block), lambda bits: _note_symbol(bits, coder.code))
    elif isinstance(coder, Context):
        _states(fields, lanes_of(n_words // coder.geometry.row_words, n_words))
    elif isinstance(coder, (ZeroRun, SplitRun)):
        count = fields.field("varint", "N_Entries = {}")
        _lanes(fields, rows, count, lambda bits, place=[0]: _note_entry(bits, coder, place), advances=True)


def _states(fields: FieldReader, n_lanes: int) -> None:
    """Note the states of the lanes of a context-coded chunk, and the words that they share."""
    for lane in range(n_lanes):
        fields.field("u32", f"lane {lane}: State = 0x{{:08X}}")
    while fields.remaining:
        fields.field("u16", "word of the lanes")


def _lanes(fields: FieldReader, rows: list[Row], n_symbols: int, note: Any, advances: bool = False) -> None:
    """Note lane sizes, and every symbol of every lane."""
    counts = lane_counts(n_symbols).tolist()
    sizes = [fields.field("varint", f"lane {lane}: Lane_Size = {{}}") for lane in range(len(counts))]
    for lane in range(1, len(counts)) if advances else ():
        fields.field("varint", f"lane {lane}: Lane_Advance = {{}}")
    for size, count in zip(sizes, counts, strict=True):
        start = fields.offset
        bits = BitReader(bytes(fields.take(size)), start, rows)
        for _ in range(count):
            note(bits)
        bits.finish()


def _note_symbol(bits: BitReader, code: HuffmanCode) -> None:
    text, symbol = bits.symbol(code)
    bits.note([text], f"symbol {symbol}")


def _note_entry(bits: BitReader, coder: ZeroRun | SplitRun, place: list[int]) -> None:
    """Note an entry of a run coder; ``place`` holds the position within the chunk."""
    n_columns = coder.codebook.n_labels - 1
    if isinstance(coder, ZeroRun):
        text, symbol = bits.symbol(coder.code)
        bucket, label = divmod(symbol, n_columns)
        if bucket == coder.n_buckets:
            bucket, label = bucket - 1, -1
        raw, label_text, what, label = bits.take(coder.raw_bits), "", f"symbol {symbol}", label + 1
    else:
        text, bucket = bits.symbol(coder.run_code)
        raw, what = bits.take(coder.raw_bits), "pair"
        label_text, label = bits.symbol(coder.label_code)
    run = (bucket << coder.raw_bits) + int(raw or "0", 2)
    place[0] += run + 1
    what += f": bucket {bucket}, run {run}, " + (f"label {label}" if label else "filler")
    bits.note([text, raw, label_text], f"{what}; writes word {place[0] - 1}")


def _hex_dump(data: bytes) -> str:
    lines = []
    for start in range(0, len(data), 16):
        row = data[start : start + 16]
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
        lines.append(f"{start:5d}  {row.hex(' ').upper():<47}  {text}")
    return "\n".join(["```text", *lines, "```", ""])


def worked_frame() -> bytes:
    """Return the worked example of the spec."""
    frame: bytes = runpy.run_path(str(EXAMPLE.with_suffix(".py")))["worked_frame"]()
    return frame


def _spec_with_example(text: str, frame: bytes) -> str:
    """Return the spec with its worked example replaced."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + "\n" + annotate(frame) + "\n" + END + rest.split(END, 1)[1]


def main() -> int:
    """Run the tool."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--update", action="store_true")
    options = parser.parse_args()
    if options.check or options.update:
        frame = worked_frame()
        spec = SPEC.read_text(encoding="utf-8")
        wanted = _spec_with_example(spec, frame)
        if options.update:
            EXAMPLE.write_bytes(frame)
            SPEC.write_text(wanted, encoding="utf-8")
        same = EXAMPLE.read_bytes() == frame and wanted == SPEC.read_text(encoding="utf-8")
        print(
            "the worked example is up to date" if same else "the worked example is out of date: run --update"
        )
        return 0 if same else 1
    if options.file is None:
        parser.error("name a frame")
    frame = options.file.read_bytes()
    if len(frame) > MAX_BYTES:
        parser.error(f"{options.file} has {len(frame)} bytes; only frames of up to {MAX_BYTES} are annotated")
    print(annotate(frame))
    return 0


if __name__ == "__main__":
    sys.exit(main())
