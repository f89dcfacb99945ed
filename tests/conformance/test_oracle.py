"""A second decoder, slow and obvious, of the whole format. It shares nothing with the first but constants.

All is Python integers, lists and bit strings. What it finds in a frame must be what the package finds.
"""

from __future__ import annotations

import struct
from functools import cache

import numpy as np
import pytest
from bitarray import bitarray
from hypothesis import given, settings
from hypothesis import strategies as st

from dcompress import constants as c
from dcompress.choice import table_bytes
from dcompress.coding import Codebook, FixedWidth, Labels, Planes, Raw, SplitRun, ZeroRun
from dcompress.coding.huffman import HuffmanCode
from dcompress.coding.tables import even_values
from dcompress.coding.zero_run import RunStatistics
from dcompress.container.writer import Section
from dcompress.decode import open_frame
from dcompress.encode import encode_checkpoint
from dcompress.recipe import Recipe
from dcompress.stages import Checkpoint, SharedTensor, TensorData
from tests.checks import coded, frame_of, read_everything
from tests.contexts import contexts, random_context
from tests.properties.test_frames import small_model
from tests.strategies import random_codebook, random_words, shared_tensors, tensors

# Bytes and checksums.


class Bytes:
    """Bytes that are read once, from the first to the last."""

    def __init__(self, data):
        self.data = bytes(data)

    def take(self, n):
        assert n <= len(self.data)
        taken, self.data = self.data[:n], self.data[n:]
        return taken

    def number(self, n_bytes):
        return int.from_bytes(self.take(n_bytes), "little")

    def varint(self):
        value = shift = 0
        while True:
            byte = self.number(1)
            value += (byte % 128) << shift
            shift += 7
            if byte < 128:
                assert byte or shift == 7
                return value


