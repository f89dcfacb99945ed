from __future__ import annotations

import struct
import time
from itertools import pairwise

import pytest

from dcompress.checksum import checksum
from dcompress.constants import (
    CODER_CONTEXT,
    CODER_FIXED,
    CODER_PLANES,
    CODER_ZERO_RUN,
    DTYPES,
    MAX_LABELS,
    MAX_TABLE_SET_BYTES,
    MAX_TABLE_SETS,
    PREAMBLE_BYTES,
    SIGNATURE,
)
from dcompress.container.reader import read_directory, read_preamble
from dcompress.errors import (
    ChecksumError,
    CorruptError,
    DecodeError,
    LimitError,
    NotDczError,
    TruncatedError,
    UnsupportedError,
)
from dcompress.limits import DecodeLimits
from tests.checks import Entry, Frame, flipped, raises_rule, text, varint

LIMITS = DecodeLimits()
HUGE = (1 << 64) - 1


def read(frame, limits=LIMITS):
    return read_directory(frame.to_bytes(), limits)


def refused(frame, kind, rule, limits=LIMITS):
    with pytest.raises(DecodeError) as caught:
        read(frame, limits)
    assert (type(caught.value), caught.value.rule) == (kind, rule), str(caught.value)
    return caught.value


# What a good directory says.


def test_a_directory_by_hand():
    frame = Frame(
        [
            Entry(b"layer.weight", shape=(2, 3), coder=CODER_PLANES, chunks=(b"abcde",), digest=77),
            Entry(b"bias", prefix=6, dtype=10, shape=(2,), chunks=(b"\x01\x02\x03\x04",)),
            Entry(b"tied", prefix=0, alias_of=0),
            Entry(b"", prefix=0, dtype=1, shape=(4, 0)),
            Entry(b"sparse", coder=CODER_ZERO_RUN, n_labels=300, n_kept=2, chunks=(b"xyz",), digest=5),
        ],
        metadata=[(b"author", b"x"), (b"", "ü".encode())],
        sections=[(9, b"later"), (1, b"")],
        minor=200,
    )
    data = frame.to_bytes()
    directory = read_directory(data, LIMITS)
    assert directory.version == (1, 200)
    assert list(directory.tensors) == ["layer.weight", "layer.bias", "tied", "", "sparse"]
    weight, bias, tied, empty, sparse = directory.tensors.values()
    assert (weight.dtype.name, weight.shape, weight.coder, weight.n_kept) == ("float32", (2, 3), 1, 6)
    assert (weight.digest, weight.n_labels, weight.coder_name) == (77, 0, "planes")
    assert (bias.dtype.name, bias.decoded_bytes, bias.stored_bytes) == ("float16", 4, 4)
    assert (tied.alias_of, tied.shape, tied.chunks, tied.stored_bytes) == (
        "layer.weight",
        (2, 3),
        weight.chunks,
        0,
    )
    assert (empty.shape, empty.n_words, empty.chunks) == ((4, 0), 0, ())
    assert (sparse.n_labels, sparse.n_kept, sparse.digest) == (300, 2, 5)
    assert [c.offset for t in (weight, bias, sparse) for c in t.chunks] == [
        directory.head_bytes,
        directory.head_bytes + 5,
        directory.head_bytes + 9,
    ]
    assert directory.metadata == {"author": "x", "": "ü"}
    assert [(s.kind, s.n_bytes) for s in directory.sections] == [(9, 5), (1, 0)]
    assert directory.frame_bytes == len(data)


def test_an_empty_directory():
    directory = read(Frame())
    assert directory.tensors == directory.metadata == {}
    assert directory.table_sets == directory.sections == ()
    assert directory.frame_bytes == PREAMBLE_BYTES + 4


@pytest.mark.parametrize("shift", [2, 3, 5])
def test_chunks_cut_the_words(shift):
    n_words, n_chunks = 33, -(-33 >> shift)
    chunks = tuple(bytes([k]) * (k + 1) for k in range(n_chunks))
    entry = Entry(shape=(n_words,), coder=CODER_PLANES, chunk_shift=shift, chunks=chunks)
    record = read(Frame([entry])).tensors["w"]
    spans = [record.chunk_words(k) for k in range(n_chunks)]
    assert spans[0] == (0, 1 << shift)
    assert spans[-1][1] == n_words
    assert all(a[1] == b[0] for a, b in pairwise(spans))
    assert [c.n_bytes for c in record.chunks] == [k + 1 for k in range(n_chunks)]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
