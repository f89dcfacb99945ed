"""Frames for fuzzers: random legal ones, taken apart, changed field by field, and sealed anew.

Checksums would end plain mutations at the first step, so everything here is put together with right ones.
The digest of a tensor is made right as well, by what one set of kernels decodes: then a decoder that reads
a hostile stream differently is found by its own check.
"""

from __future__ import annotations

import math
import random
import struct
import zlib
from contextlib import suppress
from dataclasses import replace
from functools import partial

import numpy as np

from dcompress.checksum import fold
from dcompress.coding import Codebook, FixedWidth, Labels, Planes, Raw, SplitRun, ZeroRun
from dcompress.coding.context import Context, Geometry, Neighbourhood
from dcompress.coding.huffman import HuffmanCode
from dcompress.coding.table_set import ABSENT
from dcompress.coding.zero_run import RunStatistics
from dcompress.constants import CODER_CONTEXT, CODER_RAW, DTYPE_BY_CODE, DTYPES, MAX_CODE_LENGTH, RUN_CODERS
from dcompress.cursor import Cursor
from dcompress.decode import open_frame
from dcompress.errors import DecodeError
from dcompress.inspection import read_receipt, read_torch_extra
from dcompress.limits import DecodeLimits
from dcompress.rescue import salvage_checkpoint
from dcompress.stages import SharedTensor, TensorData
from tests.checks import Entry, Frame, coded, varint
from tests.contexts import random_classes, random_context, random_grid, random_table_set
from tests.fuzz.lanes import change_lanes
from tests.strategies import complete_lengths, random_codebook, random_words

LIMITS = DecodeLimits(max_output_bytes=1 << 18, max_directory_bytes=1 << 16, max_tensors=256, max_rank=16)
_FLOATS = (10, 11, 12)
_SHAPES = ((7, 2, 3), (30,), (40, 5), (3, 4, 3, 3), (17, 130), (9, 1), (6, 700), ())
LONG_SHAPES = ((40, 60), (9, 500), (70, 240), (10, 1701))  # of 2, 4, 8 and 8 lanes
_EDGES = (
    0,
    1,
    2,
    3,
    255,
    256,
    4095,
    4096,
    4097,
    65535,
    65536,
    1 << 20,
    1 << 31,
    1 << 32,
    2**63 - 1,
    2**64 - 1,
)


class Dice:
    """Choices from a random generator."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def below(self, n: int) -> int:
        return self._random.randrange(n)

    def blob(self, n: int) -> bytes:
        return self._random.randbytes(n)

    def pick(self, items):
        return items[self.below(len(items))]


class DataDice(Dice):
    """Choices from the bytes that a coverage-guided fuzzer gives; zeros at the end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def below(self, n: int) -> int:
        n_bytes = (max(1, n - 1).bit_length() + 7) // 8
        return int.from_bytes(self.blob(n_bytes), "little") % n

    def blob(self, n: int) -> bytes:
        part = self._data[self._at : self._at + n]
        self._at += n
        return part + bytes(n - len(part))


# Legal frames.