def checksum(data):
    total = 0
    for place in range(0, len(data), 4):
        x = (place // 4 + 1) * 0x9E3779B1 % 2**32
        x ^= x >> 15
        total += int.from_bytes(data[place : place + 4], "little") * x
    total %= 2**64
    return (total % 2**32 + total // 2**32) % 2**32


# Side information: an adaptive binary range decoder.


class Side:
    """Contexts have names in place of numbers: no two share one, which is all that counts."""

    SHIFTS = (1, 2, 2, 3, 3, 3, 4, 4, 4, 4, 4, 4, 5)

    def __init__(self, data):
        self.data = list(data)
        self.chances = {}
        self.range = 2**32 - 1
        self.code = 0
        for _ in range(4):
            self.code = self.code * 256 + self.next_byte()

    def next_byte(self):
        return self.data.pop(0) if self.data else 0

    def narrow(self, low, size):
        assert low <= self.code < low + size
        self.code -= low
        self.range = size
        while self.range < 2**24:
            self.range *= 256
            self.code = self.code * 256 + self.next_byte()

    def bit(self, *context):
        chance, seen = self.chances.get(context, (2048, 0))
        bound = self.range // 4096 * chance
        shift = self.SHIFTS[min(seen, 12)]
        if self.code < bound:
            self.narrow(0, bound)
            chance, bit = min(chance + (4096 - chance) // 2**shift, 4064), 0
        else:
            self.narrow(bound, self.range - bound)
            chance, bit = max(chance - chance // 2**shift, 32), 1
        self.chances[context] = chance, seen + 1
        return bit

    def raw(self, n_bits):
        value = 0
        while n_bits:
            take = min(8, n_bits)
            size = self.range // 2**take
            part = self.code // size
            assert part < 2**take
            self.narrow(part * size, size)
            value = value * 2**take + part
            n_bits -= take
        return value

    def number(self, kind):
        n_bits = 0
        while n_bits < 64 and self.bit("number", kind, n_bits):
            n_bits += 1
        return 2 ** (n_bits - 1) + self.raw(n_bits - 1) if n_bits else 0

    def codebook_row(self, dtype, n_values):
        word_bits = 8 * dtype.word_bytes
        n_negative = self.number("count")
        n_dropped = self.number("count")
        n_bits = 0
        halves = []
        for count in (n_negative, n_values - n_negative):
            half, magnitude = [], -1
            for _ in range(count):
                folded = self.number("gap")
                n_bits += -(folded + 1) // 2 if folded % 2 else folded // 2
                gap = 2 ** (n_bits - 1) + self.raw(n_bits - 1) if n_bits else 0
                magnitude += gap + 1
                half.append(magnitude * 2**n_dropped)
            halves.append(half)
        negative, positive = halves
        if dtype.kind is c.WordKind.SIGNED:
            negative = [2**word_bits - 1 - magnitude for magnitude in negative]
        else:
            negative = [2 ** (word_bits - 1) + magnitude for magnitude in negative]
        return negative[::-1] + positive

    def codebooks(self, dtype, n_labels):
        """Return the values of each group by label."""
        n_groups = self.number("groups") + 1
        zero = [0] * self.raw(1)
        if dtype.name in EVEN and n_groups == 1 and zero and n_labels > 1 and self.raw(1):
            return [zero + self.even_row(dtype, n_labels - 1)], True
        return [zero + self.codebook_row(dtype, n_labels - len(zero)) for _ in range(n_groups)], bool(zero)

    def even_row(self, dtype, n_values):
        """Return the multiples of a step, rounded twice."""
        step = struct.unpack(">f", self.raw(32).to_bytes(4, "big"))[0]
        n_negative = self.number("count")
        values = [
            (place if place < 0 else place + 1) * step for place in range(-n_negative, n_values - n_negative)
        ]
        return [rounded(dtype, value) for value in values]

    def unary(self, *context, n_contexts):
        value = 0
        while self.bit(*context, min(value, n_contexts - 1)):
            value += 1
        return value

    def classes(self, kind, count):
        """Return classes; None is a dead one."""
        classes, last = [], 0
        for _ in range(count):
            last = self.unary("class", kind, min(last, 3), n_contexts=16)
            classes.append(None if last == 0 else unfold(last - 1))
        return classes

    def table_set(self):
        """Return tables of frequencies, which of them serves which context, and the number of classes."""
        precision, n_quantisers = 10 + self.number("size"), 1 + self.number("size")
        n_classes, n_tables = 1 + self.number("size"), 1 + self.number("size")
        tables = []
        for _ in range(n_tables):
            parent = self.number("parent")
            expected = tables[-parent] if parent else []
            largest = len(expected) // 2 + unfold(self.number("extent"))
            lengths, step = [], 0
            for symbol in range(2 * largest + 1):
                near = lengths[symbol - 2] if symbol > 2 else 24
                near = expected[symbol] if symbol < len(expected) else near
                settled = min(abs(step), 2)
                step = self.unary("length", settled, n_contexts=15)
                step = -step if step and self.bit("sign", settled) else step
                lengths.append(near + step)
            tables.append(lengths)
        choice = {}
        for quantiser in range(n_quantisers):
            corner = 0
            for left in range(4):
                for far in range(-3 if left else 0, 4):
                    table = corner
                    for number in range(n_classes):
                        table += unfold(self.unary("table", number == 0, n_contexts=16))
                        corner = corner if number else table
                        choice[quantiser, number, left, far] = table, 1
                        if left or far:
                            choice[quantiser, number, -left, -far] = table, -1
        assert not self.data
        return [frequencies(lengths, precision) for lengths in tables], choice, n_classes

    def huffman_code(self, n_symbols, n_columns):
        """Return a canonical code: bit string -> symbol."""
        rows = []
        for place in range(n_symbols):
            row, column = divmod(place, n_columns)
            if column == 0:
                rows.append([])
            left = rows[row][column - 1] if column else 0
            up = rows[row - 1][column] if row else 0
            corner = rows[row - 1][column - 1] if row and column else 0
            rows[row].append(self.code_length(left, up, corner))
        lengths = [length for row in rows for length in row]
        used = sorted((length, symbol) for symbol, length in enumerate(lengths) if length)
        if len(used) == 1:
            return {"": used[0][1]}
        code, value, last = {}, 0, 0
        for length, symbol in used:
            value <<= length - last
            code[f"{value:0{length}b}"] = symbol
            value, last = value + 1, length
        assert value == 2**last
        return code

    def code_length(self, left, up, corner):
        used = (1 if left else 0) + (2 if up else 0)
        if left and up and corner:
            guess = sorted([left, up, left + up - corner])[1]
        elif left and up:
            guess = (left + up + 1) // 2
        else:
            guess = left + up
        if not self.bit("used", used):
            return 0
        if not self.bit("other", used):
            return guess
        sign = -1 if guess and self.bit("less", used) else 1
        step = 1
        while self.bit("farther", guess > 0, min(step, 6)):
            step += 1
        return guess + sign * step


EVEN = {"float16": "e", "bfloat16": "f", "float32": "f"}


def rounded(dtype, value):
    """Return the bits of a number as a float: rounded to float32, and then to its type."""
    with np.errstate(over="ignore"):
        value = np.float32(value)
        if dtype.name == "float16":
            return int(np.float16(value).view(np.uint16))
    bits = int(value.view(np.uint32))
    if dtype.name == "float32":
        return bits
    up, rest = bits >> 16, bits & 0xFFFF
    return up + (rest > 0x8000 or (rest == 0x8000 and up % 2 == 1))


def unfold(number):
    return -((number + 1) // 2) if number % 2 else number // 2


def frequencies(lengths, precision):
    """Return how many slots each symbol has."""
    weights = [(65536, 55109, 46341, 38968)[length % 4] // 2 ** (length // 4) for length in lengths]
    slots = [max(1, weight * 2**precision // sum(weights)) for weight in weights]
    slots[slots.index(max(slots))] += 2**precision - sum(slots)
    assert min(slots) > 0
    return slots


def read_bits(bits, code):
    """Take one symbol off the front of a bit array."""
    head = ""
    while head not in code:
        head += str(bits.pop(0))
    return code[head]


def read_fixed(bits, n_bits):
    value = 0
    for _ in range(n_bits):
        value = 2 * value + bits.pop(0)
    return value


def to_bits(data):
    bits = bitarray()
    bits.frombytes(data)
    return bits


def lane_sizes(n_symbols):
    if n_symbols < 1024:
        return [n_symbols]
    share = (n_symbols + 3) // 4
    return [share, share, share, n_symbols - 3 * share]


def read_lanes(chunk, n_symbols, read_one, with_starts=False):
    """Return the symbols of each lane, and where each lane starts."""
    counts = lane_sizes(n_symbols)
    sizes = [chunk.varint() for _ in counts]
    starts = [0]
    for _ in counts[1:] if with_starts else []:
        starts.append(starts[-1] + chunk.varint())
    lanes = []
    for count, size in zip(counts, sizes, strict=True):
        bits = to_bits(chunk.take(size))
        lanes.append([read_one(bits) for _ in range(count)])
        assert len(bits) < 8
        assert not bits.any()
    return lanes, starts


# Coders: each reads its tables, then gives a function from a chunk to its words.


def words_of(data, n_bytes):
    return [int.from_bytes(data[k : k + n_bytes], "little") for k in range(0, len(data), n_bytes)]


def raw_coder(side, record):
    return lambda chunk, first, n: words_of(
        chunk.take(n * record["dtype"].word_bytes), record["dtype"].word_bytes
    )


def planes_coder(side, record):
    dtype = record["dtype"]
    planes = []
    for _ in range(dtype.word_bytes):
        mode = side.raw(2)
        if mode == c.PLANE_CONSTANT:
            planes.append(side.raw(8))
        elif mode == c.PLANE_RAW:
            planes.append(None)
        else:
            planes.append(side.huffman_code(256, 16))

    def decode(chunk, first, n):
        columns = []
        for plane in planes:
            if isinstance(plane, int):
                columns.append([plane] * n)
            elif plane is None:
                columns.append(list(chunk.take(n)))
            else:
                lanes, _ = read_lanes(chunk, n, lambda bits, plane=plane: read_bits(bits, plane))
                columns.append([byte for lane in lanes for byte in lane])
        words = [sum(byte << 8 * k for k, byte in enumerate(row)) for row in zip(*columns, strict=True)]
        if dtype.kind is c.WordKind.FLOAT:
            words = [word >> 1 | (word & 1) << (8 * dtype.word_bytes - 1) for word in words]
        return words

    return decode


def by_group(books, record):
    """Return a function from a word's place and label to its value."""
    stretch = record["n_words"] // len(books)
    assert record["n_words"] % len(books) == 0
    return lambda place, label: books[place // stretch][label]


def fixed_coder(side, record):
    books, _ = side.codebooks(record["dtype"], record["n_labels"])
    value_of = by_group(books, record)
    n_bits = max(1, (record["n_labels"] - 1).bit_length())

    def decode(chunk, first, n):
        bits = to_bits(chunk.take((n * n_bits + 7) // 8))
        words = [value_of(first + k, read_fixed(bits, n_bits)) for k in range(n)]
        assert not bits.any()
        return words

    return decode


def labels_coder(side, record):
    n_labels = record["n_labels"]
    books, _ = side.codebooks(record["dtype"], n_labels)
    value_of = by_group(books, record)
    block = side.number("block") + 1
    code = side.huffman_code(n_labels**block, n_labels)

    def decode(chunk, first, n):
        n_symbols = (n + block - 1) // block
        if "" in code:
            symbols = [code[""]] * n_symbols
        else:
            lanes, _ = read_lanes(chunk, n_symbols, lambda bits: read_bits(bits, code))
            symbols = [symbol for lane in lanes for symbol in lane]
        labels = []
        for symbol in symbols:
            digits = []
            for _ in range(block):
                symbol, digit = divmod(symbol, n_labels)
                digits.append(digit)
            labels += digits[::-1]
        return [value_of(first + k, label) for k, label in enumerate(labels[:n])]

    return decode


def run_coder(side, record):
    n_labels = record["n_labels"]
    books, has_zero = side.codebooks(record["dtype"], n_labels)
    assert has_zero
    value_of = by_group(books, record)
    n_buckets = side.number("buckets") + 1
    raw_bits = side.number("raw")
    if record["coder"] == c.CODER_ZERO_RUN:
        n_columns = n_labels - 1
        joint = side.huffman_code(n_buckets * n_columns + 1, n_columns)

        def read_entry(bits):
            symbol = read_bits(bits, joint)
            low = read_fixed(bits, raw_bits)
            if symbol == n_buckets * n_columns:
                return ((n_buckets - 1) << raw_bits) + low, 0
            return (symbol // n_columns << raw_bits) + low, symbol % n_columns + 1
    else:
        run_code = side.huffman_code(n_buckets, n_buckets)
        label_code = side.huffman_code(n_labels, n_labels)

        def read_entry(bits):
            run = (read_bits(bits, run_code) << raw_bits) + read_fixed(bits, raw_bits)
            return run, read_bits(bits, label_code)

    def decode(chunk, first, n):
        labels = [0] * n
        lanes, starts = read_lanes(chunk, chunk.varint(), read_entry, with_starts=True)
        place = 0
        for lane, start in zip(lanes, starts, strict=True):
            assert place == start
            for run, label in lane:
                place += run
                labels[place] = label
                place += 1
        return [value_of(first + k, label) for k, label in enumerate(labels)]

    return decode


FEEDBACK = {4: (2, 1), 8: (5, 2), 16: (9, 2), 32: (18, 4), 64: (33, 10), 128: (78, 43), 256: (166, 121)}


class Shared:
    """States of lanes over one stream of 16-bit words."""

    def __init__(self, chunk, n_lanes):
        self.chunk = chunk
        self.states = [chunk.number(4) for _ in range(n_lanes)]
        assert min(self.states) >= 2**16

    def settle(self, lane, state):
        if state < 2**16:
            state = state * 2**16 + self.chunk.number(2)
        self.states[lane] = state

    def symbol(self, lane, slots):
        rest, slot = divmod(self.states[lane], sum(slots))
        symbol = next(k for k in range(len(slots)) if slot < sum(slots[: k + 1]))
        self.settle(lane, rest * slots[symbol] + slot - sum(slots[:symbol]))
        return symbol

    def raw(self, lane, n_values):
        rest, value = divmod(self.states[lane], n_values)
        self.settle(lane, rest)
        return value


def buckets():
    """Return the smallest magnitude of each bucket, and how many it has."""
    smallest, found = 0, []
    for number in range(44):
        size = 1 if number < 8 else 2 ** (number // 4 - 1)
        found.append((smallest, size))
        smallest += size
    return found


BUCKETS = buckets()


def context_coder(side, record):
    n_labels, shape = record["n_labels"], record["shape"]
    (book,), has_zero = side.codebooks(record["dtype"], n_labels)
    tables, choice, n_classes = record["sets"][side.number("set")]()
    states = (0, *FEEDBACK)[side.number("states")]
    values = book
    if has_zero:
        top = 1 << (8 * record["dtype"].word_bytes - 1)
        unsigned = record["dtype"].kind is c.WordKind.UNSIGNED
        below = [word for word in book[1:] if word >= top and not unsigned]
        values, origin = [*below, 0, *book[1 + len(below) :]], len(below)
    else:
        origin = side.number("base")
    n_rows = shape[0] if len(shape) > 1 else 1
    width = record["n_words"] // n_rows
    n_columns = shape[1] if len(shape) > 1 else width
    distance = side.number("distance")
    limits = [side.number("threshold")]
    limits += [limits[0] + side.number("threshold")]
    limits += [limits[1] + side.number("threshold")]
    along = []
    for kind, count in (("column", n_columns), ("position", width // n_columns)):
        along.append(side.classes(kind, count) if count > 1 and side.raw(1) else [0] * count)
    base = side.number("base")
    by_row = [None if one is None else base + one for one in side.classes("row", n_rows)]

    def class_of(row, x):
        column, position = divmod(x, width // n_columns)
        parts = by_row[row], along[0][column], along[1][position]
        return 0 if None in parts else min(max(sum(parts), 0), n_classes - 1)

    def decode(chunk, first, n):
        rows = range(first // width, (first + n) // width)
        wanted = 8 if n >= 16384 else 4 if n >= 4096 else 2 if n >= 2048 else 1
        n_lanes = min(wanted, len(rows))
        shared, walks = Shared(chunk, n_lanes), [0] * n_lanes
        words, levels = {}, {}
        for turn in range(0, len(rows), n_lanes):
            for x in range(width):
                for lane, row in enumerate(rows[turn : turn + n_lanes]):
                    quantiser = walks[lane] % 2
                    near = levels.get((row, x - 1), 0)
                    far = levels.get((row, x - distance), 0) if distance else 0
                    table, sign = choice[quantiser, class_of(row, x), near, far]
                    symbol = shared.symbol(lane, tables[table])
                    smallest, size = BUCKETS[(symbol + 1) // 2]
                    k = smallest + shared.raw(lane, size)
                    sign = sign if symbol % 2 else -sign
                    levels[row, x] = sign * sum(smallest > limit for limit in limits)
                    if states:
                        here, (a, b) = walks[lane], FEEDBACK[states]
                        walks[lane] = here // 2 ^ a * (here % 2) ^ b * (k % 2)
                        k = 2 * k - quantiser if k else 0
                    assert 0 <= origin + sign * k < n_labels
                    words[row, x] = values[origin + sign * k]
        assert shared.states == [2**16] * n_lanes
        return [words[row, x] for row in rows for x in range(width)]

    return decode


CODERS = {
    c.CODER_RAW: raw_coder,
    c.CODER_PLANES: planes_coder,
    c.CODER_FIXED: fixed_coder,
    c.CODER_LABELS: labels_coder,
    c.CODER_ZERO_RUN: run_coder,
    c.CODER_SPLIT_RUN: run_coder,
    c.CODER_CONTEXT: context_coder,
}


# Frames.


def read_record(directory, records, sets):
    code = directory.number(1)
    if code == 0:
        return dict(records[directory.varint()], alias=True)
    dtype = c.DTYPE_BY_CODE[code]
    shape = tuple(directory.varint() for _ in range(directory.varint()))
    n_words = dtype.words_per_element
    for size in shape:
        n_words *= size
    record = {"dtype": dtype, "shape": shape, "n_words": n_words, "n_labels": 0, "chunks": [], "alias": False}
    record["sets"] = sets
    if n_words == 0:
        return record
    record["coder"] = coder = directory.number(1)
    record["n_labels"] = directory.varint() if coder in c.SHARED_CODERS else 0
    record["n_kept"] = directory.varint() if coder in c.RUN_CODERS else None
    shift = directory.number(1)
    step = 2**shift if shift else n_words
    if shift and coder == c.CODER_CONTEXT:
        step *= n_words // shape[0]
    record["spans"] = [(first, min(n_words, first + step)) for first in range(0, n_words, step)]
    record["chunks"] = [(directory.varint(), directory.number(4)) for _ in record["spans"]]
    record["digest"] = None if coder == c.CODER_RAW else directory.number(4)
    return record


def decode_tensor(record, body):
    """Return the words of a tensor, taking its chunks off the front of the body."""
    if not record["chunks"]:
        return []
    words = []
    decode = None
    for (size, sealed), (first, last) in zip(record["chunks"], record["spans"], strict=True):
        data = body.take(size)
        assert checksum(data) == sealed
        chunk = Bytes(data)
        if decode is None:
            tables = b"" if record["coder"] == c.CODER_RAW else chunk.take(chunk.varint())
            assert not tables.endswith(b"\x00")
            side = Side(tables)
            decode = CODERS[record["coder"]](side, record)
            assert not side.data
        words += decode(chunk, first, last - first)
        assert not chunk.data
    data = b"".join(word.to_bytes(record["dtype"].word_bytes, "little") for word in words)
    assert record["digest"] in (None, checksum(data))
    assert record["n_kept"] in (None, sum(word != 0 for word in words))
    return words


def decode_frame(frame):
    """Return tensors (dtype, shape, words), metadata and sections of a frame."""
    assert frame[:8] == b"\x89DCZ\r\n\x1a\n"
    assert frame[8] == 1
    assert frame[10:12] == b"\x00\x00"
    n_bytes = int.from_bytes(frame[12:16], "little")
    sealed = int.from_bytes(frame[16:20], "little")
    assert checksum(frame[:16] + frame[20 : 20 + n_bytes]) == sealed
    directory, body = Bytes(frame[20 : 20 + n_bytes]), Bytes(frame[20 + n_bytes :])
    sets = []
    for size, sealed in [(directory.varint(), directory.number(4)) for _ in range(directory.varint())]:
        data = body.take(size)
        assert checksum(data) == sealed
        sets.append(cache(lambda data=data: Side(data).table_set()))
    names, records, name = [], [], b""
    for _ in range(directory.varint()):
        name = name[: directory.varint()] + directory.take(directory.varint())
        names.append(name.decode())
        records.append(read_record(directory, records, sets))
    metadata = {}
    for _ in range(directory.varint()):
        key = directory.take(directory.varint()).decode()
        metadata[key] = directory.take(directory.varint()).decode()
    stored = [
        (directory.varint(), directory.varint(), directory.number(4)) for _ in range(directory.varint())
    ]
    assert not directory.data
    decoded = {}
    for name, record in zip(names, records, strict=True):
        if not record["alias"]:
            decoded[name] = record["dtype"], record["shape"], decode_tensor(record, body)
    by_record = {id(r["chunks"]): decoded[n] for n, r in zip(names, records, strict=True) if not r["alias"]}
    tensors = {n: by_record[id(r["chunks"])] for n, r in zip(names, records, strict=True)}
    sections = []
    for kind, size, sealed in stored:
        data = body.take(size)
        assert checksum(data) == sealed
        sections.append((kind, data))
    assert not body.data
    return tensors, metadata, sections


# The two decoders agree.


def check(frame):
    """Decode a frame twice; return the tensors as the oracle sees them."""
    tensors, metadata, sections = decode_frame(frame)
    got = read_everything(frame)
    assert list(got) == list(tensors)
    for name, (dtype, shape, words) in tensors.items():
        assert (got[name].dtype, got[name].shape) == (dtype, shape)
        assert got[name].words.tolist() == words
    with open_frame(frame) as reader:
        assert reader.directory.metadata == metadata
        assert [(s.kind, reader.read_section(s.kind)) for s in reader.directory.sections] == sections
    return tensors


def sparse(n_words, density=0.4, n_centroids=5, n_groups=1, dtype="float32", seed=0):
    rng = np.random.default_rng(seed)
    kind = c.DTYPE_BY_NAME[dtype]
    labels = np.minimum(rng.geometric(0.4, n_words), n_centroids)
    labels[rng.random(n_words) >= density] = 0
    codebook = random_codebook(rng, kind, n_groups, n_centroids, has_zero=True)
    return SharedTensor(kind, (n_words // kind.words_per_element,), codebook, labels.astype(np.uint16), True)


def dense(n_words, n_labels=5, n_groups=1, dtype="float32", seed=0):
    rng = np.random.default_rng(seed)
    kind = c.DTYPE_BY_NAME[dtype]
    labels = np.minimum(rng.geometric(0.4, n_words) - 1, n_labels - 1).astype(np.uint16)
    codebook = random_codebook(rng, kind, n_groups, n_labels, has_zero=False)
    return SharedTensor(kind, (n_words // kind.words_per_element,), codebook, labels, False)


def fit_run(kind, tensor, cut, shift):
    words = 1 << shift if shift else tensor.labels.size
    coder, _ = kind.fit(Codebook.of(tensor), RunStatistics(tensor.labels, tensor.n_labels, words), *cut)
    assert coder.usable
    return coder


def check_one(tensor, coder, shift=0):
    check(frame_of({"w": coded(tensor, coder, shift)}))


@pytest.mark.parametrize("dtype", c.DTYPES, ids=lambda dtype: dtype.name)
def test_every_coder_with_every_dtype(dtype):
    rng = np.random.default_rng(dtype.code)
    plain = TensorData(dtype, (30,), random_words(rng, 30 * dtype.words_per_element, dtype.word_bytes))
    few, some = dense(60, dtype=dtype.name), sparse(60, dtype=dtype.name)
    frame = {
        "raw": coded(plain, Raw(), 3),
        "planes": coded(plain, Planes.fit(dtype, plain.words)[0], 4),
        "fixed": coded(few, FixedWidth(Codebook.of(few))),
        "labels": coded(few, Labels.fit(Codebook.of(few), few.labels, 60)[1][0]),
        "zero_run": coded(some, fit_run(ZeroRun, some, (4, 1), 0)),
        "split_run": coded(some, fit_run(SplitRun, some, (4, 1), 0)),
    }
    check(frame_of(frame))


@pytest.mark.parametrize("n_words", [17, 18, 1023, 1024, 1025, 1027])
@pytest.mark.parametrize("n_labels", [1, 2, 17])
def test_dense_lanes(n_words, n_labels):
    tensor = dense(n_words, n_labels)
    codebook = Codebook.of(tensor)
    check_one(tensor, FixedWidth(codebook))
    for coder, _ in Labels.fit(codebook, tensor.labels, n_words)[:2]:
        check_one(tensor, coder)


@pytest.mark.parametrize("n_words", [3, 9, 4096])
def test_blocks_of_every_size(n_words):
    tensor = dense(n_words, 3)
    fits = Labels.fit(Codebook.of(tensor), tensor.labels, n_words)
    for coder, _ in fits:
        check_one(tensor, coder)


@pytest.mark.parametrize("kind", [ZeroRun, SplitRun])
@pytest.mark.parametrize("cut", [(2, 0), (8, 0), (1, 3), (3, 2), (1, 12), (40, 0)])
@pytest.mark.parametrize("density", [0.01, 0.4])
def test_cuts_of_zero_runs_with_fillers_and_raw_bits(kind, cut, density):
    tensor = sparse(3000, density)
    check_one(tensor, fit_run(kind, tensor, cut, 0))


@pytest.mark.parametrize("kind", [ZeroRun, SplitRun])
@pytest.mark.parametrize("n_kept", [0, 1, 1023, 1024, 1025, 1200])
def test_sparse_lanes(kind, n_kept):
    like = sparse(9000, 0.3)
    labels = np.zeros(1500, np.uint16)
    labels[np.random.default_rng(n_kept).permutation(1500)[:n_kept]] = 2
    tensor = SharedTensor(like.dtype, (1500,), like.codebook, labels, True)
    check_one(tensor, fit_run(kind, like, (4, 1), 0))


@pytest.mark.parametrize("kind", [ZeroRun, SplitRun])
def test_lone_codes_with_raw_bits(kind):
    labels = np.zeros(4000, np.uint16)
    labels[2::3] = 1
    tensor = SharedTensor(c.DTYPE_BY_NAME["float32"], (4000,), np.array([[9]], np.uint32), labels, True)
    check_one(tensor, fit_run(kind, tensor, (4, 2), 0))


@pytest.mark.parametrize("shift", [2, 4, 9])
@pytest.mark.parametrize("n_groups", [1, 4, 50])
def test_chunks_and_groups(shift, n_groups):
    few, some = dense(600, n_groups=n_groups), sparse(600, n_groups=n_groups)
    check_one(few, FixedWidth(Codebook.of(few)), shift)
    check_one(few, Labels.fit(Codebook.of(few), few.labels, 1 << shift)[1][0], shift)
    for kind in (ZeroRun, SplitRun):
        check_one(some, fit_run(kind, some, (4, 1), shift), shift)


def test_planes_of_every_kind():
    # Constant, raw, coded in one lane and in four.
    rng = np.random.default_rng(0)
    high = np.minimum(rng.geometric(0.3, 1500), 12).astype(np.uint32)
    words = (
        high << np.uint32(24) | rng.integers(0, 256, 1500).astype(np.uint32) << np.uint32(8) | np.uint32(7)
    )
    code = HuffmanCode.from_counts(np.bincount(high, minlength=256))
    dtype = c.DTYPE_BY_NAME["uint32"]
    coder = Planes(dtype, (7, None, 0, None), (None, None, None, code))
    for n in (1500, 900):
        check_one(TensorData(dtype, (n,), words[:n]), coder)
    check_one(TensorData(dtype, (1500,), words), coder, 10)


def test_long_codes():
    # Code lengths of 1 to 15: the widest tables there are.
    lengths = np.array([*range(1, 16), 15], np.uint8)
    rng = np.random.default_rng(0)
    codebook = random_codebook(rng, c.DTYPE_BY_NAME["float32"], 1, 16, has_zero=False)
    labels = rng.integers(0, 16, 3000).astype(np.uint16)
    tensor = SharedTensor(c.DTYPE_BY_NAME["float32"], (3000,), codebook, labels, False)
    check_one(tensor, Labels(Codebook.of(tensor), 1, HuffmanCode(lengths)))
    zero = SharedTensor(tensor.dtype, (6000,), codebook[:, :15], np.repeat(labels, 2) // 2 * 2, True)
    zero.labels[::2] = 0
    zero.labels[zero.labels > 15] = 0
    zero_run = ZeroRun(Codebook.of(zero), 1, 4, HuffmanCode(lengths))
    check_one(zero, zero_run)
    check_one(zero, SplitRun(Codebook.of(zero), 16, 0, HuffmanCode(lengths), HuffmanCode(lengths)))


def test_the_small_model_of_every_coder(kernel):
    frame, _ = small_model()
    tensors = check(frame)
    assert tensors["tied"] is tensors["b.labels"]


@pytest.mark.parametrize("effort", [1, 6, 9])
@pytest.mark.parametrize("preset", ["lossless", "balanced", "paper"])
def test_frames_of_the_encoder(preset, effort):
    rng = np.random.default_rng(0)
    f32 = c.DTYPE_BY_NAME["float32"]

    def weights(*shape):
        return TensorData(
            f32, shape, rng.normal(0, 0.1, shape).astype(np.float32).reshape(-1).view(np.uint32)
        )

    model = {
        "net.0.weight": weights(6, 4, 10, 10),
        "net.0.bias": weights(6),
        "net.1.weight": weights(50, 70),
        "net.1.tied": weights(1),
        "net.steps": TensorData(c.DTYPE_BY_NAME["int64"], (), np.array([2**63 + 5], np.uint64)),
        "net.mask": TensorData(c.DTYPE_BY_NAME["bool"], (2000,), (rng.random(2000) < 0.1).astype(np.uint8)),
        "empty": weights(0, 3),
    }
    checkpoint = Checkpoint(
        {**model, "net.1.tied": model["net.1.weight"]},
        {"net.1.tied": "net.1.weight"},
        {"by": "test", "ü": ""},
        {"values": {"epoch": 3}, "value_positions": [0]},
    )
    tensors = check(encode_checkpoint(checkpoint, Recipe(preset=preset), effort=effort).to_bytes())
    if preset == "lossless":
        assert {name: words for name, (_, _, words) in tensors.items()} == {
            name: data.words.tolist() for name, data in checkpoint.tensors.items()
        }


def test_sections_and_metadata():
    check(frame_of({}, {"a": "b", "": "ü"}, [Section(5, b"data"), Section(2**40, b"")]))


@settings(max_examples=25)
@given(contexts(shape=st.lists(st.integers(1, 6), max_size=4).map(tuple), shifts=(0, 2)))
def test_any_context(one):
    tensor, coder, shift = one
    check(frame_of({"w": coded(tensor, coder, shift)}, table_sets=[coder.tables.to_bytes()]))


@pytest.mark.parametrize("shape", [(4200,), (2, 2050), (20, 3, 70), (33, 500), (5, 13200)])
@pytest.mark.parametrize("states", [0, 8])
def test_lanes_of_contexts(shape, states):
    rng = np.random.default_rng(states)
    tensor, coder = random_context(rng, c.DTYPE_BY_NAME["int16"], shape, 30, True, states, most_tables=4)
    check(frame_of({"w": coded(tensor, coder)}, table_sets=[coder.tables.to_bytes()]))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_even_codebooks(dtype):
    labels = np.arange(60, dtype=np.uint16) % 20
    # Steps that all three types can hold; most of their multiples are rounded.
    for step, n_negative in ((205 / 2048, 7), (2.0**-24, 0), (2000.0, 19), (1e-45, 5), (2.0**124, 3)):
        book = even_values(c.DTYPE_BY_NAME[dtype], np.float32(step), n_negative, 19)
        if np.unique(book).size < 19 or not book.all():
            continue
        tensor = SharedTensor(c.DTYPE_BY_NAME[dtype], (60,), book[None], labels, True)
        coder = FixedWidth(Codebook.of(tensor))
        assert len(table_bytes(coder)) < 10
        check_one(tensor, coder)


small = st.integers(1, 120) | st.sampled_from([1024, 1100])


@settings(max_examples=25)
@given(tensors(n_elements=small))
def test_any_tensor(tensor):
    frame = encode_checkpoint(Checkpoint({"w": tensor}), Recipe(preset="lossless")).to_bytes()
    assert check(frame)["w"] == (tensor.dtype, tensor.shape, tensor.words.tolist())


@settings(max_examples=25)
@given(
    shared_tensors(n_words=small, has_zero=True),
    st.sampled_from([ZeroRun, SplitRun]),
    st.integers(1, 9),
    st.integers(1, 6),
)
def test_any_sparse_tensor(tensor, kind, n_buckets, raw_bits):
    if tensor.labels.any():
        check_one(tensor, fit_run(kind, tensor, (n_buckets, raw_bits), 0))