def test_every_dtype_has_its_number(dtype):
    entry = Entry(dtype=dtype.code, shape=(), chunks=(bytes(dtype.element_bytes),))
    record = read(Frame([entry])).tensors["w"]
    assert record.dtype is dtype
    assert record.n_words == dtype.words_per_element
    assert record.decoded_bytes == dtype.element_bytes


# Preamble.


@pytest.mark.parametrize(
    "data", [b"", b"\x00", b"PK\x03\x04", SIGNATURE[1:], b"\x89PNG\r\n\x1a\n" + bytes(30)]
)
def test_other_files_are_no_dcz(data):
    with raises_rule(NotDczError, "FRM-02"):
        read_preamble(data, LIMITS)


def test_signatures_mangled_in_transfer_are_no_dcz():
    for mangled in (
        SIGNATURE.replace(b"\r\n", b"\n"),
        SIGNATURE.replace(b"\n", b"\r\n"),
        b"\x09" + SIGNATURE[1:],
    ):
        with raises_rule(NotDczError, "FRM-02"):
            read_preamble(mangled + bytes(20), LIMITS)


@pytest.mark.parametrize("length", range(1, PREAMBLE_BYTES))
def test_a_cut_off_preamble_is_truncated(length):
    with raises_rule(TruncatedError, "FRM-01"):
        read_preamble(Frame().to_bytes()[:length], LIMITS)


@pytest.mark.parametrize("major", [0, 2, 255])
def test_other_major_versions_want_another_reader(major):
    error = refused(Frame(major=major), UnsupportedError, "FRM-03")
    assert f"{major}.0" in str(error)
    assert "upgrade" in error.hint


@pytest.mark.parametrize("bit", range(16))
def test_unknown_features_want_another_reader(bit):
    error = refused(Frame(features=1 << bit), UnsupportedError, "FRM-04")
    assert f"0x{1 << bit:04x}" in str(error)


def test_directories_are_no_larger_than_the_limit():
    frame = Frame([Entry()])
    size = len(frame.to_bytes()) - 12 - PREAMBLE_BYTES
    read(frame, DecodeLimits(max_directory_bytes=size))
    error = refused(frame, LimitError, "LIM-01", DecodeLimits(max_directory_bytes=size - 1))
    assert f"max_directory_bytes={size - 1}" in str(error)
    assert str(size) in str(error)


def test_a_huge_directory_is_refused_before_it_is_read():
    head = SIGNATURE + struct.pack("<BBHI", 1, 0, 0, 0xFFFFFFFF) + bytes(4)
    with raises_rule(LimitError, "LIM-01"):
        read_preamble(head, LIMITS)


def test_a_cut_off_directory_is_truncated():
    data = Frame([Entry()]).to_bytes()
    for length in range(PREAMBLE_BYTES, len(data) - 12):
        with raises_rule(TruncatedError, "FRM-01"):
            read_directory(data[:length], LIMITS)


def test_every_bit_of_the_head_is_sealed():
    data = Frame([Entry()], metadata=[(b"k", b"v")]).to_bytes()
    for bit in range(8 * (len(data) - 12)):
        with pytest.raises(DecodeError) as caught:
            read_directory(flipped(data, bit), LIMITS)
        if bit >= 8 * (PREAMBLE_BYTES - 4):
            assert type(caught.value) is ChecksumError
            assert caught.value.rule == "FRM-05"


# Numbers and texts of the directory.


@pytest.mark.parametrize("where", ["n_tensors", "n_metadata", "n_sections"])
@pytest.mark.parametrize("count", [varint(0, 2), varint(0, 10)])
def test_numbers_have_one_encoding(where, count):
    refused(Frame(**{where: count}), CorruptError, "NUM-01")


@pytest.mark.parametrize("place", [0, 1, 4, 5, 8])
def test_numbers_of_a_record_have_one_encoding(place):
    # Prefix, length of the name, rank, size, bytes of the chunk; the coder and shift between are bytes.
    fields = [
        varint(0),
        varint(1),
        b"w",
        b"\x0c",
        varint(1),
        varint(3),
        b"\x00",
        b"\x00",
        varint(12),
        bytes(4),
    ]
    read(Frame([b"".join(fields)]))
    fields[place] = varint(fields[place][0], 2)
    refused(Frame([b"".join(fields)]), CorruptError, "NUM-01")