def _shared(rng, n_words, n_groups, dtype, has_zero=True):
    most = min(int(rng.choice([9, 9, 60])), max(1, n_words // n_groups))
    n_centroids = int(rng.integers(1, most + 1))
    codebook = random_codebook(rng, dtype, n_groups, n_centroids, has_zero)
    if n_groups == 1 and has_zero and dtype.code in _FLOATS and rng.random() < 0.3:  # an even one
        steps = {10: np.float16, 12: np.float32}.get(dtype.code)
        if steps is not None:
            values = (np.arange(1, n_centroids + 1) * 0.125).astype(steps)
            codebook = values.view(codebook.dtype).reshape(1, -1)
    labels = np.minimum(rng.geometric(0.4, n_words) - 1, n_centroids - 1 + has_zero).astype(np.uint16)
    if has_zero:
        labels[rng.random(n_words) < rng.choice([0.0, 0.5, 0.97])] = 0
    return SharedTensor(dtype, (n_words // dtype.words_per_element,), codebook, labels, has_zero)


def _strange_code(rng, n_symbols: int) -> HuffmanCode:
    """Return a complete code of all symbols that no counts would make: often as deep as codes may be."""
    lengths = complete_lengths(n_symbols, rng)
    if n_symbols >= 16 and rng.random() < 0.7:  # a comb down to 15 bits, and the others hung on its teeth
        lengths = [*range(1, 16), 15]
        while len(lengths) < n_symbols:
            place = int(rng.integers(0, len(lengths)))
            if lengths[place] < MAX_CODE_LENGTH:
                lengths[place] += 1
                lengths.insert(place, lengths[place])
    return HuffmanCode(rng.permutation(np.array(lengths, np.uint8)))


def _strange(rng, coder):
    """Return a coder with other codes than those that fit, so that the long ones occur."""
    if isinstance(coder, Planes):
        codes = tuple(code and _strange_code(rng, 256) for code in coder.codes)
        return replace(coder, codes=codes)
    if isinstance(coder, Labels | ZeroRun):
        return replace(coder, code=_strange_code(rng, coder.code.code_lengths.size))
    if isinstance(coder, SplitRun):
        sizes = coder.run_code.code_lengths.size, coder.label_code.code_lengths.size
        run_code, label_code = (_strange_code(rng, size) for size in sizes)
        return replace(coder, run_code=run_code, label_code=label_code)
    return coder


def _blocks(rng, n_words: int, dtype):
    """Return labels in as many blocks as there were to be words, the last seldom full; and their coder."""
    tensor = _shared(rng, n_words, 1, dtype, bool(rng.integers(2)))
    most = 1
    while most < 8 and 1 < tensor.n_labels ** (most + 1) <= 512:
        most += 1
    block, per_element = int(rng.integers(1, most + 1)), dtype.words_per_element
    n_words = n_words * block - int(rng.integers(0, block)) // per_element * per_element
    labels = rng.choice(tensor.labels, n_words)
    tensor = replace(tensor, shape=(n_words // per_element,), labels=labels)
    return tensor, Labels(Codebook.of(tensor), block, _strange_code(rng, tensor.n_labels**block))


def _long_context(rng):
    """Return a tensor of few kept words in several lanes, and its table set; about a bit for 16 words."""
    shape = LONG_SHAPES[int(rng.integers(len(LONG_SHAPES)))]
    dtype = DTYPES[int(rng.integers(len(DTYPES)))]
    shape = (shape[0], max(1, shape[1] // dtype.words_per_element))
    states = int(rng.choice([0, 4, 8, 256]))
    geometry = Geometry.of(shape, shape[0] * shape[1] * dtype.words_per_element)
    n_labels = int(rng.choice([2, 9, 40]))
    codebook = random_codebook(rng, dtype, 1, n_labels - 1, True)
    book = Codebook(dtype, codebook, True, geometry.n_rows * geometry.row_words)
    origin = book.n_negative
    grid = random_grid(rng, geometry, geometry.n_rows, states, -origin, n_labels - 1 - origin, dense=0.02)
    places = (grid + origin).reshape(-1)
    labels = np.where(places == origin, 0, np.where(places < origin, places + 1, places)).astype(np.uint16)
    tables = random_table_set(rng, 43, int(rng.integers(1, 3)), 3, 2, int(rng.integers(10, 13)))
    lengths = np.where(tables.lengths < ABSENT, np.minimum(tables.lengths + 24, 40), ABSENT)
    lengths[:, 0] = 0
    tables = replace(tables, lengths=lengths.astype(np.uint8))
    classes = random_classes(rng, geometry)
    near = Neighbourhood(int(rng.integers(0, min(geometry.row_words, 30))), (0, 1, 5))
    tensor = SharedTensor(dtype, shape, codebook, labels, True, states)
    coder = Context(book, tables, 0, geometry, classes, near, origin, states)
    return coded(tensor, coder, 0), tables.to_bytes()


def long_tensor(rng, kind: int):
    """Return a coded tensor of so many symbols that they stand in several lanes, and its table set, if any.

    Kinds: 0 planes, 1 labels in blocks, 2 runs, 3 runs with labels apart, 4 context.
    """
    if kind == 4:
        return _long_context(rng)
    dtype = DTYPES[int(rng.integers(len(DTYPES)))]
    n_words = (1024 + int(rng.integers(0, 80))) * dtype.words_per_element
    if kind == 0:
        words = rng.choice(random_words(rng, int(rng.choice([2, 7, 60])), dtype.word_bytes), n_words)
        planes = Planes.fit(dtype, words)[0]
        planes = _strange(rng, planes) if rng.random() < 0.3 else planes
        return coded(TensorData(dtype, (n_words // dtype.words_per_element,), words), planes, 0), None
    if kind == 1:
        return coded(*_blocks(rng, n_words, dtype), 0), None
    n_words *= int(rng.choice([1, 3, 10]))  # of which every, every third or every tenth is kept
    tensor = _shared(rng, n_words, 1, dtype)
    kept = rng.random(n_words) < 1030 * dtype.words_per_element / n_words
    labels = np.where(kept, np.maximum(1, tensor.labels), 0).astype(np.uint16)
    labels = np.minimum(labels, tensor.n_labels - 1)
    tensor = replace(tensor, labels=labels)
    statistics = RunStatistics(labels, tensor.n_labels, n_words)
    n_buckets, raw_bits = int(rng.choice([1, 2, 16])), int(rng.choice([0, 0, 1, 4]))
    coder = (ZeroRun, SplitRun)[kind - 2].fit(Codebook.of(tensor), statistics, n_buckets, raw_bits)[0]
    return coded(tensor, _strange(rng, coder) if rng.random() < 0.4 else coder, 0), None


def _tensor(rng):
    """Return a coded tensor, with the table set that it needs, if any."""
    if rng.random() < 0.1:
        return long_tensor(rng, int(rng.choice(5, p=(0.2, 0.3, 0.2, 0.2, 0.1))))
    kind = int(rng.integers(0, 8))
    dtype = DTYPES[int(rng.integers(len(DTYPES)))]
    size = int(rng.choice([1, 2, 5, 17, 40, 90, 300, 1023, 1025, 1030, 2500], p=[0.1] * 7 + [0.075] * 4))
    shift = int(rng.choice([0, 0, 2, 3, 5, 8]))
    n_words = size * dtype.words_per_element
    if n_words <= 1 << shift:
        shift = 0
    step = 1 << shift if shift else n_words
    if kind >= 6:
        shape = _SHAPES[int(rng.integers(len(_SHAPES)))]
        states = int(rng.choice([0, 0, 4, 8, 32, 256]))
        shift = 2 if len(shape) > 1 and shape[0] > 4 and rng.random() < 0.5 else 0
        names = [d for d in DTYPES if d.words_per_element == 1 or len(shape) > 1]
        dtype = names[int(rng.integers(len(names)))]
        has_zero = bool(rng.integers(2))
        most = int(rng.choice([1, 3, 9, 40, 300]))
        tensor, coder = random_context(rng, dtype, shape, most, has_zero, states, shift, most_tables=3)
        return coded(tensor, coder, shift), coder.tables.to_bytes()
    if kind < 2:
        words = random_words(rng, n_words, dtype.word_bytes)
        if rng.random() < 0.7:
            words = rng.choice(words[:7], n_words)
        tensor = TensorData(dtype, (size,), words)
        planes = Planes.fit(dtype, words)[0] if kind else Raw()
        return coded(tensor, _strange(rng, planes) if rng.random() < 0.3 else planes, shift), None
    divisors = [n for n in (1, 2, 3, 5) if n_words % n == 0]
    has_zero = kind >= 4 or bool(rng.integers(2))
    tensor = _shared(rng, n_words, int(rng.choice(divisors)), dtype, has_zero)
    if kind == 2:
        return coded(tensor, FixedWidth(Codebook.of(tensor)), shift), None
    if kind == 3:
        fits = Labels.fit(Codebook.of(tensor), tensor.labels, step)
        coder = fits[int(rng.integers(len(fits)))][0]
        return coded(tensor, _strange(rng, coder) if rng.random() < 0.4 else coder, shift), None
    statistics = RunStatistics(tensor.labels, tensor.n_labels, step)
    n_buckets, raw_bits = int(rng.choice([1, 2, 3, 5, 16, 60])), int(rng.choice([0, 0, 1, 2, 5, 12]))
    coder = (ZeroRun, SplitRun)[kind - 4].fit(Codebook.of(tensor), statistics, n_buckets, raw_bits)[0]
    coder = _strange(rng, coder) if rng.random() < 0.4 else coder
    return coded(tensor, coder, shift), None


def _add(frame: Frame, name: bytes, tensor, table_set: bytes | None) -> None:
    """Put a tensor into a frame, unless it needs a second table set: its coder wrote the number 0."""
    if table_set is not None:
        if frame.table_sets:
            return
        frame.table_sets.append(table_set)
    frame.entries.append(
        Entry(
            name=name,
            dtype=tensor.dtype.code,
            shape=tensor.shape,
            coder=tensor.coder,
            n_labels=tensor.n_labels,
            n_kept=tensor.n_kept,
            chunk_shift=tensor.chunk_shift,
            chunks=tensor.chunks,
            digest=tensor.digest,
        )
    )


def long_frame(seed: int, kind: int) -> Frame:
    """Return a legal frame of one tensor of many symbols; see `long_tensor`."""
    frame = Frame()
    _add(frame, b"t", *long_tensor(np.random.default_rng(seed), kind))
    return frame


def legal_frame(seed: int) -> Frame:
    """Return a random legal frame of one to three tensors of any coder."""
    rng = np.random.default_rng(seed)
    frame = Frame(minor=int(rng.integers(3)))
    for number in range(int(rng.integers(1, 4))):
        _add(frame, b"t%d" % number, *_tensor(rng))
    if rng.random() < 0.2:
        frame.entries.append(Entry(name=b"tie", alias_of=0))
    if rng.random() < 0.2:
        frame.entries.append(Entry(name=b"none", shape=(0, 3)))
    if rng.random() < 0.1:
        frame.metadata.append((b"key", b"value"))
        frame.sections.append((77, b"section"))
    return frame


def taken_apart(data: bytes) -> Frame:
    """Return the fields of a frame whose directory can be read; names are written out."""
    with open_frame(data, partial=True) as reader:
        directory = reader.directory
    numbers = {name: number for number, name in enumerate(directory.tensors)}

    def stored(record) -> bytes:
        return data[record.offset : record.offset + record.n_bytes]

    entries = []
    for record in directory.tensors.values():
        alias = None if record.alias_of is None else numbers[record.alias_of]
        same = ("shape", "coder", "n_labels", "n_kept", "chunk_shift", "digest")
        fields = {one: getattr(record, one) for one in same}
        fields["chunks"] = () if alias is not None else tuple(map(stored, record.chunks))
        fields |= {"name": record.name.encode(), "dtype": record.dtype.code, "alias_of": alias}
        entries.append(Entry(**fields))
    return Frame(
        entries=entries,
        metadata=[(key.encode(), value.encode()) for key, value in directory.metadata.items()],
        sections=[(one.kind, stored(one)) for one in directory.sections],
        table_sets=[stored(one) for one in directory.table_sets],
        minor=directory.version[1],
    )


# Changes.


def edit(dice: Dice, data: bytes) -> bytes:
    """Return bytes with one change: bits, bytes, or a stretch set, put in, left out, doubled, zeroed."""
    kind = dice.below(9)
    if not data:
        return dice.blob(1 + dice.below(4))
    at = dice.below(len(data))
    if kind == 0:
        return data[:at] + bytes([data[at] ^ 1 << dice.below(8)]) + data[at + 1 :]
    if kind == 1:
        return data[:at] + dice.blob(1) + data[at + 1 :]
    if kind == 2:
        return data[:at] + dice.pick((b"\x00", b"\xff", b"\x80", b"\x7f", b"\x01")) + data[at + 1 :]
    size = 1 + dice.below(dice.pick((2, 4, 16)))
    if kind == 3:
        return data[:at] + data[at + size :]
    if kind == 4:
        return data[:at] + dice.blob(size) + data[at:]
    if kind == 5:
        return data[:at] + data[at : at + size] + data[at:]
    if kind == 6:
        return data[:at]
    if kind == 7:
        return data + dice.pick((bytes(size), b"\xff" * size, dice.blob(size)))
    return data[:at] + bytes(min(size, len(data) - at)) + data[at + size :]


def _number(dice: Dice, value: int) -> int:
    change = dice.below(4)
    if change == 0:
        return dice.pick(_EDGES)
    return max(0, value + dice.below(9) - 4) if change < 3 else value ^ 1 << dice.below(12)


def _edit_chunk(dice: Dice, entry: Entry) -> Entry:
    """Change the tables, the body, or all of a chunk."""
    if not entry.chunks:
        return entry
    number = dice.below(len(entry.chunks))
    chunk, part = entry.chunks[number], dice.below(6)
    if part > 3:
        changed = _edit_lanes(dice, entry, number)
        if changed is not None:
            return replace(entry, chunks=(*entry.chunks[:number], changed, *entry.chunks[number + 1 :]))
        part -= 4
    if number == 0 and entry.coder != CODER_RAW and part > 0:
        try:
            cursor = Cursor(chunk)
            tables = bytes(cursor.take(cursor.varint(cursor.remaining)))
            body = bytes(cursor.take(cursor.remaining))
        except DecodeError:
            return entry
        tables, body = (edit(dice, tables), body) if part == 1 else (tables, edit(dice, body))
        chunk = varint(len(tables)) + tables + body
    else:
        chunk = edit(dice, chunk)
    return replace(entry, chunks=(*entry.chunks[:number], chunk, *entry.chunks[number + 1 :]))


def _edit_lanes(dice: Dice, entry: Entry, number: int) -> bytes | None:
    """Change the lanes of a chunk; None if it has none."""
    chunk = entry.chunks[number]
    dtype = DTYPE_BY_CODE.get(entry.dtype)
    n_words = math.prod(entry.shape) * (1 if dtype is None else dtype.words_per_element)
    if entry.chunk_shift and entry.coder != CODER_CONTEXT:
        n_words = min(n_words, 1 << min(63, entry.chunk_shift))
    start = 0
    if number == 0:
        try:
            cursor = Cursor(chunk)
            cursor.take(cursor.varint(cursor.remaining))
        except DecodeError:
            return None
        start = len(chunk) - cursor.remaining
    body = change_lanes(dice, entry.coder, n_words, chunk[start:])
    return None if body is None else chunk[:start] + body


def _edit_entry(dice: Dice, entry: Entry, n_entries: int) -> Entry:
    kind = dice.below(9)
    if kind == 0:
        return replace(entry, dtype=dice.below(26))
    if kind == 1:
        place = dice.below(len(entry.shape) + 1)
        if place == len(entry.shape):
            return replace(entry, shape=(*entry.shape, 1 + dice.below(3)))
        shape = list(entry.shape)
        shape[place] = _number(dice, shape[place])
        return replace(entry, shape=tuple(shape))
    if kind == 2:
        return replace(entry, coder=dice.below(8))
    if kind == 3:
        return replace(entry, n_labels=_number(dice, entry.n_labels))
    if kind == 4:
        return replace(entry, n_kept=_number(dice, entry.n_kept))
    if kind == 5:
        return replace(entry, chunk_shift=dice.below(45))
    if kind == 6:
        return replace(entry, alias_of=None if entry.alias_of is not None else dice.below(n_entries + 1))
    if kind == 7:
        return replace(entry, name=edit(dice, entry.name), prefix=dice.pick((0, 0, 1, 3)))
    chunks = list(entry.chunks)
    if not chunks:
        return replace(entry, chunks=(dice.blob(4),))
    at = dice.below(len(chunks))
    chunks[at : at + 1] = dice.pick(([], [chunks[at]] * 2, [chunks[-1]]))
    return replace(entry, chunks=tuple(chunks))


def mutated(dice: Dice, frame: Frame) -> Frame:
    """Return a frame with one change somewhere."""
    frame = replace(frame, entries=list(frame.entries), table_sets=list(frame.table_sets))
    kind = dice.below(16)
    at = dice.below(max(1, len(frame.entries)))
    if kind < 9 and frame.entries and isinstance(frame.entries[at], Entry):
        frame.entries[at] = _edit_chunk(dice, frame.entries[at])
    elif kind < 11 and frame.table_sets:
        place = dice.below(len(frame.table_sets))
        frame.table_sets[place] = edit(dice, frame.table_sets[place])
    elif kind < 13 and frame.entries and isinstance(frame.entries[at], Entry):
        frame.entries[at] = _edit_entry(dice, frame.entries[at], len(frame.entries))
    elif kind == 13:
        frame.entries.insert(at, dice.pick([*frame.entries, b""]) if frame.entries else edit(dice, b""))
    elif kind == 14:
        directory = frame._directory()
        frame.directory = edit(dice, directory)
    else:
        changes = {
            "minor": dice.below(256),
            "major": dice.below(3),
            "features": dice.below(3),
            "n_tensors": varint(_number(dice, len(frame.entries))),
            "n_table_sets": varint(_number(dice, len(frame.table_sets))),
            "metadata": [(edit(dice, b"k"), edit(dice, b"v")), (b"k", b"w")],
            "sections": [(dice.below(5), dice.blob(dice.below(5)))],
            "table_sets": [*frame.table_sets, b""],
        }
        name = dice.pick(sorted(changes))
        frame = replace(frame, **{name: changes[name]})
    return frame


def examine(data: bytes, limits: DecodeLimits = LIMITS) -> None:
    """Use everything that reads frames on some bytes: nothing but decode errors may come out.

    What is salvaged must be what can be read, and rows must be those of whole tensors.
    """
    try:
        reader = open_frame(data, limits=limits, partial=True)
    except DecodeError:
        return
    with reader:
        names = list(reader.directory.tensors)
        readable = {}
        for name in names:
            with suppress(DecodeError):
                readable[name] = reader.read_tensor(name)
        with suppress(DecodeError):
            checkpoint, damages = salvage_checkpoint(reader)
            if list(checkpoint.tensors) != [name for name in names if name in readable]:
                raise AssertionError("salvaged is not what can be read")
            if {damage.tensor for damage in damages} - {None} != set(names) - set(readable):
                raise AssertionError("lost is not what cannot be read")
        for name, whole in readable.items():
            _examine_parts(reader, name, whole)
        for check in (
            reader.verify_sections,
            partial(read_receipt, reader),
            partial(read_torch_extra, reader),
        ):
            with suppress(DecodeError):
                check()


def _examine_parts(reader, name: str, whole: TensorData) -> None:
    """Check labels and rows of a tensor that can be read."""
    shared = reader.read_shared(name)
    if shared is not None and not np.array_equal(shared.gather().words, whole.words):
        raise AssertionError("labels do not gather to the tensor")
    if whole.shape and whole.words.size:
        rows = reader.read_rows(name, 0, (whole.shape[0] + 1) // 2)
        if not np.array_equal(rows.words, whole.words[: rows.words.size]):
            raise AssertionError("rows are not those of the tensor")


def written(frame: Frame) -> bytes:
    """Return the bytes of a frame; empty if a field is too large to be written at all."""
    try:
        return frame.to_bytes()
    except (struct.error, ValueError, OverflowError, AttributeError, TypeError):
        return b""


def sealed(frame: Frame) -> bytes:
    """Return the bytes of a frame, with digests and counts that are right for what the kernels now decode."""
    data = written(frame)
    try:
        with open_frame(data, limits=LIMITS) as reader:
            records = list(reader.directory.tensors.values())
            if len(records) != len(frame.entries):
                return data
            reader.check_output(records)
            entries = list(frame.entries)
            for number, record in enumerate(records):
                if record.alias_of is None and record.chunks and record.coder != CODER_RAW:
                    total = n_kept = 0
                    for part, kept in reader._start(record, None, 0).tallies:
                        total, n_kept = total + part, n_kept + kept
                    counts = {"n_kept": n_kept} if record.coder in RUN_CODERS else {}
                    entries[number] = replace(entries[number], digest=fold(total), **counts)
    except (DecodeError, AttributeError, TypeError):  # or what was an alias is read as a tensor
        return data
    return written(replace(frame, entries=entries))


# What decoders say.


def fingerprint(tensors) -> int:
    """Return one number for names, dtypes, shapes and bits of all tensors, in order."""
    total = 0
    for name, data in tensors.items():
        text = name.encode()
        head = struct.pack("<I", len(text)) + text + struct.pack("<BI", data.dtype.code, len(data.shape))
        total = zlib.crc32(head + struct.pack(f"<{len(data.shape)}Q", *data.shape), total)
        total = zlib.crc32(data.words, total)
    return total


def verdict(data: bytes, limits: DecodeLimits = LIMITS) -> str:
    """Return ``ok`` and a fingerprint, or the rule that is broken. Nothing else may come out of a decoder."""
    try:
        with open_frame(data, limits=limits) as reader:
            tensors = reader.read_all()
    except DecodeError as error:
        return error.rule or f"no rule: {error!r}"
    return f"ok {fingerprint(tensors):08x}"