@pytest.mark.parametrize(
    "frame",
    [
        Frame(n_tensors=varint(1)),
        Frame(n_tensors=varint(1 << 20)),
        Frame([b"\x00"]),
        Frame([Entry().to_bytes()[:-1]], directory=b"\x00\x01" + Entry().to_bytes()[:-1]),
        Frame([], metadata=[], directory=b"\x00\x00\x01\x05abc"),
        Frame([], directory=b""),
        Frame([], directory=b"\x00\x00"),
        Frame([], directory=b"\x00\x00\x00"),
        Frame([], directory=b"\x00\x00\x00\x01\x01\x00\x00\x00"),
        Frame([], directory=b"\x01\x05\x00\x00\x00"),
        Frame([], directory=b"\x02\x05\x00\x00\x00\x00"),
    ],
)
def test_directories_that_end_too_early_are_truncated(frame):
    refused(frame, TruncatedError, "FRM-01")


def test_nothing_follows_the_directory():
    refused(Frame(directory=b"\x00\x00\x00\x00\x00"), CorruptError, "DIR-01")


def test_counts_larger_than_what_is_left_are_refused():
    refused(Frame(n_metadata=varint(5)), CorruptError, "NUM-02")
    refused(Frame(n_sections=varint(HUGE)), CorruptError, "NUM-02")
    refused(Frame(n_table_sets=varint(5)), TruncatedError, "FRM-01")
    refused(Frame(n_table_sets=varint(HUGE)), CorruptError, "DIR-14")


def test_table_sets_stand_before_the_chunks():
    directory = read(Frame([Entry()], table_sets=[b"ab", b"", bytes(MAX_TABLE_SET_BYTES)]))
    sizes = [one.n_bytes for one in directory.table_sets]
    assert sizes == [2, 0, MAX_TABLE_SET_BYTES]
    first = directory.head_bytes
    assert [one.offset for one in directory.table_sets] == [first, first + 2, first + 2]
    assert directory.table_sets[0].checksum == checksum(b"ab")
    assert directory.tensors["w"].chunks[0].offset == first + 2 + MAX_TABLE_SET_BYTES
    assert directory.frame_bytes == first + 2 + MAX_TABLE_SET_BYTES + 12


@pytest.mark.parametrize("size", [MAX_TABLE_SET_BYTES + 1, HUGE])
def test_table_sets_are_small(size):
    refused(Frame(directory=b"\x01" + varint(size) + bytes(7)), CorruptError, "DIR-14")


@pytest.mark.parametrize("count", [MAX_TABLE_SETS + 1, HUGE])
def test_table_sets_are_few(count):
    refused(Frame(directory=varint(count) + bytes(7)), CorruptError, "DIR-14")


@pytest.mark.parametrize(
    ("shape", "shift", "n_chunks"),
    [((33, 5), 2, 9), ((33, 5), 5, 2), ((5, 2, 9), 2, 2), ((9,), 0, 1), ((), 0, 1), ((1, 999), 0, 1)],
)
def test_chunks_of_the_context_coder_are_rows(shape, shift, n_chunks):
    entry = Entry(shape=shape, coder=CODER_CONTEXT, n_labels=7, chunk_shift=shift, chunks=(b"x",) * n_chunks)
    record = read(Frame([entry])).tensors["w"]
    row_words = record.n_words // (shape[0] if len(shape) > 1 else 1)
    spans = [record.chunk_words(number) for number in range(n_chunks)]
    assert (spans[0][0], spans[-1][1]) == (0, record.n_words)
    assert all(begin % row_words == end % row_words == 0 for begin, end in spans)
    assert not shift or spans[0][1] == row_words << shift


@pytest.mark.parametrize(
    ("shape", "shift"), [((4, 100), 2), ((33, 5), 6), ((1000,), 2), ((1, 1000), 3), ((), 2), ((33, 5), 1)]
)
def test_one_row_is_never_cut(shape, shift):
    entry = Entry(shape=shape, coder=CODER_CONTEXT, n_labels=7, chunk_shift=shift, chunks=(b"x",) * 250)
    refused(Frame([entry]), CorruptError, "DIR-09")


def test_many_rows_need_room_for_their_chunks():
    entry = Entry(shape=(1 << 50, 2), coder=CODER_CONTEXT, n_labels=7, chunk_shift=2)
    refused(Frame([entry]), CorruptError, "DIR-10")


@pytest.mark.parametrize("name", [b"\xff", b"a\xc3", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80"])
def test_names_are_strict_utf_8(name):
    refused(Frame([Entry(name)]), CorruptError, "DIR-13")
    refused(Frame(metadata=[(name, b"")]), CorruptError, "DIR-13")
    refused(Frame(metadata=[(b"", name)]), CorruptError, "DIR-13")


def test_a_shared_prefix_may_end_within_a_character():
    one, other = "ü".encode(), "ö".encode()
    names = list(read(Frame([Entry(one), Entry(other[1:], prefix=1)])).tensors)
    assert names == ["ü", "ö"]


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a\x00b", "", "__metadata__", "a/b\\c", "\u202e"])
def test_names_are_opaque(name):
    assert list(read(Frame([Entry(name.encode())])).tensors) == [name]


def test_names_that_look_alike_are_two():
    frame = Frame([Entry("\u00e9".encode()), Entry("e\u0301".encode())])
    assert len(read(frame).tensors) == 2


def test_a_prefix_longer_than_the_name_before_is_refused():
    refused(Frame([Entry(b"w", prefix=1)]), CorruptError, "DIR-02")
    refused(Frame([Entry(b"ab"), Entry(b"w", prefix=3)]), CorruptError, "DIR-02")
    refused(Frame([Entry(b"ab"), Entry(b"w", prefix=HUGE)]), CorruptError, "DIR-02")


def test_no_name_stands_twice():
    error = refused(Frame([Entry(b"ab"), Entry(b"c"), Entry(b"ab")]), CorruptError, "DIR-03")
    assert error.tensor == "ab"
    refused(Frame([Entry(b"ab"), Entry(b"", prefix=2)]), CorruptError, "DIR-03")
    refused(Frame(metadata=[(b"k", b"1"), (b"k", b"2")]), CorruptError, "DIR-12")


# Tensor records.


@pytest.mark.parametrize(
    "entries",
    [
        [Entry(alias_of=0)],
        [Entry(b"a"), Entry(b"b", alias_of=1)],
        [Entry(b"a"), Entry(b"b", alias_of=2), Entry(b"c")],
        [Entry(b"a"), Entry(b"b", alias_of=0), Entry(b"c", alias_of=1)],
        [Entry(b"a"), Entry(b"b", alias_of=HUGE)],
    ],
)
def test_aliases_are_of_earlier_tensors_that_are_stored(entries):
    refused(Frame(entries), CorruptError, "DIR-04")


def test_an_alias_has_what_its_tensor_has():
    frame = Frame([Entry(b"a"), Entry(b"z", shape=(0, 3)), Entry(b"b", alias_of=0), Entry(b"c", alias_of=1)])
    tensors = read(frame).tensors
    assert tensors["b"].alias_of == "a"
    assert tensors["b"].chunks == tensors["a"].chunks
    assert (tensors["c"].alias_of, tensors["c"].shape) == ("z", (0, 3))


@pytest.mark.parametrize("code", [len(DTYPES) + 1, 100, 255])
def test_unknown_dtypes_want_another_reader(code):
    assert refused(Frame([Entry(dtype=code)]), UnsupportedError, "DIR-05").tensor == "w"


@pytest.mark.parametrize("coder", [7, 255])
def test_unknown_coders_want_another_reader(coder):
    assert refused(Frame([Entry(coder=coder)]), UnsupportedError, "DIR-07").tensor == "w"


@pytest.mark.parametrize(
    "shape",
    [
        (1 << 61,),
        (1 << 62,),
        (HUGE,),
        (1 << 31, 1 << 30),
        (1 << 32, 1 << 32),
        (1 << 21, 1 << 21, 1 << 21),
        (0, 1 << 61),
        (1 << 61, 0),
        (0, HUGE),
        (0, 1 << 40, 1 << 40),
        (1 << 16,) * 64,
    ],
)
def test_shapes_that_overflow_are_refused_zeros_or_not(shape):
    refused(Frame([Entry(shape=shape)]), CorruptError, "DIR-06")


@pytest.mark.parametrize(
    "shape", [((1 << 61) - 1,), (0, (1 << 61) - 1), (1, (1 << 61) - 1, 0), (1 << 30, 1 << 30)]
)
def test_shapes_just_below_are_records_like_others(shape):
    # Bytes, not elements, count: 2**61 - 1 floats of four bytes stay below 2**63.
    record = read(Frame([Entry(shape=shape, chunks=(b"",))])).tensors["w"]
    assert record.shape == shape


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
def test_the_bound_of_shapes_is_in_bytes(dtype):
    most = ((1 << 63) - 1) // dtype.element_bytes
    assert read(Frame([Entry(dtype=dtype.code, shape=(most,), chunks=(b"",))])).tensors["w"].shape == (most,)
    refused(Frame([Entry(dtype=dtype.code, shape=(most + 1,))]), CorruptError, "DIR-06")


@pytest.mark.parametrize("n_labels", [0, MAX_LABELS + 1, HUGE])
def test_numbers_of_labels_are_bounded(n_labels):
    refused(Frame([Entry(coder=CODER_FIXED, n_labels=n_labels)]), CorruptError, "DIR-08")


def test_no_more_is_kept_than_there_is():
    entry = Entry(coder=CODER_ZERO_RUN, n_labels=2, n_kept=3)
    assert read(Frame([entry])).tensors["w"].n_kept == 3
    entry.n_kept = 4
    refused(Frame([entry]), CorruptError, "DIR-11")


@pytest.mark.parametrize(
    ("shift", "n_words"), [(1, 9), (2, 4), (2, 1), (40, 99), (41, 1 << 50), (255, 1 << 50), (64, 9)]
)
def test_chunk_shifts_make_chunks_of_at_least_four_words_and_at_least_two(shift, n_words):
    error = refused(Frame([Entry(shape=(n_words,), chunk_shift=shift)]), CorruptError, "DIR-09")
    assert error.tensor == "w"


def test_more_chunks_than_the_directory_can_hold_are_refused_at_once():
    start = time.perf_counter()
    refused(Frame([Entry(shape=(1 << 60,), chunk_shift=2)]), CorruptError, "DIR-10")
    assert time.perf_counter() - start < 1


def test_chunks_and_sections_end_before_two_to_the_63():
    big = varint(0) + text(b"w") + b"\x0c" + varint(1) + varint(3) + b"\x00\x00"
    refused(Frame([big + varint(1 << 63) + bytes(4)]), CorruptError, "NUM-02")
    most = (1 << 63) - 1 - PREAMBLE_BYTES
    refused(Frame([big + varint(most) + bytes(4)]), CorruptError, "NUM-02")
    frame = Frame([], directory=b"\x00\x00\x00\x01\x01" + varint(1 << 63) + bytes(4))
    refused(frame, CorruptError, "NUM-02")


# Limits.


def test_tensors_are_counted_before_they_are_read():
    frame = Frame([Entry(b"a"), Entry(b"b", alias_of=0)])
    assert len(read(frame, DecodeLimits(max_tensors=2)).tensors) == 2
    error = refused(frame, LimitError, "LIM-02", DecodeLimits(max_tensors=1))
    assert "max_tensors=1" in str(error)
    refused(Frame(n_tensors=varint(HUGE)), LimitError, "LIM-02")


def test_rank_is_limited():
    entry = Entry(shape=(1,) * 5, chunks=(bytes(4),))
    assert read(Frame([entry]), DecodeLimits(max_rank=5)).tensors["w"].shape == (1,) * 5
    error = refused(Frame([entry]), LimitError, "LIM-03", DecodeLimits(max_rank=4))
    assert "max_rank=4" in str(error)
    assert error.tensor == "w"
    refused(Frame([varint(0) + text(b"w") + b"\x0c" + varint(HUGE)]), LimitError, "LIM-03")


def test_names_are_limited_with_the_prefix_that_they_share():
    limits = DecodeLimits(max_name_bytes=4)
    read(Frame([Entry(b"abcd"), Entry(b"x", prefix=3)]), limits)
    error = refused(Frame([Entry(b"abcde")]), LimitError, "LIM-04", limits)
    assert "max_name_bytes=4" in str(error)
    refused(Frame([Entry(b"abcd"), Entry(b"xy", prefix=3)]), LimitError, "LIM-04", limits)
    refused(Frame(metadata=[(b"abcde", b"")]), LimitError, "LIM-04", limits)
    refused(Frame([varint(0) + varint(HUGE)]), LimitError, "LIM-04")


def test_metadata_values_are_limited_by_the_directory_alone():
    value = b"x" * 100_000
    assert read(Frame(metadata=[(b"k", value)])).metadata["k"] == value.decode()


def test_a_million_empty_tensors_are_refused_fast():
    start = time.perf_counter()
    refused(Frame(n_tensors=varint(1 << 24)), LimitError, "LIM-02")
    assert time.perf_counter() - start < 1


def test_errors_name_the_tensor_that_they_are_about():
    frame = Frame([Entry(b"good"), Entry(b"bad", dtype=99)])
    error = refused(frame, UnsupportedError, "DIR-05")
    assert error.tensor == "bad"
    assert error.offset is not None
    assert "'bad'" in str(error)
